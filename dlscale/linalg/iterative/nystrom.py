"""A Nystrom approximation of a positive definite matrix by some of its columns, and what it makes of systems with penalties.

References
----------
Chen, Epperly, Tropp, Webber (2025), Randomly pivoted Cholesky, in blocks; Frangella, Tropp, Udell (2023), Randomized
Nystrom preconditioning, equation 1.3; Diaz, Epperly, Frangella, Tropp, Webber (2023) for both together in kernel regression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dlscale.arrays import Array

#: Columns that are chosen at a time.
BLOCK = 64
#: Eigenvalues below this part of the largest are left to the iterations: vectors of smaller ones are not orthonormal.
_SMALLEST = 1e-10
#: Rows of a factor that are turned at a time, in place.
_ROWS = 4096


def partial_cholesky(diagonal: Array, columns_of: Callable[[Array], Array], n_columns: int, seed: int) -> Array:
    """F (n, l) with ``F F^H <= K``, of columns that are drawn by how much of the diagonal is left.

    Parameters
    ----------
    diagonal : (n,), not negative
    columns_of : callable
        From numbers of columns (j,) to these columns (n, j) of K, an array that may be changed.
    n_columns : int
        l at most.
    seed : int

    Returns
    -------
    F : (n, l)
        Fewer columns where these leave nothing.

    Notes
    -----
    n l^2 flops and n l entries of the matrix.
    """
    n, generator = len(diagonal), np.random.default_rng(seed)
    eps, total = float(np.finfo(float).eps), float(diagonal.sum())
    left, filled, F = diagonal, 0, np.empty((n, 0))
    while filled < n_columns and left.sum() > n * eps * total:
        width = min(BLOCK, max(1, n_columns // 4), n_columns - filled)
        chosen = np.unique(generator.choice(n, width, p=left / left.sum()))
        G = columns_of(chosen)
        F = F if filled else np.empty((n, n_columns), G.dtype)
        G -= F[:, :filled] @ F[chosen, :filled].conj().T
        values, V = np.linalg.eigh((G[chosen] + G[chosen].conj().T) / 2)
        # What is below is rounding.
        kept = values > 4 * len(chosen) * eps * diagonal[chosen].max()
        columns = G @ (V[:, kept] / np.sqrt(values[kept]))
        F[:, filled : filled + columns.shape[1]] = columns
        filled += columns.shape[1]
        left = np.maximum(left - np.einsum("ij,ij->i", columns, columns.conj()).real, 0)
        left[chosen] = 0
    return F[:, :filled]


@dataclass(frozen=True)
class Nystrom:
    """``K ~ U diag(values) U^H``, with which systems ``(M K M + a I) x = b`` are preconditioned, M leaving out a fold of rows.

    Parameters
    ----------
    U : (n, l)
    values : (l,)
    turns : sequence of ((l, r), (r,))
        For each fold, and for none: ``M U T`` has orthonormal columns, whose eigenvalues follow.
    """

    U: Array
    values: Array
    turns: Sequence[tuple[Array, Array]]

    @classmethod
    def of(cls, F: Array, bounds: Sequence[int]) -> Nystrom:
        """From a factor (n, l), which is overwritten.

        Parameters
        ----------
        bounds : sequence of int
            First row of each fold that is left out, and n.
        """
        values, V = _leading(F.conj().T @ F)
        turn = V / np.sqrt(values)
        U = np.empty((len(F), len(values)), F.dtype) if len(values) < F.shape[1] or not F.flags.c_contiguous else F
        for i in range(0, len(F), _ROWS):
            U[i : i + _ROWS] = F[i : i + _ROWS] @ turn
        turns = [_without(U, values, start, stop) for start, stop in pairwise(bounds)]
        return cls(U, values, [*turns, (np.eye(len(values)), values)])

    def apply(self, R: Array, penalties: Array, fold: int) -> Array:
        """An approximation of ``(M K M + a I)^-1 R`` for columns with penalties of their own; R is zero in the fold."""
        T, values = self.turns[fold]
        C = T.conj().T @ (self.U.conj().T @ R)
        rest = values.min(initial=np.inf) + penalties if len(values) else np.ones(1)
        # U (L + a)^-1 U^H + (I - U U^H) / (l + a) for the least eigenvalue l.
        weights = 1 / (values[:, None] + penalties) - 1 / rest
        return np.asarray(R / rest + self.U @ (T @ (weights * C)))


def _leading(G: Array) -> tuple[Array, Array]:
    values, V = np.linalg.eigh(G)
    kept = values > _SMALLEST * values.max(initial=0.0)
    return values[kept][::-1], np.ascontiguousarray(V[:, kept][:, ::-1])


def _without(U: Array, values: Array, start: int, stop: int) -> tuple[Array, Array]:
    """How U is turned to the eigenvectors of the approximation without some rows."""
    held, roots = U[start:stop], np.sqrt(values)
    G = roots[:, None] * (np.eye(len(values)) - held.conj().T @ held) * roots
    found, V = _leading((G + G.conj().T) / 2)
    return roots[:, None] * V / np.sqrt(found), found
