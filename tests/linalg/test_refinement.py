"""Refinement from factors in single precision: what it reaches, and where it stops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
from helpers import Array, gaussian, spectrum

from dlscale import gallery
from dlscale.linalg.solve.refinement import refine, refine_by_gmres

EPS = float(np.finfo("f8").eps)


def parts(A: Array, *, wide: bool = False) -> tuple[Any, Any, float]:
    """Products with A, solves by factors in single precision (computed there, or in double), and ||A||_1."""
    lu = scipy.linalg.lu_factor(A.astype("c8" if A.dtype.kind == "c" else "f4"))

    def solve(B: Array) -> Array:
        size = abs(B).max(axis=0)
        return (scipy.linalg.lu_solve(lu, (B / size).astype(lu[0].dtype)) * size).astype(A.dtype)

    def solve_in_double(B: Array) -> Array:
        return scipy.linalg.lu_solve((lu[0].astype(A.dtype), lu[1]), B)

    return lambda X: A @ X, solve_in_double if wide else solve, float(np.linalg.norm(A, 1))


def conditioned(condition: float, dtype: str = "f8") -> Array:
    return spectrum(gallery.geometric(120, condition), 120, 120, dtype=dtype)


@pytest.mark.parametrize("dtype", ["f8", "c16"])
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e5])
def test_plain_refinement_reaches_double_precision(condition: float, dtype: str) -> None:
    A, B = conditioned(condition, dtype), gaussian(120, 3, dtype)
    product, solve, norm = parts(A)
    found = refine(solve(B), lambda X: B - product(X), solve, norm, target=EPS)
    assert found.backward_error <= EPS
    assert found.X.dtype == A.dtype
    assert 1 <= found.n_steps <= 12
    np.testing.assert_allclose(found.residuals, abs(B - A @ found.X).sum(axis=0), rtol=0.5)


@pytest.mark.parametrize("dtype", ["f8", "c16"])
def test_gmres_goes_further(dtype: str) -> None:
    """At condition 1e8 factors in single precision have no digit, and still precondition."""
    A, B = conditioned(1e8, dtype), gaussian(120, 2, dtype)
    product, solve, norm = parts(A)
    plain = refine(solve(B), lambda X: B - product(X), solve, norm, target=EPS, max_steps=1)
    assert plain.backward_error > 1e4 * EPS
    _, solve, _ = parts(A, wide=True)
    found = refine_by_gmres(plain, product, lambda X: B - product(X), solve, norm, target=EPS)
    assert found.backward_error < 4 * EPS


def test_many_columns_are_not_for_gmres() -> None:
    A, B = conditioned(1e12), gaussian(120, 30)
    product, solve, norm = parts(A)
    plain = refine(solve(B), lambda X: B - product(X), solve, norm, target=EPS)
    assert refine_by_gmres(plain, product, lambda X: B - product(X), solve, norm, target=EPS) is plain


def test_what_cannot_be_solved_is_infinite_and_not_raised() -> None:
    A, B = np.eye(4), np.ones((4, 2))
    found = refine(B * np.array([np.nan, 1]), lambda X: B - A @ X, lambda R: R * np.array([np.nan, 1]), 1.0, target=EPS)
    assert found.errors.tolist() == [np.inf, 0]


def test_columns_of_zeros_are_exact() -> None:
    A, B = gaussian(20, 20), np.zeros((20, 1))
    found = refine(np.linalg.solve(A, B), lambda X: B - A @ X, lambda R: np.linalg.solve(A, R), 1.0, target=EPS)
    assert found.backward_error == 0
    assert not found.X.any()
