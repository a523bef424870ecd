"""A larger problem than the one that was traced: the real graphs of the larger one, with the rates of the traced tasks.

The engine itself builds the graphs, on a cluster that only keeps them. A leaf of a pass costs in proportion to its rows, a
merge to the number of partial results that it adds up; what the driver does alone grows along the line through two traces.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dlscale.bench.simulation import SimulatedJob
from dlscale.bench.tracing import JobBuilder, TaskCost, Trace, TracedGraph, kind_of
from dlscale.engine.clusters import Cluster, ClusterFacts
from dlscale.engine.grids import BLOCK_BYTES, RowGrid, plan_grid
from dlscale.engine.passes import Fold, Passes, State
from dlscale.engine.progress import Emit
from dlscale.storage.matrices import Array, ArrayMatrix


class RecordingCluster(Cluster):
    """Keeps the graphs that it is given, and computes nothing."""

    shares_memory = True

    def __init__(self) -> None:
        super().__init__(ClusterFacts("threads", 1, 1, 2**40))
        self.graphs: list[TracedGraph] = []

    def compute(self, graph: dict[Any, Any], key: Any, *, token: str, listener: Emit, stalled: Callable[[], str]) -> Any:
        self.graphs.append(TracedGraph(graph, {}, {}))
        return {}

    def hold(
        self,
        graph: dict[Any, Any],
        keys: Sequence[Any],
        held: Mapping[Any, Any],
        *,
        priority: Mapping[Any, float],
        worker: Mapping[Any, int],
        token: str,
        listener: Emit,
        stalled: Callable[[], str],
    ) -> dict[Any, Any]:
        self.graphs.append(TracedGraph(graph, priority, worker))
        return {key: key for key in keys}


class _NoFold(Fold):
    """A fold that is never called."""

    def start(self) -> State:
        return {}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        return ()


def grown(traced: Trace, smaller: Trace, shape: tuple[int, int]) -> SimulatedJob:
    """The job of a traced one on a matrix of another shape.

    Parameters
    ----------
    traced, smaller : Trace
        Of the same kind, at two sizes.
    shape : (m, n)
        Of the same n, for jobs made of passes.
    """
    factor = shape[0] / traced.shape[0]
    driver_seconds = _on_the_line(traced, smaller, shape[0])
    builder = JobBuilder()
    for graph, seconds in zip(traced.graphs, driver_seconds, strict=False):
        _add_pass(builder, graph, shape, traced.shape, seconds)
    return builder.job(driver_seconds[-1], traced.flops * factor)


def _on_the_line(traced: Trace, smaller: Trace, n_rows: int) -> list[float]:
    """The driver's seconds for a matrix of so many rows; what does not grow with the rows is the same for all."""
    at, below = traced.driver_seconds, smaller.driver_seconds
    if len(at) != len(below):
        return at
    ratio = (n_rows - traced.shape[0]) / (traced.shape[0] - smaller.shape[0])
    return [a + max(0.0, a - b) * ratio for a, b in zip(at, below, strict=True)]


def _add_pass(builder: JobBuilder, graph: TracedGraph, shape: tuple[int, int], before: tuple[int, int], seconds: float) -> None:
    """The graph of a pass over a matrix with more rows."""
    sweep = next(node.value for key, node in graph.graph.items() if key not in graph.seconds)
    m, n_columns, item = shape[0], sweep.A.shape[1], sweep.A.dtype.itemsize
    grid = plan_grid(_virtual(shape), max_block_bytes=BLOCK_BYTES)
    if n_columns != before[1]:
        grid = grid.coarser(n_columns * item)  # a pass over what an earlier one wrote
    recorder = RecordingCluster()
    Passes(recorder).sweep(sweep.step, _virtual((m, n_columns)), _NoFold(), grid)
    rates = _PassRates(graph, grid, sweep.A.shape[0])
    builder.add(
        recorder.graphs[0].graph, rates.cost_of, priority={}, worker={}, driver_seconds=seconds, data_bytes=len(pickle.dumps(sweep))
    )


class _PassRates:
    """What the tasks of a pass cost, from a traced one."""

    def __init__(self, graph: TracedGraph, grid: RowGrid, n_rows: int) -> None:
        leaves = [key for key in graph.seconds if kind_of(graph.graph[key]) == "run_leaf"]
        merges = [key for key in graph.seconds if key not in set(leaves)]
        self.leaf_rows = [stop - start for start, stop in grid.leaves()]
        self.row_seconds = sum(graph.seconds[key] for key in leaves) / n_rows
        self.state_bytes = graph.result_bytes[leaves[0]]
        n_merged = sum(len(graph.graph[key].dependencies) - 1 for key in merges)
        # A pass of one leaf has no merges; then they are taken to run at a moderate memory bandwidth.
        self.merge_seconds = sum(graph.seconds[key] for key in merges) / n_merged if merges else self.state_bytes / 4e9

    def cost_of(self, key: Any, task: Any) -> TaskCost | None:
        if not isinstance(key, tuple):
            return None
        _, depth, i = key
        if depth == 0:
            return TaskCost("run_leaf", self.row_seconds * self.leaf_rows[i], self.state_bytes)
        return TaskCost("merge", self.merge_seconds * (len(task.dependencies) - 1), self.state_bytes)


def _virtual(shape: tuple[int, int]) -> ArrayMatrix:
    """A matrix that takes no memory."""
    return ArrayMatrix(np.broadcast_to(np.zeros(()), shape))
