"""The steps that scale, centre or choose whole columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError, NonFiniteError, SpecError
from dlscale.storage.sparse.steps import Entries, Moments, Place, Quartiles, Statistics, Step


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
