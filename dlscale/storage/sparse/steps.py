"""The steps of a transform: what becomes of the entries of some rows, and what of all rows that takes to know.

Those of rows and single entries stand here, those of columns in `column_steps`.

A step with a parameter is fitted to statistics of the columns, once: rows that come later are transformed by the same numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError, SpecError

Map = Literal["log1p", "sqrt", "binary"]
#: Sums from here on have all their digits, and an inverse with all of them.
_SMALL = 2.0**-900


class Entries(NamedTuple):
    """Entries of b rows, row by row and by columns: of compressed rows those that are stored, of dense ones all.

    Parameters
    ----------
    values, rows, columns : (nnz,)
        In double precision; rows count from the first one of the block.
    shape : (b, n)
    """

    values: Array
    rows: Array
    columns: Array
    shape: tuple[int, int]

    def row_sums(self) -> Array:
        return np.bincount(self.rows, self.values, minlength=self.shape[0])

    def with_row_sums(self) -> tuple[Entries, Array]:
        """The same entries and their sums; rows whose sum is out of a safe range are multiplied by a power of two before."""
        sums = self.row_sums()
        if not (np.isinf(sums) | ((sums != 0) & (np.abs(sums) < _SMALL))).any():
            return self, sums
        largest = np.zeros(self.shape[0])
        np.maximum.at(largest, self.rows, np.where(np.isfinite(self.values), np.abs(self.values), 0.0))
        near_1 = self._replace(values=np.ldexp(self.values, -np.frexp(largest)[1][self.rows]))
        return near_1, near_1.row_sums()


class Moments(NamedTuple):
    """What is known of the columns of a matrix of so many rows, each (n,).

    Parameters
    ----------
    n_rows : float
    mean, deviations : (n,)
        Means, and the roots of the variances, divided by m - 1 as a PCA does; 0 of a single row.
    nonzeros : (n,)
    """

    n_rows: float
    mean: Array
    deviations: Array
    nonzeros: Array

    def scaled(self, factors: Array) -> Moments:
        return Moments(self.n_rows, self.mean * factors, self.deviations * factors, self.nonzeros)

    def chosen(self, columns: Array) -> Moments:
        return Moments(self.n_rows, self.mean[columns], self.deviations[columns], self.nonzeros[columns])


class Quartiles(NamedTuple):
    """The quartiles of the columns of a matrix, each (n,) in double precision."""

    low: Array
    median: Array
    high: Array

    def scaled(self, factors: Array) -> Quartiles:
        return Quartiles(*(quartile * factors for quartile in self))

    def chosen(self, columns: Array) -> Quartiles:
        return Quartiles(*(quartile[columns] for quartile in self))


#: What is known of columns when a step is fitted.
Statistics = Moments | Quartiles
#: From the row and the column of an entry of a block to the matrix and its place there, as `dlscale.storage.matrix.Matrix.place`.
Place = Callable[[int, int], tuple[str, int, int]]


class Step(ABC):
    """One step.

    Attributes
    ----------
    parameter : str
        Name of what is fitted; empty where nothing is.
    statistics : type
        Of what it is fitted to.
    """

    parameter: ClassVar[str] = ""
    statistics: ClassVar[type[Statistics]] = Moments

    @property
    @abstractmethod
    def words(self) -> str:
        """What it does, for people."""

    @abstractmethod
    def applied(self, entries: Entries, parameter: Any, place: Place) -> Entries:
        """The entries after it; one that is no number stays, for who reads it to name."""

    def n_columns(self, n: int) -> int:
        """How many columns it leaves of n (SpecError if it cannot)."""
        return n

    def fit(self, columns: Any) -> Array:
        """The parameter, from what is known of the columns before it."""
        raise NotImplementedError

    def neutral(self, n: int) -> Array | None:
        """A parameter of the right shape for n columns, where the rows have not been seen."""
        return np.ones(n) if self.parameter else None

    def after(self, columns: Statistics, parameter: Any) -> Statistics | None:
        """The columns after it, where they follow from those before it."""
        return None

    #: Whether they do.
    keeps_statistics: ClassVar[bool] = False


def fits(steps: Sequence[Step], n: int) -> Iterator[tuple[type[Statistics], int]]:
    """What is found out of n columns to fit steps, and of how many of them; once where what follows can be told from the same."""
    known = set[type[Statistics]]()
    for step in steps:
        if step.parameter and step.statistics not in known:
            known.add(step.statistics)
            yield step.statistics, n
        known = known if step.keeps_statistics else set()
        n = step.n_columns(n)


@dataclass(frozen=True)
class ScaleRows(Step):
    """Each row is scaled to one sum; one without entries stays so."""

    to: float

    def __post_init__(self) -> None:
        if not 0 < self.to < np.inf:
            raise SpecError(f"scale_rows: rows are scaled to a positive sum; got {self.to}.")

    @property
    def words(self) -> str:
        return f"rows scaled to the sum {self.to:g}"

    def applied(self, entries: Entries, parameter: Any, place: Place) -> Entries:
        entries, sums = entries.with_row_sums()
        held = np.bincount(entries.rows, entries.values != 0, minlength=len(sums)) > 0
        if (wrong := np.flatnonzero(held & (sums <= 0))).size:
            uri, row, _ = place(int(wrong[0]), 0)
            raise InputError(f"{uri}: row {row} sums to {sums[wrong[0]]:g}, and cannot be scaled to {self.to:g}.")
        usable = held & np.isfinite(sums)
        factors = np.where(usable, self.to / np.where(usable, sums, 1.0), 1.0)
        return entries._replace(values=entries.values * factors[entries.rows])


_FUNCTIONS: dict[str, Callable[[Array], Array]] = {"log1p": np.log1p, "sqrt": np.sqrt, "binary": lambda x: (x != 0).astype(x.dtype)}
_DEFINED: dict[str, Callable[[Array], Array]] = {
    "log1p": lambda x: x > -1,
    "sqrt": lambda x: x >= 0,
    "binary": lambda x: np.ones(len(x), bool),
}


@dataclass(frozen=True)
class Mapped(Step):
    """A function of each entry that leaves zeros zeros."""

    function: Map

    def __post_init__(self) -> None:
        if self.function not in get_args(Map):
            raise SpecError(f"map: got {self.function!r}; allowed: {', '.join(get_args(Map))}.")

    @property
    def words(self) -> str:
        return f"{self.function} of each entry"

    def applied(self, entries: Entries, parameter: Any, place: Place) -> Entries:
        values = entries.values
        _require(_DEFINED[self.function](values), entries, place, self.function)
        with np.errstate(invalid="ignore", divide="ignore"):
            return entries._replace(values=np.where(np.isfinite(values), _FUNCTIONS[self.function](values), values))


def _require(defined: Array, entries: Entries, place: Place, function: str) -> None:
    """Name the first number that a function is not defined for (InputError)."""
    if (wrong := np.flatnonzero(np.isfinite(entries.values) & ~defined)).size:
        k = int(wrong[0])
        uri, i, j = place(int(entries.rows[k]), int(entries.columns[k]))
        raise InputError(f"{uri}: row {i}, column {j} holds {entries.values[k]:g}, of which {function} is no number.")


@dataclass(frozen=True)
class Ppmi(Step):
    """``max(0, log(x S / (r c)))`` of an entry x, with the sums r of its row, c of its column, and S of all.

    References
    ----------
    Levy, Goldberg (2014), Neural word embedding as implicit matrix factorization, equation 11.
    """

    parameter = "sums"

    @property
    def words(self) -> str:
        return "positive pointwise mutual information of each entry"

    def fit(self, moments: Moments) -> Array:
        return moments.mean * moments.n_rows

    def applied(self, entries: Entries, parameter: Any, place: Place) -> Entries:
        values = entries.values
        _require(values >= 0, entries, place, "ppmi")
        rows, columns, total = entries.row_sums()[entries.rows], parameter[entries.columns], parameter.sum()
        # A column that had no entries when it was fitted says nothing of any row.
        known = (values > 0) & (columns > 0) & np.isfinite(rows)
        ratio = np.where(known, values, 1.0) / np.where(known, rows, 1.0) * (total / np.where(known, columns, total or 1.0))
        found = np.maximum(np.log(np.where(known, ratio, 1.0)), 0.0)
        return entries._replace(values=np.where(np.isfinite(values), found, values))
