"""A program on every rank: here, or on the ranks of mpirun.

A program is an importable function ``program(communicator, *arguments)``. It runs inside a `Guard`, so that a failure on one
rank ends it on all, and a signal is a request to stop that all ranks hear at the same collective.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dlscale.engine import progress
from dlscale.engine.events import Emit, ignore
from dlscale.engine.guard import Guard
from dlscale.engine.ranks import Communicator

Program = Callable[..., Any]


def run_here(
    program: Program,
    arguments: Sequence[Any],
    *,
    communicator: Communicator | None = None,
    token: str = "",
    listener: Emit = ignore,
) -> Any:
    """Run a program in this process, as the only rank unless a communicator is given; what it returns."""
    progress.listen(token, listener)
    try:
        with Guard(communicator := communicator or Communicator()):
            return program(communicator, *arguments)
    finally:
        progress.unlisten(token)


def exchange(communicator: Communicator, value: Any, *, name: str) -> list[Any]:
    """One small object of every rank, pickled, on all ranks and by rank (collective)."""
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = communicator.allgather(np.array([data.size]), name=f"{name}: sizes")[:, 0]
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: data.size] = data
    table = communicator.allgather(padded, name=name)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(table, sizes, strict=True)]


def broadcast(communicator: Communicator, value: Any = None, *, name: str) -> Any:
    """An object of rank 0, pickled, on all ranks (collective)."""
    data = np.frombuffer(pickle.dumps(value), np.uint8).copy() if communicator.rank == 0 else np.empty(0, np.uint8)
    size = communicator.bcast(np.array([data.size]), name=f"{name}: size")
    data = communicator.bcast(data if communicator.rank == 0 else np.empty(size[0], np.uint8), name=name)
    return pickle.loads(data.tobytes())
