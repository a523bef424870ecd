"""Positioned reads of chunk files that hold nothing but elements in C order, straight into the caller's buffer.

A matrix that the page cache cannot hold is read past it (`O_DIRECT`): the kernel's work for a page that is read once and
thrown away is 0.6 to 1.3 CPU seconds a gigabyte, which the products would have to wait for; past the cache it is 0.1.
"""

from __future__ import annotations

import os
from pathlib import Path

import google_crc32c
import numpy as np

from dlscale.errors import CorruptionError, MissingChunkError
from dlscale.storage.matrices import Array
from dlscale.workspaces import PAGE_BYTES, workspace

_CRC_BYTES = 4
#: Not on every system.
_O_DIRECT: int = getattr(os, "O_DIRECT", 0)


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
        elif (c1 - c0) * item >= 2**16 and out.strides[1] == item:
            # Long pieces of rows: one positioned read each, straight into place.
            for k in range(r1 - r0):
                _read_exactly(fd, path, _bytes_of(out[k]), ((r0 + k) * width + c0) * item)
        else:
            buffer = workspace("chunk", (r1 - r0, width), out.dtype)
            _read_exactly(fd, path, _bytes_of(buffer), r0 * width * item)
            out[...] = buffer[:, c0:c1]
    finally:
        os.close(fd)


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        raise MissingChunkError(f"Chunk {path} is missing; restore it before running.") from None


def _bytes_of(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


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
    try:
        fd = _open(path, os.O_RDONLY | _O_DIRECT)
    except OSError:
        # Such as a file system in memory.
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
