"""Columns: something stored, such as a factorization, applied to columns that workers hold.

    X[:, g] = f(B[:, g])   for slabs g of columns, one on each worker at a time

A task streams what it applies, panel by panel, past the columns that it holds: the threads of its worker share the products. It
changes nothing that others read, so one whose worker is lost is run again, alone. The slabs that are worked on together are a
group, and a step of the run: a stop repeats one group. Few columns are one slab, and one task. The width of a slab belongs to
the problem alone, so that no bit of a result depends on the workers.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.clusters.watching import Wishes
from dlscale.engine.events import WorkDone
from dlscale.engine.graphs import DataNode, Task, TaskRef
from dlscale.engine.grids import blocks
from dlscale.engine.passes.parcels import Parcel, opened, pack
from dlscale.engine.progress import listen, resident_bytes, send, unlisten, worker_name
from dlscale.engine.run import Cost, Keep, Run, State
from dlscale.storage.results import ArrayWriter

#: Told while something is applied: flops that were done, and bytes that were read.
Tell = Callable[[float, int], None]

#: Columns of a slab: enough for products to run at their rate, and to pay for reading what is applied.
SLAB_COLUMNS = 512
#: Fewer make several slabs only where each has so many.
FEW_COLUMNS = 256
#: Bytes of a slab at most.
SLAB_BYTES = 2**28
#: Several slabs are at least so many.
MIN_SLABS = 4
#: A group that takes fewer flops is sooner computed again than kept.
KEPT_FLOPS = 1e9
_TELL_SECONDS = 0.25


def untold(flops: float, n_bytes: int) -> None:
    """Where nobody listens."""


class Applied(ABC):
    """What is applied to columns; picklable, and the same for all tasks."""

    @abstractmethod
    def cost(self, n_columns: int) -> Cost:
        """Of applying it to so many columns at once."""

    @abstractmethod
    def apply(self, B: Array | None, columns: tuple[int, int], tell: Tell) -> State:
        """Apply it to columns (start, stop).

        Parameters
        ----------
        B : (n, stop - start), optional
            The columns; absent where they are known by their numbers. Not to be changed.
        columns : (start, stop)
        tell : callable
        """


def slab_columns(n: int, k: int, itemsize: int) -> int:
    """Columns of a slab of k columns with n entries each."""
    most = max(1, min(SLAB_COLUMNS, SLAB_BYTES // max(1, n * itemsize)))
    return max(1, -(-k // max(1, -(-k // most), min(MIN_SLABS, k // FEW_COLUMNS))))


class Columns:
    """Applies what is stored to columns, on the cluster of a run.

    Parameters
    ----------
    run : Run
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def apply(
        self,
        step: str,
        what: Applied,
        B: Array | None = None,
        *,
        n_columns: int,
        width: int,
        together: int = 1,
        writers: Sequence[ArrayWriter] = (),
    ) -> list[State]:
        """Apply something to columns, group by group; a group that is in the checkpoint is not repeated.

        Parameters
        ----------
        step : str
            Unique in the job.
        what : Applied
        B : (n, n_columns), optional
        n_columns : int
        width : int
            Columns of a slab.
        together : int
            Slabs of a group, the workers of the plan.
        writers : sequence of ArrayWriter
            What tasks write to.

        Returns
        -------
        list of State
            What ``what.apply`` returned, slab by slab.

        Raises
        ------
        StalledError
        """
        slabs = list(blocks(0, n_columns, width))
        groups = [slabs[i : i + together] for i in range(0, len(slabs), together)]
        found: list[State] = []
        for number, group in enumerate(groups):
            name = step if len(groups) == 1 else f"{step}-{number + 1}"
            costs = [what.cost(stop - start) for start, stop in group]
            cost = Cost(sum(c.flops for c in costs), sum(c.bytes_read for c in costs), sum(c.bytes_written for c in costs))

            def compute(name: str, group: Sequence[tuple[int, int]] = group) -> State:
                states = self._together(name, what, B, group)
                return {f"{i}.{key}": value for i, state in enumerate(states) for key, value in state.items()}

            keep: Keep = "all" if cost.flops >= KEPT_FLOPS or writers else "none"
            saved = self.run.step(name, cost, compute, flushed=writers, keep=keep)
            found += [_part(saved, i) for i in range(len(group))]
        return found

    def _together(self, name: str, what: Applied, B: Array | None, group: Sequence[tuple[int, int]]) -> list[State]:
        """Apply it to the slabs of a group, each on a worker of its own as far as there are so many."""
        run, token = self.run, f"dlscale-{uuid.uuid4().hex[:12]}"
        watch = run.watch(token)
        parts = [None if B is None else B[:, slice(*columns)] for columns in group]
        if run.cluster.shares_memory:
            # This process is the worker.
            listen(token, watch.listener)
            try:
                return [_apply(what, part, columns, token, name) for part, columns in zip(parts, group, strict=True)]
            finally:
                unlisten(token)
        with run.parcels() as folder:
            shared = f"{token}-what"
            graph: dict[Any, Any] = {shared: DataNode(shared, pack(what, folder and folder / f"{name}-what"))}
            keys = [(f"{token}-columns", i) for i in range(len(group))]
            for key, part, columns in zip(keys, parts, group, strict=True):
                place = folder and folder / f"{name}-{columns[0]}"
                B_part = DataNode((f"{token}-part", key[1]), pack(part, place))
                graph[B_part.key] = B_part
                graph[key] = Task(key, _apply, TaskRef(shared), TaskRef(B_part.key), columns, token, name, place)
            wishes = Wishes({}, {key: i for i, key in enumerate(keys)})
            held = run.cluster.hold(graph, keys, {}, wishes, watch)
            try:
                return [opened(result) for result in run.cluster.gather([held[key] for key in keys])]
            finally:
                run.cluster.release(held.values())


def _part(saved: State, i: int) -> State:
    return {key.partition(".")[2]: value for key, value in saved.items() if key.partition(".")[0] == str(i)}


def _apply(
    what: Applied | Parcel, B: Array | Parcel | None, columns: tuple[int, int], token: str, name: str, place: Path | None = None
) -> Any:
    """A task: the result for a slab, its large arrays in files where there is a place for them."""
    teller = _Teller(token, name)
    applied: Applied = opened(what)
    with np.errstate(all="ignore"):
        state = applied.apply(opened(B), columns, teller)
    teller.send()
    return state if place is None else pack(state, place.with_name(f"{place.name}-out"))


class _Teller:
    """Adds up what a task does, and sends it a few times a second."""

    def __init__(self, token: str, step: str) -> None:
        self.token, self.step, self.worker = token, step, worker_name()
        self._since, self._flops, self._bytes = time.perf_counter(), 0.0, 0

    def __call__(self, flops: float, n_bytes: int) -> None:
        self._flops += flops
        self._bytes += n_bytes
        if time.perf_counter() - self._since > _TELL_SECONDS:
            self.send()

    def send(self) -> None:
        now = time.perf_counter()
        event = WorkDone(
            self.step,
            self.worker,
            bytes=self._bytes,
            flops=self._flops,
            compute_seconds=now - self._since,
            rss_bytes=resident_bytes(),
        )
        self._since, self._flops, self._bytes = now, 0.0, 0
        send(self.token, event)
