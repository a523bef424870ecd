"""Factorizations by panels of matrices that reach from one end of the range of their dtype to the other."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from factorizations import assert_cholesky, factor
from helpers import DTYPES, Array, each_of, gaussian

from dlscale import gallery
from dlscale.kernels import times_power_of_two

WAYS: dict[str, dict[str, Any]] = {
    "whole": {"panel": 16},
    "groups": {"panel": 8, "group": 1},
    "row blocks": {"panel": 8, "row_blocks": 3, "group": 2},
}


def graded(A: Array, exponents: Array) -> Array:
    """``D A D`` for powers of two."""
    columns = np.stack([times_power_of_two(a, k) for a, k in zip(A.T, exponents.tolist(), strict=True)], axis=1)
    return np.stack([times_power_of_two(a, k) for a, k in zip(columns, exponents.tolist(), strict=True)])


@pytest.mark.parametrize("way", WAYS)
@each_of(dtype=DTYPES, order=[1, -1])
def test_a_definite_matrix_that_is_graded_over_the_whole_range_is_definite(way: str, dtype: str, order: int) -> None:
    """Beside its largest entries the smallest ones would vanish if it were scaled; L has the exponents of D, row by row."""
    n, info = 30, np.finfo(dtype)
    A = gallery.positive_definite(n, condition=10, dtype=dtype)
    half = (info.maxexp - 6) // 2
    D = np.linspace(-half, half, n).astype(int)[::order]
    outcome, found = factor("cholesky", graded(A, D), **WAYS[way])
    assert outcome.certificate.passed
    L = np.stack([times_power_of_two(row, -k) for row, k in zip(found["l"], D.tolist(), strict=True)])
    assert_cholesky(A, L)


@pytest.mark.parametrize("way", WAYS)
@each_of(dtype=DTYPES)
def test_small_pivots_do_not_vanish_beside_large_ones(way: str, dtype: str) -> None:
    """Of a diagonal matrix, whose rows LAPACK does not exchange either."""
    half = np.finfo(dtype).maxexp - 10
    A = np.diag(np.ldexp(1.0, np.linspace(half, -half, 24).astype(int))).astype(dtype)
    outcome, found = factor("lu", A, **WAYS[way])
    np.testing.assert_array_equal(found["lu"], A)
    assert outcome.notes == ()


@pytest.mark.parametrize("way", WAYS)
@each_of(dtype=DTYPES)
def test_what_overflows_on_the_way_is_no_warning(way: str, dtype: str) -> None:
    """Entries of more than half of the largest number: their sums overflow until the matrix is scaled."""
    info = np.finfo(dtype)
    D = gallery.positive_definite(30, condition=10, dtype=dtype)
    D = times_power_of_two(D / np.abs(D).max() / 2, info.maxexp)
    # One large row among the others, so that factors stay in range where the sums of a row do not.
    A = gaussian(40, 30, dtype)
    for rows in (slice(0, 40), slice(7, 8)):
        B = np.copy(A)
        B[rows] *= 2.0**30
        B = times_power_of_two(B / np.abs(B).max() / 2, info.maxexp - 3).astype(dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for kind, M in (("lu", B), ("qr", B), ("cholesky", D)):
                outcome, found = factor(kind, M, **WAYS[way])
                assert outcome.certificate.passed
                assert all(np.isfinite(array).all() for array in found.values())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_a_zero_pivot_says_of_a_matrix_that_is_not_square_which_column_depends(shape: tuple[int, int], way: str) -> None:
    """A wide one with such a column may have full rank, and is then not singular."""
    A = gaussian(*shape)
    A[:, 11] = 0
    outcome, _ = factor("lu", A, **WAYS[way])
    assert outcome.notes == ("column 12 of the matrix is a combination of those before it to working precision: pivot 12 is zero",)
