"""What one read of a symmetric matrix gives of a block of vectors: two powers of it, or a measure of its symmetry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.passes import State
from dlscale.engine.passes.fold import Squares
from dlscale.engine.passes.row_results import RowsFold, add_rows
from dlscale.kernels import accumulator_dtype, add_normal_product, sum_of_squares, tiles
from dlscale.linalg.folds.products import squares_of
from dlscale.sparse_rows import SparseRows


@dataclass(frozen=True)
class Powers(RowsFold):
    """``Y = A W`` and ``Z = A^H Y``, which is ``A^2 W``: a read advances the degree of a polynomial by two.

    Parameters
    ----------
    W : (n, l), C order, of A's dtype

    Notes
    -----
    4 n^2 l flops.
    """

    W: Array

    rows_name = "product"
    takes_sparse = True

    @property
    def flops_per_row(self) -> float:
        return 4.0 * self.W.size

    def start(self) -> State:
        n, width = self.W.shape
        return {"product": np.zeros((0, width), self.W.dtype), "ZH": np.zeros((width, n), accumulator_dtype(self.W.dtype))}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        add_rows(state, add_normal_product(A, self.W, state["ZH"]).copy())
        return ()


@dataclass(frozen=True)
class Both(RowsFold):
    """``A X`` and ``A^H X``, with ``||A||_F^2`` and the trace of A: for normal X, ``||A X - A^H X||`` measures all of ``A - A^H``.

    Parameters
    ----------
    X : (n, l), C order, of A's dtype
    """

    X: Array

    rows_name = "product"
    takes_sparse = True

    @property
    def flops_per_row(self) -> float:
        return 4.0 * self.X.size

    def start(self) -> State:
        (n, width), wide = self.X.shape, accumulator_dtype(self.X.dtype)
        return {
            "product": np.zeros((0, width), self.X.dtype),
            "ZH": np.zeros((width, n), wide),
            "squares": np.zeros(1),
            "trace": np.zeros(1, wide),
        }

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        if isinstance(A, SparseRows):
            add_rows(state, A.times(self.X).astype(self.X.dtype, copy=False))
            state["ZH"] += A.adjoint_times(self.X[first_row : first_row + len(A)])
            state["squares"] += A.squares()
            state["trace"] += A.trace(first_row)
            return ()
        for i, tile in tiles(A):
            rows = slice(first_row + i, first_row + i + len(tile))
            add_rows(state, tile @ self.X)
            state["ZH"] += self.X[rows].conj().T @ tile
            state["squares"] += sum_of_squares(tile)
            state["trace"] += np.trace(tile, offset=rows.start, dtype=state["trace"].dtype)
        return ()

    def squares_in(self, state: State) -> Squares | None:
        return squares_of(float(state["squares"][0]), self.X.dtype)
