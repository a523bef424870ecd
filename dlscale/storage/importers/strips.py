"""The Zarr v3 array that an import writes: strips of whole chunks, plain bytes, from the top to the bottom."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr

from dlscale.arrays import Array
from dlscale.errors import InputError, SpecError
from dlscale.storage.exactness import has_inexact
from dlscale.storage.importers.tables import rows_per_block
from dlscale.storage.labels.names import AXES

MAX_CHUNK_BYTES = 64 << 20
MAX_STRIP_BYTES = 1 << 30  # a strip of whole chunks is gathered in memory before it is written


def default_chunks(n_columns: int, itemsize: int) -> tuple[int, int]:
    """A power of two of rows of all columns in about 16 MiB; columns are split where one row passes 64 MiB."""
    n_splits = -(-n_columns * itemsize // MAX_CHUNK_BYTES)
    return rows_per_block(n_columns, itemsize), max(1, -(-n_columns // n_splits))


class StripWriter:
    """Writes blocks of rows, of any height, one strip of whole chunks at a time.

    The array is made at the first full strip (or at the end, if there is none), so that the number of rows need not be
    known and a small matrix gets a small chunk; it grows strip by strip.

    Parameters
    ----------
    path : Path
        Folder of the new array.
    n_columns, dtype :
        Of the array; blocks are converted as they are copied.
    chunks : (int, int), optional
        Rows and columns of a chunk; None means `default_chunks`.
    attributes : dict
        Of the array; ``dlscale.source`` names the source in errors.

    Raises
    ------
    SpecError
        If a chunk is empty or a strip of such chunks would take more than 1 GiB of memory.
    """

    def __init__(
        self, path: Path, n_columns: int, *, dtype: np.dtype[Any], chunks: tuple[int, int] | None, attributes: dict[str, Any]
    ) -> None:
        self._source = attributes["dlscale"]["source"]
        if chunks is not None and (len(chunks) != 2 or not all(isinstance(size, int) and size > 0 for size in chunks)):
            raise SpecError(f"chunks must be two positive numbers, rows and columns; got {' x '.join(map(str, chunks))}.")
        rows, columns = chunks or default_chunks(n_columns, dtype.itemsize)
        strip_bytes = rows * n_columns * dtype.itemsize
        if n_columns * dtype.itemsize > MAX_STRIP_BYTES:
            raise InputError(
                f"{self._source}: a row of {n_columns} columns of {dtype} takes {n_columns * dtype.itemsize / 1e9:.1f} GB; an "
                f"import writes whole rows, of at most {MAX_STRIP_BYTES / 1e9:.1f} GB. Split the columns into several sources."
            )
        if chunks and strip_bytes > MAX_STRIP_BYTES:
            raise SpecError(
                f"Chunks of {rows} rows of {n_columns} columns are written {strip_bytes} bytes at a time; the limit is "
                f"{MAX_STRIP_BYTES}. Ask for at most {max(1, MAX_STRIP_BYTES // (n_columns * dtype.itemsize))} rows a chunk."
            )
        self._path, self._dtype, self._attributes = path, dtype, attributes
        self._rows, self._columns, self._n_columns = rows, min(columns, n_columns), n_columns
        self._strip: Array | None = None
        self._fill = 0  # rows of the strip that are filled
        self._array: zarr.Array[Any] | None = None
        self._content = hashlib.blake2b(digest_size=16)  # of the checksums of the strips, which are made at the speed of memory
        self.n_rows = 0  # rows received
        self.is_inexact = False  # whether integers were rounded

    def append(self, block: Array) -> None:
        """Add rows below; a block that starts and fills a strip is written without a copy.

        Raises
        ------
        InputError
            If a finite number is infinite in the array's dtype; it names row and column.
        """
        while len(block):
            if not self._fill and len(block) >= self._rows:
                taken = self._rows
                self.n_rows += taken
                self._write(self._converted(block[:taken]))
                block = block[taken:]
                continue
            if self._strip is None:
                self._strip = np.empty((self._rows, self._n_columns), self._dtype)
            taken = min(self._rows - self._fill, len(block))
            self.n_rows += taken
            self._converted(block[:taken], out=self._strip[self._fill : self._fill + taken])
            self._fill += taken
            block = block[taken:]
            if self._fill == self._rows:
                self._write(self._strip)
                self._fill = 0

    def _converted(self, rows: Array, *, out: Array | None = None) -> Array:
        """The last rows received, in the array's dtype."""
        if not self.is_inexact and self._dtype.kind in "fc":
            self.is_inexact = has_inexact(rows)
        with np.errstate(over="raise", invalid="ignore", under="ignore"):
            try:
                if out is None:
                    return np.ascontiguousarray(rows, dtype=self._dtype)
                out[...] = rows
                return out
            except FloatingPointError:
                pass
        with np.errstate(over="ignore"):
            lost = np.argwhere(np.isfinite(rows) & ~np.isfinite(rows.astype(self._dtype)))
        i, j = (int(k) for k in lost[0])
        raise InputError(
            f"{self._source}, row {self.n_rows - len(rows) + i}, column {j} (both count from 0): {rows[i, j]} is infinite in "
            f"{self._dtype}. Ask for a wider dtype, or scale the numbers."
        )

    def finish(self, notes: Sequence[str] = (), labels: str = "") -> None:
        """Write the last strip, whose chunks may reach below the last row, what is to be said of the source, and a digest.

        Parameters
        ----------
        notes : sequence of str
        labels : str
            A digest of the names of rows and columns, if there are any.
        """
        if not self.n_rows:
            raise InputError(f"{self._source} holds no rows; a matrix needs at least one.")
        if self._fill and self._strip is not None:
            self._write(self._strip[: self._fill])
        if self._array is not None:
            said = {"notes": list(notes)} if notes else {}
            self._content.update(labels.encode())
            told = {**self._attributes["dlscale"], **said, "content": self._content.hexdigest()}
            self._array.update_attributes({"dlscale": told})

    def _write(self, strip: Array) -> None:
        if self._array is None:
            self._array = zarr.create_array(
                self._path,
                shape=(0, self._n_columns),
                chunks=(min(self._rows, self.n_rows), self._columns),
                dtype=self._dtype,
                compressors=None,
                filters=None,
                fill_value=0,
                zarr_format=3,
                dimension_names=AXES,
                attributes=self._attributes,
                config={"write_empty_chunks": True},  # a chunk of zeros must exist: an absent one means a lost one
            )
        self._content.update(google_crc32c.value(strip).to_bytes(4, "little"))
        start = self._array.shape[0]
        self._array.resize((start + len(strip), self._n_columns))
        self._array[start : start + len(strip)] = strip
