"""A matrix times a power of two, in a higher precision, conjugated, or above another one, as a view."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.kernels import times_power_of_two
from dlscale.sparse_rows import SparseRows, stacked
from dlscale.storage.files.kept import Keeping
from dlscale.storage.matrix import Matrix, SameRows, View


class Scaled(SameRows):
    """``2^exponent A``: the same digits in a range where products neither overflow nor vanish.

    Parameters
    ----------
    base : Matrix
    exponent : int
    """

    def __init__(self, base: Matrix, exponent: int) -> None:
        super().__init__(base)
        self.exponent, self.stored_dtype = exponent, base.dtype

    @property
    def T(self) -> Matrix:
        return Scaled(self.base.T, self.exponent)

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        block = self.base.region(rows, columns, out)
        # In place only where the block was read into what the caller gave: it may be the user's own array. Else in memory of
        # the block's own order, on which the order of sums depends.
        place = block if out is not None and np.may_share_memory(block, out) else None
        return times_power_of_two(block, self.exponent, out=place)

    def sparse_rows(self, start: int, stop: int) -> SparseRows:
        block = self.base.sparse_rows(start, stop)
        shift = None if block.shift is None else times_power_of_two(block.shift, self.exponent)
        return SparseRows(block.with_data(times_power_of_two(block.rows.data, self.exponent)).rows, shift)


def scaled(A: Matrix, exponent: int) -> Matrix:
    """``2^exponent A``; A itself where the exponent is 0."""
    return Scaled(A, exponent) if exponent else A


class Promoted(SameRows):
    """A matrix in a higher precision, converted while it is read.

    Parameters
    ----------
    base : Matrix
    dtype : numpy.dtype
    whose : str
        What has this precision, for the note.
    """

    def __init__(self, base: Matrix, dtype: np.dtype[Any], whose: str = "the right-hand sides") -> None:
        super().__init__(base)
        self.stored_dtype, self.whose = dtype, whose

    @property
    def n_stored_bytes(self) -> int:
        return self.base.n_stored_bytes

    @property
    def T(self) -> Matrix:
        return Promoted(self.base.T, self.dtype, self.whose)

    @property
    def notes(self) -> list[str]:
        return [*self.base.notes, f"the matrix is read in {self.dtype}, the precision of {self.whose}"]

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        narrow = self.base.region(rows, columns)
        if out is None:
            return narrow.astype(self.dtype)
        out[...] = narrow
        return out

    def sparse_rows(self, start: int, stop: int) -> SparseRows:
        block = self.base.sparse_rows(start, stop)
        return block.with_data(block.rows.data.astype(self.dtype))

    def describe(self) -> dict[str, Any]:
        return self.base.describe() | {"dtype": str(self.dtype), "notes": self.notes}


def promoted(A: Matrix, other: np.dtype[Any]) -> Matrix:
    """A in the precision that NumPy computes in together with this dtype; A itself where that is its own."""
    both = np.result_type(A.dtype, other)
    dtype = both if A.dtype.kind == "c" else np.dtype(both.char.lower())
    return A if dtype == A.dtype else Promoted(A, dtype)


class Conjugated(View):
    """The complex conjugate of a matrix, or of right-hand sides."""

    @property
    def T(self) -> Matrix:
        return Conjugated(self.base.T)

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        block = self.base.region(rows, columns, out)
        return np.conjugate(block, out=block if out is not None and np.may_share_memory(block, out) else None)


def conjugated(A: Matrix) -> Matrix:
    """The complex conjugate; A itself where it is real."""
    return Conjugated(A) if A.dtype.kind == "c" else A


class Stacked(Matrix):
    """Two matrices, one above the other."""

    def __init__(self, above: Matrix, below: Matrix) -> None:
        self.above, self.below = above, below
        self.shape = (above.shape[0] + below.shape[0], above.shape[1])
        self.stored_dtype = np.result_type(above.dtype, below.dtype)
        self.uri = f"{above.uri} above {below.uri}"
        self.any_range = above.any_range and below.any_range
        self.row_unit = max(above.row_unit, below.row_unit)
        self.is_sparse = above.is_sparse and below.is_sparse

    @property
    def n_entries(self) -> int:
        return self.above.n_entries + self.below.n_entries

    @property
    def n_stored_bytes(self) -> int:
        return self.above.n_stored_bytes + self.below.n_stored_bytes

    def most_entries(self, n_rows: int) -> int:
        return self.above.most_entries(n_rows) + self.below.most_entries(n_rows)

    def keep(self, keeping: Keeping) -> None:
        self.above.keep(keeping)
        self.below.keep(keeping)

    def sparse_rows(self, start: int, stop: int) -> SparseRows:
        return stacked([A.sparse_rows(*rows).astype(self.dtype) for A, rows in self._parts(start, stop)])

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        if out is None:
            out = np.empty((rows[1] - rows[0], columns[1] - columns[0]), self.dtype)
        done = 0
        for A, (start, stop) in self._parts(*rows):
            out[done : done + stop - start] = A.region((start, stop), columns)
            done += stop - start
        return out

    def _parts(self, start: int, stop: int) -> Iterator[tuple[Matrix, tuple[int, int]]]:
        """Which rows of which matrix these are."""
        edge = self.above.shape[0]
        if start < edge:
            yield self.above, (start, min(stop, edge))
        if stop > edge:
            yield self.below, (max(start - edge, 0), stop - edge)
