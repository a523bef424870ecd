"""What is done to each row of a matrix in the read that uses it: rows to one sum, and functions that leave zeros zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError, SpecError
from dlscale.sparse_rows import SparseRows
from dlscale.storage.matrix import Matrix, SameRows

Map = Literal["log1p", "sqrt", "binary"]
#: Bytes of dense rows that are transformed at a time.
_PIECE_BYTES = 2**24


def _binary(x: Array) -> Array:
    there: Array = (x != 0).astype(x.dtype)
    return there


_FUNCTIONS: dict[str, Callable[[Array], Array]] = {"log1p": np.log1p, "sqrt": np.sqrt, "binary": _binary}


@dataclass(frozen=True)
class Step:
    """One step, either of these.

    Parameters
    ----------
    scale_rows_to : float, optional
        What each row is scaled to sum to; rows without entries stay so.
    map : str, optional
        ``log1p``, ``sqrt`` or ``binary`` (1 where an entry is not 0) of each entry.
    """

    scale_rows_to: float | None = None
    map: Map | None = None

    def __post_init__(self) -> None:
        to = self.scale_rows_to
        if (to is None) == (self.map is None):
            raise SpecError("A transform is either scale_rows or map.")
        if to is not None and not 0 < to < np.inf:
            raise SpecError(f"scale_rows: rows are scaled to a positive sum; got {to}.")
        if self.map is not None and self.map not in get_args(Map):
            raise SpecError(f"map: got {self.map!r}; allowed: {', '.join(get_args(Map))}.")

    @property
    def words(self) -> str:
        return f"rows scaled to the sum {self.scale_rows_to:g}" if self.map is None else f"{self.map} of each entry"


class Transformed(SameRows):
    """A real matrix, each of whose rows is transformed when it is read.

    Parameters
    ----------
    base : Matrix (m, n)
    steps : sequence of Step
        In this order; in double precision, and rounded to the matrix's own at the end.
    """

    def __init__(self, base: Matrix, steps: Sequence[Step]) -> None:
        if base.dtype.kind == "c":
            raise SpecError(f"transforms are of real matrices; {base.uri} is complex.")
        super().__init__(base)
        self.steps, self.stored_dtype = tuple(steps), base.dtype
        #: A row is transformed as a whole.
        self.column_unit = base.shape[1]

    @property
    def n_stored_bytes(self) -> int:
        return self.base.n_stored_bytes

    @property
    def notes(self) -> list[str]:
        return [*self.base.notes, self._words]

    @property
    def _words(self) -> str:
        return f"transformed as it is read: {', then '.join(step.words for step in self.steps)}"

    def describe(self) -> dict[str, Any]:
        return self.base.describe() | {"transforms": [step.words for step in self.steps], "notes": self.notes}

    def inexact(self) -> set[str]:
        return self.base.inexact()

    def sparse_rows(self, start: int, stop: int) -> SparseRows:
        block = self.base.sparse_rows(start, stop)
        rows = np.repeat(np.arange(len(block)), np.diff(block.rows.indptr))
        return block.with_data(self._applied(block.rows.data, rows, block.rows.indices, len(block), start))

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        n = self.shape[1]
        if out is None:
            out = np.empty((rows[1] - rows[0], columns[1] - columns[0]), self.dtype)
        for start, stop in self._pieces(*rows):
            block = self.base.region((start, stop), (0, n))
            number, column = np.divmod(np.arange(block.size), n)
            values = self._applied(block.ravel(), number, column, stop - start, start).reshape(block.shape)
            out[start - rows[0] : stop - rows[0]] = values[:, slice(*columns)]
        return out

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        step = max(1, _PIECE_BYTES // (8 * self.shape[1]))
        return ((i, min(i + step, stop)) for i in range(start, stop, step))

    def _applied(self, data: Array, rows: Array, columns: Array, n_rows: int, first_row: int) -> Array:
        """The entries of some rows after all steps; one that is no number stays, for who reads it to name."""
        values, sound = data.astype(np.float64), np.isfinite(data)
        for step in self.steps:
            if step.scale_rows_to is not None:
                values = values * self._factors(values, rows, n_rows, step.scale_rows_to, first_row)[rows]
            if step.map is not None:
                outside = (values < 0) if step.map == "sqrt" else (values <= -1) & (step.map == "log1p")
                if (wrong := np.flatnonzero(sound & outside)).size:
                    i, j = self.place(first_row + int(rows[wrong[0]]), int(columns[wrong[0]]))
                    raise InputError(
                        f"{self.uri}: row {i}, column {j} holds {values[wrong[0]]:g}, of which {step.map} is no number."
                    )
                with np.errstate(invalid="ignore", divide="ignore"):
                    values = np.where(sound, _FUNCTIONS[step.map](values), data)
        return values.astype(self.dtype)

    def _factors(self, values: Array, rows: Array, n_rows: int, to: float, first_row: int) -> Array:
        """What each row is multiplied by to sum to a number; 1 where it has no entries, or one that is no number."""
        sums = np.bincount(rows, values, minlength=n_rows)
        held = np.bincount(rows, values != 0, minlength=n_rows) > 0
        if (wrong := np.flatnonzero(held & (sums <= 0))).size:
            row, _ = self.place(first_row + int(wrong[0]), 0)
            raise InputError(f"{self.uri}: row {row} sums to {sums[wrong[0]]:g}, and cannot be scaled to {to:g}.")
        usable = held & np.isfinite(sums)
        return np.where(usable, to / np.where(usable, sums, 1.0), 1.0)


def transformed(A: Matrix, steps: Sequence[Step]) -> Matrix:
    """A with its rows transformed as they are read; A itself without steps."""
    return Transformed(A, steps) if steps else A
