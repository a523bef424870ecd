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
from dlscale.kernels import one_blas_thread, safe_norm
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
    cutoffs : (q,)
        Singular values of R up to these, for each penalty, count as zero.
    """

    svd: PseudoInverse
    rotated: Array
    penalties: Array
    cutoffs: Array

    @classmethod
    def of(cls, R: Array, C: Array, penalties: Array, cutoffs: Array, *, size: float = 0.0) -> SmallProblem:
        """With cutoffs relative to the largest singular value, or to what R was reduced from, where that has a larger norm."""
        svd = PseudoInverse.of(R, 0.0)
        with one_blas_thread():
            return cls(svd, svd.U.conj().T @ C, penalties, cutoffs * max(size, svd.largest))

    @property
    def s(self) -> Array:
        """(q, p): singular values, zero where they count as zero."""
        return np.where(self.svd.s > self.cutoffs[:, None], self.svd.s, 0.0)

    @property
    def ranks(self) -> Array:
        """(q,): how many are not zero."""
        return np.asarray((self.s > 0).sum(axis=1))

    @property
    def roots(self) -> Array:
        """(q, p): ``(s^2 + a)^1/2``, without squares."""
        return np.asarray(np.hypot(self.s, np.sqrt(self.penalties)[:, None]))

    @property
    def filters(self) -> Array:
        """(q, p): ``s / (s^2 + a)``."""
        s, roots = self.s, self.roots
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.where(s > 0, s / roots / roots, 0.0)

    @property
    def freedom(self) -> Array:
        """(q,): degrees of freedom, ``sum s^2 / (s^2 + a)``."""
        return np.asarray((self.s * self.filters).sum(axis=1))

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
    for roots in problem.roots:
        free = roots == 0
        with one_blas_thread(), np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
            # Of directions without singular value and penalty, D is infinite: only these are left in the limit.
            D = free.astype(float) if free.any() else (roots.min(initial=np.inf) / roots) ** 2
            weights, residuals = squares @ D, U @ (D[:, None] * problem.rotated)
            total = (np.abs(residuals / weights[:, None]) ** 2).sum(axis=0)
        defined = (weights > len(D) * _NO_DIGITS**2).all()
        found.append(np.where(defined & np.isfinite(total), total, np.inf))
    return np.array(found)


@dataclass(frozen=True)
class Refits:
    """Fits to some rows of ``[1 A B]``, held against others; without an intercept there is no first column.

    Parameters
    ----------
    n : int
        Columns of A.
    penalties, cutoffs : (q,)
    intercept : bool
    """

    n: int
    penalties: Array
    cutoffs: Array
    intercept: bool

    def away(self, held: Array, others: Sequence[Array]) -> tuple[Array, Array]:
        """What rows, or a triangle of them, differ from what others say of them.

        Returns
        -------
        squares : (q, k)
            Their sums.
        ranks : (q,)
            Of the fit to the others.
        """
        first, n = int(self.intercept), self.n
        with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
            T = np.asarray(np.linalg.qr(np.concatenate(others), mode="r"))
            R, C = T[first : first + n, first : first + n], T[first : first + n, first + n :]
            # Rows that are alike have no R but the rounding of what they have in common.
            size = float(safe_norm(T[:, first : first + n]))
            small = SmallProblem.of(R, C, self.penalties, self.cutoffs, size=size)
            W = small.coefficients(range(len(self.penalties)))
            away = held[:, first + n :] - held[:, first : first + n] @ W
            if self.intercept:
                means = T[0, 1:] / T[0, 0]
                away = away - held[:, :1] * (means[n:] - means[:n] @ W)[:, None, :]
            return (np.abs(away) ** 2).sum(axis=1), small.ranks

    def leave_folds_out(self, pieces: Sequence[Array]) -> Array:
        """Sums of squares (q, k) of what rows differ from what the other folds say of them; pieces are the folds."""
        total = sum(self.away(held, _others(pieces, i))[0] for i, held in enumerate(pieces))
        return np.where(np.isfinite(total), total, np.inf)

    def leave_rows_out(self, rest: Array, rows: Array, ranks: Array) -> Array:
        """Sums of squares (q, k) of what some rows differ from what all others say of them.

        Parameters
        ----------
        rest : (any, w)
            A triangle of the rows that are not among them.
        rows : (d, w)
        ranks : (q,)
            Of the fit to all rows. Infinite where no penalty tells what a row alone decides.
        """
        total: Array | float = 0.0
        for i, row in enumerate(rows):
            squares, left = self.away(row[None, :], [rest, np.delete(rows, i, axis=0)])
            total = total + np.where(((left < ranks) & (self.penalties == 0))[:, None], np.inf, squares)
        return np.where(np.isfinite(total), total, np.inf)


def _others(pieces: Sequence[Array], i: int) -> list[Array]:
    return [piece for j, piece in enumerate(pieces) if j != i]
