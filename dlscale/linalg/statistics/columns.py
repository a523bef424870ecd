"""Statistics of the columns of a matrix, or of its rows, in one read and in double precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.passes import Fold, State
from dlscale.errors import NumericalError
from dlscale.kernels import tile_rows, tiles
from dlscale.sparse_rows import SparseRows
from dlscale.storage.sparse.steps import Moments

#: What is told of each column, or row: the mean, the sum of squares beside it, how many entries are not zero, and the extremes.
NAMES = ("mean", "squares", "nonzeros", "smallest", "largest")
#: Beside them a state has the exponent of each column. Means and squares are those of ``2^-e`` times the column, whose squares are
#: in range; these are their powers of it.
_EXPONENTS, _POWERS = "exponents", {"mean": 1, "squares": 2}
#: What is summed row by row beside it, so that both can be compared: entries, their moduli and squares; and what the statistics of
#: rows make of entries and squares. All is of ``2^-e`` times the matrix, where e is the largest exponent; the powers of it.
_TOTALS, _OF_ROWS = {"entries": 1, "moduli": 1, "all_squares": 2}, {"of_rows": 1, "squares_of_rows": 2}
#: Of powers of two whose inverse is one; the largest of entries that are taken as they are; and that of zeros alone.
_LEAST_EXPONENT, _MODERATE, _NONE = -1000, 400, -4000


@dataclass(frozen=True)
class ColumnStatistics(Fold):
    """`NAMES` of each column of a real matrix; and the totals of its rows.

    Notes
    -----
    Each block is summed beside its own means, so that no digit is lost beside a large one; a column of equal numbers has a sum of
    squares of zero. A column whose squares may overflow or vanish is summed near 1.

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
        return totals | {name: np.zeros(self.n) for name in NAMES} | {_EXPONENTS: np.full(self.n, float(_NONE))}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        if isinstance(A, SparseRows):
            found, rows = _along_compressed(A)
            ones = np.ones((self.n, 1))
            totals = float(rows.times(ones).sum()), float(rows.moduli().times(ones).sum()), rows.squares()
            _combine(state, found | _scalars(len(A), totals))
            return ()
        for _, tile in tiles(A):
            found, whole = _along(tile.astype(np.float64, copy=False), axis=0)
            totals = whole.sum(axis=1).sum(), np.abs(whole).sum(axis=1).sum(), float(np.vdot(whole, whole))
            _combine(state, found | _scalars(len(tile), totals))
        return ()

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
        return {name: np.zeros(1) for name in (*_TOTALS, *_OF_ROWS)} | {_EXPONENTS: np.full(1, float(_NONE))}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        parts: list[Array] = []
        for tile in _dense_tiles(A):
            found, whole = _along(tile, axis=1)
            parts.append(np.stack(told_of(found, self.n, "row", first_row + sum(part.shape[1] for part in parts))))
            totals = whole.sum(axis=0).sum(), np.abs(whole).sum(axis=0).sum(), np.einsum("ij,ij->j", whole, whole).sum()
            values = zip((*_TOTALS, *_OF_ROWS), (*totals, *sums_of(found, self.n)), strict=True)
            largest = found[_EXPONENTS].max(keepdims=True)
            state.update(self.merge(state, {name: np.array([value]) for name, value in values} | {_EXPONENTS: largest}))
        rows = np.concatenate(parts, axis=1)
        return tuple(np.ascontiguousarray(row[:, None]) for row in rows)

    def merge(self, left: State, right: State) -> State:
        left, right = _at_one_scale(left, right)
        return {_EXPONENTS: left[_EXPONENTS]} | {name: left[name] + right[name] for name in (*_TOTALS, *_OF_ROWS)}


def _dense_tiles(A: Any) -> Iterator[Array]:
    """Rows of a block in double precision, some at a time."""
    if not isinstance(A, SparseRows):
        yield from (tile.astype(np.float64, copy=False) for _, tile in tiles(A))
        return
    step = tile_rows(A.shape[1], 8)
    for i in range(0, len(A), step):
        yield A.part(i, i + step).wide().toarray()


def _along(wide: Array, *, axis: int) -> tuple[State, Array]:
    """What a state has of the columns (axis 0) or rows of a dense tile; and the tile at the scale of its largest."""
    n, smallest, largest = wide.shape[axis], wide.min(axis=axis), wide.max(axis=axis)
    exponents = _exponents_of(smallest, largest)
    near_1 = wide * np.expand_dims(_scales(exponents), axis) if _are_extreme(exponents) else wide
    mean = near_1.mean(axis=axis, keepdims=True)
    beside = near_1 - mean
    rest = beside.mean(axis=axis)
    squares = (beside**2).sum(axis=axis) - n * rest**2
    nonzeros = np.count_nonzero(wide, axis=axis).astype(float)
    whole = near_1 * np.expand_dims(np.ldexp(1.0, exponents - exponents.max()), axis) if near_1 is not wide else wide
    return _settled(mean.squeeze(axis) + rest, squares, nonzeros, smallest, largest, exponents), whole


def _along_compressed(A: SparseRows) -> tuple[State, SparseRows]:
    """The same of the columns of compressed rows."""
    nonzeros, smallest, largest = A.column_extremes()
    exponents = _exponents_of(smallest, largest)
    if not _are_extreme(exponents):
        return _settled(*A.column_moments(), nonzeros, smallest, largest, exponents), A
    near_1 = A.times_columns(_scales(exponents))
    found = _settled(*near_1.column_moments(), nonzeros, smallest, largest, exponents)
    return found, near_1.times_columns(np.ldexp(1.0, exponents - exponents.max()))


