"""What is measured of a square matrix before it is iterated on, in one read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.passes import State
from dlscale.engine.passes.fold import Squares
from dlscale.engine.passes.row_results import RowsFold, add_rows
from dlscale.kernels import accumulator_dtype, tiles
from dlscale.linalg.folds.products import squares_of
from dlscale.sparse_rows import SparseRows


@dataclass(frozen=True)
class Survey(RowsFold):
    """The squared norms of the columns, products with random vectors, and blocks on the diagonal.

    State: ``rows`` (n, l + width), ``A X`` beside the rows of the blocks; ``squares`` (n,); with ``adjoint``, ``ZH`` (l, n).

    Parameters
    ----------
    X : (n, l), of A's dtype
    width : int
        Of the blocks: 1 is the diagonal, 0 is none.
    adjoint : bool
        Also sum ``A^H X``: where it is ``A X``, the matrix is symmetric.
    """

    X: Array
    width: int = 0
    adjoint: bool = False

    rows_name = "rows"
    takes_sparse = True

    @property
    def flops_per_row(self) -> float:
        return 2.0 * (1 + self.adjoint) * self.X.size + 2.0 * len(self.X)

    def start(self) -> State:
        (n, length), wide = self.X.shape, accumulator_dtype(self.X.dtype)
        state: State = {"rows": np.zeros((0, length + self.width), wide), "squares": np.zeros(n)}
        if self.adjoint:
            state["ZH"] = np.zeros((length, n), wide)
        return state

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        if isinstance(A, SparseRows):
            add_rows(state, np.hstack([A.times(self.X), A.wide().blocks_beside(first_row, self.width)]))
            if self.adjoint:
                state["ZH"] += A.adjoint_times(self.X[first_row : first_row + len(A)])
            state["squares"] += A.column_squares()
            return ()
        wide, n = accumulator_dtype(A.dtype), len(self.X)
        for i, tile in tiles(A):
            rows = slice(first_row + i, first_row + i + len(tile))
            tile = tile.astype(wide, copy=False)
            blocks = np.zeros((len(tile), self.width), wide)
            for at, row in enumerate(range(rows.start, rows.stop)) if self.width else ():
                start = row // self.width * self.width
                block = tile[at, start : min(start + self.width, n)]
                blocks[at, : len(block)] = block
            add_rows(state, np.hstack([tile @ self.X, blocks]))
            if self.adjoint:
                state["ZH"] += self.X[rows].conj().T @ tile
            state["squares"] += np.einsum("ij,ij->j", tile, tile.conj()).real
        return ()

    def squares_in(self, state: State) -> Squares | None:
        return squares_of(float(state["squares"].sum()), self.X.dtype)
