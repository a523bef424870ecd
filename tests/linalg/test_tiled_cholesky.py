"""Cholesky of panels in row blocks: the factor of whole panels; the upper triangle is not looked at."""

from __future__ import annotations

import numpy as np
import pytest
from factorizations import assert_cholesky, factor
from helpers import DTYPES, eps, gaussian

from dlscale import gallery
from dlscale.errors import NonFiniteError, NumericalError

#: With panels of 32: one unknown, one panel, one column over it, two panels and a quarter, several panels a row block.
ORDERS = (1, 32, 33, 73, 150)


def blocks(n: int) -> int:
    return min(3, -(-n // 32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("condition", [1.0, 1e5])
def test_positive_definite(condition: float, dtype: str) -> None:
    for n, group in zip(ORDERS, (None, 1, 1, 2, 2), strict=True):
        A = gallery.positive_definite(n, condition=condition, dtype=dtype)
        outcome, arrays = factor("cholesky", A, panel=min(n, 32), row_blocks=blocks(n), group=group)
        assert outcome.certificate.passed, (n, outcome.certificate)
        assert_cholesky(A, arrays["l"])
        np.testing.assert_allclose(arrays["l"], np.linalg.cholesky(A), rtol=0, atol=10 * n * condition * eps(A))


def test_panels_that_do_not_divide_the_order() -> None:
    B = gaussian(2321, 40)
    A = B @ B.T + np.eye(2321)
    outcome, arrays = factor("cholesky", A, panel=1024, row_blocks=3)
    assert outcome.certificate.passed
    assert_cholesky(A, arrays["l"])


@pytest.mark.parametrize("minor", [1, 32, 33, 64, 100])
def test_not_positive_definite_names_the_leading_minor(minor: int) -> None:
    A = gallery.positive_definite(100, dtype="c8")
    A[minor - 1, minor - 1] = -1
    with pytest.raises(NumericalError, match=rf"leading minor of order {minor} is not positive.*kind lu"):
        factor("cholesky", A, panel=32, row_blocks=2, group=1)


@pytest.mark.parametrize("group", [None, 2])
@pytest.mark.parametrize("place", [(0, 1), (3, 70), (31, 32), (98, 99)])
def test_a_matrix_that_is_not_hermitian_is_refused(place: tuple[int, int], group: int | None) -> None:
    """L is of the lower triangle; the certificate is of the whole matrix."""
    A = gallery.positive_definite(150)
    A[place] += 1e-6
    with pytest.raises(NumericalError, match="not Hermitian"):
        factor("cholesky", A, panel=32, row_blocks=3, group=group)


@pytest.mark.parametrize("place", [(0, 0), (99, 99), (64, 37), (99, 0), (3, 70)])
def test_not_finite_is_refused_with_its_place(place: tuple[int, int]) -> None:
    A = gallery.positive_definite(100)
    A[place] = np.inf
    with pytest.raises(NonFiniteError) as raised:
        factor("cholesky", A, panel=32, row_blocks=2, group=2)
    assert (raised.value.row, raised.value.column) == place
