"""The group that an import of a sparse matrix writes: its three arrays grow from the top to the bottom, as plain bytes.

AnnData reads it, and so does binsparse, for which the arrays have second names (links beside the first ones).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import scipy.sparse
import zarr

from dlscale.arrays import Array
from dlscale.buffers import empty_pages
from dlscale.errors import InputError
from dlscale.storage.exactness import has_inexact
from dlscale.storage.files.durable import write_chunk
from dlscale.storage.files.nodes import group_metadata
from dlscale.storage.sparse.groups import ANNDATA_NAMES, BINSPARSE_NAMES

CHUNK_BYTES = 4 << 20
_PIECE = 1 << 18  # numbers that are copied at a time
#: What binsparse 0.1 has words for.
_BINSPARSE_DTYPES = frozenset(["f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])


class CompressedWriter:
    """Writes blocks of rows, of any height, dense ones or compressed ones, as one matrix in compressed rows.

    Parameters
    ----------
    path : Path
        Folder of the new group.
    n_columns, dtype :
        Of the matrix; blocks are converted as they come.
    by_rows : bool
        Whether rows are written; else they are the columns of the matrix that the group is.
    attributes : dict
        Of the group; ``dlscale.source`` names the source in errors.
    """

    def __init__(self, path: Path, n_columns: int, *, dtype: np.dtype[Any], by_rows: bool, attributes: dict[str, Any]) -> None:
        self._path, self._n_columns, self._dtype, self._by_rows = path, n_columns, dtype, by_rows
        self._attributes, self._source = attributes, attributes["dlscale"]["source"]
        index = np.dtype(np.int32 if n_columns <= 2**31 else np.int64)
        dtypes = (dtype, index, np.dtype(np.int64))
        self._arrays = [Growing(path / name, kind) for name, kind in zip(ANNDATA_NAMES, dtypes, strict=True)]
        self._arrays[2].append(np.zeros(1, np.int64))
        self.n_rows = 0
        self.is_inexact = False

    @property
    def nnz(self) -> int:
        return self._arrays[0].length

    def append(self, block: Any) -> None:
        """Add rows below: an array, or a sparse one with its columns in order (InputError if the dtype does not hold a number)."""
        rows = scipy.sparse.csr_array(block)
        data, indices, indptr = self._arrays
        start = data.length
        data.append(self._converted(rows))
        indices.append(rows.indices)
        indptr.append(start + rows.indptr[1:].astype(np.int64))
        self.n_rows += rows.shape[0]

    def _converted(self, rows: Any) -> Array:
        if not self.is_inexact and self._dtype.kind in "fc":
            self.is_inexact = has_inexact(rows.data)
        if rows.data.dtype == self._dtype:
            return np.asarray(rows.data)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            values: Array = rows.data.astype(self._dtype)
        lost = np.flatnonzero(np.isfinite(rows.data) & ~np.isfinite(values)) if self._dtype.kind in "fc" else np.zeros(0, int)
        if lost.size:
            k = int(lost[0])
            place = (self.n_rows + int(np.searchsorted(rows.indptr, k, side="right")) - 1, int(rows.indices[k]))
            i, j = place if self._by_rows else place[::-1]
            raise InputError(
                f"{self._source}, row {i}, column {j} (both count from 0): {rows.data[k]} is infinite in {self._dtype}. Ask for a "
                "wider dtype, or scale the numbers."
            )
        return values

    def finish(self, notes: Sequence[str] = (), labels: str = "") -> str:
        """Write what is left, and last of all the description, with what is to be said of the source; returns a digest.

        Parameters
        ----------
        notes : sequence of str
        labels : str
            A digest of the names of rows and columns, if there are any.
        """
        if not self.n_rows:
            raise InputError(f"{self._source} holds no rows; a matrix needs at least one.")
        parts = "".join([*(array.finish() for array in self._arrays), labels])
        content = hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()
        told = {**self._attributes["dlscale"], **({"notes": list(notes)} if notes else {}), "content": content}
        rows, columns = (self.n_rows, self._n_columns)[:: 1 if self._by_rows else -1]
        form = "csr" if self._by_rows else "csc"
        attributes = {
            **self._attributes,
            "dlscale": told,
            "encoding-type": f"{form}_matrix",
            "encoding-version": "0.1.0",
            "shape": [rows, columns],
        }
        if self._dtype.str[1:] in _BINSPARSE_DTYPES:
            types = {name: str(array.dtype) for name, array in zip(BINSPARSE_NAMES, self._arrays, strict=True)}
            header = {"version": "0.1.0", "format": form.upper(), "shape": [rows, columns], "number_of_stored_values": self.nnz}
            attributes["binsparse"] = {"binsparse": {**header, "data_types": types}}
            for name, other in zip(ANNDATA_NAMES, BINSPARSE_NAMES, strict=True):
                os.symlink(name, self._path / other)
        (self._path / "zarr.json").write_bytes(group_metadata(attributes))
        return content


def write_vector(path: Path, vector: Any) -> None:
    """Write a vector that is read by ranges as an array beside those of a matrix."""
    growing = Growing(path, vector.dtype)
    for start in range(0, len(vector), _PIECE):
        growing.append(vector[start : min(start + _PIECE, len(vector))])
    growing.finish()


class Growing:
    """A one-dimensional Zarr array of plain chunks that is written from its beginning to its end."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self.dtype, self.length, self._n_chunks = path, dtype, 0, 0
        self._waiting = empty_pages((CHUNK_BYTES // dtype.itemsize,), dtype)
        self._n_waiting = 0
        self._array: zarr.Array[Any] | None = None
        self._content = hashlib.blake2b(digest_size=16)

    def append(self, values: Array) -> None:
        """Add values behind those that are there."""
        done = 0
        while done < len(values):
            n = min(len(values) - done, len(self._waiting) - self._n_waiting)
            self._waiting[self._n_waiting : self._n_waiting + n] = values[done : done + n]
            self._n_waiting, done = self._n_waiting + n, done + n
            if self._n_waiting == len(self._waiting):
                self._write()
        self.length += done

    def finish(self) -> str:
        """Write what is left; returns a digest of all."""
        self._write()
        if self._array is not None:
            self._array.resize((self.length,))
        return self._content.hexdigest()

    def _write(self) -> None:
        values, self._n_waiting = self._waiting[: self._n_waiting], 0
        if self._array is None:
            self._array = zarr.create_array(
                self.path,
                shape=(0,),
                chunks=(max(1, len(values)),),
                dtype=self.dtype,
                compressors=None,
                filters=None,
                fill_value=0,
                zarr_format=3,
            )
        if not len(values):
            return
        self._content.update(google_crc32c.value(values).to_bytes(4, "little"))
        path = self.path / self._array.metadata.encode_chunk_key((self._n_chunks,))
        write_chunk(path, values, self._array.chunks, checksum=False, direct=True, root=self.path)
        self._n_chunks += 1
