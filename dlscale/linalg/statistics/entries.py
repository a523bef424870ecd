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
from dlscale.engine.passes.fold import Squares
from dlscale.kernels import accumulator_dtype, largest_part, sum_of_squares, tiles
from dlscale.linalg.folds.products import squares_of
from dlscale.sparse_rows import SparseRows
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import scaled as scaled_matrix

#: What the certificate finds of them.
_SAME = "the moduli of the entries come to the same"


@dataclass(frozen=True)
class Entries(Fold):
    """Sums of the moduli of each column and of the largest and smallest row, of all rows, and of all squares; the largest modulus.

    Parameters
    ----------
    n : int
    ceiling : float
        Moduli count as this where they are larger, so that no sum overflows. Where it is finite squares are not summed, and the
        largest is that of real and imaginary parts.
    """

    n: int
    ceiling: float = np.inf

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
            moduli = A.moduli(self.ceiling)
            rows = moduli.times(np.ones((self.n, 1)))[:, 0]
            bare = (A.entries(), A.beside()) if self._is_cut else (moduli.entries(), moduli.beside())
            self._add(state, moduli.sums(), rows, 0.0 if self._is_cut else A.squares(), max(map(largest_part, bare)))
            return ()
        for _, tile in tiles(A):
            wide = tile.astype(accumulator_dtype(tile.dtype), copy=False)
            sizes = np.minimum(np.abs(wide), self.ceiling) if self._is_cut else np.abs(wide)
            squares = 0.0 if self._is_cut else sum_of_squares(wide)
            self._add(state, sizes.sum(axis=0), sizes.sum(axis=1), squares, largest_part(wide) if self._is_cut else sizes.max())
        return ()

    @property
    def _is_cut(self) -> bool:
        return self.ceiling < np.inf

    @staticmethod
    def _add(state: State, columns: Array, rows: Array, squares: float, largest: float) -> None:
        state["columns"] += columns
        state["rows"] += rows.sum()
        state["squares"] += squares
        for name, value in (("largest_row", rows.max()), ("largest", largest)):
            np.maximum(state[name], value, out=state[name])
        np.minimum(state["smallest_row"], rows.min(), out=state["smallest_row"])

    def squares_in(self, state: State) -> Squares | None:
        return None if self._is_cut else squares_of(float(state["squares"][0]), np.dtype(float))

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
    """The norms that entries tell, but for smallest sums, in one read."""
    found = passes.sweep("entries", A, Entries(A.shape[1]), grid)
    norms = {
        "fro": float(np.sqrt(found["squares"][0])),
        "1": float(found["columns"].max()),
        "inf": float(found["largest_row"][0]),
        "max": float(found["largest"][0]),
    }
    return EntryNorms(norms, _certificate(found, A, _SAME))


def measure_smallest(passes: Passes, A: Matrix, which: str, *, grid: RowGrid) -> tuple[EntryNorms, int]:
    """The smallest sum of a column (-1) or row (-inf) of ``2^-e A``, and e, which is 0 unless all of them are near overflow.

    Notes
    -----
    Entries are read at their own scale, where a small sum beside large entries keeps its digits: the large ones are cut to where no
    sum overflows, and a sum below that has none of them.
    """
    room = int(np.ceil(np.log2(A.shape[0] * A.shape[1]))) + 2
    ceiling, exponent = float(np.ldexp(1.0, np.finfo(float).maxexp - room)), 0
    found = passes.sweep("entries", A, Entries(A.shape[1], ceiling), grid)
    meaning = f"the moduli of the entries, or {ceiling:.1e} where they are larger, come to the same"
    if _smallest(found)[which] >= ceiling:
        # Beside sums of this size, what vanishes of small entries at the other scale is nothing.
        exponent, meaning = room, _SAME
        fold = Entries(A.shape[1], float(np.finfo(float).max))
        found = passes.apart("scaled-").sweep("entries", scaled_matrix(A, -exponent), fold, grid)
    return EntryNorms(_smallest(found), _certificate(found, A, meaning)), exponent


def _smallest(found: State) -> dict[str, float]:
    return {"-1": float(found["columns"].min()), "-inf": float(found["smallest_row"][0])}


def _certificate(found: State, A: Matrix, meaning: str) -> Certificate:
    check = scaled(
        "|sum of the columns' norms - sum of the rows'| / (sum max(m, n) eps)",
        abs(float(found["columns"].sum() - found["rows"][0])),
        float(found["rows"][0]),
        size=max(A.shape),
        dtype=np.dtype(float),
        meaning=f"summed by columns and by rows, {meaning}",
    )
    return Certificate((check,))
