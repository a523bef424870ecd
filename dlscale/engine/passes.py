"""The pass: one sweep over the rows of a matrix.

    total = tree-reduce(merge, map(fold, row blocks)),   optionally with one output block per row block

An algorithm supplies a `Fold` (what to do with a block, how two partial results merge) and gets from here: blocks read
inside the task that uses them, the next block read while this one is computed, memory bounded by threads times blocks in
flight, sums in an order that the grid alone decides, retry of the leaves that a dead worker held, progress, and a
checkpoint after each pass. A pass whose result is in the checkpoint is not run again: it returns what was stored, so an
algorithm resumes by simply being run once more.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from dask._task_spec import DataNode, Task, TaskRef

from dlscale.engine.grids import RowGrid, blocks
from dlscale.engine.outputs import Collector, RowOutput
from dlscale.engine.parcels import LARGE_BYTES, Parcel, opened, pack
from dlscale.engine.progress import Event, Meter
from dlscale.engine.reading import read_ahead
from dlscale.engine.run import Cost, Keep, Run, State
from dlscale.engine.watching import Watch, Wishes, watchdog
from dlscale.errors import NonFiniteError, OutOfRange
from dlscale.storage.matrices import Array, Matrix
from dlscale.storage.results import ArrayWriter

__all__ = ["Fold", "Held", "Passes", "RowOutput", "State"]

#: Keys of blocks that the workers hold, with their handles, in the order of the rows.
Held = Mapping[Any, Any]


class Squares(NamedTuple):
    """A sum of squares of entries, and the binary exponents between which it is safe.

    Parameters
    ----------
    value : float
    low, high : int
        Products of the pass neither lose digits nor overflow, and LAPACK rescales nothing, while ``2^low < value < 2^high``.
    """

    value: float
    low: int
    high: int

    @property
    def safe(self) -> bool:
        return math.ldexp(1.0, self.low) < self.value < math.ldexp(1.0, self.high)


class Fold(ABC):
    """What a pass does with each block; picklable, and the same for all tasks."""

    @property
    def flops_per_row(self) -> float:
        """Floating point operations for one row of the matrix."""
        return 0.0

    @abstractmethod
    def start(self) -> State:
        """The partial result of no rows."""

    @abstractmethod
    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        """Add a block of rows to a partial result, in place.

        Returns
        -------
        One block of rows for each output of the pass; may be workspaces.
        """

    def finish(self, state: State) -> State:
        """Complete the partial result of a leaf."""
        return state

    def squares_in(self, state: State) -> Squares | None:
        """The sum of squares that tells whether the pass was in range; None where it tells nothing."""
        return None

    def conclude(self, state: State) -> State:
        """What of the result of all rows goes to the driver; the worker that has it writes the rest to where it belongs."""
        return state

    def concluded(self) -> Sequence[RowOutput]:
        """Arrays that `conclude` writes."""
        return ()

    def beside(self) -> Sequence[Matrix]:
        """Matrices with the same rows that `update` reads on its own."""
        return ()

    def merge(self, left: State, right: State) -> State:
        """Combine the partial results of neighbouring rows, left above right; may reuse either."""
        for name, value in right.items():
            left[name] += value
        return left


class Passes:
    """Runs passes on the cluster of a run.

    Parameters
    ----------
    run : Run
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.watches_range = False

    def apart(self, prefix: str) -> Self:
        """The same passes, their steps and scratch arrays under other names."""
        other = copy.copy(self)
        other.run = self.run.apart(prefix)
        return other

    def watching_range(self) -> Self:
        """The same passes, which raise `OutOfRange` where the squares of a fold are not safe."""
        other = copy.copy(self)
        other.watches_range = True
        return other

    def sweep(
        self,
        step: str,
        A: Matrix,
        fold: Fold,
        grid: RowGrid,
        *,
        outputs: Sequence[RowOutput] = (),
        keep: Keep = "all",
        held: Held | None = None,
    ) -> State:
        """Run one pass, or return its result if the checkpoint has it.

        Parameters
        ----------
        step : str
            The name of the pass, unique in the job.
        A : Matrix (m, n)
        fold : Fold
        grid : RowGrid of m rows
        outputs : sequence of RowOutput
            Filled with the row blocks that ``fold.update`` returns, in this order.
        keep : str
            As for `Run.step`.
        held : mapping, optional
            Keys and handles of the leaves of A, one block each in the order of the rows, which the workers hold already
            (`dlscale.engine.resident`).

        Returns
        -------
        State
            The merged partial results.

        Raises
        ------
        NonFiniteError
            If the matrix holds a NaN or an infinity.
        OutOfRange
            If finite entries overflowed, or, on request, if their squares are not safe (`watching_range`).
        StalledError
        """
        n_bytes = 0 if held else grid.n_rows * A.shape[1] * A.stored_dtype.itemsize
        cost = Cost(fold.flops_per_row * grid.n_rows, n_bytes, sum(output.n_bytes for output in outputs))
        written = (*outputs, *fold.concluded())
        writers = [writer for output in written if isinstance(writer := getattr(output, "writer", output), ArrayWriter)]
        state = self.run.step(
            step, cost, lambda name: self._compute(name, A, fold, grid, outputs, held), writers=writers, keep=keep
        )
        squares = fold.squares_in(state) if self.watches_range else None
        if squares and not squares.safe:
            raise OutOfRange(f"The squares of the entries sum to {squares.value:.1e}, which is not safe.", squares.value)
        return state

    def _compute(
        self, step: str, A: Matrix, fold: Fold, grid: RowGrid, outputs: Sequence[RowOutput], held: Held | None = None
    ) -> State:
        token = f"dlscale-{uuid.uuid4().hex[:12]}"
        touch, stalled = watchdog(self.run.stall_seconds)
        flops_per_row = fold.flops_per_row

        def listener(event: Event) -> None:
            touch(event)
            rss_bytes = event.pop("rss_bytes")
            self.run.emit(event | {"flops": flops_per_row * event["rows"]})
            self.run.emit({"event": "memory", "process": event["worker"], "rss_bytes": rss_bytes})

        self.run.require_shared(*outputs, *fold.concluded())
        with self.run.parcels() as folder:
            sweep = _Sweep(token, step, A, fold, grid.block_rows, tuple(outputs), folder and folder / step)
            graph, root = _reduction_tree(sweep, grid, list(held or ()))
            state: State = opened(self._root(graph, root, held, Watch(token, listener, stalled)))
        if not _all_finite(state):
            raise OutOfRange(f"The entries are finite, but sums of their products overflow; {_ADVICE}")
        return state

    def _root(self, graph: dict[Any, Any], root: Any, held: Held | None, watch: Watch) -> Any:
        cluster = self.run.cluster
        if held is None:
            return cluster.compute(graph, root, watch)
        handles = cluster.hold(graph, [root], held, Wishes({}, {}), watch)
        try:
            return cluster.gather([handles[root]])[0]
        finally:
            cluster.release(handles.values())


