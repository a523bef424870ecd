"""The steps of a transform: what becomes of the entries of some rows, and what of all rows that takes to know.

A step with a parameter is fitted to statistics of the columns, once: rows that come later are transformed by the same numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError, NonFiniteError, SpecError

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


class _ColumnFactors(Step):
    """Each column is multiplied by a number above 0."""

    keeps_statistics = True

    def applied(self, entries: Entries, parameter: Any, place: Place) -> Entries:
        return entries._replace(values=entries.values * parameter[entries.columns])

    def after(self, columns: Statistics, parameter: Any) -> Statistics | None:
        return columns.scaled(parameter)


def _factors(to: float, sizes: Array, what: str) -> Array:
    """What makes sizes as large as is asked; 1 of a column that has none (InputError if it is out of range)."""
    varies = sizes > 0
    with np.errstate(over="ignore", under="ignore"):
        factors = np.where(varies, to / np.where(varies, sizes, 1.0), 1.0)
    if (wrong := np.flatnonzero(~(np.isfinite(factors) & (factors >= np.finfo(float).tiny)))).size:
        j = int(wrong[0])
        raise InputError(f"column {j} cannot be scaled from a {what} of {sizes[j]:.3g} to {to:g}: the factor is out of range.")
    return factors


@dataclass(frozen=True)
class PowersOfTwo(_ColumnFactors):
    """Each column is multiplied by a power of two, which is given."""

    parameter = "powers"

    @property
    def words(self) -> str:
        return "columns multiplied by powers of two"


@dataclass(frozen=True)
class ScaleColumns(_ColumnFactors):
    """Each column is scaled to one standard deviation; one that is constant stays as it is."""

    to: float = 1.0
    parameter = "factors"

    def __post_init__(self) -> None:
        if not 0 < self.to < np.inf:
            raise SpecError(f"scale_columns: columns are scaled to a positive standard deviation; got {self.to}.")

    @property
    def words(self) -> str:
        return f"columns scaled to the standard deviation {self.to:g}"

    def fit(self, moments: Moments) -> Array:
        return _factors(self.to, moments.deviations, "standard deviation")


@dataclass(frozen=True)
class ScaleQuartiles(_ColumnFactors):
    """Each column is scaled so that its upper quartile is 1 above its lower one; one in which they are equal stays as it is."""

    parameter = "factors"
    statistics = Quartiles

    @property
    def words(self) -> str:
        return "columns scaled to the interquartile range 1"

    def fit(self, quartiles: Quartiles) -> Array:
        # The range may overflow where its half does not.
        half = quartiles.high / 2 - quartiles.low / 2
        return _factors(0.5, half, "half of the interquartile range")


@dataclass(frozen=True)
class TfIdf(_ColumnFactors):
    """Each column is multiplied by ``log((1 + m) / (1 + d)) + 1`` where d of m rows have an entry.

    References
    ----------
    ``sklearn.feature_extraction.text.TfidfTransformer(norm=None)``.
    """

    parameter = "idf"

    @property
    def words(self) -> str:
        return "columns weighted by their inverse document frequency (tf-idf)"

    def fit(self, moments: Moments) -> Array:
        return np.asarray(np.log((1 + moments.n_rows) / (1 + moments.nonzeros)) + 1)


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


@dataclass(frozen=True)
class Center(Step):
    """Each column less its mean, which is never subtracted from what is not stored; the last step."""

    parameter = "mean"

    @property
    def words(self) -> str:
        return "columns less their means"

    def neutral(self, n: int) -> Array | None:
        return np.zeros(n)

    def fit(self, columns: Any) -> Array:
        mean: Array = columns.mean
        return mean

    def applied(self, entries: Entries, parameter: Any, place: Place) -> Entries:
        return entries


@dataclass(frozen=True)
class CenterMedian(Center):
    """As `Center`, by medians."""

    parameter = "median"
    statistics = Quartiles

    @property
    def words(self) -> str:
        return "columns less their medians"

    def fit(self, columns: Any) -> Array:
        median: Array = columns.median
        return median


@dataclass(frozen=True)
class MostVariable(Step):
    """The columns with the largest variances, in the order in which they stand; of equal ones those that come first."""

    k: int
    parameter = "columns"
    keeps_statistics = True

    def __post_init__(self) -> None:
        if self.k < 1:
            raise SpecError(f"select_columns: at least one column is kept; got {self.k}.")

    @property
    def words(self) -> str:
        return f"the {self.k:,} columns with the largest variances kept"

    def n_columns(self, n: int) -> int:
        if self.k > n:
            raise SpecError(f"select_columns.most_variable: got {self.k}, and there are {n} columns.")
        return self.k

    def neutral(self, n: int) -> Array | None:
        return np.arange(self.k)

    def fit(self, moments: Moments) -> Array:
        return np.sort(np.argsort(-moments.deviations, kind="stable")[: self.k])

    def after(self, columns: Statistics, parameter: Any) -> Statistics | None:
        return columns.chosen(parameter)

    def applied(self, entries: Entries, parameter: Any, place: Place) -> Entries:
        (b, n), values = entries.shape, entries.values
        # What is left out is read by nobody who could name it.
        if (wrong := np.flatnonzero(~np.isfinite(values))).size:
            _, i, j = place(int(entries.rows[wrong[0]]), int(entries.columns[wrong[0]]))
            raise NonFiniteError(i, j, values[wrong[0]].item())
        number = np.full(n, -1, entries.columns.dtype)
        number[parameter] = np.arange(self.k)
        columns = number[entries.columns]
        kept = columns >= 0
        return Entries(values[kept], entries.rows[kept], columns[kept], (b, self.k))


def fits(steps: Sequence[Step], n: int) -> Iterator[tuple[type[Statistics], int]]:
    """What is found out of n columns to fit steps, and of how many of them; once where what follows can be told from the same."""
    known = set[type[Statistics]]()
    for step in steps:
        if step.parameter and step.statistics not in known:
            known.add(step.statistics)
            yield step.statistics, n
        known = known if step.keeps_statistics else set()
        n = step.n_columns(n)
