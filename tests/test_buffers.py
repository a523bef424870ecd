"""Workspaces that all threads give back."""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from dlscale import buffers
from dlscale.buffers import forget_workspaces, workspace

BYTES = np.dtype(np.uint8)


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def test_those_of_all_threads_are_given_back_where_they_are_not_small(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without those of other tests.
    monkeypatch.setattr(buffers, "_every", weakref.WeakSet())
    monkeypatch.setattr(buffers, "_local", buffers._Local())
    small = workspace("small", (10,), BYTES)
    forget_workspaces()
    assert np.shares_memory(small, workspace("small", (10,), BYTES))
    with ThreadPoolExecutor(1) as pool:
        before = resident_bytes()
        pool.submit(lambda: workspace("large", (2**28,), BYTES).fill(1)).result()
        in_use = workspace("in use", (2**20,), BYTES)
        in_use.fill(2)
        assert resident_bytes() > before + 2**27
        forget_workspaces()
        assert resident_bytes() < before + 2**27
        assert (in_use == 2).all()
        assert not np.shares_memory(in_use, workspace("in use", (2**20,), BYTES))
