"""Zarr arrays as matrices: any URL, any chunk layout, each chunk read once.

Uncompressed chunks of a local store are read with positioned reads straight into the caller's buffer: no decoding, no
copy, any range of rows or columns, twice to seven times the rate of zarr-python (``benchmarks/storage.py``). Everything
else goes through zarr-python in whole chunks.
"""

from __future__ import annotations

import os
from contextlib import suppress
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import empty_pages, workspace
from dlscale.errors import CorruptionError, InputError, MissingChunkError, StoreError
from dlscale.host import total_bytes
from dlscale.storage.chunk_files import Window, is_there, read_together, read_window
from dlscale.storage.files.kept import Keeping, kept_for
from dlscale.storage.integrity import MissingChunks, check_chunks, require_numbers
from dlscale.storage.labels.names import Labels
from dlscale.storage.labels.stored import labels_at
from dlscale.storage.matrix import Matrix
from dlscale.storage.objects.address import Address
from dlscale.storage.packing import Packing
from dlscale.storage.signatures import Signature
from dlscale.storage.zarr_stores import bucket_of, local_root, open_array, plain_root, refusing


class RawLayout(NamedTuple):
    """An array whose chunk files hold nothing but its elements in C order, with or without a crc32c behind them."""

    root: Path | Address
    checksum: bool


