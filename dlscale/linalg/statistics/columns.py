"""Statistics of the columns of a matrix, in one read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.passes import Fold, State
from dlscale.kernels import tiles
from dlscale.sparse_rows import SparseRows
from dlscale.storage.sparse.steps import Moments


@dataclass(frozen=True)
class ColumnStatistics(Fold):
    """Of each column of a real matrix the mean, the sum of squares beside it, the extremes and how many entries are not zero.

    Notes
    -----
    In double precision, each block beside its own means, so that no digit is lost beside a large one; a column of equal numbers has
    a sum of squares of zero.

    References
    ----------
    Chan, Golub, LeVeque (1983), Algorithms for computing the sample variance, equation 2.1.
    """

    n: int

    takes_sparse = True

    @property
    def flops_per_row(self) -> float:
        return 8.0 * self.n

    def start(self) -> State:
        names = ("mean", "squares", "nonzeros", "smallest", "largest")
        return {"count": np.zeros(1)} | {name: np.zeros(self.n) for name in names}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        if isinstance(A, SparseRows):
            _combine(state, _settled(len(A), *A.column_statistics()))
            return ()
        for _, tile in tiles(A):
            wide = tile.astype(np.float64, copy=False)
            mean = wide.mean(axis=0)
            beside = wide - mean
            rest = beside.mean(axis=0)
            squares = np.einsum("ij,ij->j", beside, beside) - len(tile) * rest**2
            block = (mean + rest, squares, np.count_nonzero(wide, axis=0), wide.min(axis=0), wide.max(axis=0))
            _combine(state, _settled(len(tile), *block))
        return ()

    def merge(self, left: State, right: State) -> State:
        _combine(left, right)
        return left


def moments_of(state: State) -> Moments:
    """Of the result of a pass."""
    return Moments(float(state["count"][0]), state["mean"], state["squares"], state["nonzeros"])


def _settled(n_rows: int, mean: Array, squares: Array, nonzeros: Array, smallest: Array, largest: Array) -> State:
    """A block's part of a state: what is equal has no spread, whatever rounding made of its mean."""
    equal = smallest == largest
    return {
        "count": np.array([float(n_rows)]),
        "mean": np.where(equal, smallest, mean),
        "squares": np.where(equal, 0.0, np.maximum(squares, 0.0)),
        "nonzeros": nonzeros.astype(np.float64),
        "smallest": smallest,
        "largest": largest,
    }


def _combine(left: State, right: State) -> None:
    """Put the statistics of the union into ``left``."""
    n, more = float(left["count"][0]), float(right["count"][0])
    if not n:
        left.update({name: value.copy() for name, value in right.items()})
        return
    delta, share = right["mean"] - left["mean"], more / (n + more)
    left["squares"] += right["squares"] + delta**2 * (n * share)
    left["mean"] += delta * share
    left["count"] += more
    left["nonzeros"] += right["nonzeros"]
    np.minimum(left["smallest"], right["smallest"], out=left["smallest"])
    np.maximum(left["largest"], right["largest"], out=left["largest"])
