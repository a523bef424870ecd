"""The estimate of the condition number, beside the true one."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from helpers import gaussian

from dlscale import gallery
from dlscale.linalg.solve.condition import condition, one_norm


@pytest.mark.parametrize("dtype", ["f8", "c16"])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 60])
@pytest.mark.parametrize("name", [name for name in gallery.HARD_SQUARE if name != "hilbert"])
def test_within_a_factor_of_three_and_never_above(name: str, n: int, dtype: str) -> None:
    A = gallery.HARD_SQUARE[name](n, dtype)
    lu = scipy.linalg.lu_factor(A)
    found = condition(
        np.linalg.norm(A, 1),
        lambda X: scipy.linalg.lu_solve(lu, X),
        lambda X: scipy.linalg.lu_solve(lu, X, trans=2),
        n,
        complex_valued=dtype == "c16",
    )
    true = np.linalg.norm(A, 1) * np.linalg.norm(scipy.linalg.lu_solve(lu, np.eye(n)), 1)
    assert true / 3 <= found <= true * (1 + 1e-6)


def test_the_alternating_vector_finds_what_cancels() -> None:
    """A matrix whose products with ones vanish (Higham 1988, section 2): the estimate is not zero."""
    C = np.array([[1.0, -1.0], [-1.0, 1.0]])
    C = np.kron(np.eye(8), C)
    assert one_norm(lambda X: C @ X, lambda X: C.T @ X, 16) == pytest.approx(2.0)


def test_the_same_estimate_twice() -> None:
    C = gaussian(200, 200)
    found = {one_norm(lambda X: C @ X, lambda X: C.T @ X, 200) for _ in range(2)}
    assert len(found) == 1
    assert found.pop() == pytest.approx(np.linalg.norm(C, 1), rel=0.2)


def test_overflow_is_infinite() -> None:
    assert one_norm(lambda X: X * np.inf, lambda X: X, 4) == np.inf
    assert condition(0.0, lambda X: X, lambda X: X, 4) == np.inf
