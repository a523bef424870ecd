"""A matrix at rest, read by blocks of rows, whatever holds it.

One noun, `Matrix`, for a Zarr array behind any URL, a NumPy array and a Dask array. A matrix is read
in a compute dtype (float32, float64, complex64, complex128); integers are converted on the fly. It says how many rows to
read at once so that no stored chunk is read twice (`row_unit`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from typing import Any

import numpy as np

from dlscale.arrays import Array, is_laid_out
from dlscale.errors import InputError
from dlscale.sparse_rows import SparseRows
from dlscale.storage.arrays import numbers_of, unmasked
from dlscale.storage.exactness import has_inexact
from dlscale.storage.files.kept import Keeping
from dlscale.storage.labels.names import Labels
from dlscale.storage.signatures import Signature

_UNNAMED = Labels()


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which a stored dtype is computed: itself for f4 f8 c8 c16, double precision for others (f2: single).

    Raises
    ------
    InputError
        If the dtype is not numeric.
    """
    if dtype.kind in "fc" and dtype.itemsize in ((4, 8) if dtype.kind == "f" else (8, 16)):
        return dtype.newbyteorder("=")
    if dtype == np.float16:
        return np.dtype(np.float32)
    if dtype.kind in "biuf":
        return np.dtype(np.float64)
    if dtype.kind == "c":
        return np.dtype(np.complex128)
    raise InputError(f"A matrix must hold numbers (integers, floats or complex); got dtype {dtype}.")