class ZarrMatrix(Matrix):
    """A two-dimensional Zarr array (v2 or v3)."""

    #: Whether its uri is all that another process needs; an array that was given open may have credentials of its own.
    opens_again = False
    _keeping: Keeping | None = None

    def __init__(self, uri: str, array: Any, *, missing_chunks: MissingChunks = "refuse") -> None:
        self.uri, self.missing_chunks = uri, missing_chunks
        self._array = self._guarded(array)
        metadata = self.array
        if metadata.ndim != 2:
            raise InputError(f"A matrix has two dimensions (rows, columns); {uri} has shape {metadata.shape}.")
        require_numbers(metadata, uri)
        self.shape = metadata.shape
        self.stored_dtype = np.dtype(metadata.dtype)
        self.packing = _packing(metadata, uri)
        self.row_unit, self.column_unit = (min(c, s) for c, s in zip(metadata.chunks, self.shape, strict=True))
        self.any_range = self.raw is not None and not self.raw.checksum
        same = self.stored_dtype == self.dtype and self.packing is None
        self.is_far = self.any_range and same and bucket_of(array) is not None

    @staticmethod
    def at(uri: str, array: Any, *, vectors: bool = False, missing_chunks: MissingChunks = "refuse") -> ZarrMatrix:
        """Use the Zarr array that was opened at a path or URL, where other processes will open it too."""
        matrix = ZarrMatrix.wrap(array, uri, vectors=vectors, missing_chunks=missing_chunks)
        matrix.opens_again = True
        return matrix

    @staticmethod
    def wrap(array: Any, uri: str = "", *, vectors: bool = False, missing_chunks: MissingChunks = "refuse") -> ZarrMatrix:
        """Use an open ``zarr.Array``."""
        kind = ZarrVector if vectors and array.ndim == 1 else ZarrMatrix
        return kind(uri or str(local_root(array) or array.store_path), array, missing_chunks=missing_chunks)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        # What describes a matrix in a bucket goes along: it holds no credentials, and each look at it is several requests.
        in_bucket = self._array is not None and bucket_of(self._array) is not None
        if not in_bucket and (self.raw is not None or self.opens_again):
            state["_array"] = None
            state.pop("raw", None)
        state.pop("past_cache", None)
        return state

    @property
    def array(self) -> Any:
        if self._array is None:
            self._array = self._guarded(open_array(self.uri))
        return self._array

    def _guarded(self, array: Any) -> Any:
        return refusing(array) if self.missing_chunks == "refuse" else array

    @cached_property
    def raw(self) -> RawLayout | None:
        return raw_layout(self.array)

    @cached_property
    def past_cache(self) -> bool:
        """Whether reading past the page cache is the better way to read the matrix again and again.

        Of a matrix that is a little too large the page cache keeps nothing at all: each page is dropped before its turn comes
        again. Where it could just be kept, filling the cache costs as much as two reads past it (measured with 16 GB of 24),
        and drops what everybody else had there.
        """
        return self.is_uncached or self.n_stored_bytes > total_bytes() // 2

    @property
    def attributes(self) -> dict[str, Any]:
        found = dict(self.array.attrs).get("dlscale")
        return found if isinstance(found, dict) else {}

    @property
    def labels(self) -> Labels:
        named = getattr(self.array.metadata, "dimension_names", None) or dict(self.array.attrs).get("_ARRAY_DIMENSIONS")
        return labels_at(self.uri, self.shape, named if isinstance(named, list | tuple) else None)

    @property
    def notes(self) -> list[str]:
        notes = super().notes
        if self.packing is not None:
            notes.append(f"packed numbers are unpacked as they are read: {self.packing}")
        if self.missing_chunks == "fill":
            notes.append(f"chunks that are not there are read as {self.array.fill_value}")
        chunk_bytes = int(np.prod(self.array.chunks)) * self.stored_dtype.itemsize
        if chunk_bytes < 2**20 and self.n_stored_bytes > 64 * 2**20:
            notes.append(f"chunks of {chunk_bytes / 2**10:.0f} KiB are small: 4 to 64 MiB read faster (dlscale import rechunks)")
        said = self.attributes.get("notes", [])
        return [*notes, *(note for note in said if isinstance(note, str))] if isinstance(said, list) else notes

    def describe(self) -> dict[str, Any]:
        array = self.array
        compressors = getattr(array, "compressors", ()) or ()
        return super().describe() | {
            "chunks": list(array.chunks),
            "shards": list(array.shards) if array.shards else None,
            "compression": ", ".join(type(codec).__name__.removesuffix("Codec").lower() for codec in compressors) or "none",
            "n_chunks": int(array.nchunks),
            "zarr_format": int(array.metadata.zarr_format),
            "reader": _reader(self.raw),
        }

    def check(self) -> Signature:
        signature = check_chunks(self.array, self.uri, missing_chunks=self.missing_chunks)
        return signature._replace(content=self.attributes.get("content", ""))

    def past_the_cache(self) -> ZarrMatrix:
        if self.raw is None or not isinstance(self.raw.root, Path) or self.past_cache:
            return self
        other = copy(self)
        other.is_uncached = other.past_cache = True
        return other

    def keep(self, keeping: Keeping) -> None:
        if bucket_of(self.array) is not None:
            self._keeping = keeping

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        shape = (rows[1] - rows[0], columns[1] - columns[0])
        if out is None:
            out = empty_pages(shape, self.dtype) if self.past_cache else np.empty(shape, self.dtype)
        same = self.stored_dtype == self.dtype and self.packing is None
        target = out if same else workspace("converted", shape, self.stored_dtype)
        kept = kept_for(self._keeping) if self._keeping and target.flags.c_contiguous else None
        block = (self.uri, rows, columns)
        if kept is None or not kept.read(block, target):
            if self.raw is None:
                self._read_decoded(rows, columns, target)
            else:
                self._read_raw(self.raw, rows, columns, target)
            if kept is not None:
                kept.write(block, target)
        if self.packing is not None:
            self.packing.unpack(target, out)
        elif not same:
            np.copyto(out, self.converted(target), casting="unsafe")
        return out

    def expect(self, start: int, stop: int) -> None:
        if self.raw is None or not isinstance(self.raw.root, Path) or self.past_cache or not hasattr(os, "posix_fadvise"):
            return
        height, width = self.array.chunks[0], (self.array.chunks[1] if len(self.array.chunks) > 1 else 1)
        for i in range(start // height, -(-stop // height)):
            for j in range(-(-self.shape[1] // width)):
                index = (i, j) if len(self.array.chunks) > 1 else (i,)
                with suppress(OSError):
                    fd = os.open(self.raw.root / self.array.metadata.encode_chunk_key(index), os.O_RDONLY)
                    try:
                        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
                    finally:
                        os.close(fd)

    def _read_decoded(self, rows: tuple[int, int], columns: tuple[int, int], out: Array) -> None:
        from zarr.core.buffer import default_buffer_prototype

        selection = (slice(*rows), slice(*columns))
        try:
            self.array.get_basic_selection(selection, out=default_buffer_prototype().nd_buffer.from_numpy_array(out))
        except (MissingChunkError, StoreError):
            raise
        except Exception as error:  # each codec library raises its own exception type for damaged bytes
            raise CorruptionError(
                f"Rows {rows[0]} to {rows[1]} of {self.uri} cannot be decoded ({type(error).__name__}: {error}); restore the chunk."
            ) from error

    def _read_raw(self, raw: RawLayout, rows: tuple[int, int], columns: tuple[int, int], out: Array) -> None:
        height, width = chunk = self.array.chunks
        windows = []
        for i in range(rows[0] // height, -(-rows[1] // height)):
            top, bottom = max(rows[0], i * height), min(rows[1], (i + 1) * height)
            for j in range(columns[0] // width, -(-columns[1] // width)):
                left, right = max(columns[0], j * width), min(columns[1], (j + 1) * width)
                target = out[top - rows[0] : bottom - rows[0], left - columns[0] : right - columns[0]]
                path = raw.root / self.array.metadata.encode_chunk_key((i, j))
                windows.append(Window(path, (top - i * height, bottom - i * height, left - j * width, right - j * width), target))

        def read(window: Window, at_once: bool) -> None:
            try:
                read_window(window, chunk, checksum=raw.checksum, direct=self.past_cache, at_once=at_once)
            except MissingChunkError:
                if self.missing_chunks == "refuse" or is_there(window.path):
                    raise
                window.out[...] = self.array.fill_value or 0

        if raw.checksum:
            # Each may take memory for a whole chunk.
            for window in windows:
                read(window, False)
        else:
            read_together(read, windows, in_pieces=columns[1] - columns[0] < self.shape[1] and not self.past_cache)


class ZarrVector(ZarrMatrix):
    """A one-dimensional Zarr array as a matrix of one column, read by zarr-python in whole chunks."""

    is_vector = True
    raw = None

    def __init__(self, uri: str, array: Any, *, missing_chunks: MissingChunks = "refuse") -> None:
        self.uri, self.missing_chunks = uri, missing_chunks
        self._array = self._guarded(array)
        self.shape = (int(array.shape[0]), 1)
        self.stored_dtype = np.dtype(array.dtype)
        self.packing = _packing(array, uri)
        self.row_unit = min(array.chunks[0], max(self.shape[0], 1))

    def _read_decoded(self, rows: tuple[int, int], columns: tuple[int, int], out: Array) -> None:
        try:
            out[...] = self.array[slice(*rows)][:, None][:, slice(*columns)]
        except (MissingChunkError, StoreError):
            raise
        except Exception as error:  # as above
            raise CorruptionError(
                f"Rows {rows[0]} to {rows[1]} of {self.uri} cannot be decoded ({type(error).__name__}: {error}); restore the chunk."
            ) from error


def _reader(raw: RawLayout | None) -> str:
    if raw is None:
        return "zarr-python"
    return "ranges of objects" if isinstance(raw.root, Address) else "positioned reads"


def _packing(array: Any, uri: str) -> Packing | None:
    """How the stored numbers are packed; None where they are what is meant (InputError if that cannot be told)."""
    told = dict(array.attrs)
    if array.metadata.zarr_format == 2 and "_ARRAY_DIMENSIONS" in told:
        # Where xarray writes format 2, the fill value of Zarr is what netCDF calls so.
        told = {"_FillValue": array.fill_value} | told
    return Packing.of(told, np.dtype(array.dtype), uri)


def raw_layout(array: Any) -> RawLayout | None:
    """How plain the chunk files of an array are; None where something has to be decoded."""
    from zarr.codecs import BytesCodec, Crc32cCodec, Endian

    root, metadata = plain_root(array), array.metadata
    if root is None or np.dtype(array.dtype) != np.dtype(array.dtype).newbyteorder("<"):
        return None
    if metadata.zarr_format == 2:
        plain = metadata.compressor is None and not metadata.filters and metadata.order == "C"
        return RawLayout(root, checksum=False) if plain else None
    if any(getattr(codec, "endian", None) is Endian.big for codec in metadata.codecs):
        return None
    codecs = tuple(type(codec) for codec in metadata.codecs)
    if codecs == (BytesCodec,):
        return RawLayout(root, checksum=False)
    return RawLayout(root, checksum=True) if codecs == (BytesCodec, Crc32cCodec) else None
