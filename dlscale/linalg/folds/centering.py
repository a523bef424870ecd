"""Matrices less their means, centred as they are read; storage keeps what it holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import LAPACK_THRESHOLD, Check
from dlscale.engine.passes import Fold, State
from dlscale.engine.passes.row_results import RowsFold, add_rows
from dlscale.kernels import Moments, accumulator_dtype, tiles
from dlscale.linalg.folds.products import combine_means, settle_means, shift_rows, start_means
from dlscale.sparse_rows import SparseRows
from dlscale.storage.matrix import Matrix, SameRows


class Centered(SameRows):
    """``A - 1 (mean + low)`` for known column means; or, for ``mean=None``, every row less its own mean (a transposed matrix).

    Parameters
    ----------
    base : Matrix (m, n)
    mean : (n,), optional
    low : (n,), optional
        What double precision rounds away of the mean.
    """

    def __init__(self, base: Matrix, mean: Array | None, low: Array | None = None) -> None:
        super().__init__(base)
        self.mean = None if mean is None else mean.astype(base.dtype)
        #: What the dtype rounds away of the mean; beside a large offset it is as large as the data.
        self.mean_low = None
        if mean is not None:
            rest = ((mean - self.mean) + (0.0 if low is None else low)).astype(base.dtype)
            self.mean_low = rest if rest.any() else None

    @property
    def is_sparse(self) -> bool:  # type: ignore[override]
        return self.mean is not None and self.base.is_sparse

    def sparse_rows(self, start: int, stop: int) -> SparseRows:
        assert self.mean is not None
        mean = self.mean.astype(accumulator_dtype(self.dtype))
        return self.base.sparse_rows(start, stop).less(mean if self.mean_low is None else mean + self.mean_low)

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        block = self.base.region(rows, columns, out)
        if not self.base.in_memory and (out is None or np.may_share_memory(block, out)):
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


def less_mean(A: Matrix, means: State, squares: float | None = None) -> Centered:
    """``A - 1 mean``, with what double precision rounds away of the mean where that shows in singular values.

    Parameters
    ----------
    A : Matrix (m, n)
    means : mapping of str to arrays
        With ``mean`` and ``mean_low`` (n,).
    squares : float, optional
        ``||A - 1 mean||_F^2``.
    """
    (m, n), low = A.shape, means["mean_low"]
    # A wrong mean moves singular values by at most m^1/2 |low|, rounding by n eps s_1, which is at least eps (n squares)^1/2.
    rounding = float(np.finfo(A.dtype).eps) ** 2 * n * (squares or 0.0)
    return Centered(A, means["mean"], low if m * float(np.vdot(low, low).real) > rounding / 16 else None)


def row_means(A: Array) -> Array:
    """The mean of each row, refined by the mean of the differences, which a large offset needs."""
    first = A.mean(axis=1)
    return np.asarray(first.astype(accumulator_dtype(A.dtype)) + (A - first[:, None]).mean(axis=1))


def row_weights(first_row: int, n_rows: int) -> Array:
    """Weights between 1 and 2 that every row has by its number alone, whatever the blocks."""
    return 1 + np.arange(first_row, first_row + n_rows) * _GOLDEN % 1


_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class RowMeans(RowsFold):
    """The mean of every row, one below the other; and, measured apart, what the means sum to under `row_weights`."""

    dtype: np.dtype[Any]

    rows_name = "mean"

    def start(self) -> State:
        wide = accumulator_dtype(self.dtype)
        return {"mean": np.zeros(0, wide), "met": np.zeros(1, wide)}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        add_rows(state, row_means(A))
        weighted = row_weights(first_row, len(A)).astype(A.real.dtype) @ A
        state["met"] += weighted.mean(dtype=state["met"].dtype)
        return ()


def mean_check(measured: complex, weights: Array, mean: Array, spread: float, dtype: np.dtype[Any]) -> Check:
    """Check that a mean, as it is published, is that of the rows: on a probe it must give what was measured of the rows.

    Parameters
    ----------
    measured : number
        The mean of ``A weights``, summed from A itself.
    weights, mean : (n,)
    spread : float
        A standard deviation of ``A weights``, beside which rounding is harmless too.
    dtype : numpy.dtype
        Of A.
    """
    sizes = np.abs(weights) @ np.abs(mean)
    # A product of n terms is rounded so often; means are rounded to the dtype once.
    scale = (float(sizes) + spread) * math.sqrt(len(mean)) * float(np.finfo(dtype).eps)
    value = abs(measured - mean @ weights) / scale if scale > 0 else 0.0
    return Check(
        "|mean(A x) - mean(A) x| / (|mean(A)| |x| n^1/2 eps)",
        float(value),
        LAPACK_THRESHOLD,
        "on random weights of the columns, the mean is that of the rows as they were read",
    )


@dataclass(frozen=True)
class ColumnMeans(Fold):
    """The mean of every column, met on a probe (n,)."""

    n: int
    dtype: np.dtype[Any]
    probe: Array | None = None

    takes_sparse = True

    def start(self) -> State:
        return start_means(self.n, self.dtype)

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        moments, shift = Moments(state["rest"], probe=self.probe), shift_rows(state, A)
        if isinstance(A, SparseRows):
            moments.add_sparse(A, A if shift is None else A.less(shift))
        else:
            for i, tile in tiles(A, shift):
                if shift is not None and i == 0:
                    moments.add_mean(A, tile)
                moments.add(tile)
        state["met"] += (moments.met, moments.met_low)
        return ()

    def finish(self, state: State) -> State:
        settle_means(state)
        return state

    def merge(self, left: State, right: State) -> State:
        combine_means(left, right)
        left["met"] += right["met"]
        return left
