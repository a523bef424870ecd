"""Norms that entries tell: all of them in one read, in double precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Certificate, scaled
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Fold, Passes, State
from dlscale.kernels import accumulator_dtype, sum_of_squares, tiles
from dlscale.linalg.folds.products import squares_of
from dlscale.sparse_rows import SparseRows
from dlscale.storage.matrix import Matrix


@dataclass(frozen=True)
class Entries(Fold):
    """Sums of the moduli of each column and of the largest and smallest row, of all rows, and of all squares; the largest modulus.

    Parameters
    ----------
    n : int
    dtype : numpy.dtype
        Of the matrix.
    """

    n: int
    dtype: np.dtype[Any]

    takes_sparse = True

    @property
    def flops_per_row(self) -> float:
        return 6.0 * self.n

    def start(self) -> State:
        return {
            "columns": np.zeros(self.n),
            "rows": np.zeros(1),
            "largest_row": np.zeros(1),
            # Of no rows; a number that no sum reaches, since states are finite.
            "smallest_row": np.full(1, np.finfo(float).max),
            "largest": np.zeros(1),
            "squares": np.zeros(1),
        }

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        if isinstance(A, SparseRows):
            sizes = A.moduli()
            rows = sizes.times(np.ones((self.n, 1)))[:, 0]
            largest = max(sizes.entries().max(initial=0.0), sizes.beside().max(initial=0.0))
            self._add(state, sizes.sums(), rows, A.squares(), largest)
            return ()
        for _, tile in tiles(A):
            wide = tile.astype(accumulator_dtype(tile.dtype), copy=False)
            sizes = np.abs(wide)
            self._add(state, sizes.sum(axis=0), sizes.sum(axis=1), sum_of_squares(wide), sizes.max())
        return ()

    @staticmethod
    def _add(state: State, columns: Array, rows: Array, squares: float, largest: float) -> None:
        state["columns"] += columns
        state["rows"] += rows.sum()
        state["squares"] += squares
        for name, value in (("largest_row", rows.max()), ("largest", largest)):
            np.maximum(state[name], value, out=state[name])
        np.minimum(state["smallest_row"], rows.min(), out=state["smallest_row"])

    def squares_in(self, state: State) -> Any:
        return squares_of(float(state["squares"][0]), self.dtype)

    def merge(self, left: State, right: State) -> State:
        merged = {name: left[name] + right[name] for name in ("columns", "rows", "squares")}
        merged |= {name: np.maximum(left[name], right[name]) for name in ("largest_row", "largest")}
        return merged | {"smallest_row": np.minimum(left["smallest_row"], right["smallest_row"])}


@dataclass(frozen=True)
class EntryNorms:
    """Norms of a matrix by their names, and what certifies them."""

    norms: dict[str, float]
    certificate: Certificate


def measure_entries(passes: Passes, A: Matrix, *, grid: RowGrid) -> EntryNorms:
    """All norms that entries tell, in one read."""
    (m, n), found = A.shape, passes.sweep("entries", A, Entries(A.shape[1], A.dtype), grid)
    norms = {
        "fro": float(np.sqrt(found["squares"][0])),
        "1": float(found["columns"].max()),
        "-1": float(found["columns"].min()),
        "inf": float(found["largest_row"][0]),
        "-inf": float(found["smallest_row"][0]),
        "max": float(found["largest"][0]),
    }
    check = scaled(
        "|sum of the columns' norms - sum of the rows'| / (sum max(m, n) eps)",
        abs(float(found["columns"].sum() - found["rows"][0])),
        float(found["rows"][0]),
        size=max(m, n),
        dtype=np.dtype(float),
        meaning="summed by columns and by rows, the moduli of the entries come to the same",
    )
    return EntryNorms(norms, Certificate((check,)))
