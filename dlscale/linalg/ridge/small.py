"""The small problem that a large one is reduced to, and what it tells for every penalty.

Of ``R w ~ C`` with ``R = U S V^H``, the coefficients for a penalty a are ``V S (S^2 + a)^-1 U^H C``. No Gram matrix is made, so
that no condition is squared.

References
----------
Golub, Heath, Wahba (1979) for leaving one out; Dubrule (1983) for the same where means are fitted too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlscale.arrays import Array
from dlscale.kernels import one_blas_thread
from dlscale.linalg.lstsq.pseudo_inverse import PseudoInverse

#: Entries of singular vectors below this are rounding errors.
_NO_DIGITS = 100 * float(np.finfo(float).eps)


@dataclass(frozen=True)
class SmallProblem:
    """``R w ~ C`` for a path of penalties.

    Parameters
    ----------
    svd : PseudoInverse
        Of R (r, n).
    rotated : (p, k)
        ``U^H C``, p = min(r, n).
    penalties : (q,)
    """

    svd: PseudoInverse
    rotated: Array
    penalties: Array

    @classmethod
    def of(cls, R: Array, C: Array, penalties: Array, cutoff: float) -> SmallProblem:
        """Where a penalty is zero, singular values up to ``cutoff`` times the largest count as zero."""
        svd = PseudoInverse.of(R, cutoff)
        with one_blas_thread():
            return cls(svd, svd.U.conj().T @ C, penalties)

    @property
    def counts(self) -> Array:
        """(q, p): which singular values count; all beside a penalty above zero."""
        return np.asarray((np.arange(len(self.svd.s)) < self.svd.rank) | (self.penalties[:, None] > 0))

    @property
    def roots(self) -> Array:
        """(q, p): ``(s^2 + a)^1/2``, without squares."""
        return np.asarray(np.hypot(self.svd.s, np.sqrt(self.penalties)[:, None]))

    @property
    def filters(self) -> Array:
        """(q, p): ``s / (s^2 + a)``."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.where(self.counts & (self.roots > 0), self.svd.s / self.roots / self.roots, 0.0)

    @property
    def freedom(self) -> Array:
        """(q,): degrees of freedom, ``sum s^2 / (s^2 + a)``."""
        return np.asarray((self.svd.s * self.filters).sum(axis=1))

    def coefficients(self, which: Sequence[int]) -> Array:
        """(len(which), n, k), of these penalties; infinite where they overflow."""
        V, filters = self.svd.VH.conj().T, self.filters
        with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
            return np.stack([V @ (filters[i][:, None] * self.rotated) for i in which])


def leave_one_out(problem: SmallProblem, U: Array) -> Array:
    """Sums of squares of what each row's own value differs from what the other rows say of it.

    Parameters
    ----------
    problem : SmallProblem
        Of a square or wide matrix, on which ``U^H`` times the right-hand sides are its rotated ones.
    U : (m, p)
        Left singular vectors; orthogonal to constants where means are fitted too.

    Returns
    -------
    (q, k)
        Infinite where a row alone decides its value, so that nothing is said without it.

    Notes
    -----
    With ``D = (S^2 + a)^-1`` the difference is ``(U D U^H b)_i / (U D U^H)_ii``, which loses no digits where leverages are near 1.
    """
    found, squares = [], np.abs(U) ** 2
    for counts, roots in zip(problem.counts, problem.roots, strict=True):
        free = ~counts | (roots == 0)
        with one_blas_thread(), np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
            # Of directions without singular value and penalty, D is infinite: only these are left in the limit.
            D = free.astype(float) if free.any() else (roots.min(initial=np.inf) / roots) ** 2
            weights, residuals = squares @ D, U @ (D[:, None] * problem.rotated)
            total = (np.abs(residuals / weights[:, None]) ** 2).sum(axis=0)
        defined = (weights > len(D) * _NO_DIGITS**2).all()
        found.append(np.where(defined & np.isfinite(total), total, np.inf))
    return np.array(found)


def leave_fold_out(pieces: Sequence[Array], n: int, penalties: Array, cutoff: float, *, intercept: bool) -> Array:
    """Sums of squares of what rows differ from what the other folds say of them.

    Parameters
    ----------
    pieces : sequence of (any, 1 + n + k)
        Of each fold the rows of ``[1 A B]``, or a triangle of them; without an intercept there is no first column.
    n : int
    penalties : (q,)
    cutoff : float
    intercept : bool

    Returns
    -------
    (q, k)
    """
    first = int(intercept)
    total = 0.0
    for i, held in enumerate(pieces):
        with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
            T = np.asarray(np.linalg.qr(np.concatenate([piece for j, piece in enumerate(pieces) if j != i]), mode="r"))
            R, C = T[first : first + n, first : first + n], T[first : first + n, first + n :]
            W = SmallProblem.of(R, C, penalties, cutoff).coefficients(range(len(penalties)))
            away = held[:, first + n :] - held[:, first : first + n] @ W
            if intercept:
                means = T[0, 1:] / T[0, 0]
                away = away - held[:, :1] * (means[n:] - means[:n] @ W)[:, None, :]
            total = total + (np.abs(away) ** 2).sum(axis=1)
    return np.where(np.isfinite(total), total, np.inf)
