"""Refinement: solutions from approximate factors, brought to the accuracy of the residuals.

    X = solve(B);  repeat  R = B - A X,  X += solve(R)   until the backward error is at rounding level

The factors may be of a matrix in lower precision. Where plain refinement stagnates, the correction is found by GMRES with the
factors as preconditioner, which converges for condition numbers up to about the square of what plain refinement bears.

References
----------
Higham (2002), chapter 12; Carson and Higham (2017, 2018), GMRES-based refinement; LAPACK ``dsgesv`` for its use in practice.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.grids import blocks
from dlscale.errors import OutOfRange

#: Refinement of a column goes on while its backward error at least halves.
STAGNATION = 0.5
MAX_STEPS = 20
#: GMRES corrects one column at a time; beyond so many another factorization is cheaper.
MAX_GMRES_COLUMNS = 8
GMRES_STEPS = 4
GMRES_ITERATIONS = 20
GMRES_TOLERANCE = 1e-4

#: Entries of columns whose moduli are in memory at a time: what is allocated anew and is large takes longer to touch than to add.
_MODULI = 2**20

#: What is done to columns.
Map = Callable[[Array], Array]


@dataclass(frozen=True)
class Refined:
    """A solution with what was measured of it.

    Parameters
    ----------
    X : (n, k)
    residuals : (k,)
        ``||b_j - A x_j||_1``.
    errors : (k,)
        Normwise backward errors ``||b_j - A x_j|| / (||A|| ||x_j||)``.
    n_steps : int
        Corrections that were added.
    """

    X: Array
    residuals: Array
    errors: Array
    n_steps: int

    @property
    def backward_error(self) -> float:
        return float(self.errors.max(initial=0.0))


def refine(X: Array, residual: Map, solve: Map, norm: float, *, target: float, max_steps: int = MAX_STEPS) -> Refined:
    """Refine a solution of ``A X = B`` with approximate factors.

    Parameters
    ----------
    X : (n, k)
        The first solution.
    residual : callable
        ``B - A X`` in the precision that the answer is wanted in; one read of A.
    solve : callable
        Approximately ``A^-1 R``.
    norm : float
        ``||A||_1``.
    target : float
        The backward error at which to stop.
    max_steps : int
        Corrections at most; 0 only measures.

    Returns
    -------
    Refined
        The best of each column; its backward error may be above the target, and is infinite where nothing finite came out.
    """
    return _improve(X, residual, lambda R, _: solve(R), norm, target, max_steps)


def refine_by_gmres(start: Refined, product: Map, residual: Map, solve: Map, norm: float, *, target: float) -> Refined:
    """Go on where plain refinement stagnated: corrections by GMRES on ``M^-1 A d = M^-1 r`` with the factors M.

    Parameters
    ----------
    start : Refined
        Returned as it is if too many of its columns are above the target.
    product : callable
        ``A X``; one read of A.
    residual, solve, norm, target
        As for `refine`.
    """
    from scipy.sparse.linalg import LinearOperator, gmres

    if (start.errors > target).sum() > MAX_GMRES_COLUMNS:
        return start
    n, dtype = len(start.X), start.X.dtype
    A = LinearOperator((n, n), lambda v: product(v.reshape(n, 1))[:, 0], dtype=dtype)
    M = LinearOperator((n, n), lambda v: solve(v.reshape(n, 1))[:, 0], dtype=dtype)

    def correct(R: Array, columns: Array) -> Array:
        D = np.zeros_like(R)
        for j in columns:
            # Factors whose entries have grown may lead out of range; that column is left as it is.
            with suppress(OutOfRange):
                D[:, j], _ = gmres(A, R[:, j], rtol=GMRES_TOLERANCE, atol=0.0, restart=GMRES_ITERATIONS, maxiter=1, M=M)
        return D

    X = np.where(np.isfinite(start.errors), start.X, 0)
    more = _improve(X, residual, correct, norm, target, GMRES_STEPS)
    return Refined(more.X, more.residuals, more.errors, start.n_steps + more.n_steps)


def _improve(
    X: Array, residual: Map, correct: Callable[[Array, Array], Array], norm: float, target: float, max_steps: int
) -> Refined:
    """Add corrections to each column until it is at the target or gets hardly better, whatever becomes of the others."""
    R, residuals, errors = _measure(X, residual, norm)
    n_steps, improving = 0, errors > target
    while n_steps < max_steps and improving.any() and np.isfinite(residuals).any():
        with np.errstate(all="ignore"):
            candidate = X + _where(improving, correct(R, np.flatnonzero(improving)), 0)
        new_R, new_residuals, new_errors = _measure(candidate, residual, norm)
        n_steps += 1
        better = new_errors < errors
        improving = better & (new_errors <= STAGNATION * errors) & (new_errors > target)
        X, R = _where(better, candidate, X), _where(better, new_R, R)
        residuals, errors = np.where(better, new_residuals, residuals), np.where(better, new_errors, errors)
    return Refined(X, residuals, errors, n_steps)


def _where(columns: Array, A: Array, B: Array | int) -> Array:
    """These columns of A, the others of B; A itself where there are no others, which may be of many gigabytes."""
    return A if columns.all() else np.where(columns, A, B)


def _measure(X: Array, residual: Map, norm: float) -> tuple[Array, Array, Array]:
    """Residuals, their 1-norms, and backward errors; those of columns that are out of range are infinite."""
    finite = in_range(X, norm)
    inside = _where(finite, X, 0)
    R = residual(inside)
    residuals, sizes = _column_norms(R), norm * _column_norms(inside)
    with np.errstate(all="ignore"):
        errors = np.where(residuals == 0, 0.0, residuals / sizes)
    lost = ~finite | ~np.isfinite(errors)
    return R, np.where(finite, residuals, np.inf), np.where(lost, np.inf, errors)


def in_range(X: Array, norm: float) -> Array:
    """Which columns of X can be multiplied with a matrix of this 1-norm: no entry of the product overflows."""
    with np.errstate(all="ignore"):
        return np.asarray(_column_norms(X) * max(norm, 1.0) < np.finfo(float).max / 4)


def _column_norms(A: Array) -> Array:
    """The 1-norm of each column, in double precision; of large matrices some rows after the others, without a copy as large."""
    n, k = A.shape
    if A.size <= _MODULI:
        return np.asarray(np.abs(A).sum(axis=0, dtype=float))
    rows = max(1, _MODULI // k)
    moduli = np.zeros((1 + rows, k))  # behind the sum of those before, which is added to in the same order
    for start, stop in blocks(0, n, rows):
        np.abs(A[start:stop], out=moduli[1 : 1 + stop - start])
        moduli[0] = moduli[: 1 + stop - start].sum(axis=0)
    return np.asarray(moduli[0])
