"""Blocks of a remote matrix that a process keeps as it has read them, so that a job that reads again asks its own machine.

They lie in files without a name, which are gone when the process is, however it ends; the page cache holds of them what it can. A
process keeps the blocks that it reads first, until it has as many as it may: of a matrix that is read over and over in the same
order, replacing the oldest would keep none that is asked for.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Hashable
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from dlscale.arrays import Array


class Keeping(NamedTuple):
    """Leave to keep what is read.

    Parameters
    ----------
    job : str
        Whose blocks these are: those of another one are dropped before them.
    n_bytes : int
        The most that one process may keep.
    """

    job: str
    n_bytes: int


class KeptBlocks:
    """Blocks by their keys; threads may read and write at once.

    Parameters
    ----------
    n_bytes : int
        Fewer are kept where that would take more than half of what is free on the disk of temporary files.
    """

    def __init__(self, n_bytes: int) -> None:
        self._left = min(n_bytes, shutil.disk_usage(tempfile.gettempdir()).free // 2)
        self._idle: list[_File] = []
        self._places: dict[Hashable, tuple[_File, int]] = {}
        self._lock = threading.Lock()

    def read(self, key: Hashable, out: Array) -> bool:
        """Read the block of a key into a contiguous array of its size; whether it is kept."""
        if (found := self._places.get(key)) is None:
            return False
        file, place = found
        return file.read(_bytes_of(out), place)

    def write(self, key: Hashable, block: Array) -> None:
        """Keep a block, if there is room."""
        with self._lock:
            if block.nbytes > self._left:
                return
            self._left -= block.nbytes
            file = self._idle.pop() if self._idle else None
        try:
            file = file or _File()
            self._places[key] = file, file.append(_bytes_of(block))
        except OSError:  # others have filled the disk meanwhile
            self._left = 0
        else:
            self._idle.append(file)


#: Of one write. For a longer one the page cache takes pages of up to 2 MiB, which a virtual machine has often given back to its
#: host. Two threads kept 2 GB in 0.3 s by short writes to a file each, in 2 s by long ones, and in 5 s in one file, which lets one
#: of them write at a time while the other one spins.
_WRITTEN_BYTES = 2**16


class _File:
    """A file without a name, which one thread at a time appends to."""

    def __init__(self) -> None:
        file = tempfile.TemporaryFile(prefix="dlscale-")  # noqa: SIM115
        weakref.finalize(self, file.close)  # when the last thread that reads it has ended
        self._fd, self._end = file.fileno(), 0

    def append(self, data: memoryview) -> int:
        """Write at the end; the place where it begins (OSError where it is not written whole)."""
        place = self._end
        for k in range(0, len(data), _WRITTEN_BYTES):
            piece = data[k : k + _WRITTEN_BYTES]
            if os.pwrite(self._fd, piece, place + k) < len(piece):
                raise OSError(errno.ENOSPC, "no space")
        self._end += len(data)
        return place

    def read(self, out: memoryview, place: int) -> bool:
        """Whether all of it could be read."""
        with suppress(OSError):
            return os.preadv(self._fd, [out], place) == len(out)
        return False


_kept: dict[str, KeptBlocks] = {}
_opening = threading.Lock()


def kept_for(keeping: Keeping) -> KeptBlocks | None:
    """The blocks that this process keeps for a job, those of another one being dropped; None where it cannot keep any."""
    with _opening:
        if keeping.job not in _kept:
            _kept.clear()
            with suppress(OSError):
                _kept[keeping.job] = KeptBlocks(keeping.n_bytes)
        return _kept.get(keeping.job)


def drop_kept(job: str) -> None:
    """Let go of what this process keeps for a job."""
    with _opening:
        _kept.pop(job, None)


def _bytes_of(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
