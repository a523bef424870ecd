"""Blocks of a remote matrix that a process keeps as it has read them, so that a job that reads again asks its own machine.

They lie in a file without a name, which is gone when the process is, however it ends; the page cache holds of it what it can. A
process keeps the blocks that it reads first, until it has as many as it may: of a matrix that is read over and over in the same
order, replacing the oldest would keep none that is asked for.
"""

from __future__ import annotations

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
        self._file = tempfile.TemporaryFile(prefix="dlscale-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)  # when the last thread that reads it has ended
        self._left = min(n_bytes, shutil.disk_usage(tempfile.gettempdir()).free // 2)
        self._end = 0
        self._places: dict[Hashable, int] = {}
        self._lock = threading.Lock()

    def read(self, key: Hashable, out: Array) -> bool:
        """Read the block of a key into a contiguous array of its size; whether it is kept."""
        place = self._places.get(key)
        if place is None:
            return False
        with suppress(OSError):
            return os.preadv(self._file.fileno(), [_bytes_of(out)], place) == out.nbytes
        return False

    def write(self, key: Hashable, block: Array) -> None:
        """Keep a block, if there is room."""
        with self._lock:
            if block.nbytes > self._left:
                return
            self._left -= block.nbytes
            place, self._end = self._end, self._end + block.nbytes
        try:
            whole = os.pwrite(self._file.fileno(), _bytes_of(block), place) == block.nbytes
        except OSError:  # others have filled the disk meanwhile
            self._left = 0
            return
        if whole:
            self._places[key] = place


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
