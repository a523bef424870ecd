"""A Nystrom approximation of a positive definite matrix by some of its columns, and what it makes of systems with penalties.

References
----------
Chen, Epperly, Tropp, Webber (2025), Randomly pivoted Cholesky, in blocks; Frangella, Tropp, Udell (2023), Randomized
Nystrom preconditioning, equation 1.3; Diaz, Epperly, Frangella, Tropp, Webber (2023) for both together in kernel regression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.grids import blocks
from dlscale.kernels import Share, accumulator_dtype, mirror_upper, sharing

#: Columns that are chosen at a time.
BLOCK = 64
#: Eigenvalues below this part of the largest are left to the iterations: vectors of smaller ones are not orthonormal.
_SMALLEST = 1e-10
#: What is left of the diagonal is rounding below this part of it, whatever the precision.
_NOTHING = 1e-5
#: Rows of a factor that a thread works on at a time, and columns of its Gram matrix: no sum depends on how many threads there are.
_ROWS, _COLUMNS = 4096, 256


def partial_cholesky(
    diagonal: Array, columns_of: Callable[[Array], Array], n_columns: int, seed: int, *, dtype: np.dtype[Any], n_threads: int = 1
) -> Array:
    """F (n, l) with ``F F^H <= K``, of columns that are drawn by how much of the diagonal is left.

    Parameters
    ----------
    diagonal : (n,), not negative
    columns_of : callable
        From numbers of columns (j,) to these columns (n, j) of K, an array of this dtype that may be changed.
    n_columns : int
        l at most.
    seed : int
    dtype : numpy.dtype
    n_threads : int

    Returns
    -------
    F : (n, l)
        Fewer columns where these leave nothing.

    Notes
    -----
    n l^2 flops and n l entries of the matrix.
    """
    n, generator, eps = len(diagonal), np.random.default_rng(seed), float(np.finfo(dtype).eps)
    left, filled, F = diagonal.copy(), 0, np.empty((n, n_columns), dtype)
    nothing, pieces = min(n * eps, _NOTHING) * float(diagonal.sum()), list(blocks(0, n, _ROWS))
    with sharing(n_threads) as share:
        while filled < n_columns and left.sum() > nothing:
            width = min(BLOCK, max(1, n_columns // 4), n_columns - filled)
            chosen = np.unique(generator.choice(n, width, p=left / left.sum()))
            G, mine = columns_of(chosen), F[chosen, :filled].conj().T
            share([partial(_subtract, G[a:b], F[a:b, :filled], mine) for a, b in pieces])
            values, V = np.linalg.eigh((G[chosen] + G[chosen].conj().T).astype(accumulator_dtype(G.dtype)) / 2)
            # What is below is rounding.
            kept = values > 4 * len(chosen) * eps * diagonal[chosen].max()
            turn = (V[:, kept] / np.sqrt(values[kept])).astype(G.dtype)
            new = F[:, filled : filled + turn.shape[1]]
            share([partial(_append, G[a:b], turn, new[a:b], left[a:b]) for a, b in pieces])
            filled += turn.shape[1]
            left[chosen] = 0
    return F[:, :filled]


def _subtract(G: Array, F: Array, mine: Array) -> None:
    G -= F @ mine


def _append(G: Array, turn: Array, new: Array, left: Array) -> None:
    np.matmul(G, turn, out=new)
    np.maximum(left - np.einsum("ij,ij->i", new, new.conj()).real, 0, out=left)


@dataclass(frozen=True)
class Nystrom:
    """``K ~ F F^H``, with which systems ``(M K M + a I) x = b`` are preconditioned, M leaving out a fold of rows.

    Parameters
    ----------
    F : (n, l)
        In whose precision it is multiplied.
    turns : sequence of ((l, r), (r,))
        For each fold, and for none: ``M F T`` has orthonormal columns, eigenvectors whose eigenvalues follow.
    n_threads : int
    """

    F: Array
    turns: Sequence[tuple[Array, Array]]
    n_threads: int = 1

    @classmethod
    def of(cls, F: Array, bounds: Sequence[int], n_threads: int = 1) -> Nystrom:
        """From a factor (n, l).

        Parameters
        ----------
        bounds : sequence of int
            First row of each fold that is left out, and n.
        """
        with sharing(n_threads) as share:
            G = _gram(F, share)
            turns = [_turn(G - _gram(F[start:stop], share), F.dtype) for start, stop in pairwise(bounds)]
        return cls(F, [*turns, _turn(G, F.dtype)], n_threads)

    def apply(self, R: Array, penalties: Array, fold: int) -> Array:
        """An approximation of ``(M K M + a I)^-1 R`` for columns with penalties of their own; R is zero in the fold."""
        F, (T, values) = self.F, self.turns[fold]
        rest = values.min(initial=np.inf) + penalties if len(values) else np.ones(1)
        # U (L + a)^-1 U^H + (I - U U^H) / (l + a) with U = F T, for the least eigenvalue l.
        weights = 1 / (values[:, None] + penalties) - 1 / rest
        pieces, Z = list(blocks(0, len(F), _ROWS)), np.empty_like(R)
        parts = np.empty((len(pieces), F.shape[1], R.shape[1]), F.dtype)
        with sharing(self.n_threads) as share:
            share([partial(_project, F[a:b], R[a:b], part) for (a, b), part in zip(pieces, parts, strict=True)])
            C = T @ (weights * (T.conj().T @ parts.sum(axis=0))).astype(F.dtype)
            share([partial(_lift, F[a:b], C, R[a:b], rest, Z[a:b]) for a, b in pieces])
        return Z


def _project(F: Array, R: Array, part: Array) -> None:
    np.matmul(F.conj().T, R.astype(F.dtype, copy=False), out=part)


def _lift(F: Array, C: Array, R: Array, rest: Array, Z: Array) -> None:
    np.divide(R, rest, out=Z)
    Z += F @ C


def _gram(F: Array, share: Share) -> Array:
    """``F^H F``, in double precision where rows are summed in blocks."""
    G = np.zeros((F.shape[1], F.shape[1]), accumulator_dtype(F.dtype))

    def add(start: int, stop: int) -> None:
        for a, b in blocks(0, len(F), _ROWS):
            G[:stop, start:stop] += F[a:b, :stop].conj().T @ F[a:b, start:stop]

    share([partial(add, start, stop) for start, stop in blocks(0, len(G), _COLUMNS)])
    return mirror_upper(G)


def _turn(G: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """What turns a factor with this Gram matrix to eigenvectors, and their eigenvalues."""
    values, V = np.linalg.eigh(G)
    kept = values > max(_SMALLEST, 8 * float(np.finfo(dtype).eps)) * values.max(initial=0.0)
    return (V[:, kept] / np.sqrt(values[kept])).astype(dtype), values[kept]