class Matrix(ABC):
    """A two-dimensional array that is read by blocks of rows.

    Attributes
    ----------
    shape : (m, n)
    stored_dtype, dtype : numpy.dtype
        As stored, and as read (see `compute_dtype`).
    uri : str
        Where it is, for people.
    in_memory : bool
        Whether `read` costs nothing (a view).
    row_unit, column_unit : int
        Rows and columns of a stored chunk: reading whole multiples of these never reads one twice.
    any_range : bool
        Whether other ranges cost no re-reading either.
    is_far : bool
        Whether what is read comes from another machine as it is, so that two blocks at a time come sooner than one after the other.
    is_uncached : bool
        Whether it is read past the page cache whatever its size, as what was written so and is read once.
    by_columns : bool
        Whether neighbours in a column, and not in a row, lie beside each other where it is stored.
    is_vector : bool
        Whether it was given as an array of one dimension; it is read as one column.
    is_sparse : bool
        Whether its rows can be had compressed (`sparse_rows`), and should be: few of its entries are stored.
    """

    shape: tuple[int, int]
    stored_dtype: np.dtype[Any]
    uri: str
    in_memory = False
    row_unit = 1
    column_unit = 1
    any_range = False
    is_far = False
    is_uncached = False
    by_columns = False
    is_vector = False
    is_sparse = False
    _is_inexact = False

    @property
    def dtype(self) -> np.dtype[Any]:
        return compute_dtype(self.stored_dtype)

    @property
    def n_bytes(self) -> int:
        """Bytes of one read of the whole matrix in its compute dtype."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def n_stored_bytes(self) -> int:
        """Bytes of the stored matrix, before compression."""
        return self.shape[0] * self.shape[1] * self.stored_dtype.itemsize

    @property
    def n_entries(self) -> int:
        """How many entries are stored: what a product has to do with them is counted by it."""
        return self.shape[0] * self.shape[1]

    def most_entries(self, n_rows: int) -> int:
        """Of the blocks of so many rows from the top, the most entries that one has."""
        return n_rows * self.shape[1]

    @property
    def T(self) -> Matrix:
        """The transpose (not conjugated), as a view."""
        return Transposed(self)

    def sparse_rows(self, start: int, stop: int) -> SparseRows:
        """Rows ``start:stop`` of a matrix that `is_sparse`, compressed."""
        raise NotImplementedError

    @abstractmethod
    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        """Read a rectangle.

        Parameters
        ----------
        rows, columns : (start, stop)
        out : ndarray, optional
            C-contiguous buffer of the rectangle's shape and of the compute dtype to read into.

        Returns
        -------
        ndarray (stop - start rows, stop - start columns), in the compute dtype; a view where the matrix is in memory.
        """

    def converted(self, block: Array) -> Array:
        """A block as stored, of which it is noted whether the compute dtype holds it exactly (see `inexact`)."""
        self._is_inexact = self._is_inexact or has_inexact(block)
        return block

    def inexact(self) -> set[str]:
        """The sources of this matrix in which integers were met, in this process, that the compute dtype does not hold."""
        # As they are now: other threads read this matrix, and what is computed once becomes an attribute.
        parts = [part for part in list(vars(self).values()) if isinstance(part, Matrix)]
        return set().union({self.uri} if self._is_inexact else (), *(part.inexact() for part in parts))

    def expect(self, start: int, stop: int) -> None:
        """Tell the operating system that these rows will be read soon, so that the disk can begin; reads nothing itself."""

    def past_the_cache(self) -> Matrix:
        """The same matrix, read past the page cache where that can be done, for who reads ahead and need not wait for the disk."""
        return self

    def keep(self, keeping: Keeping) -> None:
        """Let processes keep the blocks that they read where another machine has them, since they will read them again."""

    def read(self, start: int, stop: int, out: Array | None = None) -> Array:
        """Read rows ``start:stop``, all columns, in the compute dtype."""
        return self.region((start, stop), (0, self.shape[1]), out)

    def place(self, row: int, column: int) -> tuple[int, int]:
        """Where an entry is in the matrix that the user gave."""
        return row, column

    def check(self) -> Signature | None:
        """Look up every chunk that the metadata promises, without reading it.

        Returns
        -------
        Signature or None
            What another look can be compared with; None of a matrix in memory.

        Raises
        ------
        MissingChunkError
            Naming the first chunk that is absent or truncated.
        """
        return None

    @property
    def attributes(self) -> dict[str, Any]:
        """What dlscale wrote beside the matrix (the shape of an image patch, the true spectrum), or nothing."""
        return {}

    @property
    def labels(self) -> Labels:
        """What its rows and columns are called; looked up where it is stored whenever it is asked for."""
        return Labels()

    @property
    def notes(self) -> list[str]:
        """What a user should know before computing on it."""
        if self.dtype == self.stored_dtype:
            return []
        return [f"{self.stored_dtype} is converted to {self.dtype} on the fly"]

    def describe(self) -> dict[str, Any]:
        """Facts for a plan or for `dlscale info`."""
        return {
            "uri": self.uri,
            "shape": list(self.shape),
            "dtype": str(self.dtype),
            "stored_dtype": str(self.stored_dtype),
            "stored_bytes": self.n_stored_bytes,
            "notes": self.notes,
        }


class View(Matrix):
    """Another look at a matrix, which says what differs; all else is as the matrix says.

    Parameters
    ----------
    base : Matrix
        Reading a view is work, so that it is not ``in_memory`` where it does not say so.
    """

    def __init__(self, base: Matrix) -> None:
        self.base = base
        self.shape, self.stored_dtype, self.uri, self.is_vector = base.shape, base.stored_dtype, base.uri, base.is_vector
        self.row_unit, self.column_unit = base.row_unit, base.column_unit
        self.any_range, self.by_columns = base.any_range, base.by_columns

    @property
    def attributes(self) -> dict[str, Any]:
        return self.base.attributes

    @property
    def labels(self) -> Labels:
        return self.base.labels.fitting(self.shape)

    def expect(self, start: int, stop: int) -> None:
        self.base.expect(start, stop)

    def past_the_cache(self) -> Matrix:
        base = self.base.past_the_cache()
        if base is self.base:
            return self
        view = copy(self)
        view.base = base
        return view

    def keep(self, keeping: Keeping) -> None:
        self.base.keep(keeping)

    def place(self, row: int, column: int) -> tuple[int, int]:
        return self.base.place(row, column)

    def check(self) -> Signature | None:
        return self.base.check()

    def describe(self) -> dict[str, Any]:
        return self.base.describe()


class SameRows(View):
    """A view of which each row is made of the same row of the other one: compressed rows stay so."""

    @property
    def is_sparse(self) -> bool:  # type: ignore[override]
        return self.base.is_sparse

    @property
    def n_entries(self) -> int:
        return self.base.n_entries

    @property
    def n_stored_bytes(self) -> int:
        return self.base.n_stored_bytes if self.base.is_sparse else super().n_stored_bytes

    def most_entries(self, n_rows: int) -> int:
        return self.base.most_entries(n_rows)


class Dense(View):
    """The same matrix, of which nothing is had compressed."""

    @property
    def T(self) -> Matrix:
        return Dense(self.base.T)

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        return self.base.region(rows, columns, out)


class Transposed(View):
    """The transpose of a matrix: its rows are the other one's columns."""

    def __init__(self, base: Matrix) -> None:
        super().__init__(base)
        self.shape, self.in_memory, self.is_vector = (base.shape[1], base.shape[0]), base.in_memory, False
        self.row_unit, self.column_unit, self.by_columns = base.column_unit, base.row_unit, not base.by_columns

    @property
    def T(self) -> Matrix:
        return self.base

    @property
    def labels(self) -> Labels:
        return self.base.labels.T

    def expect(self, start: int, stop: int) -> None:
        """Nothing: these rows are columns of the other one."""

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        buffer = None if out is None else out.reshape(out.shape[1], out.shape[0])
        return self.base.region(columns, rows, buffer).T

    def place(self, row: int, column: int) -> tuple[int, int]:
        return self.base.place(column, row)

    def describe(self) -> dict[str, Any]:
        return self.base.describe() | {"shape": list(self.shape), "transposed": True}


