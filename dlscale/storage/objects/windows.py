"""Rectangles of chunks that are plain elements, by ranges of the objects that hold them."""

from __future__ import annotations

import google_crc32c
import numpy as np

from dlscale.arrays import Array
from dlscale.errors import CorruptionError, MissingChunkError
from dlscale.storage.objects.address import Address
from dlscale.storage.objects.requests import fetch

_CRC_BYTES = 4
#: What lies between two pieces of rows is read along with them where it is shorter: an answer takes some 50 ms to begin, in which
#: this much arrives.
_GAP_BYTES = 2**20
#: Of rows that are read whole for some of their columns.
_BUFFER_BYTES = 2**24


def read_object_window(
    address: Address, rectangle: tuple[int, int, int, int], out: Array, chunk: tuple[int, int], *, checksum: bool
) -> None:
    """Read rows ``r0:r1`` and columns ``c0:c1`` of one chunk.

    Parameters
    ----------
    address : Address
        Of the chunk's object: its elements, with or without a crc32c behind them.
    rectangle : (r0, r1, c0, c1)
    out : ndarray (r1 - r0, c1 - c0)
    chunk : (height, width)
    checksum : bool
        Whether there is a crc32c, which is then compared.

    Raises
    ------
    MissingChunkError
    CorruptionError
        If the checksum does not match.
    StoreError
    """
    width, (r0, r1, c0, c1) = chunk[1], rectangle
    item, stride = out.dtype.itemsize, width * out.dtype.itemsize
    try:
        if checksum:
            _read_checked(address, rectangle, out, chunk)
        elif c0 == 0 and c1 == width and out.flags.c_contiguous:
            fetch(address, [(r0 * stride, _bytes_of(out))])
        elif (width - c1 + c0) * item >= _GAP_BYTES and out.strides[1] == item:
            fetch(address, [((r0 + k) * stride + c0 * item, _bytes_of(out[k])) for k in range(r1 - r0)])
        else:
            n_rows = max(1, _BUFFER_BYTES // stride)
            for top in range(r0, r1, n_rows):
                rows = np.empty((min(n_rows, r1 - top), width), out.dtype)
                fetch(address, [(top * stride, _bytes_of(rows))])
                out[top - r0 : top - r0 + len(rows)] = rows[:, c0:c1]
    except FileNotFoundError:
        raise MissingChunkError(f"Chunk {address} is missing; restore it before running.") from None


def _read_checked(address: Address, rectangle: tuple[int, int, int, int], out: Array, chunk: tuple[int, int]) -> None:
    """The checksum covers the whole chunk, so the whole chunk is read."""
    (height, width), (r0, r1, c0, c1) = chunk, rectangle
    whole = (r0, r1, c0, c1) == (0, height, 0, width) and out.flags.c_contiguous
    buffer = out if whole else np.empty((height, width), out.dtype)
    stored = np.empty(_CRC_BYTES, np.uint8)
    fetch(address, [(0, _bytes_of(buffer)), (buffer.nbytes, stored)])
    if google_crc32c.value(buffer) != int.from_bytes(stored.tobytes(), "little"):
        raise CorruptionError(f"Chunk {address} does not match its checksum: its bytes have changed since they were written.")
    if not whole:
        out[...] = buffer[r0:r1, c0:c1]


def _bytes_of(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)
