"""Vectors in packed files, unpacked by several threads while others are at work: members of zip archives, chunks of HDF5."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError
from dlscale.host import n_cores
from dlscale.storage.files.ahead import ahead

#: Of a member, unpacked at a time, and how many of these while others are used.
_PIECE_BYTES, _N_PIECES = 2**20, 8
#: More of them gain little beside the one that writes.
_MAX_THREADS = 4


class Member:
    """Numbers in a member of a zip archive; ``vector[start:stop]`` reads a range, from the first to the last.

    Parameters
    ----------
    archive : ZipFile
    name : str
    offset : int
        Bytes before the first number.
    dtype : dtype
    length : int
    """

    def __init__(self, archive: zipfile.ZipFile, name: str, offset: int, dtype: np.dtype[Any], length: int) -> None:
        self._archive, self._name, self._offset = archive, name, offset
        self.dtype, self._length = dtype, length
        self._done, self._rest = 0, memoryview(b"")
        self._pieces = ahead(self._unpacked(), _N_PIECES)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> Array:
        if part.start != self._done:
            raise ValueError(f"{self._name} is read from its beginning to its end; got {part.start} behind {self._done}")
        out = np.empty(part.stop - part.start, self.dtype)
        target, filled = out.view(np.uint8), 0
        while filled < len(target):
            if not self._rest:
                self._rest = memoryview(next(self._pieces, b""))
                if not self._rest:
                    raise InputError(f"{self._name} ends before its last number: the file is truncated. Copy or write it again.")
            taken = min(len(self._rest), len(target) - filled)
            target[filled : filled + taken] = self._rest[:taken]
            filled, self._rest = filled + taken, self._rest[taken:]
        self._done = part.stop
        if self._done == self._length:
            self.finish()
        return out

    def finish(self) -> None:
        """Read to the end, where its checksum is compared."""
        for _ in self._pieces:
            pass

    def _unpacked(self) -> Generator[bytes, None, None]:
        with self._archive.open(self._name) as member:
            member.read(self._offset)
            while piece := member.read(_PIECE_BYTES):
                yield piece

    def close(self) -> None:
        """End the thread that unpacks."""
        self._pieces.close()


class Chunked:
    """Numbers in chunks that HDF5 packed by deflate; ``vector[start:stop]`` reads a range.

    HDF5 itself unpacks one chunk at a time in a process, whatever its threads. What is read otherwise than it was expected is
    read again by it.
    """

    def __init__(self, dataset: Any, *, shuffled: bool) -> None:
        self._dataset, self._shuffled = dataset, shuffled
        self.shape, self.dtype, self._width = dataset.shape, dataset.dtype, int(dataset.chunks[0])
        self._kept: tuple[int, Array] | None = None

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, part: slice) -> Array:
        start, stop = part.start, part.stop
        out = np.empty(stop - start, self.dtype)
        kept, last = self._kept, stop // self._width

        def fill(i: int) -> Array | None:
            a, b = max(start, i * self._width), min(stop, (i + 1) * self._width)
            values = kept[1] if kept is not None and kept[0] == i else self._chunk(i)
            out[a - start : b - start] = self._dataset[a:b] if values is None else values[a - i * self._width : b - i * self._width]
            return values if i == last else None  # the next range is likely to begin in it

        for values in _unpackers().map(fill, range(start // self._width, -(-stop // self._width))):
            if values is not None:
                self._kept = (last, values)
        return out

    def _chunk(self, i: int) -> Array | None:
        """The numbers of a chunk; None if it is not as all are expected to be."""
        n_bytes = self._width * self.dtype.itemsize
        try:
            skipped, packed = self._dataset.id.read_direct_chunk((i * self._width,))
            unpacker = zlib.decompressobj()
            unpacked = unpacker.decompress(packed, n_bytes + 1)  # no more, whatever it would unpack to
        except Exception:  # whatever h5py raises where there is no chunk
            return None
        if skipped or not unpacker.eof or len(unpacked) != n_bytes:
            return None
        elements = np.frombuffer(unpacked, np.uint8)
        if self._shuffled:
            elements = np.ascontiguousarray(elements.reshape(self.dtype.itemsize, self._width).T).reshape(-1)
        values: Array = elements.view(self.dtype)
        return values


@cache
def _unpackers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(n_cores(), _MAX_THREADS), thread_name_prefix="dlscale-unpack")


def unpacked_together(dataset: Any) -> Any:
    """A dataset of HDF5 of one dimension, its chunks unpacked by several threads where they are numbers packed by deflate."""
    import h5py

    creation = dataset.id.get_create_plist()
    filters = [creation.get_filter(k)[0] for k in range(creation.get_nfilters())]
    known = filters in ([h5py.h5z.FILTER_DEFLATE], [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE])
    if not known or dataset.dtype.kind not in "iuf" or dataset.id.get_type() != h5py.h5t.py_create(dataset.dtype):
        return dataset
    return Chunked(dataset, shuffled=len(filters) == 2)
