"""A file that is read once, from its beginning to its end: past the page cache, but for what that holds already.

Pages of the cache that are filled to be read a single time take more of a processor than all other work on them, and drive out
what others use.
"""

from __future__ import annotations

import errno
import io
import os
from typing import Any

import numpy as np

from dlscale.buffers import O_DIRECT, PAGE_BYTES, empty_pages

PIECE_BYTES = 4 << 20
#: What a file system says of reading that it does not know, and a device with larger pages.
_UNKNOWN = (errno.EINVAL, errno.EOPNOTSUPP)


class SequentialFile(io.RawIOBase):
    """The bytes of a local file, `n_bytes` of them when it was opened."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        self._direct = _opened_direct(path)
        if self._direct is not None:
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # what is asked for, and nothing ahead of it
        self.n_bytes = os.fstat(self._file.fileno()).st_size
        self._piece = empty_pages((PIECE_BYTES,), np.dtype(np.uint8))
        self._offset = 0
        self._waiting = self._piece[:0].data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._waiting:
            n_read = self._read_direct() or os.preadv(self._file.fileno(), [self._piece.data], self._offset)
            self._offset += n_read
            self._waiting = self._piece[:n_read].data
        n = min(len(buffer), len(self._waiting))
        buffer[:n] = self._waiting[:n]
        self._waiting = self._waiting[n:]
        return n

    def _read_direct(self) -> int:
        """Read the next piece unless the cache holds its beginning; returns the bytes read."""
        if self._direct is None or self._offset % PAGE_BYTES:
            return 0
        file = self._file.fileno()
        try:
            try:
                os.preadv(file, [bytearray(1)], self._offset, os.RWF_NOWAIT)
            except BlockingIOError:
                n_read = os.preadv(self._direct, [self._piece.data], self._offset)
                # The page that was asked for has come into the cache since.
                os.posix_fadvise(file, self._offset, PAGE_BYTES, os.POSIX_FADV_DONTNEED)
                return n_read
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise
            self._forgo_direct()
        return 0

    def _forgo_direct(self) -> None:
        if self._direct is not None:
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            os.close(self._direct)
            self._direct = None

    def close(self) -> None:
        if not self.closed:
            self._forgo_direct()
            self._file.close()
        super().close()


def _opened_direct(path: str | os.PathLike[str]) -> int | None:
    """None where it cannot be done, such as in a file system in memory."""
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    try:
        return os.open(path, os.O_RDONLY | O_DIRECT)
    except OSError:
        return None
