"""Groups of panels as graphs of tasks: a group is factored, formed, or copied.

A group's panels stay in the memory of the workers from one graph to the next; the graphs are bounded in size, and their
priorities put the panel that is factored next before everything else.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dlscale.engine.clusters.watching import Wishes
from dlscale.engine.graphs import DataNode, Task, TaskRef
from dlscale.engine.run import Run
from dlscale.engine.tiles import whole_tasks as tasks
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.methods import Facts
from dlscale.engine.tiles.whole_tasks import Work
from dlscale.errors import DlscaleError, WorkersLostError
from dlscale.storage.matrix import Matrix

#: Tasks of one graph: enough to hide the start and the end of it, few enough for any scheduler.
MAX_TASKS = 4000

Key = tuple[Any, ...]


class TaskGraph:
    """Tasks under construction, with their priorities and the workers that they prefer."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.shared = (work.token, "work", uuid.uuid4().hex[:8])
        self.tasks: dict[Key, Any] = {self.shared: DataNode(self.shared, work)}
        self.priority: dict[Key, float] = {}
        self.worker: dict[Key, int] = {}

    def add(self, key: Key, function: Callable[..., Any], *arguments: Any, priority: float, worker: int) -> Key:
        """A task that calls ``function(work, *arguments)``; keys among the arguments stand for their results."""
        key = (self.work.token, *key)
        refs = [TaskRef(a) if isinstance(a, tuple) and a and a[0] == self.work.token else a for a in arguments]
        self.tasks[key] = Task(key, function, TaskRef(self.shared), *refs)
        self.priority[key], self.worker[key] = priority, worker
        return key


def fresh_token() -> str:
    return f"dlscale-{uuid.uuid4().hex[:12]}"


