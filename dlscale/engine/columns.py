"""Columns: something stored, such as a factorization, applied to columns that workers hold.

    X[:, g] = f(B[:, g])   for slabs g of columns, a few of them on each worker at a time

A task streams what it applies, panel by panel, past the slabs that it holds: the more of them, the less often it is read. The
threads of its worker share the products. It changes nothing that others read, so one whose worker is lost is run again, alone.
The slabs that are worked on together are a group, and a step of the run: a stop repeats one group. The width of a slab belongs
to the problem alone, and slabs know nothing of each other, so that no bit of a result depends on the workers.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import forget_workspaces
from dlscale.engine.clusters import ClusterFacts
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
#: A group takes about so many flops on each thread, unless one slab takes more: a stop repeats no more than them.
GROUP_FLOPS = 4e12
#: Slabs of the same size that a task holds for each that it is given: what comes in, what goes out, and what is between.
SLAB_COPIES = 5
#: What slabs take at most of a worker's memory.
SLAB_SHARE = 0.5
_TELL_SECONDS = 0.25
#: Parts for workers, or from them, that are written or read at the same time: memory touched for the first time is slow.
_N_TOGETHER = 4

Span = tuple[int, int]


def untold(flops: float, n_bytes: int) -> None:
    """Where nobody listens."""


class Applied(ABC):
    """What is applied to columns; picklable, and the same for all tasks."""

    #: Whether the checkpoint takes what took many flops; not where it is a part of a state that is kept.
    kept = True

    @abstractmethod
    def cost(self, slabs: Sequence[Span]) -> Cost:
        """Of applying it to some slabs in one task."""

    @abstractmethod
    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        """Apply it to slabs of columns.

        Parameters
        ----------
        B : (n, columns of all these slabs), optional
            The slabs side by side; absent where columns are known by their numbers. Not to be changed.
        slabs : sequence of (start, stop)
        tell : callable

        Returns
        -------
        list of State
            Of each slab; no bit of it depends on what other slabs are beside it.
        """


def slab_columns(n: int, k: int, itemsize: int) -> int:
    """Columns of a slab of k columns with n entries each."""
    most = max(1, min(SLAB_COLUMNS, SLAB_BYTES // max(1, n * itemsize)))
    return max(1, -(-k // max(1, -(-k // most), min(MIN_SLABS, k // FEW_COLUMNS))))


def share_out(
    slabs: Sequence[Span], cost: Callable[[Sequence[Span]], Cost], facts: ClusterFacts, *, slab_bytes: int
) -> list[list[list[int]]]:
    """Which slabs are worked on together, and on which worker.

    Parameters
    ----------
    slabs : sequence of (start, stop)
    cost : callable
        As of `Applied`.
    facts : ClusterFacts
    slab_bytes : int
        That a task holds for a slab.

    Returns
    -------
    list
        For each group, for each worker of it: the numbers of its slabs.
    """
    most = max(1, int(facts.work_bytes * SLAB_SHARE) // max(1, slab_bytes))
    flops = [cost([slab]).flops for slab in slabs]
    rounds = -(-len(slabs) // facts.n_workers)
    by_time = max(1, int(GROUP_FLOPS * facts.threads_per_worker // max(1.0, max(flops, default=1.0))))
    n_groups = -(-rounds // min(most, by_time))
    # Each worker has as many slabs of a group as any other, as far as there are so many.
    size = facts.n_workers * -(-rounds // n_groups)
    return [_balanced(range(i, min(i + size, len(slabs))), flops, facts.n_workers) for i in range(0, len(slabs), size)]


def _balanced(group: range, flops: Sequence[float], n_workers: int) -> list[list[int]]:
    """The slabs of each worker: the largest first, each to who has the least and not more than its share of them."""
    shares: list[list[int]] = [[] for _ in range(min(n_workers, len(group)))]
    most = -(-len(group) // len(shares))
    for i in sorted(group, key=lambda i: (-flops[i], i)):
        min((share for share in shares if len(share) < most), key=lambda share: sum(flops[j] for j in share)).append(i)
    return [sorted(share) for share in shares]


class Columns:
    """Applies what is stored to columns, on the cluster of a run.

    Parameters
    ----------
    run : Run
    facts : ClusterFacts
        Of the plan, by which slabs are shared out.
    """

    def __init__(self, run: Run, facts: ClusterFacts) -> None:
        self.run, self.facts = run, facts

    def apply(
        self,
        step: str,
        what: Applied,
        B: Array | None = None,
        *,
        n_columns: int,
        width: int,
        column_bytes: int = 0,
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
        column_bytes : int
            That a task holds for a column.
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
        groups = share_out(slabs, what.cost, self.facts, slab_bytes=width * column_bytes)
        found: dict[int, State] = {}
        for number, group in enumerate(groups):
            name = step if len(groups) == 1 else f"{step}-{number + 1}"
            shares = [[slabs[i] for i in share] for share in group]
            costs = [what.cost(share) for share in shares]
            cost = sum(costs, Cost())
            numbers = [i for share in group for i in share]

            def compute(name: str, shares: Sequence[Sequence[Span]] = shares, numbers: Sequence[int] = numbers) -> State:
                states = [state for states in self._together(name, what, B, shares) for state in states]
                return {f"{i}.{key}": value for i, state in zip(numbers, states, strict=True) for key, value in state.items()}

            keep: Keep = "all" if what.kept and (cost.flops >= KEPT_FLOPS or writers) else "none"
            saved = self.run.step(name, cost, compute, flushed=writers, keep=keep)
            found |= {i: _part(saved, i) for i in numbers}
        return [found[i] for i in range(len(slabs))]

    def _together(self, name: str, what: Applied, B: Array | None, shares: Sequence[Sequence[Span]]) -> list[list[State]]:
        """Apply it to the slabs of a group, those of a worker in one task."""
        run, token = self.run, self.run.token(name)
        watch = run.watch(token)
        if run.cluster.shares_memory:
            # This process is the worker.
            listen(token, watch.listener)
            try:
                return [_apply(what, _beside(B, share), share, token, name) for share in shares]
            finally:
                unlisten(token)
        with run.parcels() as folder, ThreadPoolExecutor(min(len(shares), _N_TOGETHER)) as pool:
            shared = f"{token}-what"
            graph: dict[Any, Any] = {shared: DataNode(shared, pack(what, folder and folder / f"{name}-what"))}
            keys = [(f"{token}-columns", i) for i in range(len(shares))]
            places = [folder and folder / f"{name}-{i}" for i in range(len(shares))]
            parts = pool.map(lambda share, place: pack(_beside(B, share), place), shares, places)
            for key, share, place, packed in zip(keys, shares, places, parts, strict=True):
                part = DataNode((f"{token}-part", key[1]), packed)
                # Not bare tuples, which Dask would take for keys.
                numbers = DataNode((f"{token}-slabs", key[1]), pack(share, None))
                graph |= {part.key: part, numbers.key: numbers}
                graph[key] = Task(key, _apply, TaskRef(shared), TaskRef(part.key), TaskRef(numbers.key), token, name, place)
            wishes = Wishes({}, {key: i for i, key in enumerate(keys)})
            held = run.cluster.hold(graph, keys, {}, wishes, watch)
            try:
                return list(pool.map(opened, run.cluster.gather([held[key] for key in keys])))
            finally:
                run.cluster.release(held.values())


def _beside(B: Array | None, slabs: Sequence[Span]) -> Array | None:
    """Slabs of B side by side; a view where they are neighbours."""
    if B is None or all(slab[1] == following[0] for slab, following in pairwise(slabs)):
        return None if B is None else B[:, slabs[0][0] : slabs[-1][1]]
    return np.hstack([B[:, slice(*slab)] for slab in slabs])


def _part(saved: State, i: int) -> State:
    return {key.partition(".")[2]: value for key, value in saved.items() if key.partition(".")[0] == str(i)}


def _apply(
    what: Applied | Parcel,
    B: Array | Parcel | None,
    slabs: Sequence[Span] | Parcel,
    token: str,
    name: str,
    place: Path | None = None,
) -> Any:
    """A task: the results for some slabs, their large arrays in files where there is a place for them."""
    teller = _Teller(token, name)
    forget_workspaces()
    applied: Applied = opened(what)
    with np.errstate(all="ignore"):
        states = applied.apply(opened(B), opened(slabs), teller)
    teller.send()
    forget_workspaces()
    return states if place is None else pack(states, place.with_name(f"{place.name}-out"))


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
