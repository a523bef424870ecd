"""A larger problem than the one that was traced: the real graphs of the larger one, with the rates of the traced tasks.

The engine itself builds the graphs, on a cluster that only keeps them. A leaf of a pass costs in proportion to its entries, a
merge to the number of partial results that it adds up and to their size, a task of a factorization to its flops or bytes; what
the driver does alone grows with the entries of the matrix, along the line through two traces.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.bench.simulation import SimulatedJob
from dlscale.bench.tracing import JobBuilder, TaskCost, Trace, TracedGraph, is_value, kind_of
from dlscale.engine.clusters.cluster import Cluster
from dlscale.engine.clusters.facts import ClusterFacts
from dlscale.engine.clusters.watching import Watch, Wishes
from dlscale.engine.grids import BLOCK_BYTES, RowGrid, plan_grid
from dlscale.engine.passes import Fold, Passes, State
from dlscale.engine.run import Run
from dlscale.engine.targets import MemoryTarget
from dlscale.engine.tiles.factorizer import Factorizer
from dlscale.engine.tiles.grid import PanelGrid, choose_panel
from dlscale.engine.tiles.methods import Facts, Method, Seen, Transform
from dlscale.engine.tiles.whole import WholePanels
from dlscale.errors import SpecError
from dlscale.storage.matrix import ArrayMatrix


class RecordingCluster(Cluster):
    """Keeps the graphs that it is given, and computes nothing."""

    shares_memory = True

    def __init__(self) -> None:
        super().__init__(ClusterFacts("threads", 1, 1, 2**40))
        self.graphs: list[TracedGraph] = []

    def compute(self, graph: dict[Any, Any], key: Any, watch: Watch) -> Any:
        self.graphs.append(TracedGraph(graph, {}, {}))
        return {}

    def hold(
        self, graph: dict[Any, Any], keys: Sequence[Any], held: Mapping[Any, Any], wishes: Wishes, watch: Watch
    ) -> dict[Any, Any]:
        self.graphs.append(TracedGraph(graph, wishes.priority, wishes.worker))
        return {key: key for key in keys}

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        """Nothing for the facts of a panel, nought for the products of a load."""
        return [{} if "facts" in key else Seen(np.zeros((1, 1)), 0.0) for key in handles]


class _NoFold(Fold):
    """A fold that is never called."""

    def start(self) -> State:
        return {}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        return ()


class _NoMethod(Method):
    """The shape of a factorization, without its mathematics: its tasks are kept and never run."""

    def __init__(self, method: Method) -> None:
        self.method = method

    def first_row(self, top: int) -> int:
        return self.method.first_row(top)

    def factor(self, panel: Array, top: int) -> Facts:
        return {}

    def apply(self, transform: Transform, panel: Array, top: int) -> None:
        """Leave the panel as it is."""

    def factor_flops(self, m: int, b: int) -> float:
        return self.method.factor_flops(m, b)

    def apply_flops(self, m: int, b: int, width: int) -> float:
        return self.method.apply_flops(m, b, width)


def grown(traced: Trace, smaller: Trace, shape: tuple[int, int], *, flops: float) -> SimulatedJob:
    """The job of a traced one on a matrix of another shape.

    Parameters
    ----------
    traced, smaller : Trace
        Of the same kind, at two sizes.
    shape : (m, n)
        Of the same n for jobs that are passes only.
    flops : float
        Of the larger job.

    Raises
    ------
    SpecError
        If the job has graphs that are neither passes nor a factorization.
    """
    driver_seconds = _on_the_line(traced, smaller, shape)
    builder, waiting, done = JobBuilder(), 0.0, set()
    for graph, seconds in zip(traced.graphs, driver_seconds, strict=False):
        shared = shared_of(graph)
        if hasattr(shared, "fold"):
            _add_pass(builder, graph, shape, traced.shape, waiting + seconds + traced.overheads[0])
        elif kinds_of(graph) - PANEL_KINDS:
            raise SpecError(f"--grow: a job with {', '.join(sorted(kinds_of(graph) - PANEL_KINDS))} cannot be enlarged yet.")
        elif shared.step not in done:
            done.add(shared.step)
            same = [each for each in traced.graphs if shared_of(each).step == shared.step]
            _add_panels(builder, same, shape, waiting + seconds, traced.overheads[0])
        else:
            waiting += seconds
            continue
        waiting = 0.0
    return builder.job(waiting + driver_seconds[-1], flops)


def shared_of(graph: TracedGraph) -> Any:
    """What all tasks of a graph are given: the sweep of a pass, or the work of a factorization."""
    values = (node.value for node in graph.graph.values() if is_value(node))
    return next(value for value in values if hasattr(value, "step"))


def kinds_of(graph: TracedGraph) -> set[str]:
    return {kind_of(node) for node in graph.graph.values() if not is_value(node)}


def _on_the_line(traced: Trace, smaller: Trace, shape: tuple[int, int]) -> list[float]:
    """The driver's seconds for a matrix of this shape."""
    at, below = traced.driver_seconds, smaller.driver_seconds
    if len(at) != len(below):
        return at
    size, size_below, size_above = (m * n for m, n in (traced.shape, smaller.shape, shape))
    ratio = (size_above - size) / (size - size_below)
    return [a + max(0.0, a - b) * ratio for a, b in zip(at, below, strict=True)]


