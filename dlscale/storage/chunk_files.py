"""Positioned reads of chunk files that hold nothing but elements in C order, straight into the caller's buffer.

A matrix that the page cache cannot hold is read past it (`O_DIRECT`): the kernel's work for a page that is read once and
thrown away is 0.6 to 1.3 CPU seconds a gigabyte, which the products would have to wait for; past the cache it is 0.1.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import O_DIRECT, PAGE_BYTES, workspace
from dlscale.errors import CorruptionError, MissingChunkError
from dlscale.storage.objects.address import Address
from dlscale.storage.objects.requests import exists, helpers
from dlscale.storage.objects.windows import read_object_window

_CRC_BYTES = 4

#: Pieces of so many bytes, one here and one there, are read nearly as fast as a whole file: another place takes up to 2 ms to
#: find where a disk is far away, and 0.1 ms where it is not.
PIECE_BYTES = 2**18
#: Shorter pieces from which on what lies between them is not read along with them.
LONG_BYTES = 2**15
#: What takes longer to read than another place takes to find.
GAP_BYTES = 2**17
#: Of rows that are read whole for some of their columns.
_BUFFER_BYTES = 2**22
#: Has a read fail that would wait for a disk, where the system knows of it.
AT_ONCE = getattr(os, "RWF_NOWAIT", 0)
#: Windows that are read at the same time, where there are many and each is short.
_N_TOGETHER = 4
_MANY = 8
_SHORT_BYTES = 2**21


class Window(NamedTuple):
    """A rectangle of one chunk, rows ``r0:r1`` and columns ``c0:c1`` of it, and where it goes."""

    path: Path | Address
    rectangle: tuple[int, int, int, int]
    out: Array


def is_there(chunk: Path | Address) -> bool:
    """Whether a chunk has a file or an object."""
    return exists(chunk) if isinstance(chunk, Address) else chunk.exists()


def read_together(read: Callable[[Window, bool], None], windows: Sequence[Window], *, in_pieces: bool) -> None:
    """Read windows, several at a time where they are many and short: a disk is faster with several things to do.

    Parameters
    ----------
    read : callable
        Of a window, and whether only what the page cache has is wanted, as in `read_window`.
    windows : sequence of Window
    in_pieces : bool
        Whether they are parts of rows. Of those in the page cache one thread reads as many as several, in half of the processor
        time: each piece is a call, for which several threads wait for the interpreter.
    """

    def read_all(some: Sequence[Window]) -> None:
        for window in some:
            read(window, False)

    if len(windows) > 1 and isinstance(windows[0].path, Address):
        list(helpers().map(lambda window: read(window, False), windows))
        return
    if len(windows) < _MANY or sum(window.out.nbytes for window in windows) > _SHORT_BYTES * len(windows):
        read_all(windows)
        return
    left = [window for window in windows if not _is_read_at_once(read, window)] if in_pieces and AT_ONCE else windows
    reads = [_readers().submit(read_all, left[i::_N_TOGETHER]) for i in range(min(_N_TOGETHER, len(left)))]
    wait(reads)  # nobody writes any more when an error is told
    for done in reads:
        done.result()


def _is_read_at_once(read: Callable[[Window, bool], None], window: Window) -> bool:
    """Read a window if it is in the page cache; whether it was."""
    try:
        read(window, True)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
            raise
        return False
    return True


@cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2 * _N_TOGETHER, thread_name_prefix="dlscale-windows")


def read_window(window: Window, chunk: tuple[int, int], *, checksum: bool, direct: bool, at_once: bool = False) -> None:
    """Read a rectangle of one chunk.

    Parameters
    ----------
    window : Window
        Of the chunk's file: its elements, with or without a crc32c behind them.
    chunk : (height, width)
    checksum : bool
        Whether there is a crc32c, which is then compared.
    direct : bool
        Past the page cache, where whole pages are wanted at a whole page of memory.
    at_once : bool
        Only if the page cache has them; without a checksum.

    Raises
    ------
    MissingChunkError
    CorruptionError
        If the checksum does not match.
    OSError
        With the number EAGAIN or EOPNOTSUPP, if they cannot be read at once.
    """
    if isinstance(window.path, Address):
        read_object_window(window.path, window.rectangle, window.out, chunk, checksum=checksum)
    else:
        _read_file(window.path, window, chunk, checksum=checksum, direct=direct, at_once=at_once)


def _read_file(path: Path, window: Window, chunk: tuple[int, int], *, checksum: bool, direct: bool, at_once: bool) -> None:
    (r0, r1, c0, c1), out = window.rectangle, window.out
    height, width = chunk
    item, flags = out.dtype.itemsize, AT_ONCE if at_once else 0
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
            _read_exactly(fd, path, _bytes_of(out)[done:], r0 * width * item + done, flags)
        else:
            _read_rectangle(fd, window, width, direct=direct, flags=flags)
    finally:
        os.close(fd)


def _read_rectangle(fd: int, window: Window, width: int, *, direct: bool, flags: int) -> None:
    """Read pieces of rows of a chunk, ``width`` wide, without a checksum."""
    path, (r0, r1, c0, c1), out = window
    assert isinstance(path, Path)
    item = out.dtype.itemsize
    if ((c1 - c0) * item >= LONG_BYTES or (width - c1 + c0) * item >= GAP_BYTES) and out.strides[1] == item:
        # Long pieces of rows, or pieces far from each other: one read each.
        offset, stride = (r0 * width + c0) * item, width * item
        done = _read_rows_direct(path, out, offset, stride) if direct else 0
        for row in _rows_of(out[done:]):
            _read_exactly(fd, path, row, offset + done * stride, flags)
            done += 1
        return
    n_rows = max(1, _BUFFER_BYTES // (width * item))
    for top in range(r0, r1, n_rows):
        rows = workspace("chunk", (min(n_rows, r1 - top), width), out.dtype)
        offset = top * width * item
        if not (direct and _read_rows_direct(path, rows.reshape(1, -1), offset, 0)):
            _read_exactly(fd, path, _bytes_of(rows), offset, flags)
        out[top - r0 : top - r0 + len(rows)] = rows[:, c0:c1]


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NONBLOCK)  # a pipe is found empty, not waited for
    except FileNotFoundError:
        raise MissingChunkError(f"Chunk {path} is missing; restore it before running.") from None


def _bytes_of(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def _rows_of(array: Array) -> Iterator[memoryview]:
    """The bytes of each row."""
    if not array.flags.c_contiguous:
        return (_bytes_of(row) for row in array)
    whole, n_bytes = _bytes_of(array), array.shape[1] * array.itemsize
    return (whole[start : start + n_bytes] for start in range(0, len(whole), n_bytes))


def _open_direct(path: Path) -> int | None:
    """None where it cannot be done, such as in a file system in memory."""
    try:
        return _open(path, os.O_RDONLY | O_DIRECT)
    except OSError:
        return None


def _read_exactly(fd: int, path: Path, view: memoryview, offset: int, flags: int = 0) -> None:
    n_bytes = len(view)
    done = os.preadv(fd, [view], offset, flags)
    while done < n_bytes:
        got = os.preadv(fd, [view[done:]], offset + done, flags)
        if got == 0:
            raise MissingChunkError(f"Chunk {path} is truncated: {offset + n_bytes} bytes are needed; restore it before running.")
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


def _read_rows_direct(path: Path, out: Array, offset: int, stride: int) -> int:
    """Read pieces of a file, ``stride`` bytes apart, one into each row, past the page cache; returns how many could be had so.

    What is no whole pages, or does not go to whole pages, goes by way of some.
    """
    fd = _open_direct(path)
    if fd is None:
        return 0
    n_bytes = out.shape[1] * out.itemsize
    starts = range(offset, offset + len(out) * stride, stride) if stride else [offset]
    fits = not any(n % PAGE_BYTES for n in (n_bytes, offset, stride, out.ctypes.data, out.strides[0]))
    between = _bytes_of(workspace("pages", (n_bytes // PAGE_BYTES * PAGE_BYTES + 2 * PAGE_BYTES,), np.dtype(np.uint8)))
    k = 0
    try:
        for k, (start, row) in enumerate(zip(starts, _rows_of(out), strict=True)):
            skip = start % PAGE_BYTES
            end = skip + n_bytes
            pages = row if fits else between[: -(-end // PAGE_BYTES) * PAGE_BYTES]
            # Too few at the end of a file, or an error of a device with larger pages.
            if os.preadv(fd, [pages], start - skip) < end:
                return k
            if not fits:
                row[:] = between[skip:end]
    except OSError:
        return k
    finally:
        os.close(fd)
    return len(out)
