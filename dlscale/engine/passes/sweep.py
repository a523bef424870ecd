"""The tasks of a pass: leaves that fold blocks of rows, and a tree of merges whose shape the grid alone decides."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.graphs import DataNode, Task, TaskRef
from dlscale.engine.grids import RowGrid, blocks
from dlscale.engine.outputs import Collector, RowOutput
from dlscale.engine.passes.fold import Fold
from dlscale.engine.passes.parcels import LARGE_BYTES, Parcel, pack
from dlscale.engine.passes.reading import read_ahead
from dlscale.engine.progress import Meter
from dlscale.engine.run import State
from dlscale.errors import NonFiniteError, OutOfRange
from dlscale.sparse_rows import SparseRows
from dlscale.storage.matrix import Matrix


@dataclass(frozen=True)
class Sweep:
    """What every leaf of a pass needs, shipped to each worker once, as a parcel.

    Parameters
    ----------
    inputs : sequence of Matrix
        With the same rows.
    parcels : Path, optional
        Where large arrays of this pass go, its operands and its result; a number is put behind it.
    """

    token: str
    step: str
    inputs: tuple[Matrix, ...]
    fold: Fold
    block_rows: int
    outputs: tuple[RowOutput, ...]
    parcels: Path | None = None

    def __reduce__(self) -> tuple[type[Parcel], tuple[bytes]]:
        return self._parcel.__reduce__()

    @cached_property
    def _parcel(self) -> Parcel:
        fields = (self.token, self.step, self.inputs, self.fold, self.block_rows, self.outputs, self.parcels)
        return pack(fields, self.parcels)

    @classmethod
    def of(cls, shared: Any) -> Sweep:
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


def _fan_in(sweep: Sweep) -> int:
    return 2 if sum(value.nbytes for value in sweep.fold.start().values()) > _LARGE_BYTES else _FAN_IN


def bytes_read(inputs: Sequence[Matrix]) -> int:
    """What one pass over matrices counts as read: what stands beside the first one in memory is not."""
    return sum(A.n_stored_bytes for i, A in enumerate(inputs) if i == 0 or not A.in_memory)


def reduction_tree(sweep: Sweep, grid: RowGrid) -> tuple[dict[Any, Any], Any]:
    """One task a leaf, and a tree of merges whose shape the grid alone decides."""
    token, sweep_key = sweep.token, f"{sweep.token}-sweep"
    graph: dict[Any, Any] = {sweep_key: DataNode(sweep_key, sweep)}
    level: list[Any] = []
    fan_in = _fan_in(sweep)
    for i, (start, stop) in enumerate(grid.leaves()):
        # Dask deals out equally what has one name, so merges have another than leaves.
        key = (f"{token}-leaf", i)
        # Said to be a producer, a leaf goes to any idle worker; otherwise all would follow the sweep to the one that has it.
        graph[key] = Task(key, run_leaf, TaskRef(sweep_key), start, stop, last=grid.n_leaves == 1, _data_producer=True)
        level.append(key)
    for depth in itertools.count(1):
        if len(level) == 1:
            return graph, level[0]
        above = []
        for i in range(0, len(level), fan_in):
            key = (f"{token}-merge-{depth}", i)
            graph[key] = Task(key, merge, TaskRef(sweep_key), *map(TaskRef, level[i : i + fan_in]), last=len(level) <= fan_in)
            above.append(key)
        level = above
    raise AssertionError("unreachable")


def merge(shared: Any, first: State, *others: State, last: bool = False) -> Any:
    sweep = Sweep.of(shared)
    # A merge may be repeated after a worker died, so it must not change its arguments.
    total = {name: value.copy() for name, value in first.items()}
    with np.errstate(over="ignore", invalid="ignore"):
        for state in others:
            total = sweep.fold.merge(total, state)
    return sweep.result(total) if last else total


#: Partial results by their level in the tree and their number there.
_Nodes = dict[tuple[int, int], State]


def held_graph(sweep: Sweep, grid: RowGrid, held: Sequence[Any], facts: ClusterFacts) -> tuple[dict[Any, Any], Any, dict[Any, int]]:
    """One task a thread, where blocks are held: a task for each of them would cost as much as a product with it.

    Returns
    -------
    graph, root, places
        The places are the numbers of the workers that have the blocks.
    """
    key, root, leaves = (f"{sweep.token}-sweep",), (f"{sweep.token}-total",), grid.leaves()
    graph: dict[Any, Any] = {key: DataNode(key, sweep)}
    n_groups = min(len(held), facts.n_threads)
    groups = [(f"{sweep.token}-group", i) for i in range(n_groups)]
    for i, group in enumerate(groups):
        first, stop = (j * len(held) // n_groups for j in (i, i + 1))
        graph[group] = Task(group, _run_group, TaskRef(key), first, leaves, *map(TaskRef, held[first:stop]))
    graph[root] = Task(root, _total, TaskRef(key), len(leaves), *map(TaskRef, groups))
    return graph, root, {group: i // facts.threads_per_worker for i, group in enumerate(groups)}


def _run_group(shared: Any, first: int, leaves: Sequence[tuple[int, int]], *held: Any) -> _Nodes:
    """Fold some of the leaves, which are held, and merge what the tree merges of them alone."""
    sweep = Sweep.of(shared)
    meter = Meter(sweep.token, sweep.step, flops_per_row(sweep.fold, sweep.inputs))
    # A block that came from another worker may lie at an odd address; BLAS would be given a copy in another order.
    aligned = (_whole(block, sparse=sweep.fold.takes_sparse) for block in held)
    nodes = {(0, first + i): _fold(sweep, *leaves[first + i], meter, block) for i, block in enumerate(aligned)}
    meter.flush()
    return _merged(sweep, nodes, len(leaves))


def _whole(block: Any, *, sparse: bool) -> Any:
    """A block that is held, as the fold takes it."""
    if not isinstance(block, SparseRows):
        return np.require(block, requirements="A")
    return block if sparse else block.toarray()


def _total(shared: Any, n_leaves: int, *groups: _Nodes) -> Any:
    """The result of all rows, by the same merges in the same order as those of the tree."""
    sweep = Sweep.of(shared)
    (state,) = _merged(sweep, {key: state for nodes in groups for key, state in nodes.items()}, n_leaves).values()
    return sweep.result(state)


def _merged(sweep: Sweep, nodes: _Nodes, n_leaves: int) -> _Nodes:
    fan_in, n, level = _fan_in(sweep), n_leaves, 0
    while n > 1:
        for j in range(-(-n // fan_in)):
            children = [(level, i) for i in range(j * fan_in, min((j + 1) * fan_in, n))]
            if all(child in nodes for child in children):
                nodes[level + 1, j] = merge(sweep, *(nodes.pop(child) for child in children))
        n, level = -(-n // fan_in), level + 1
    return nodes


def run_leaf(shared: Any, start: int, stop: int, *, last: bool = False) -> Any:
    """Fold the rows ``start:stop`` of the matrix, block by block."""
    sweep = Sweep.of(shared)
    meter = Meter(sweep.token, sweep.step, flops_per_row(sweep.fold, sweep.inputs))
    state = _fold(sweep, start, stop, meter)
    meter.flush()
    return sweep.result(state) if last else state


def flops_per_row(fold: Fold, inputs: Sequence[Matrix]) -> float:
    """On average: of a sparse matrix, only what is stored is multiplied."""
    A = inputs[0]
    return fold.flops_per_row * (A.n_entries / (A.shape[0] * A.shape[1]) if fold.takes_sparse and A.is_sparse else 1)


def _blocks(sweep: Sweep, start: int, stop: int, held: Any) -> Generator[tuple[int, list[Any]]]:
    if held is not None:
        yield start, [held]
        return
    yield from read_ahead(sweep.inputs, start, stop, sweep.block_rows, sparse=sweep.fold.takes_sparse)


def _fold(sweep: Sweep, start: int, stop: int, meter: Meter, held: Any = None) -> State:
    """The partial result of some rows, which are held or read."""
    row_bytes = bytes_read(sweep.inputs) // sweep.inputs[0].shape[0] if held is None else 0
    fold, state, several = sweep.fold, sweep.fold.start(), len(sweep.inputs) > 1
    collectors = [Collector(output, start, stop, sweep.block_rows) for output in sweep.outputs]
    before = time.perf_counter()
    with np.errstate(over="ignore", invalid="ignore"), closing(_blocks(sweep, start, stop, held)) as found_blocks:
        for first_row, found in found_blocks:
            read, n_rows = time.perf_counter(), len(found[0])
            for collector, rows in zip(collectors, fold.update(state, found if several else found[0], first_row), strict=True):
                collector.add(first_row, rows)
            now = time.perf_counter()
            meter.add(rows=n_rows, n_bytes=n_rows * row_bytes, read_seconds=read - before, compute_seconds=now - read)
            before = now
        state = fold.finish(state)
    meter.inexact.update(*(A.inexact() for A in sweep.inputs))
    if not all_finite(state):
        meter.flush()
        _find_non_finite(sweep, start, stop)
    return state


def all_finite(state: State) -> bool:
    return all(bool(np.isfinite(value).all()) for value in state.values())


ADVICE = "divide the matrix by its largest entry and run again."


def _find_non_finite(sweep: Sweep, start: int, stop: int) -> None:
    """Say which entry spoilt the sums of a leaf."""
    for n_before, A in enumerate(sweep.inputs):
        for first, last in blocks(start, stop, sweep.block_rows):
            if sweep.fold.takes_sparse and A.is_sparse:
                found = A.sparse_rows(first, last).first_not_finite()
                if found:
                    raise NonFiniteError(*A.place(first + found[0], found[1]), found[2])
                continue
            block = A.read(first, last)
            bad = np.argwhere(~np.isfinite(block))
            if len(bad):
                i, j = (int(index) for index in bad[0])
                raise NonFiniteError(*A.place(first + i, j), block[i, j].item(), *([A.uri] if n_before else []))
    raise OutOfRange(f"Rows {start} to {stop} are finite, but their products overflow {sweep.inputs[0].dtype}; {ADVICE}")