@dataclass(frozen=True)
class _Sweep:
    """What every leaf of a pass needs, shipped to each worker once, as a parcel.

    Parameters
    ----------
    parcels : Path, optional
        Where large arrays of this pass go, its operands and its result; a number is put behind it.
    """

    token: str
    step: str
    A: Matrix
    fold: Fold
    block_rows: int
    outputs: tuple[RowOutput, ...]
    parcels: Path | None = None

    def __reduce__(self) -> tuple[type[Parcel], tuple[bytes]]:
        return self._parcel.__reduce__()

    @cached_property
    def _parcel(self) -> Parcel:
        fields = (self.token, self.step, self.A, self.fold, self.block_rows, self.outputs, self.parcels)
        return pack(fields, self.parcels)

    @classmethod
    def of(cls, shared: Any) -> _Sweep:
        """The sweep that a task was given, as it is or as a parcel."""
        return shared if isinstance(shared, cls) else cls(*shared.open())

    def result(self, state: State) -> Any:
        """The state of all rows, as it goes to the driver."""
        state = self.fold.conclude(state)
        if self.parcels is None or sum(value.nbytes for value in state.values()) < LARGE_BYTES:
            return state
        return pack(state, self.parcels.with_name(f"{self.parcels.name}-result"))


#: Partial results that one task merges: fewer tasks than a binary tree, and still few at a time in memory.
_FAN_IN = 8
#: Of larger ones a binary tree keeps fewest in memory, and hardly more when there are more leaves.
_LARGE_BYTES = 16 * 2**20