def _exponents_of(smallest: Array, largest: Array) -> Array:
    """Of powers of two that are above the entries, 0 where their squares and the sums of these are in range."""
    size = np.maximum(-smallest, largest)
    exponents = np.maximum(np.frexp(size)[1], _LEAST_EXPONENT)
    return np.where(size > 0, np.where(np.abs(exponents) > _MODERATE, exponents, 0), _NONE)


def _are_extreme(exponents: Array) -> bool:
    return bool(((exponents != 0) & (exponents != _NONE)).any())


def _scales(exponents: Array) -> Array:
    """The powers of two that columns are multiplied by."""
    return np.ldexp(1.0, np.where(exponents == _NONE, 0, -exponents))


def _settled(mean: Array, squares: Array, nonzeros: Array, smallest: Array, largest: Array, exponents: Array) -> State:
    """What is equal has no spread, whatever rounding made of its mean."""
    equal = smallest == largest
    mean = np.where(equal, np.ldexp(smallest, -exponents), mean)
    values = (mean, np.where(equal, 0.0, np.maximum(squares, 0.0)), nonzeros, smallest, largest, exponents)
    return {name: np.asarray(value, float) for name, value in zip((*NAMES, _EXPONENTS), values, strict=True)}


def _scalars(n_rows: int, totals: tuple[float, float, float]) -> State:
    return {name: np.array([float(value)]) for name, value in zip(("count", *_TOTALS), (n_rows, *totals), strict=True)}


def _at_one_scale(left: State, right: State) -> tuple[State, State]:
    """Both with the larger exponents."""
    if np.array_equal(left[_EXPONENTS], right[_EXPONENTS]):
        return left, right
    exponents = np.maximum(left[_EXPONENTS], right[_EXPONENTS])

    def there(state: State) -> State:
        powers = dict.fromkeys(_POWERS, state[_EXPONENTS] - exponents)
        powers |= dict.fromkeys((*_TOTALS, *_OF_ROWS), state[_EXPONENTS].max() - exponents.max())
        times = _POWERS | _TOTALS | _OF_ROWS
        moved = {name: _times_power(state[name], times[name] * powers[name]) for name in times if name in state}
        return state | moved | {_EXPONENTS: exponents}

    return there(left), there(right)


def _combine(left: State, right: State) -> None:
    """Put the statistics of the union into ``left``."""
    n, more = float(left["count"][0]), float(right["count"][0])
    if not n:
        left.update({name: value.copy() for name, value in right.items()})
        return
    one, other = _at_one_scale(left, right)
    delta, share = other["mean"] - one["mean"], more / (n + more)
    left["squares"] = one["squares"] + other["squares"] + delta**2 * (n * share)
    left["mean"] = one["mean"] + delta * share
    left[_EXPONENTS] = one[_EXPONENTS]
    for name in ("count", "nonzeros", *_TOTALS):
        left[name] = one[name] + other[name]
    np.minimum(left["smallest"], right["smallest"], out=left["smallest"])
    np.maximum(left["largest"], right["largest"], out=left["largest"])


def _times_power(values: Array, exponents: Array) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(np.ldexp(values, exponents.astype(int)))


def moments_of(state: State) -> Moments:
    """Of the result of a pass over columns."""
    n_rows, exponents = float(state["count"][0]), state[_EXPONENTS]
    deviations = np.sqrt(state["squares"] / max(n_rows - 1, 1))
    return Moments(n_rows, _times_power(state["mean"], exponents), _times_power(deviations, exponents), state["nonzeros"])


def told_of(state: State, n_numbers: int, what: str, first: int = 0) -> list[Array]:
    """What is published for each of `NAMES`, variances in the place of squares (NumericalError if one is out of range).

    Parameters
    ----------
    state : State
    n_numbers : int
        That each is told of.
    what : str
        Column or row.
    first : int
        The number of the first of them.
    """
    variances = _times_power(state["squares"] / max(n_numbers - 1, 1), 2 * state[_EXPONENTS])
    limits = np.finfo(float)
    for wrong, fault, way in (
        (np.isinf(variances) & np.isfinite(state["squares"]), "overflows float64", "divide"),
        (
            (state["smallest"] < state["largest"]) & (variances < limits.tiny),
            "is out of the range in which float64 has all its digits",
            "multiply",
        ),
    ):
        if wrong.any():
            raise NumericalError(
                f"The variance of {what} {first + int(np.argmax(wrong))} {fault}; {way} the {what} by a power of two."
            )
    return [
        _times_power(state["mean"], state[_EXPONENTS]),
        variances,
        *(state[name] for name in ("nonzeros", "smallest", "largest")),
    ]


def sums_of(state: State, n_numbers: int) -> tuple[float, float]:
    """What means and squares say of the sums of all entries and of their squares, at the scale of the totals."""
    exponents, mean = state[_EXPONENTS] - state[_EXPONENTS].max(), state["mean"]
    squares = state["squares"] + n_numbers * mean**2
    return float(_times_power(mean, exponents).sum()) * n_numbers, float(_times_power(squares, 2 * exponents).sum())
