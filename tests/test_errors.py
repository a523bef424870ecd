"""The exceptions: what else each one is, and that it travels between processes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import dlscale
from dlscale import errors

KNOWN = (*vars(errors).values(), errors.NumericalError, errors.OutOfRange)
RAISED = [each for each in KNOWN if isinstance(each, type) and issubclass(each, errors.DlscaleError)]
ARGUMENTS = {errors.NonFiniteError: (3, 4, float("inf"), "input.rhs")}


@pytest.mark.parametrize("error", RAISED, ids=lambda error: error.__name__)
def test_each_travels_between_processes(error: type[errors.DlscaleError]) -> None:
    sent = error(*ARGUMENTS.get(error, ("why",)))
    come = pickle.loads(pickle.dumps(sent))
    assert type(come) is error
    assert (str(come), come.exit_code) == (str(sent), sent.exit_code)


def test_what_cannot_be_computed_is_caught_as_numpy_s_error() -> None:
    for error in (errors.NumericalError, errors.OutOfRange):
        assert issubclass(error, np.linalg.LinAlgError)
        assert issubclass(error, ArithmeticError)
        assert error.exit_code == 1
    squares = pickle.loads(pickle.dumps(errors.OutOfRange("why", 2.0))).squares
    assert squares == 2.0
    with pytest.raises(np.linalg.LinAlgError, match="singular to working precision"):
        dlscale.solve(np.zeros((3, 3)), np.ones(3))
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        dlscale.cholesky(-np.eye(3))
