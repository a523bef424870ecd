"""Positioned reads of chunk files that hold nothing but elements in C order, straight into the caller's buffer.

A matrix that the page cache cannot hold is read past it (`O_DIRECT`): the kernel's work for a page that is read once and
thrown away is 0.6 to 1.3 CPU seconds a gigabyte, which the products would have to wait for; past the cache it is 0.1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import O_DIRECT, PAGE_BYTES, workspace
from dlscale.errors import CorruptionError, MissingChunkError

_CRC_BYTES = 4

#: Pieces of so many bytes, one here and one there, are read about as fast as a whole file.
PIECE_BYTES = 2**16
#: What takes longer to read than another place takes to find.
_GAP_BYTES = 2**18


def read_window(
    path: Path, chunk: tuple[int, int], window: tuple[int, int, int, int], out: Array, *, checksum: bool, direct: bool
) -> None:
    """Read a rectangle of one chunk.

    Parameters
    ----------
    path : Path
        The chunk's file: its elements, with or without a crc32c behind them.
    chunk : (height, width)
    window : (r0, r1, c0, c1)
        Rows and columns of the chunk.
    out : (r1 - r0, c1 - c0)
    checksum : bool
        Whether there is a crc32c, which is then compared.
    direct : bool
        Past the page cache, where whole pages are wanted at a whole page of memory.

    Raises
    ------
    MissingChunkError
    CorruptionError
        If the checksum does not match.
    """
    (height, width), (r0, r1, c0, c1) = chunk, window
    item = out.dtype.itemsize
    whole_rows = c0 == 0 and c1 == width and out.flags.c_contiguous
    done = 0
    if direct and whole_rows and not checksum:
        done = _read_direct(path, out, r0 * width * item)
        if done == out.nbytes:
            return
    fd = _open(path, os.O_RDONLY)
    try:
        if checksum:
            # The checksum covers the whole chunk, so the whole chunk is read.
            whole = whole_rows and r1 - r0 == height
            buffer = out if whole else workspace("chunk", (height, width), out.dtype)
            stored = bytearray(_CRC_BYTES)
            done = _read_direct(path, buffer, 0) if direct else 0
            _read_exactly(fd, path, _bytes_of(buffer)[done:], done)
            _read_exactly(fd, path, memoryview(stored), height * width * item)
            if google_crc32c.value(buffer) != int.from_bytes(stored, "little"):
                raise CorruptionError(f"Chunk {path} does not match its checksum: its bytes have changed since they were written.")
            if not whole:
                out[...] = buffer[r0:r1, c0:c1]
        elif whole_rows:
            _read_exactly(fd, path, _bytes_of(out)[done:], r0 * width * item + done)
        elif ((c1 - c0) * item >= PIECE_BYTES or (width - c1 + c0) * item >= _GAP_BYTES) and out.strides[1] == item:
            # Long pieces of rows, or pieces far from each other: one read each.
            offset, stride = (r0 * width + c0) * item, width * item
            pieces = _pieces_direct(path, offset, (c1 - c0) * item, stride=stride, n=r1 - r0) if direct else ()
            for row, piece in zip(out, pieces, strict=False):
                _bytes_of(row)[:] = _bytes_of(piece)
                done += 1
            for k in range(done, r1 - r0):
                _read_exactly(fd, path, _bytes_of(out[k]), offset + k * stride)
        else:
            offset, n_bytes = r0 * width * item, (r1 - r0) * width * item
            for piece in _pieces_direct(path, offset, n_bytes) if direct else ():
                out[...] = piece.view(out.dtype).reshape(r1 - r0, width)[:, c0:c1]
                return
            buffer = workspace("chunk", (r1 - r0, width), out.dtype)
            _read_exactly(fd, path, _bytes_of(buffer), offset)
            out[...] = buffer[:, c0:c1]
    finally:
        os.close(fd)


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NONBLOCK)  # a pipe is found empty, not waited for
    except FileNotFoundError:
        raise MissingChunkError(f"Chunk {path} is missing; restore it before running.") from None


def _bytes_of(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def _open_direct(path: Path) -> int | None:
    """None where it cannot be done, such as in a file system in memory."""
    try:
        return _open(path, os.O_RDONLY | O_DIRECT)
    except OSError:
        return None


def _read_exactly(fd: int, path: Path, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], offset + done)
        if got == 0:
            raise MissingChunkError(f"Chunk {path} is truncated: {offset + len(view)} bytes are needed; restore it before running.")
        done += got


def _read_direct(path: Path, out: Array, offset: int) -> int:
    """Read whole pages past the page cache; returns the bytes read, which an ordinary read completes."""
    n_bytes = out.nbytes // PAGE_BYTES * PAGE_BYTES
    if n_bytes == 0 or offset % PAGE_BYTES or out.ctypes.data % PAGE_BYTES:
        return 0
    fd = _open_direct(path)
    if fd is None:
        return 0
    done, view = 0, _bytes_of(out)
    try:
        while done < n_bytes and not done % PAGE_BYTES:
            got = os.preadv(fd, [view[done:n_bytes]], offset + done)
            if got == 0:
                break
            done += got
    except OSError:
        # A device with larger pages.
        return 0
    finally:
        os.close(fd)
    return done


def _pieces_direct(path: Path, offset: int, n_bytes: int, *, stride: int = 0, n: int = 1) -> Iterator[Array]:
    """Pieces of a file, ``stride`` bytes apart, past the page cache by way of whole pages; as many as can be had so.

    Each is a view (n_bytes,) of a workspace, overwritten by the next.
    """
    fd = _open_direct(path)
    if fd is None:
        return
    pages = workspace("pages", ((n_bytes // PAGE_BYTES + 2) * PAGE_BYTES,), np.dtype(np.uint8))
    try:
        for start in range(offset, offset + n * max(stride, 1), max(stride, 1)):
            skip = start % PAGE_BYTES
            wanted = -(-(skip + n_bytes) // PAGE_BYTES) * PAGE_BYTES
            try:
                got = os.preadv(fd, [_bytes_of(pages[:wanted])], start - skip)
            except OSError:
                # A device with larger pages.
                return
            if got < skip + n_bytes:
                return
            yield pages[skip : skip + n_bytes]
    finally:
        os.close(fd)
