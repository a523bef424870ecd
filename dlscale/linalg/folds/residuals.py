"""What solves measure of a matrix, one read each: its norms, and residuals B - A X in double precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import workspace
from dlscale.engine.passes import Fold, State
from dlscale.engine.passes.row_results import RowsFold, add_rows
from dlscale.kernels import accumulator_dtype, half_precision, largest_part, tiles
from dlscale.storage.matrix import Matrix, View


@dataclass(frozen=True)
class Norms(Fold):
    """Sums of the moduli of each column, and the largest modulus: ``||A||_1`` is the largest sum."""

    n: int

    @property
    def flops_per_row(self) -> float:
        return 2.0 * self.n

    def start(self) -> State:
        return {"sums": np.zeros(self.n), "largest": np.zeros(1)}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        for _, tile in tiles(A):
            real = np.dtype(tile.dtype.char.lower())
            sizes = np.abs(tile, out=workspace("sizes", tile.shape, real))
            state["sums"] += np.ones(len(tile), real) @ sizes
            largest = sizes.max()
            np.maximum(state["largest"], largest if np.isfinite(largest) else largest_part(tile), out=state["largest"])
        return ()

    def finish(self, state: State) -> State:
        # Sums that overflow are no fault of the matrix: the largest entry says that they are to be taken of a scaled one.
        if np.isfinite(state["largest"]).all():
            state["sums"][~np.isfinite(state["sums"])] = 0
        return state

    def merge(self, left: State, right: State) -> State:
        return {"sums": left["sums"] + right["sums"], "largest": np.maximum(left["largest"], right["largest"])}


@dataclass(frozen=True)
class Residual(RowsFold):
    """``B - A X`` in double precision.

    Parameters
    ----------
    X : (n, k)
    rhs_dtype : numpy.dtype, optional
        Of B, the second matrix of the pass; without, there is none, and B is zero.
    """

    X: Array
    rhs_dtype: np.dtype[Any] | None = None

    rows_name = "residual"

    @property
    def flops_per_row(self) -> float:
        return 2.0 * self.X.size

    @property
    def dtype(self) -> np.dtype[Any]:
        return accumulator_dtype(np.result_type(self.X, *([self.rhs_dtype] if self.rhs_dtype else [])))

    def start(self) -> State:
        return {"residual": np.zeros((0, self.X.shape[1]), self.dtype)}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        A, B = A if self.rhs_dtype else (A, 0)
        part = np.zeros((len(A), self.X.shape[1]), self.dtype)
        part += B
        for i, tile in tiles(A):
            wide = accumulator_dtype(tile.dtype)
            part[i : i + len(tile)] -= tile.astype(wide, copy=False) @ self.X
        add_rows(state, part)
        return ()


class Rounded(View):
    """``scale A`` in lower precision, rounded while it is read."""

    def __init__(self, base: Matrix, scale: float) -> None:
        super().__init__(base)
        self.scale, self.stored_dtype = scale, half_precision(base.dtype)

    @property
    def T(self) -> Matrix:
        return Rounded(self.base.T, self.scale)

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        shape = (rows[1] - rows[0], columns[1] - columns[0])
        buffer = None if self.base.in_memory else workspace("rounded", shape, self.base.dtype)
        wide = self.base.region(rows, columns, buffer)
        if out is None:
            out = np.empty(shape, self.dtype)
        return np.multiply(wide, self.scale, out=out, casting="same_kind")


def rounding_scale(largest: float) -> float:
    """A power of two that brings the largest entry near 1, so that nothing overflows and scaling rounds nothing."""
    if largest == 0:
        return 1.0
    exponent = -int(np.frexp(largest)[1])
    return float(np.ldexp(1.0, max(-1022, min(1022, exponent))))
