"""What kernel ridge regression does with a block of rows: products with the kernel matrix, whose tiles are made and forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import workspace
from dlscale.engine.passes import Fold, State
from dlscale.linalg.kernel_ridge.kernels import Kernel, Points
from dlscale.storage.matrix import Matrix

#: Rows and columns of a tile of the kernel matrix, 2 MB.
TILE = 512
_DOUBLE = np.dtype(np.float64)


@dataclass(frozen=True)
class Rows:
    """All rows that a kernel is of.

    Parameters
    ----------
    kernel : Kernel
    X : Matrix (n, d)
        Read whole by each process.
    center : (d,)
    """

    kernel: Kernel
    X: Matrix
    center: Array

    def __reduce__(self) -> tuple[type[Rows], tuple[Kernel, Matrix, Array]]:
        # Each process reads the rows, which are not sent.
        return type(self), (self.kernel, self.X, self.center)

    @cached_property
    def points(self) -> Points:
        return self.of(self.X.read(0, self.X.shape[0]))

    @cached_property
    def _single(self) -> Points:
        return self.points.in_single()

    def points_in(self, precision: np.dtype[Any]) -> Points:
        """As they are multiplied in double or in single precision."""
        return self.points if precision == _DOUBLE else self._single

    def of(self, rows: Array) -> Points:
        """Rows as the kernel takes them."""
        return self.kernel.prepared(rows.astype(_DOUBLE, copy=False), self.center)

    def product(self, A: Array, P: Array, first_row: int | None = None) -> Array:
        """``K(A, X) P`` of rows A, which are those of X from a row on where that is given."""
        Y = np.zeros((len(A), P.shape[1]))
        for start in range(0, len(A), TILE):
            mine = self.of(A[start : start + TILE])
            for j in range(0, len(P), TILE):
                other = self.points.part(j, j + TILE)
                K = workspace("kernel", (len(mine.left), len(other.left)), _DOUBLE)
                same = first_row is not None and first_row + start == j
                Y[start : start + TILE] += self.kernel.block(mine, other, same=same, out=K) @ P[j : j + TILE]
        return Y


@dataclass(frozen=True)
class SymmetricProduct(Fold):
    """``K(X, X) P`` by half of the tiles, each of which is multiplied from both sides, in the precision of P.

    Tile (i, j) is made by row block i for the half of the blocks that come next, in a circle: all blocks have the same work.

    Parameters
    ----------
    rows : Rows
    P : (n, c)
    """

    rows: Rows
    P: Array

    @property
    def flops_per_row(self) -> float:
        n, c = self.P.shape
        return float(n * (self.rows.kernel.flops(self.rows.X.shape[1]) / 2 + 2.0 * c))

    def start(self) -> State:
        return {"product": np.zeros(self.P.shape)}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        n, Y, points = len(self.P), state["product"], self.rows.points_in(self.P.dtype)
        n_blocks = -(-n // TILE)
        for start in range(first_row, first_row + len(A), TILE):
            i = start // TILE
            mine, at = points.part(start, start + TILE), slice(start, min(start + TILE, n))
            for step in range(n_blocks // 2 + 1):
                if 2 * step == n_blocks and i >= step:
                    continue
                j = (i + step) % n_blocks
                other = slice(j * TILE, min((j + 1) * TILE, n))
                K = workspace("kernel", (at.stop - at.start, other.stop - other.start), self.P.dtype)
                self.rows.kernel.block(mine, points.part(other.start, other.stop), same=step == 0, out=K)
                Y[at] += K @ self.P[other]
                if step:
                    Y[other] += K.T @ self.P[at]
        return ()


@dataclass(frozen=True)
class RowProduct(Fold):
    """The rows of ``K(A, X) P``, handed to the first output of the pass with A itself for a second one; and what they leave of B.

    Parameters
    ----------
    rows : Rows
    P : (n, c)
    B : (m, c), optional
        Of which ``B - K(A, X) P - penalty P`` is summed: its squares, and those of ``B - K(A, X) P``; A is then X.
    penalty : float
    keeps_rows : bool
    """

    rows: Rows
    P: Array
    B: Array | None = None
    penalty: float = 0.0
    keeps_rows: bool = False

    @property
    def flops_per_row(self) -> float:
        n, c = self.P.shape
        return float(n * (self.rows.kernel.flops(self.rows.X.shape[1]) + 2.0 * c))

    def start(self) -> State:
        c = self.P.shape[1]
        return {"residual": np.zeros(c), "fit": np.zeros(c), "total": np.zeros(c)}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        Y = self.rows.product(A, self.P, first_row if self.B is not None else None)
        state["total"] += Y.sum(axis=0)
        if self.B is None:
            return (Y,)
        mine_of = slice(first_row, first_row + len(A))
        left = self.B[mine_of] - Y
        state["fit"] += (left**2).sum(axis=0)
        state["residual"] += ((left - self.penalty * self.P[mine_of]) ** 2).sum(axis=0)
        return (A.astype(_DOUBLE, copy=False),) if self.keeps_rows else ()
