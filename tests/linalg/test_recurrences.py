"""Iterative methods on operators that are functions: what they call converged is measured, and how else they end."""

from __future__ import annotations

import numpy as np
import pytest
from eigenproblems import with_eigenvalues
from helpers import Array, gaussian, wide_precision

from dlscale.linalg.iterative.cg import conjugate_gradients

N = 120


def relative(A: Array, X: Array, B: Array) -> Array:
    """``||b - A x|| / ||b||`` of each column, in extended precision."""
    R = B.astype(np.clongdouble) - A.astype(np.clongdouble) @ X.astype(np.clongdouble)
    return np.sqrt((np.abs(R) ** 2).sum(axis=0) / (np.abs(wide_precision(B)) ** 2).sum(axis=0)).astype(float)


@pytest.mark.parametrize("dtype", ["f8", "c16"])
def test_conjugate_gradients_of_several_columns(dtype: str) -> None:
    """Columns that converge at different times, and one that is zero."""
    A = with_eigenvalues(np.geomspace(1e-3, 1, N)).astype(dtype)
    if dtype == "c16":
        phases = np.exp(1j * np.arange(N))
        A = phases[:, None] * A * phases.conj()
    B = gaussian(N, 4, dtype)
    B[:, 1], B[:, 2] = A @ B[:, 1], 0
    found = conjugate_gradients(lambda X: A @ X, B, tolerance=1e-9)
    assert found.end == "converged"
    assert (relative(A, found.X[:, [0, 1, 3]], B[:, [0, 1, 3]]) <= 1e-9).all()
    assert not found.X[:, 2].any()
    assert found.iterations < 400
    assert len(found.claimed) == found.iterations


def test_a_preconditioner_saves_iterations() -> None:
    scales = np.geomspace(1, 1e4, N)
    A = scales[:, None] * with_eigenvalues(np.linspace(1, 2, N)) * scales
    D = np.diagonal(A)[:, None]
    found = conjugate_gradients(lambda X: A @ X, gaussian(N, 2), lambda R: R / D, tolerance=1e-10)
    assert found.end == "converged"
    assert found.iterations < 30


def test_a_claim_that_does_not_hold_is_not_believed() -> None:
    """The recurrence claims 1e-11 where rounding leaves 1e-8."""
    A, B = with_eigenvalues(np.geomspace(1e-7, 1, 40)), gaussian(40, 1)
    found = conjugate_gradients(lambda X: A @ X, B, tolerance=1e-11, max_iterations=5000)
    assert found.end == "converged" or found.reached[0] > 1e-11
    assert found.end != "converged" or relative(A, found.X, B)[0] <= 1.1e-11
    assert found.measured[:, 1].min() == pytest.approx(found.reached[0]) or found.end == "stagnated"


@pytest.mark.parametrize(
    ("values", "end"),
    [
        (np.concatenate([-np.ones(20), np.full(100, 3.0)]), "not definite"),
        (np.concatenate([np.zeros(20), np.linspace(1, 2, 100)]), "broken down"),
        (np.geomspace(1e-6, 1, 120), "limit"),
    ],
    ids=["indefinite", "singular and inconsistent", "too few iterations"],
)
def test_how_conjugate_gradients_end(values: Array, end: str) -> None:
    A = with_eigenvalues(values)
    found = conjugate_gradients(lambda X: A @ X, gaussian(N, 2), tolerance=1e-8, max_iterations=200)
    assert found.end == end


def test_a_singular_system_that_has_a_solution() -> None:
    A = with_eigenvalues(np.concatenate([np.zeros(20), np.linspace(1, 2, 100)]))
    B = A @ gaussian(N, 2)
    found = conjugate_gradients(lambda X: A @ X, B, tolerance=1e-10)
    assert found.end == "converged"
    assert (relative(A, found.X, B) <= 1e-10).all()
