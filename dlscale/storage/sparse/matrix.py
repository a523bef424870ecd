"""A sparse matrix as a `Matrix`: blocks of its rows are read as compressed rows, or as dense ones of bounded size.

What is stored is checked where it is read: counts when it is opened, where rows begin before anything else is read, and the
column of every entry in the block that holds it. Entries in any order are sorted, and those that stand at one place are added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse

from dlscale.arrays import Array
from dlscale.errors import InputError
from dlscale.sparse_rows import SparseRows
from dlscale.storage.integrity import check_chunks
from dlscale.storage.labels.names import Labels
from dlscale.storage.labels.stored import labels_at
from dlscale.storage.matrix import Matrix, compute_dtype
from dlscale.storage.signatures import Signature
from dlscale.storage.sparse.groups import Compressed
from dlscale.storage.sparse.sums import require_finite_sums
from dlscale.storage.sparse.vectors import StoredVector

#: Entries that are held beside a dense block while it is filled.
PIECE_NONZEROS = 2**20
#: Pointers that a process keeps: those of more rows are read with every block.
MAX_POINTERS = 2**25
#: From this density on products of dense blocks are faster (5 to 11 % on the machines measured).
DENSE_FROM = 0.1
_LARGE_CHUNK_BYTES = 2**28
#: Numbers below this are indices of 4 bytes.
_SHORT_INDICES = 2**31


class SparseMatrix(Matrix):
    """Compressed rows, or the transpose of compressed columns.

    Parameters
    ----------
    parts : Compressed
        Its rows, or its columns, are the rows here.

    Attributes
    ----------
    nnz : int
        Stored entries: each is counted, also a zero, or several at one place.
    """

    def __init__(self, parts: Compressed) -> None:
        self.parts, self.uri = parts.checked(), parts.uri
        self.shape = parts.shape if parts.by_rows else (parts.shape[1], parts.shape[0])
        self.stored_dtype = parts.dtype
        self.nnz = len(parts.indices)
        #: A row is read as a whole.
        self.column_unit = self.shape[1]
        self._pointers: Array | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pointers": None}

    @property
    def is_sparse(self) -> bool:  # type: ignore[override]
        return self.density < DENSE_FROM

    @property
    def n_entries(self) -> int:
        return self.nnz

    def most_entries(self, n_rows: int) -> int:
        m, most = self.shape[0], 0
        step = max(1, MAX_POINTERS // n_rows) * n_rows
        for start in range(0, m, step):
            pointers = self.pointers(start, min(start + step, m))
            most = max(most, int(np.diff(pointers[[*range(0, len(pointers) - 1, n_rows), len(pointers) - 1]]).max()))
        return most

    def sparse_rows(self, start: int, stop: int) -> SparseRows:
        return SparseRows(self.rows(start, stop))

    @property
    def density(self) -> float:
        return self.nnz / (self.shape[0] * self.shape[1])

    @property
    def n_stored_bytes(self) -> int:
        vectors = (self.parts.data, self.parts.indices, self.parts.indptr)
        return sum(len(vector) * vector.dtype.itemsize for vector in vectors)

    @property
    def attributes(self) -> dict[str, Any]:
        return dict(self.parts.attributes)

    @property
    def labels(self) -> Labels:
        shape = self.parts.shape
        found = labels_at(self.uri, shape) if isinstance(self.parts.data, StoredVector) else Labels()
        return found if self.parts.by_rows else found.T

    @property
    def notes(self) -> list[str]:
        vectors = [vector for vector in (self.parts.data, self.parts.indices) if isinstance(vector, StoredVector)]
        large = max((vector.chunk_bytes for vector in vectors), default=0)
        said = self.attributes.get("notes", [])
        notes = [*super().notes, *(note for note in (said if isinstance(said, list) else []) if isinstance(note, str))]
        if not self.parts.by_rows:
            notes.append("columns are compressed: whatever takes rows reads all of it for each block, and is faster where rows are")
        if large > _LARGE_CHUNK_BYTES:
            notes.append(f"each thread keeps a decoded chunk of {large / 1e9:.1f} GB; smaller ones take less memory")
        return notes

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "sparse": "CSR" if self.parts.by_rows else "CSC",
            "nonzeros": self.nnz,
            "density": self.density,
            "index_dtype": str(self.parts.indices.dtype),
        }

    def place(self, row: int, column: int) -> tuple[int, int]:
        return (row, column) if self.parts.by_rows else (column, row)

    def check(self) -> Signature | None:
        """As every matrix's, and that rows begin where they can."""
        found = {}
        for name in ("data", "indices", "indptr"):
            vector = getattr(self.parts, name)
            if isinstance(vector, StoredVector):
                found[name] = check_chunks(vector.array, vector.uri, missing_chunks=vector.missing_chunks)
        for start in range(0, self.shape[0], MAX_POINTERS):
            self.pointers(start, min(start + MAX_POINTERS, self.shape[0]))
        return Signature.joined(found)._replace(content=self.attributes.get("content", "")) if found else None

    def pointers(self, start: int, stop: int) -> Array:
        """Where each of the rows ``start:stop`` begins among the entries, and where the last one ends (InputError)."""
        if self.shape[0] > MAX_POINTERS:
            return self._read_pointers(start, stop)
        if self._pointers is None:
            self._pointers = self._read_pointers(0, self.shape[0])
        return self._pointers[start : stop + 1]

    def _read_pointers(self, start: int, stop: int) -> Array:
        found = np.asarray(self.parts.indptr[start : stop + 1]).astype(np.int64)
        wrong = np.flatnonzero(np.diff(found) < 0)
        ends = (start == 0 and found[0] != 0) or (stop == self.shape[0] and found[-1] != self.nnz)
        if wrong.size or ends or found[0] < 0 or found[-1] > self.nnz:
            where = f"its pointers go from {found[0]} to {found[-1]}, and there are {self.nnz} entries"
            if wrong.size:
                where = f"{self._row_words(start + int(wrong[0]))} ends before it begins"
            raise InputError(f"{self.uri} is damaged: {where}; write it anew.")
        return found

    def _row_words(self, row: int) -> str:
        return f"{'row' if self.parts.by_rows else 'column'} {row}"

    def rows(self, start: int, stop: int) -> Any:
        """Rows ``start:stop`` as a `scipy.sparse.csr_array` in the compute dtype: columns in order, none twice.

        Raises
        ------
        InputError
            If an entry lies outside of the matrix, or a sum of entries is infinite; names its row.
        """
        return self._canonical(self._block(start, stop, self._values), start)

    def stored_rows(self, start: int, stop: int) -> Any:
        """As `rows`, with numbers as they are stored (InputError if they do not hold the sum of what stands at one place)."""
        block = self._block(start, stop, self._stored)
        if block.has_canonical_format:
            return block
        stored = block.dtype
        if stored.kind in "biu":
            block = block.astype(np.uint64 if stored.kind == "u" else np.int64)
        block = self._canonical(block, start)
        if stored.kind in "iu" and block.nnz:
            limits = np.iinfo(stored)
            beyond = np.flatnonzero((block.data < limits.min) | (block.data > limits.max))
            if beyond.size:
                row = start + int(np.searchsorted(block.indptr, beyond[0], side="right")) - 1
                raise InputError(
                    f"{self.uri}: what {self._row_words(row)} holds at one place adds up to {block.data[beyond[0]]}, which "
                    f"{stored} does not hold; write it as f8."
                )
        return block.astype(np.uint8 if stored.kind == "b" else stored)

    def _canonical(self, block: Any, start: int) -> Any:
        """Rows from ``start`` on with their columns in order, none of them twice."""
        if block.has_canonical_format:
            return block
        parts, block = block, block.copy()  # which may be the user's own
        block.sum_duplicates()
        require_finite_sums(parts, block, source=self.uri, place=lambda i, j: self.place(start + i, j))
        return block

    def _block(self, start: int, stop: int, values: Callable[[int, int], Array]) -> Any:
        pointers = self.pointers(start, stop)
        first, last = int(pointers[0]), int(pointers[-1])
        columns = np.asarray(self.parts.indices[first:last])
        self._check_columns(columns, pointers, start)
        index = np.int32 if max(self.shape[1], last - first) < _SHORT_INDICES else np.int64
        entries, local = values(first, last), (pointers - first).astype(index)
        return scipy.sparse.csr_array((entries, columns.astype(index, copy=False), local), shape=(stop - start, self.shape[1]))

    def _stored(self, first: int, last: int) -> Array:
        """Entries as they are stored, each with a number of its own."""
        n_times, step = last - first, 2 if self.parts.pairs else 1
        if self.parts.iso:
            first, last = 0, min(n_times, 1)
        found = np.ascontiguousarray(self.parts.data[step * first : step * last])
        if self.parts.pairs:
            found = found.view(self.stored_dtype)
        return np.repeat(found, n_times) if self.parts.iso else found

    def _values(self, first: int, last: int) -> Array:
        return self.converted(self._stored(first, last)).astype(self.dtype, copy=False)

    def _check_columns(self, columns: Array, pointers: Array, start: int) -> None:
        if columns.size and not (int(columns.min()) >= 0 and int(columns.max()) < self.shape[1]):
            k = int(np.flatnonzero((columns < 0) | (columns >= self.shape[1]))[0])
            row = start + int(np.searchsorted(pointers - pointers[0], k, side="right")) - 1
            other = "column" if self.parts.by_rows else "row"
            raise InputError(
                f"{self.uri} is damaged: {self._row_words(row)} has an entry in {other} {columns[k]}, and there are "
                f"{self.shape[1]} {other}s; write it anew."
            )

    def spans(self, start: int, stop: int, most: int = PIECE_NONZEROS) -> Iterator[tuple[int, int]]:
        """Pieces of the rows ``start:stop`` with so many entries at most, or of one row."""
        for top in range(start, stop, MAX_POINTERS):
            bottom = min(top + MAX_POINTERS, stop)
            pointers, row = self.pointers(top, bottom), 0
            while row < bottom - top:
                last = max(row + 1, int(np.searchsorted(pointers, pointers[row] + most, side="right")) - 1)
                last = min(last, bottom - top)
                yield top + row, top + last
                row = last

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        shape = (rows[1] - rows[0], columns[1] - columns[0])
        if out is None:
            out = np.empty(shape, self.dtype)
        whole = columns == (0, self.shape[1])
        for start, stop in self.spans(*rows):
            block = self.rows(start, stop)
            (block if whole else block[:, slice(*columns)]).toarray(out=out[start - rows[0] : stop - rows[0]])
        return out


def in_memory(source: Any) -> Matrix:
    """A sparse matrix or array of SciPy, of any format, as it is where that is CSR."""
    form = getattr(source, "format", "")
    if len(source.shape) != 2:
        raise InputError(f"A matrix has two dimensions (rows, columns); the sparse array has shape {tuple(source.shape)}.")
    compute_dtype(np.dtype(source.dtype))
    source = source.tocsr()
    parts = Compressed(
        f"sparse array of SciPy ({form})",
        (int(source.shape[0]), int(source.shape[1])),
        True,
        np.asarray(source.data),
        np.asarray(source.indices),
        np.asarray(source.indptr),
    )
    return SparseMatrix(parts)


def oriented(parts: Compressed) -> Matrix:
    """The matrix: compressed columns are read as the rows of its transpose, and never turned."""
    matrix = SparseMatrix(parts)
    return matrix if parts.by_rows else matrix.T