class Group(ABC):
    """Panels that are in memory together, and the graphs that work on them.

    Parameters
    ----------
    run : Run
    work : Work
    group : range
        The panels.
    """

    def __init__(self, run: Run, work: Work, group: range) -> None:
        self.run, self.work, self.group, self.grid = run, work, group, work.grid
        #: The key of each panel's latest state.
        self.panels: dict[int, Key] = {}
        self.held: dict[Key, Any] = {}
        self._workers = run.cluster.workers()

    @property
    def has_lost_workers(self) -> bool:
        """Whether a worker that was there at the start is there no more."""
        try:
            return not self._workers <= self.run.cluster.workers()
        except DlscaleError:
            return False  # the scheduler is gone, which is said elsewhere

    @abstractmethod
    def compute(self) -> Facts:
        """Do the work; small results by name."""

    def graph(self, steps: Sequence[int] = ()) -> TaskGraph:
        """A new graph, which carries the facts of these finished panels alone: a scheduler keeps it as long as what it led to."""
        finished = self.work.finished
        if finished is not None:
            facts = [fact if j in steps else {} for j, fact in enumerate(finished.facts)]
            finished = replace(finished, facts=facts)
        return TaskGraph(replace(self.work, finished=finished))

    def limit(self, *, fetched: bool) -> int:
        """Steps of one graph: it has few tasks, and there is room for the finished panels that it reads."""
        limit = max(1, MAX_TASKS // len(self.group))
        return min(limit, self.grid.streamed) if fetched else limit

    @property
    def n_done(self) -> int:
        """Panels that are finished."""
        return len(self.work.finished.facts) if self.work.finished else 0

    @property
    def to_factor(self) -> range:
        """The steps whose panels are factored in this group."""
        return range(min(self.group.start, self.grid.n_steps), min(self.group.stop, self.grid.n_steps))

    def factoring(self) -> list[range]:
        """The windows of a factorization: finished panels are read, then the group's own are factored; at least one."""
        return [*self.windows(range(self.n_done), fetched=True), *self.windows(self.to_factor, fetched=False)] or [range(0)]

    def windows(self, steps: range, *, fetched: bool) -> Iterator[range]:
        """Cut steps in those of one graph each."""
        limit = self.limit(fetched=fetched)
        for start in range(0, len(steps), limit):
            yield steps[start : start + limit]

    def hold(self, graph: TaskGraph, keys: Sequence[Key]) -> None:
        """Run a graph; afterwards what the keys name is held, and nothing else."""
        run, work = self.run, self.work
        watch = run.watch(work.token)

        def checked() -> str:
            if self.has_lost_workers:
                raise WorkersLostError(work.step)
            return watch.stalled()

        new = [key for key in keys if key in graph.tasks]
        wishes = Wishes(graph.priority, graph.worker)
        fresh = run.cluster.hold(graph.tasks, new, self.held, wishes, replace(watch, stalled=checked))
        held = {key: fresh[key] if key in fresh else self.held[key] for key in keys}
        run.cluster.release(handle for key, handle in self.held.items() if key not in held)
        self.held = held

    def go_through(
        self,
        windows: Iterable[range],
        begin: Callable[[TaskGraph], None],
        step: Callable[[TaskGraph, int], None],
        kept: Callable[[], Sequence[Key]],
    ) -> None:
        """Run steps, a graph for each window of them, the first of which also begins the group."""
        for number, window in enumerate(windows):
            graph = self.graph(window)
            if number == 0:
                begin(graph)
            for j in window:
                step(graph, j)
            self.hold(graph, kept())

    def let_go(self) -> None:
        """Hold nothing any more; panels of this group would stand beside those of the next one."""
        self.run.cluster.release(self.held.values())
        self.held = {}


class Factoring(Group):
    """A group is loaded, updated by the finished panels, factored, and written."""

    def __init__(self, run: Run, work: Work, group: range) -> None:
        super().__init__(run, work, group)
        self.facts: dict[int, Key] = {}
        self.products: list[Key] = []

    def compute(self) -> Facts:
        """The facts of the group's factored panels, and the products of its columns with the probes."""
        self.go_through(self.factoring(), self._load, self._step, self._kept)
        facts = self.run.cluster.gather([self.held[key] for key in self.facts.values()])
        settled = self.work.method.settle(facts, self.to_factor.start, self.grid)
        graph = self.graph()
        moves = [move for move, _ in settled] + [None] * (len(self.group) - len(settled))
        written = [
            graph.add(("write", k), tasks.write_panel, k, self.panels[k], move, priority=k, worker=k)
            for k, move in zip(self.group, moves, strict=True)
        ]
        self.hold(graph, [*written, *self.products])
        parts = self.run.cluster.gather([self.held[key] for key in self.products])
        sums = {"products": sum((part for part, _ in parts[1:]), parts[0][0]), "largest": np.array(max(x for _, x in parts))}
        return sums | {f"{j}.{name}": value for j, (_, fact) in enumerate(settled) for name, value in fact.items()}

    def _kept(self) -> list[Key]:
        return [*self.panels.values(), *self.facts.values(), *self.products]

    def _load(self, graph: TaskGraph) -> None:
        for number, run in enumerate(load_runs(self.work.A, self.grid, self.group)):
            # A run of several panels is one worker's, and the next run is the next one's.
            place = run.start if len(run) == 1 else number
            loaded = graph.add(("load", run.start), tasks.load_panels, run.start, run.stop, priority=run.start, worker=place)
            self.products.append(graph.add(("products", run.start), tasks.take, loaded, -1, priority=run.start, worker=place))
            for i, k in enumerate(run):
                self.panels[k] = graph.add(("panel", k, 0), tasks.take, loaded, i, priority=k, worker=k)

    def _step(self, graph: TaskGraph, j: int) -> None:
        """Factor panel j, or read it where it is finished, and apply it to the panels of the group behind it."""
        n = self.grid.n_panels
        if j < self.n_done:
            transform = graph.add(("fetch", j), tasks.fetch_panel, j, priority=(j - 2) * n, worker=j)
        else:
            urgent = (j - 2) * n
            factored = graph.add(("factor", j), tasks.factor_panel, j, self.panels[j], priority=urgent, worker=j)
            self.panels[j] = graph.add(("panel", j, "factored"), tasks.take, factored, 0, priority=urgent, worker=j)
            self.facts[j] = graph.add(("facts", j), tasks.take, factored, 1, priority=urgent, worker=j)
            transform = graph.add(("transform", j), tasks.transform_of, factored, j, priority=urgent, worker=j)
        for k in self.group:
            if k > j:
                # The panel that is factored next comes first, before the rest of the step before.
                priority = (j - 1 if k == j + 1 else j) * n + k
                self.panels[k] = graph.add(
                    ("panel", k, j + 1), tasks.apply_panel, transform, k, self.panels[k], priority=priority, worker=k
                )  # fmt: skip


class Forming(Group):
    """Columns of the identity, to which the transforms are applied, the last one first."""

    def compute(self) -> Facts:
        steps = range(self.group.stop - 1, -1, -1)
        self.go_through(self.windows(steps, fetched=True), lambda graph: None, self._step, lambda: list(self.panels.values()))
        graph = self.graph()
        written = [graph.add(("write", k), tasks.write_panel, k, self.panels[k], None, priority=k, worker=k) for k in self.group]
        self.hold(graph, written)
        return {"done": np.array(True)}

    def _step(self, graph: TaskGraph, j: int) -> None:
        """Read transform j and apply it to the columns that it touches; those of its own number begin here."""
        transform = graph.add(("fetch", j), tasks.fetch_panel, j, priority=-(j + 2) * self.grid.n_panels, worker=j)
        for k in self.group:
            key, priority = ("panel", k, j), -j * self.grid.n_panels + k
            if k == j:
                self.panels[k] = graph.add(key, tasks.form_panel, transform, k, priority=priority, worker=k)
            elif k > j:
                before = self.panels[k]
                self.panels[k] = graph.add(key, tasks.unapply_panel, transform, k, before, priority=priority, worker=k)


class Placing(Group):
    """Finished panels are read, changed, and written to another place."""

    def compute(self) -> Facts:
        for window in self.windows(self.group, fetched=False):
            graph = self.graph()
            self.hold(graph, [graph.add(("place", k), tasks.place_panel, k, priority=k, worker=k) for k in window])
        return {"done": np.array(True)}


def load_runs(A: Matrix, grid: PanelGrid, group: range) -> list[range]:
    """Panels that are loaded by one task: those that share stored chunks, as far as two threads still share the work."""
    length = max(1, min(A.column_unit // grid.panel, len(group) // 2))
    return [range(k, min(k + length, group.stop)) for k in range(group.start, group.stop, length)]