def _reduction_tree(sweep: _Sweep, grid: RowGrid, held: Sequence[Any] = ()) -> tuple[dict[Any, Any], Any]:
    """One task a leaf, which reads its rows or is given a block that is held, and a tree of merges whose shape the grid alone
    decides.
    """
    token, sweep_key = sweep.token, f"{sweep.token}-sweep"
    graph: dict[Any, Any] = {sweep_key: DataNode(sweep_key, sweep)}
    level: list[Any] = []
    fan_in = 2 if sum(value.nbytes for value in sweep.fold.start().values()) > _LARGE_BYTES else _FAN_IN
    for i, (start, stop) in enumerate(grid.leaves()):
        # Dask deals out equally what has one name, so merges have another than leaves.
        key = (f"{token}-leaf", i)
        block = (TaskRef(held[i]),) if held else ()
        # Said to be a producer, a leaf goes to any idle worker; otherwise all would follow the sweep to the one that has it.
        graph[key] = Task(key, _run_leaf, TaskRef(sweep_key), start, stop, *block, last=grid.n_leaves == 1, _data_producer=not held)
        level.append(key)
    for depth in itertools.count(1):
        if len(level) == 1:
            return graph, level[0]
        above = []
        for i in range(0, len(level), fan_in):
            key = (f"{token}-merge-{depth}", i)
            graph[key] = Task(key, _merge, TaskRef(sweep_key), *map(TaskRef, level[i : i + fan_in]), last=len(level) <= fan_in)
            above.append(key)
        level = above
    raise AssertionError("unreachable")


def _merge(shared: Any, first: State, *others: State, last: bool = False) -> Any:
    sweep = _Sweep.of(shared)
    # A merge may be repeated after a worker died, so it must not change its arguments.
    total = {name: value.copy() for name, value in first.items()}
    for state in others:
        total = sweep.fold.merge(total, state)
    return sweep.result(total) if last else total


def _run_leaf(shared: Any, start: int, stop: int, held: Array | None = None, *, last: bool = False) -> Any:
    """Fold the rows ``start:stop`` of the matrix, block by block."""
    sweep = _Sweep.of(shared)
    meter = Meter(sweep.token, sweep.step)
    row_bytes = sweep.A.shape[1] * sweep.A.stored_dtype.itemsize
    fold, state = sweep.fold, sweep.fold.start()
    collectors = [Collector(output, start, stop, sweep.block_rows) for output in sweep.outputs]
    before = time.perf_counter()
    with np.errstate(over="ignore", invalid="ignore"):
        for first_row, block in read_ahead(sweep.A, start, stop, sweep.block_rows) if held is None else [(start, held)]:
            read = time.perf_counter()
            for collector, rows in zip(collectors, fold.update(state, block, first_row), strict=True):
                collector.add(first_row, rows)
            now = time.perf_counter()
            meter.add(rows=len(block), n_bytes=len(block) * row_bytes, read_seconds=read - before, compute_seconds=now - read)
            before = now
        state = fold.finish(state)
    meter.inexact.update(*(A.inexact() for A in (sweep.A, *fold.beside())))
    meter.flush()
    if not _all_finite(state):
        _find_non_finite(sweep, start, stop)
    return sweep.result(state) if last else state


def _all_finite(state: State) -> bool:
    return all(bool(np.isfinite(value).all()) for value in state.values())


_ADVICE = "divide the matrix by its largest entry and run again."


def _find_non_finite(sweep: _Sweep, start: int, stop: int) -> None:
    """Say which entry spoilt the sums of a leaf."""
    for A in (sweep.A, *sweep.fold.beside()):
        for first, last in blocks(start, stop, sweep.block_rows):
            block = A.read(first, last)
            bad = np.argwhere(~np.isfinite(block))
            if len(bad):
                i, j = (int(index) for index in bad[0])
                raise NonFiniteError(*A.place(first + i, j), block[i, j].item())
    raise OutOfRange(f"Rows {start} to {stop} are finite, but their products overflow {sweep.A.dtype}; {_ADVICE}")
