"""Workspaces that all threads give back."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
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
    monkeypatch.setattr(buffers, "_every", set())
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


def test_threads_come_and_go_while_workspaces_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    every: set[weakref.ref[buffers._Workspaces]] = set()
    monkeypatch.setattr(buffers, "_every", every)
    monkeypatch.setattr(buffers, "_local", buffers._Local())
    own = buffers._local.workspaces
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(lambda: [run_thread(lambda: workspace("small", (10,), BYTES)) for _ in range(200)])
            while not coming.done():
                forget_workspaces()
            coming.result()
    finally:
        sys.setswitchinterval(interval)
    gc.collect()
    assert [reference() for reference in every] == [own]


def run_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_driver_keeps_nothing_of_large_arrays_of_its_threads() -> None:
    """In a process of its own, which it changes; without it each thread keeps the 40 MB."""
    program = """
import sys, threading, numpy, psutil
from dlscale.buffers import give_back_at_once

def work():
    for _ in range(2):
        arrays = [numpy.ones(10 * 2**17) for _ in range(4)]
        del arrays
    done.wait(), over.wait()

if sys.argv[1] == "at once":
    give_back_at_once()
numpy.ones(2**22)  # the allocator keeps as much as it has given back before
done, over = threading.Barrier(4), threading.Barrier(4)
before = psutil.Process().memory_info().rss
for _ in range(3):
    threading.Thread(target=work).start()
done.wait()
print(psutil.Process().memory_info().rss - before)
over.wait()
"""
    # Where Dask has started workers of its own, it has left its settings of their allocator in the environment.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}

    def kept_bytes(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", program, how], capture_output=True, check=True, env=environment).stdout)

    kept = {how: kept_bytes(how) for how in ("usual", "at once")}
    assert kept["at once"] < 8 * 2**20 < kept["usual"]
