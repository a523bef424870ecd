"""A matrix whose rows are transformed in the read that uses them: nothing of it is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import SpecError
from dlscale.sparse_rows import SparseRows
from dlscale.storage.labels.names import ChosenNames, Labels
from dlscale.storage.matrix import Matrix, SameRows
from dlscale.storage.sparse.column_steps import Center, MostVariable
from dlscale.storage.sparse.steps import Entries, Place, Step

#: Bytes of dense rows that are transformed at a time.
_PIECE_BYTES = 2**24


class Transformed(SameRows):
    """A real matrix, each of whose rows is transformed when it is read.

    Parameters
    ----------
    base : Matrix (m, n)
    steps : sequence of Step
        In this order; in double precision, and rounded to the matrix's own at the end.
    parameters : sequence of arrays, optional
        What each step was fitted as, None of one that is not fitted. Without, the matrix is for planning: columns are neither
        scaled nor chosen by what they hold.

    Attributes
    ----------
    fitted : bool
        Whether the parameters are those of rows.
    """

    def __init__(self, base: Matrix, steps: Sequence[Step], parameters: Sequence[Array | None] | None = None) -> None:
        if base.dtype.kind == "c":
            raise SpecError(f"transforms are of real matrices; {base.uri} is complex.")
        super().__init__(base)
        self.steps, self.stored_dtype = tuple(steps), base.dtype
        self.fitted = parameters is not None or not any(step.parameter for step in steps)
        m, n = base.shape
        found = []
        for i, step in enumerate(self.steps):
            if isinstance(step, Center) and i + 1 < len(self.steps):
                raise SpecError("center comes last: columns that are scaled or chosen before it are so without their means too.")
            if step.parameter and m < 2 and parameters is None:
                raise SpecError(f"{step.words}: a matrix of {m} row has nothing to fit this to; it takes 2.")
            found.append(parameters[i] if parameters is not None else step.neutral(n))
            n = step.n_columns(n)
        self.parameters: tuple[Any, ...] = tuple(found)
        self.shape = (m, n)
        #: A row is transformed as a whole.
        self.column_unit = n

    @property
    def n_entries(self) -> int:
        return min(self.base.n_entries, self.shape[0] * self.shape[1])

    def most_entries(self, n_rows: int) -> int:
        return min(self.base.most_entries(n_rows), n_rows * self.shape[1])

    @property
    def n_stored_bytes(self) -> int:
        return self.base.n_stored_bytes

    @property
    def notes(self) -> list[str]:
        return [*self.base.notes, f"transformed as it is read: {self.words}"]

    @property
    def labels(self) -> Labels:
        """Those of the matrix; of the columns that are chosen, once it is known which."""
        found = self.base.labels
        for step, parameter in zip(self.steps, self.parameters, strict=True):
            if isinstance(step, MostVariable):
                names = found.column if self.fitted else None
                found = found._replace(column=None if names is None else ChosenNames(names, parameter))
        return found.fitting(self.shape)

    @property
    def words(self) -> str:
        """What is done to rows."""
        return ", then ".join(step.words for step in self.steps)

    def describe(self) -> dict[str, Any]:
        shape = {"shape": list(self.shape)} | ({"source_shape": list(self.base.shape)} if self.shape != self.base.shape else {})
        return self.base.describe() | shape | {"transforms": [step.words for step in self.steps], "notes": self.notes}

    def inexact(self) -> set[str]:
        return self.base.inexact()

    def place(self, row: int, column: int) -> tuple[int, int]:
        for step, parameter in zip(reversed(self.steps), reversed(self.parameters), strict=True):
            column = int(parameter[column]) if isinstance(step, MostVariable) else column
        return self.base.place(row, column)

    def sparse_rows(self, start: int, stop: int) -> SparseRows:
        block = self.base.sparse_rows(start, stop)
        R, b = block.rows, len(block)
        entries = Entries(R.data.astype(np.float64), np.repeat(np.arange(b), np.diff(R.indptr)), R.indices, block.shape)
        found, indptr = self._applied(entries, start), R.indptr
        if found.shape != entries.shape:
            indptr = np.concatenate([[0], np.cumsum(np.bincount(found.rows, minlength=b))]).astype(R.indptr.dtype)
        dtype = np.float64 if self._mean is not None else self.dtype
        rows = SparseRows(type(R)((found.values.astype(dtype), found.columns, indptr), shape=found.shape))
        return rows if self._mean is None else rows.less(self._mean)

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        n = self.base.shape[1]
        if out is None:
            out = np.empty((rows[1] - rows[0], columns[1] - columns[0]), self.dtype)
        for start, stop in self._pieces(*rows):
            block = self.base.region((start, stop), (0, n))
            number, column = np.divmod(np.arange(block.size), n)
            entries = Entries(block.ravel().astype(np.float64), number, column, block.shape)
            values = self._applied(entries, start).values.reshape(len(block), -1)[:, slice(*columns)]
            target = out[start - rows[0] : stop - rows[0]]
            target[...] = values if self._mean is None else values - self._mean[slice(*columns)]
        return out

    @property
    def _mean(self) -> Array | None:
        return self.parameters[-1] if self.steps and isinstance(self.steps[-1], Center) else None

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        step = max(1, _PIECE_BYTES // (8 * self.base.shape[1]))
        return ((i, min(i + step, stop)) for i in range(start, stop, step))

    def _applied(self, entries: Entries, first_row: int) -> Entries:
        """The entries of some rows after all steps."""
        for i, (step, parameter) in enumerate(zip(self.steps, self.parameters, strict=True)):
            entries = step.applied(entries, parameter, self._place_before(i, first_row))
        return entries

    def _place_before(self, i: int, first_row: int) -> Place:
        """Where an entry is that the step of this number meets."""

        def place(row: int, column: int) -> tuple[str, int, int]:
            before = Transformed(self.base, self.steps[:i], self.parameters[:i])
            return (self.uri, *before.place(first_row + row, column))

        return place


def transformed(A: Matrix, steps: Sequence[Step], parameters: Sequence[Array | None] | None = None) -> Matrix:
    """A with its rows transformed as they are read; A itself without steps."""
    return Transformed(A, steps, parameters) if steps else A
