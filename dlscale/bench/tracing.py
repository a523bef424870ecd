"""Real task graphs with what their tasks cost: a job is run once, on one worker of one thread, and every task of it is timed."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import scipy

from dlscale.bench.simulation import SimulatedJob, SimulatedTask, Stage
from dlscale.engine.clusters import describe_cluster
from dlscale.engine.clusters.cluster import DaskCluster
from dlscale.engine.clusters.watching import Watch, Wishes


@dataclass
class TracedGraph:
    """A graph that a job computed.

    Parameters
    ----------
    graph : dict
        Keys to Dask tasks.
    priority, worker : mapping
        As the job gave them.
    started, ended : float
        Seconds of a monotonic clock; the driver waited in between.
    seconds, result_bytes : dict
        Of each task; a value in the graph is none.
    """

    graph: dict[Any, Any]
    priority: Mapping[Any, float]
    worker: Mapping[Any, int]
    started: float = 0.0
    ended: float = 0.0
    seconds: dict[Any, float] = field(default_factory=dict)
    result_bytes: dict[Any, int] = field(default_factory=dict)

    def cost_of(self, key: Any, task: Any) -> TaskCost | None:
        """What a task took (None for a value)."""
        if is_value(task):
            return None
        return TaskCost(kind_of(task), self.seconds[key], self.result_bytes[key])


class TracingCluster(DaskCluster):
    """A worker process with one thread; keeps the graphs that it computes, and what each task took."""

    def __init__(self) -> None:
        super().__init__(describe_cluster({"type": "local", "workers": 1, "threads": 1}))
        self.traces: list[TracedGraph] = []
        self._asked_seconds = 0.0

    def clock(self) -> float:
        """Seconds, without those that went into asking the scheduler what tasks took."""
        return time.perf_counter() - self._asked_seconds

    def compute(self, graph: dict[Any, Any], key: Any, watch: Watch) -> Any:
        with self._traced(graph, {}, {}):
            return super().compute(graph, key, watch)

    def hold(
        self, graph: dict[Any, Any], keys: Sequence[Any], held: Mapping[Any, Any], wishes: Wishes, watch: Watch
    ) -> dict[Any, Any]:
        with self._traced(graph, wishes.priority, wishes.worker):
            return super().hold(graph, keys, held, wishes, watch)

    @contextmanager
    def _traced(self, graph: dict[Any, Any], priority: Mapping[Any, float], worker: Mapping[Any, int]) -> Iterator[None]:
        if not self.traces:
            self.client.get_task_stream(count=0)  # from now on it is kept
        trace = TracedGraph(graph, priority, worker)
        trace.started = self.clock()
        yield
        trace.ended = self.clock()
        asked = time.perf_counter()
        # All of it: since when is a question of two clocks.
        for record in self.client.get_task_stream():
            if record["key"] in graph and not is_value(graph[record["key"]]):
                spans = [span for span in record["startstops"] if span["action"] == "compute"]
                trace.seconds[record["key"]] = sum(span["stop"] - span["start"] for span in spans)
                trace.result_bytes[record["key"]] = int(record["nbytes"])
        # What nothing needs is not computed.
        trace.graph = {key: node for key, node in graph.items() if key in trace.seconds or is_value(node)}
        self.traces.append(trace)
        self._asked_seconds += time.perf_counter() - asked


def is_value(node: Any) -> bool:
    """Whether what stands in a graph is a value, and no task."""
    return hasattr(node, "value")


def kind_of(task: Any) -> str:
    """The name of what a task calls."""
    return str(task.kwargs.get("function", task.func).__name__).strip("_")


@dataclass(frozen=True)
class Trace:
    """A job that was traced.

    Parameters
    ----------
    graphs : list of TracedGraph
        In the order in which the job computed them.
    started, ended : float
        Of the job, on the clock of the graphs.
    flops : float
        By the plan.
    shape : (m, n)
        Of the matrix.
    """

    graphs: list[TracedGraph]
    started: float
    ended: float
    flops: float
    shape: tuple[int, int]

    @property
    def driver_seconds(self) -> list[float]:
        """What the driver did before each graph, and after the last."""
        starts = [*(graph.started for graph in self.graphs), self.ended]
        ends = [self.started, *(graph.ended for graph in self.graphs)]
        return [start - end for start, end in zip(starts, ends, strict=True)]

    @property
    def task_seconds(self) -> float:
        """Of all tasks together."""
        return sum(sum(graph.seconds.values()) for graph in self.graphs)

    @cached_property
    def overheads(self) -> tuple[float, float]:
        """What a graph takes beside its tasks, and a task beside its own time: the line through all graphs, and their sum."""
        waited = [graph.ended - graph.started - sum(graph.seconds.values()) for graph in self.graphs]
        counts = [[1.0, float(len(graph.seconds))] for graph in self.graphs]
        graph_seconds, between_seconds = scipy.optimize.nnls(np.array(counts), np.array(waited))[0]
        if not graph_seconds:  # a line through the origin, which keeps the sum only with another slope
            between_seconds = max(sum(waited), 0.0) / sum(n for _, n in counts)
        return float(graph_seconds), float(between_seconds)


@dataclass(frozen=True)
class TaskCost:
    """What a task takes (see `SimulatedTask`)."""

    kind: str
    seconds: float
    result_bytes: int


#: From the key of a task and the task to its cost; None for a value that is in the graph.
CostOf = Callable[[Any, Any], TaskCost | None]


class JobBuilder:
    """Puts graphs together to a job for the simulation; what one of them holds, later ones may use."""

    def __init__(self) -> None:
        self.tasks: list[SimulatedTask] = []
        self.stages: list[Stage] = []
        self._position: dict[Any, int] = {}

    def add(
        self,
        graph: Mapping[Any, Any],
        cost_of: CostOf,
        *,
        priority: Mapping[Any, float],
        worker: Mapping[Any, int],
        driver_seconds: float,
        data_bytes: int | None = None,
    ) -> None:
        """Add a graph.

        Parameters
        ----------
        graph : mapping
            Keys to Dask tasks.
        cost_of : callable
        priority, worker : mapping
            As the job gave them; without priorities they are Dask's own.
        driver_seconds : float
            What the driver does before.
        data_bytes : int, optional
            Of each value in the graph; measured when None.
        """
        from dask.order import order

        first = len(self.tasks)
        new = [key for key in graph if key not in self._position]
        priority = priority or order({key: graph[key] for key in new})
        for key in _inputs_first(graph, new):
            node, cost = graph[key], cost_of(key, graph[key])
            if cost is None:
                n_bytes = len(pickle.dumps(node.value)) if data_bytes is None else data_bytes
            inputs = tuple(self._position[name] for name in node.dependencies)
            self._position[key] = len(self.tasks)
            self.tasks.append(
                SimulatedTask(
                    kind=cost.kind if cost else "data",
                    inputs=inputs,
                    seconds=cost.seconds if cost else 0.0,
                    result_bytes=cost.result_bytes if cost else n_bytes,
                    priority=float(priority.get(key, 0.0)),
                    worker=worker.get(key) if cost else None,
                    is_data=cost is None,
                )
            )
        self.stages.append(Stage(f"graph {len(self.stages) + 1}", range(first, len(self.tasks)), driver_seconds))

    def job(self, last_seconds: float, flops: float) -> SimulatedJob:
        return SimulatedJob(self.tasks, self.stages, last_seconds, flops)


def replayed(trace: Trace) -> SimulatedJob:
    """The job as it was traced."""
    builder, driver_seconds, graph_seconds = JobBuilder(), trace.driver_seconds, trace.overheads[0]
    for graph, seconds in zip(trace.graphs, driver_seconds, strict=False):
        builder.add(
            graph.graph, graph.cost_of, priority=graph.priority, worker=graph.worker, driver_seconds=seconds + graph_seconds
        )
    return builder.job(driver_seconds[-1], trace.flops)


def _inputs_first(graph: Mapping[Any, Any], keys: Sequence[Any]) -> Iterator[Any]:
    """The keys, each behind those of them that it depends on."""
    wanted, done = set(keys), set()
    for key in keys:
        stack = [key]
        while stack:
            missing = [name for name in graph[stack[-1]].dependencies if name in wanted and name not in done]
            if missing:
                stack.extend(missing)
                continue
            name = stack.pop()
            if name not in done:
                done.add(name)
                yield name
