"""Temporary arrays that are kept from call to call, because memory touched for the first time is slow."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from contextlib import suppress
from typing import Any

import numpy as np

#: Where workspaces begin, so that a disk can fill them past the page cache.
PAGE_BYTES = 4096
#: What opens a file past the page cache; not on every system.
O_DIRECT: int = getattr(os, "O_DIRECT", 0)
#: So few bytes of workspaces are not worth giving back.
_FEW_BYTES = 2**25
#: Arrays from this size on have pages of their own where they are given back at once.
_OWN_PAGES_BYTES = 2**20
#: Options of glibc's ``mallopt``.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class _Workspaces:
    """Those of a thread, by name."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray[Any, np.dtype[Any]]] = {}
        _every.add(weakref.ref(self, _every.discard))


class _Local(threading.local):
    def __init__(self) -> None:
        self.workspaces = _Workspaces()


#: A plain set, whose copy no thread can come between: a WeakSet is gone through in Python, where another thread may add to it.
_every: set[weakref.ref[_Workspaces]] = set()
_local = _Local()


def workspace(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, np.dtype[Any]]:
    """An uninitialised array of this thread, at the start of a page, kept and reused from call to call under its name."""
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    arrays = _local.workspaces.arrays
    store = arrays.get(name)
    if store is None or store.nbytes < n_bytes:
        store = arrays[name] = empty_pages((n_bytes,), np.dtype(np.uint8))
    return store[:n_bytes].view(dtype).reshape(shape)


def forget_workspaces() -> None:
    """Give back the workspaces of all threads, where they are not small, and what the allocator has kept of other arrays.

    For what plans all of a worker's memory anew. Who uses a workspace keeps it.
    """
    every = [workspaces for reference in _every.copy() if (workspaces := reference()) is not None]
    if sum(array.nbytes for workspaces in every for array in list(workspaces.arrays.values())) < _FEW_BYTES:
        return
    for workspaces in every:
        workspaces.arrays.clear()
    _call_allocator("malloc_trim", 0)


def give_back_at_once() -> None:
    """From now on, have this process give the memory of large arrays back as they go.

    For a driver of other processes, whose own arrays are few: of each thread the allocator would keep up to 64 MB.
    """
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        _call_allocator("mallopt", option, _OWN_PAGES_BYTES)


def _call_allocator(function: str, *arguments: int) -> None:
    """Call a function of the C library's allocator, where there is such a one (glibc)."""
    with suppress(AttributeError, OSError, TypeError):
        getattr(ctypes.CDLL(None), function)(*arguments)


def empty_pages(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, np.dtype[Any]]:
    """A new uninitialised array at the start of a page."""
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    room = np.empty(n_bytes + PAGE_BYTES, np.uint8)
    start = -room.ctypes.data % PAGE_BYTES
    return room[start : start + n_bytes].view(dtype).reshape(shape)
