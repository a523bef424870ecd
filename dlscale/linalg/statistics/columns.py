"""Statistics of the columns of a matrix, or of its rows, in one read and in double precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.passes import Fold, State
from dlscale.engine.passes.fold import Squares
from dlscale.errors import NumericalError
from dlscale.kernels import tile_rows, tiles
from dlscale.linalg.folds.products import squares_of
from dlscale.sparse_rows import SparseRows
from dlscale.storage.sparse.steps import Moments

#: What is told of each column, or row: the mean, the sum of squares beside it, how many entries are not zero, and the extremes.
NAMES = ("mean", "squares", "nonzeros", "smallest", "largest")
#: What is summed row by row beside it, so that both can be compared: entries, their moduli and squares.
_TOTALS = ("entries", "moduli", "all_squares")
#: What the statistics of rows make of entries and squares.
_OF_ROWS = ("of_rows", "squares_of_rows")
#: Sums of squares from here on have all their digits.
LEAST_SQUARES = float(np.finfo(float).tiny / np.finfo(float).eps)


@dataclass(frozen=True)
class ColumnStatistics(Fold):
    """`NAMES` of each column of a real matrix; and the totals of its rows.

    Notes
    -----
    Each block is summed beside its own means, so that no digit is lost beside a large one; a column of equal numbers has a sum of
    squares of zero.

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
        totals = {name: np.zeros(1) for name in ("count", *_TOTALS)}
        return totals | {name: np.zeros(self.n) for name in NAMES}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        if isinstance(A, SparseRows):
            ones = np.ones((self.n, 1))
            totals = A.times(ones).sum(), A.moduli().times(ones).sum(), A.squares()
            _combine(state, _settled(len(A), A.column_statistics(), totals))
            return ()
        for _, tile in tiles(A):
            wide = tile.astype(np.float64, copy=False)
            found = _along(wide, axis=0)
            totals = wide.sum(axis=1).sum(), np.abs(wide).sum(axis=1).sum(), float(np.vdot(wide, wide))
            _combine(state, _settled(len(tile), found, totals))
        return ()

    def squares_in(self, state: State) -> Squares | None:
        return squares_of(float(state["all_squares"][0]), np.dtype(float))

    def merge(self, left: State, right: State) -> State:
        _combine(left, right)
        return left


@dataclass(frozen=True)
class RowStatistics(Fold):
    """`NAMES` of each row of a real matrix, for the outputs of the pass (variances for squares); and the totals of its columns."""

    n: int

    takes_sparse = True

    @property
    def flops_per_row(self) -> float:
        return 8.0 * self.n

    def start(self) -> State:
        return {name: np.zeros(1) for name in (*_TOTALS, *_OF_ROWS)}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        parts: list[Array] = []
        for tile in _dense_tiles(A):
            mean, squares, nonzeros, smallest, largest = _along(tile, axis=1)
            equal = smallest == largest
            mean, squares = np.where(equal, smallest, mean), np.where(equal, 0.0, np.maximum(squares, 0.0))
            if (lost := ~equal & (squares < LEAST_SQUARES)).any():
                raise too_small("row", first_row + sum(part.shape[1] for part in parts) + int(np.argmax(lost)))
            totals = tile.sum(axis=0).sum(), np.abs(tile).sum(axis=0).sum(), np.einsum("ij,ij->j", tile, tile).sum()
            measured = mean.sum() * self.n, (squares + self.n * mean**2).sum()
            for name, value in zip((*_TOTALS, *_OF_ROWS), (*totals, *measured), strict=True):
                state[name] += value
            parts.append(np.stack([mean, squares / max(self.n - 1, 1), nonzeros, smallest, largest]))
        rows = np.concatenate(parts, axis=1)
        return tuple(np.ascontiguousarray(row[:, None]) for row in rows)

    def squares_in(self, state: State) -> Squares | None:
        return squares_of(float(state["all_squares"][0]), np.dtype(float))


def _dense_tiles(A: Any) -> Iterator[Array]:
    """Rows of a block in double precision, some at a time."""
    if not isinstance(A, SparseRows):
        yield from (tile.astype(np.float64, copy=False) for _, tile in tiles(A))
        return
    step = tile_rows(A.shape[1], 8)
    for i in range(0, len(A), step):
        yield A.part(i, i + step).wide().toarray()


def _along(wide: Array, *, axis: int) -> tuple[Array, Array, Array, Array, Array]:
    """`NAMES` of the columns (axis 0) or rows of a dense tile."""
    n = wide.shape[axis]
    mean = wide.mean(axis=axis, keepdims=True)
    beside = wide - mean
    rest = beside.mean(axis=axis)
    squares = (beside**2).sum(axis=axis) - n * rest**2
    extremes = wide.min(axis=axis), wide.max(axis=axis)
    return mean.squeeze(axis) + rest, squares, np.count_nonzero(wide, axis=axis).astype(float), *extremes


def moments_of(state: State, exponents: Array) -> Moments:
    """Of the result of a pass over columns that are ``2^exponents`` larger."""
    deviations = np.sqrt(state["squares"] / max(float(state["count"][0]) - 1, 1))
    with np.errstate(over="ignore", under="ignore"):
        mean, deviations = np.ldexp(state["mean"], exponents), np.ldexp(deviations, exponents)
    return Moments(float(state["count"][0]), mean, deviations, state["nonzeros"])


def are_lost(state: State) -> Array:
    """Which columns vary by so little that their squares lose digits."""
    return np.asarray((state["smallest"] < state["largest"]) & (state["squares"] < LEAST_SQUARES))


def too_small(what: str, number: int) -> NumericalError:
    """What is said of a variance that has lost its digits."""
    return NumericalError(
        f"The variance of {what} {number} is out of the range in which float64 has all its digits; multiply the {what} by a power "
        "of two."
    )


def _settled(n_rows: int, found: tuple[Array, Array, Array, Array, Array], totals: tuple[float, float, float]) -> State:
    """A block's part of a state: what is equal has no spread, whatever rounding made of its mean."""
    mean, squares, nonzeros, smallest, largest = found
    equal = smallest == largest
    columns = (np.where(equal, smallest, mean), np.where(equal, 0.0, np.maximum(squares, 0.0)), nonzeros, smallest, largest)
    scalars = zip(("count", *_TOTALS), (n_rows, *totals), strict=True)
    return {name: np.array([float(value)]) for name, value in scalars} | {
        name: np.asarray(value, float) for name, value in zip(NAMES, columns, strict=True)
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
    for name in ("count", "nonzeros", *_TOTALS):
        left[name] += right[name]
    np.minimum(left["smallest"], right["smallest"], out=left["smallest"])
    np.maximum(left["largest"], right["largest"], out=left["largest"])