class RowRange(SameRows):
    """Rows ``start:stop`` of a matrix."""

    def __init__(self, base: Matrix, start: int, stop: int) -> None:
        super().__init__(base)
        self.start, self.shape, self.in_memory = start, (stop - start, base.shape[1]), base.in_memory

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        return self.base.region((rows[0] + self.start, rows[1] + self.start), columns, out)

    @property
    def n_entries(self) -> int:
        return self.base.n_entries * self.shape[0] // self.base.shape[0]

    @property
    def n_stored_bytes(self) -> int:
        whole = super().n_stored_bytes
        return whole * self.shape[0] // self.base.shape[0] if self.base.is_sparse else whole

    def sparse_rows(self, start: int, stop: int) -> SparseRows:
        return self.base.sparse_rows(start + self.start, stop + self.start)

    def expect(self, start: int, stop: int) -> None:
        self.base.expect(start + self.start, stop + self.start)

    def place(self, row: int, column: int) -> tuple[int, int]:
        return self.base.place(row + self.start, column)


class ArrayMatrix(Matrix):
    """A NumPy array; reading is a view where its dtype allows."""

    in_memory = True
    any_range = True

    def __init__(self, array: Array, labels: Labels = _UNNAMED) -> None:
        self.array, self._labels = array, labels
        self.shape = (array.shape[0], array.shape[1])
        self.stored_dtype = array.dtype
        self.uri = "NumPy array"

    @property
    def labels(self) -> Labels:
        return self._labels

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        block = self.array[slice(*rows), slice(*columns)]
        return self.converted(block if is_laid_out(block) else block.copy("C")).astype(self.dtype, copy=False)


class DaskMatrix(Matrix):
    """A Dask array; each read computes just its rows, in the calling thread."""

    def __init__(self, array: Any, labels: Labels = _UNNAMED) -> None:
        if any(np.isnan(length) for length in array.shape):
            raise InputError("The Dask array has unknown chunk sizes; call array.compute_chunk_sizes() first.")
        self.array, self._labels = array, labels
        self.shape = (int(array.shape[0]), int(array.shape[1]))
        self.stored_dtype = array.dtype
        self.uri = f"Dask array {array.name}"
        self.row_unit, self.column_unit = array.chunksize

    @property
    def labels(self) -> Labels:
        return self._labels

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        block = self.array[slice(*rows), slice(*columns)].compute(scheduler="synchronous")
        if not isinstance(block, np.ndarray):
            raise InputError(
                f"The blocks of {self.uri} must be NumPy arrays; got {type(block).__name__}. Convert them with .map_blocks(...)."
            )
        block = numbers_of(unmasked(block, (rows[0], columns[0])))
        if block.dtype.kind == "c" and self.dtype.kind != "c":
            raise InputError(f"{self.uri} gave complex numbers where its dtype promises {self.stored_dtype}.")
        if block.shape != (promised := (rows[1] - rows[0], columns[1] - columns[0])):
            raise InputError(f"{self.uri} gave a block of shape {block.shape} where its chunks promise {promised}.")
        return np.ascontiguousarray(self.converted(block), dtype=self.dtype)
