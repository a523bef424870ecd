"""Zarr arrays as matrices: any URL, any chunk layout, each chunk read once.

Uncompressed chunks of a local store are read with positioned reads straight into the caller's buffer: no decoding, no
copy, any range of rows or columns, twice to seven times the rate of zarr-python (``benchmarks/storage.py``). Everything
else goes through zarr-python in whole chunks.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlscale.errors import CorruptionError, InputError, MissingChunkError
from dlscale.memory import total_bytes
from dlscale.storage.chunk_files import read_window
from dlscale.storage.integrity import require_numbers
from dlscale.storage.matrices import Array, Matrix
from dlscale.workspaces import empty_pages, workspace


class RawLayout(NamedTuple):
    """An array whose chunk files hold nothing but its elements in C order, with or without a crc32c behind them."""

    root: Path
    checksum: bool


class ZarrMatrix(Matrix):
    """A two-dimensional Zarr array (v2 or v3)."""

    def __init__(self, uri: str, array: Any = None) -> None:
        self.uri = uri
        self._array = array
        metadata = self.array
        if metadata.ndim != 2:
            raise InputError(f"A matrix has two dimensions (rows, columns); {uri} has shape {metadata.shape}.")
        require_numbers(metadata, uri)
        self.shape = metadata.shape
        self.stored_dtype = np.dtype(metadata.dtype)
        self.row_unit, self.column_unit = (min(c, s) for c, s in zip(metadata.chunks, self.shape, strict=True))
        self.any_range = self.raw is not None and not self.raw.checksum

    @staticmethod
    def open(uri: str, *, vectors: bool = False) -> ZarrMatrix:
        """Open the Zarr array at a path or URL; see `open_matrix`.

        Raises
        ------
        InputError
            If there is no array at that place; names the arrays of a group.
        """
        uri = uri.removeprefix("file://")
        array = _open_array(uri)
        return ZarrVector(uri, array) if vectors and array.ndim == 1 else ZarrMatrix(uri, array)

    @staticmethod
    def wrap(array: Any, *, vectors: bool = False) -> ZarrMatrix:
        """Use an open ``zarr.Array``."""
        root = _local_root(array)
        uri = str(root) if root else str(array.store_path)
        return ZarrVector(uri, array) if vectors and array.ndim == 1 else ZarrMatrix(uri, array)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.raw is not None or "://" in self.uri or Path(self.uri).exists():
            state["_array"] = None
            state.pop("raw", None)
        state.pop("past_cache", None)
        return state

    @property
    def array(self) -> Any:
        if self._array is None:
            self._array = _open_array(self.uri)
        return self._array

    @cached_property
    def raw(self) -> RawLayout | None:
        return _raw_layout(self.array)

    @cached_property
    def past_cache(self) -> bool:
        """Whether reading past the page cache is the better way to read the matrix again and again.

        Of a matrix that is a little too large the page cache keeps nothing at all: each page is dropped before its turn comes
        again. Where it could just be kept, filling the cache costs as much as two reads past it (measured with 16 GB of 24),
        and drops what everybody else had there.
        """
        return self.n_stored_bytes > total_bytes() // 2

    @property
    def attributes(self) -> dict[str, Any]:
        found = dict(self.array.attrs).get("dlscale")
        return found if isinstance(found, dict) else {}

    @property
    def notes(self) -> list[str]:
        notes = super().notes
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
            "reader": "positioned reads" if self.raw else "zarr-python",
        }

    def check(self) -> None:
        from dlscale.storage.integrity import check_chunks

        check_chunks(self.array, self.uri, _local_root(self.array))

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        shape = (rows[1] - rows[0], columns[1] - columns[0])
        if out is None:
            out = empty_pages(shape, self.dtype) if self.past_cache else np.empty(shape, self.dtype)
        same = self.stored_dtype == self.dtype
        target = out if same else workspace("converted", shape, self.stored_dtype)
        if self.raw is None:
            self._read_decoded(rows, columns, target)
        else:
            self._read_raw(self.raw, rows, columns, target)
        if not same:
            np.copyto(out, target, casting="unsafe")
        return out

    def expect(self, start: int, stop: int) -> None:
        if self.raw is None or self.past_cache or not hasattr(os, "posix_fadvise"):
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
        self._require_files(rows, columns)
        try:
            self.array.get_basic_selection(selection, out=default_buffer_prototype().nd_buffer.from_numpy_array(out))
        except Exception as error:  # each codec library raises its own exception type for damaged bytes
            raise CorruptionError(
                f"Rows {rows[0]} to {rows[1]} of {self.uri} cannot be decoded ({type(error).__name__}: {error}); restore the chunk."
            ) from error

    def _require_files(self, rows: tuple[int, int], columns: tuple[int, int]) -> None:
        """Zarr reads an absent chunk as zeros, also one that was there when the job was checked."""
        root = _local_root(self.array)
        if root is None:
            return
        height, width = self.array.shards or self.array.chunks
        for i in range(rows[0] // height, -(-rows[1] // height)):
            for j in range(columns[0] // width, -(-columns[1] // width)):
                path = root / self.array.metadata.encode_chunk_key((i, j))
                if not path.exists():
                    raise MissingChunkError(f"Chunk {path} is missing; restore it before running.")

    def _read_raw(self, raw: RawLayout, rows: tuple[int, int], columns: tuple[int, int], out: Array) -> None:
        height, width = self.array.chunks
        for i in range(rows[0] // height, -(-rows[1] // height)):
            top, bottom = max(rows[0], i * height), min(rows[1], (i + 1) * height)
            for j in range(columns[0] // width, -(-columns[1] // width)):
                left, right = max(columns[0], j * width), min(columns[1], (j + 1) * width)
                window = (top - i * height, bottom - i * height, left - j * width, right - j * width)
                target = out[top - rows[0] : bottom - rows[0], left - columns[0] : right - columns[0]]
                path = raw.root / self.array.metadata.encode_chunk_key((i, j))
                read_window(path, (height, width), window, target, checksum=raw.checksum, direct=self.past_cache)


class ZarrVector(ZarrMatrix):
    """A one-dimensional Zarr array as a matrix of one column, read by zarr-python in whole chunks."""

    is_vector = True
    raw = None

    def __init__(self, uri: str, array: Any) -> None:
        self.uri = uri
        self._array = array
        self.shape = (int(array.shape[0]), 1)
        self.stored_dtype = np.dtype(array.dtype)
        self.row_unit = min(array.chunks[0], max(self.shape[0], 1))

    def _read_decoded(self, rows: tuple[int, int], columns: tuple[int, int], out: Array) -> None:
        root, length = _local_root(self.array), (self.array.shards or self.array.chunks)[0]
        for i in range(rows[0] // length, -(-rows[1] // length)) if root else ():
            if not (path := root / self.array.metadata.encode_chunk_key((i,))).exists():
                raise MissingChunkError(f"Chunk {path} is missing; restore it before running.")
        try:
            out[...] = self.array[slice(*rows)][:, None][:, slice(*columns)]
        except Exception as error:  # as above
            raise CorruptionError(
                f"Rows {rows[0]} to {rows[1]} of {self.uri} cannot be decoded ({type(error).__name__}: {error}); restore the chunk."
            ) from error


def _open_array(uri: str) -> Any:
    import zarr

    if "://" not in uri and not Path(uri).exists():
        raise InputError(f"There is no matrix at {uri}: no such file or directory.")
    if "://" not in uri and Path(uri).is_file():
        raise InputError(f"{uri} is a file, and a matrix is a Zarr array; convert it with `dlscale import {uri} NAME.zarr`.")
    try:
        node = zarr.open(uri, mode="r")
        names = [f"{uri}/{name}" for name, _ in sorted(node.arrays())] if isinstance(node, zarr.Group) else []
    except ImportError as error:
        raise InputError(f"{uri} needs a package that is not installed: {error}") from error
    except Exception as error:  # damaged metadata end in any exception there
        raise InputError(f"There is no Zarr array at {uri} ({type(error).__name__}: {error}).") from error
    if isinstance(node, zarr.Group):
        raise InputError(f"{uri} is a Zarr group, and a matrix is one array of it: {', '.join(names) or 'none'}.")
    return node


def _local_root(array: Any) -> Path | None:
    """The folder of an array in a local store."""
    from zarr.storage import LocalStore

    store_path = array.store_path
    return Path(store_path.store.root) / store_path.path if isinstance(store_path.store, LocalStore) else None


def _raw_layout(array: Any) -> RawLayout | None:
    from zarr.codecs import BytesCodec, Crc32cCodec, Endian

    root, metadata = _local_root(array), array.metadata
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
