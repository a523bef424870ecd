"""Matrices less their means, centred as they are read; storage keeps what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.engine.passes import Fold, State
from dlscale.kernels import Moments, accumulator_dtype, tiles
from dlscale.linalg.products import combine_means, settle_means, shift_rows, start_means
from dlscale.storage.matrices import Array, Matrix


class Centered(Matrix):
    """``A - 1 mean`` for known column means; or, for ``mean=None``, every row less its own mean (a transposed matrix)."""

    def __init__(self, base: Matrix, mean: Array | None) -> None:
        self.base = base
        self.mean = None if mean is None else mean.astype(base.dtype)
        low = None if mean is None else (mean - self.mean).astype(base.dtype)
        #: What single precision rounds away of the mean; beside a large offset it is as large as the data.
        self.mean_low = low if low is not None and low.any() else None
        self.shape, self.stored_dtype, self.uri = base.shape, base.stored_dtype, base.uri
        self.row_unit, self.column_unit, self.any_range = base.row_unit, base.column_unit, base.any_range

    def place(self, row: int, column: int) -> tuple[int, int]:
        return self.base.place(row, column)

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        block = self.base.region(rows, columns, out)
        if not self.base.in_memory:
            out = block  # it is ours, so it is centred in place
        centred: Array
        if self.mean is None:
            centred = np.subtract(block, block.mean(axis=1, keepdims=True), out=out)
            centred -= centred.mean(axis=1, keepdims=True)
            return centred
        centred = np.subtract(block, self.mean[slice(*columns)], out=out)
        if self.mean_low is not None:
            centred -= self.mean_low[slice(*columns)]
        return centred


def row_means(A: Array) -> Array:
    """The mean of each row, refined by the mean of the differences, which a large offset needs."""
    first = A.mean(axis=1)
    return np.asarray(first.astype(accumulator_dtype(A.dtype)) + (A - first[:, None]).mean(axis=1))


@dataclass(frozen=True)
class RowMeans(Fold):
    """The mean of every row, one below the other."""

    dtype: np.dtype[Any]

    def start(self) -> State:
        return {"mean": np.zeros(0, accumulator_dtype(self.dtype))}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        state["mean"] = np.concatenate([state["mean"], row_means(A)])
        return ()

    def merge(self, left: State, right: State) -> State:
        return {"mean": np.concatenate([left["mean"], right["mean"]])}


@dataclass(frozen=True)
class ColumnMeans(Fold):
    """The mean of every column."""

    n: int
    dtype: np.dtype[Any]

    def start(self) -> State:
        return start_means(self.n, self.dtype)

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        moments = Moments(state["rest"])
        for _, tile in tiles(A, shift_rows(state, A, dtype=A.dtype)):
            moments.add(tile)
        return ()

    def finish(self, state: State) -> State:
        settle_means(state)
        return state

    def merge(self, left: State, right: State) -> State:
        combine_means(left, right)
        return left