def _add_pass(builder: JobBuilder, graph: TracedGraph, shape: tuple[int, int], before: tuple[int, int], seconds: float) -> None:
    """The graph of a pass over a larger matrix."""
    sweep = shared_of(graph)
    A = sweep.inputs[0]
    whole = A.shape[1] == before[1]
    n_columns = shape[1] if whole else A.shape[1]
    grid = plan_grid(_virtual(shape), max_block_bytes=BLOCK_BYTES)
    if not whole:
        grid = grid.coarser(n_columns * A.dtype.itemsize)  # a pass over what an earlier one wrote
    recorder = RecordingCluster()
    Passes(Run(recorder)).sweep(sweep.step, _virtual((shape[0], n_columns)), _NoFold(), grid)
    wider = n_columns / A.shape[1]
    cost_of = _PassRates(graph, grid, A.shape[0], wider).cost_of
    n_bytes = int(len(pickle.dumps(sweep)) * wider)
    builder.add(recorder.graphs[0].graph, cost_of, priority={}, worker={}, driver_seconds=seconds, data_bytes=n_bytes)


def _add_panels(
    builder: JobBuilder, graphs: Sequence[TracedGraph], shape: tuple[int, int], seconds: float, graph_seconds: float
) -> None:
    """The graphs of a larger factorization whose panels are all in memory."""
    grid = PanelGrid(shape, choose_panel(shape), -(-shape[1] // choose_panel(shape)))
    work = shared_of(graphs[0])
    rates = _PanelRates(graphs, work.verb.method, work.grid, grid)
    recorder = RecordingCluster()
    target = MemoryTarget(np.broadcast_to(np.zeros(()), shape))
    steps = WholePanels(_NoMethod(work.verb.method))
    Factorizer(Run(recorder)).factor("grown", _virtual(shape), steps, grid, target, probes=np.zeros((shape[1], 1)))
    for graph in recorder.graphs:
        builder.add(
            graph.graph,
            rates.cost_of,
            priority=graph.priority,
            worker=graph.worker,
            driver_seconds=seconds + graph_seconds,
            data_bytes=2**14,
        )
        seconds = 0.0


class _PassRates:
    """What the tasks of a pass cost, from a traced one over a matrix that is ``1 / wider`` as wide."""

    def __init__(self, graph: TracedGraph, grid: RowGrid, n_rows: int, wider: float) -> None:
        tasks = {key: kind_of(node) for key, node in graph.graph.items() if not is_value(node)}
        leaves = [key for key, kind in tasks.items() if kind == "run_leaf"]
        merges = [key for key, kind in tasks.items() if kind != "run_leaf"]
        self.leaf_rows = [stop - start for start, stop in grid.leaves()]
        self.row_seconds = sum(graph.seconds[key] for key in leaves) / n_rows * wider
        self.state_bytes = int(graph.result_bytes[leaves[0]] * wider)
        n_merged = sum(len(graph.graph[key].dependencies) - 1 for key in merges)
        # A pass of one leaf has no merges; then they are taken to run at a moderate memory bandwidth.
        self.merge_seconds = sum(graph.seconds[key] for key in merges) / n_merged * wider if merges else self.state_bytes / 4e9

    def cost_of(self, key: Any, task: Any) -> TaskCost | None:
        if is_value(task):
            return None
        if kind_of(task) == "run_leaf":
            return TaskCost("run_leaf", self.row_seconds * self.leaf_rows[key[1]], self.state_bytes)
        return TaskCost("merge", self.merge_seconds * (len(task.dependencies) - 1), self.state_bytes)


#: Tasks of a factorization.
PANEL_KINDS = {
    "load_panels", "panel_of", "seen_of", "factor_panel", "update_and_factor", "factored_panel", "facts_of", "apply_panel",
    "write_panel",
}  # fmt: skip


class _PanelRates:
    """What the tasks of a factorization cost: seconds for each flop or byte of a traced one."""

    def __init__(self, graphs: Sequence[TracedGraph], method: Method, traced: PanelGrid, grid: PanelGrid) -> None:
        self.method, self.grid = method, grid
        seconds, amounts = dict.fromkeys(PANEL_KINDS, 0.0), dict.fromkeys(PANEL_KINDS, 0.0)
        for graph in graphs:
            for key, node in graph.graph.items():
                if not is_value(node):
                    seconds[kind_of(node)] += graph.seconds[key]
                    amounts[kind_of(node)] += self._amount(kind_of(node), key, node, traced)
        self.rate = {kind: seconds[kind] / amounts[kind] if amounts[kind] else 0.0 for kind in PANEL_KINDS}

    def cost_of(self, key: Any, task: Any) -> TaskCost | None:
        if is_value(task):
            return None
        kind = kind_of(task)
        seconds = self.rate[kind] * self._amount(kind, key, task, self.grid)
        return TaskCost(kind, seconds, self._result_bytes(kind, key, task))

    def _amount(self, kind: str, key: Any, task: Any, grid: PanelGrid) -> float:
        """Flops of what multiplies, entries of what moves, and one of what does neither."""
        m = grid.shape[0]
        if kind == "factor_panel":
            return self.method.factor_flops(m - grid.columns(key[2])[0], grid.width(key[2]))
        if kind == "update_and_factor":
            factored = self.method.factor_flops(m - grid.columns(key[2])[0], grid.width(key[2]))
            return factored + self._update_flops(key[2] - 1, key[2], grid)
        if kind == "apply_panel":
            return self._update_flops(key[3] - 1, key[2], grid)
        if kind == "load_panels":
            return float(m * sum(grid.width(k) for k in task.args[1]))
        return float(m * grid.width(key[2])) if kind == "write_panel" else 1.0

    def _update_flops(self, j: int, k: int, grid: PanelGrid) -> float:
        top = max(grid.columns(j)[0], self.method.first_row(grid.columns(k)[0]))
        return self.method.apply_flops(grid.shape[0] - top, grid.width(j), grid.width(k))

    def _result_bytes(self, kind: str, key: Any, task: Any) -> int:
        m, item = self.grid.shape[0], 8
        if kind == "load_panels":
            return m * sum(self.grid.width(k) for k in task.args[1]) * item
        if kind in ("factor_panel", "update_and_factor"):
            return (m - self.grid.columns(key[2])[0]) * self.grid.width(key[2]) * item
        if kind == "apply_panel" or key[1] == "panel":
            return m * self.grid.width(key[2]) * item
        return 2**10


def _virtual(shape: tuple[int, int]) -> ArrayMatrix:
    """A matrix that takes no memory."""
    return ArrayMatrix(np.broadcast_to(np.zeros(()), shape))
