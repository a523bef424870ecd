"""Temporary arrays that are kept from call to call, because memory touched for the first time is slow."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np

#: Where workspaces begin, so that a disk can fill them past the page cache.
PAGE_BYTES = 4096
#: What opens a file past the page cache; not on every system.
O_DIRECT: int = getattr(os, "O_DIRECT", 0)

_local = threading.local()


def workspace(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, np.dtype[Any]]:
    """An uninitialised array of this thread, at the start of a page, kept and reused from call to call under its name."""
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    store: np.ndarray[Any, np.dtype[Any]] | None = getattr(_local, name, None)
    if store is None or store.nbytes < n_bytes:
        store = empty_pages((n_bytes,), np.dtype(np.uint8))
        setattr(_local, name, store)
    return store[:n_bytes].view(dtype).reshape(shape)


def empty_pages(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, np.dtype[Any]]:
    """A new uninitialised array at the start of a page."""
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    room = np.empty(n_bytes + PAGE_BYTES, np.uint8)
    start = -room.ctypes.data % PAGE_BYTES
    return room[start : start + n_bytes].view(dtype).reshape(shape)
