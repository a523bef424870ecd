"""Groups of panels: what workers hold of them, the graphs that work on them, and what happens where a worker is lost.

A group's panels stay in the memory of the workers from one graph to the next; the graphs are bounded in size, and their
priorities put the panel that is factored next before everything else.

Panels are updated in place: each state of a panel has one consumer, which runs where the state is. What a lost worker had
could only be made again from states that the others have overwritten since, so a group starts again when a worker is lost.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Concatenate, Generic, TypeVar

import numpy as np

from dlscale.engine.clusters.watching import Wishes
from dlscale.engine.events import Warned
from dlscale.engine.graphs import DataNode, Task, TaskRef
from dlscale.engine.run import Cost, Run
from dlscale.engine.tiles.methods import Facts
from dlscale.engine.tiles.work import Verb, Work
from dlscale.errors import DlscaleError, WorkersLostError

#: Tasks of one graph: enough to hide the start and the end of it, few enough for any scheduler.
MAX_TASKS = 4000
#: Times that a group is started before the loss of workers is taken as a fault of the job.
MAX_LOSSES = 4

Key = tuple[Any, ...]
T = TypeVar("T")
V = TypeVar("V", bound=Verb, covariant=True)


class TaskGraph(Generic[V]):
    """Tasks under construction for a group, with their priorities and the workers that they prefer."""

    def __init__(self, group: Group[V], work: Work[V]) -> None:
        self.group, self.work = group, work
        self.shared = (work.token, "work", uuid.uuid4().hex[:8])
        self.tasks: dict[Key, Any] = {self.shared: DataNode(self.shared, work)}
        self.priority: dict[Key, float] = {}
        self.worker: dict[Key, int] = {}

    def add(
        self, key: Key, function: Callable[Concatenate[Work[V], ...], Any], *arguments: Any, priority: float, worker: int
    ) -> Key:
        """A task that calls ``function(work, *arguments)``; keys among the arguments stand for their results."""
        key = (self.work.token, *key)
        refs = [TaskRef(a) if isinstance(a, tuple) and a and a[0] == self.work.token else a for a in arguments]
        self.tasks[key] = Task(key, _quietly, TaskRef(self.shared), *refs, function=function)
        self.priority[key], self.worker[key] = priority, worker
        return key

    def take_back(self, key: Key, function: Callable[Concatenate[Work[V], ...], Any]) -> list[Any] | None:
        """The arguments of a task of this graph that calls such a function, which is taken out of it; None if there is none."""
        task = self.tasks.get(key)
        if not isinstance(task, Task) or task.kwargs["function"] is not function:
            return None
        for table in (self.tasks, self.priority, self.worker):
            del table[key]
        return [a.key if isinstance(a, TaskRef) else a for a in task.args[1:]]


def _quietly(*arguments: Any, function: Callable[..., T]) -> T:
    """What a task returns; that something overflows is told by what is measured of it, and by no warning."""
    with np.errstate(over="ignore", invalid="ignore"):
        return function(*arguments)


class Group(Generic[V]):
    """Panels that are in memory together, and the graphs that work on them.

    Parameters
    ----------
    run : Run
    work : Work
    panels : range
    width : int
        Tasks of one step on one panel, about.

    Attributes
    ----------
    tiles : dict
        The key of the latest state of each tile (i, k); a whole panel k is the tile (0, k).
    facts : dict
        The keys of the facts of the panels that were factored.
    seen : dict
        The keys of what was measured while panels were read, by the first panel or the row block.
    book : key, or dict of arrays
        What goes from step to step of a `TiledMethod`.
    """

    def __init__(self, run: Run, work: Work[V], panels: range, *, width: int = 1) -> None:
        self.run, self.work, self.panels, self.grid = run, work, panels, work.grid
        self.tiles: dict[tuple[int, int], Key] = {}
        self.facts: dict[int, Key] = {}
        self.seen: dict[int, Key] = {}
        self.book: Key | Facts = {}
        self.held: dict[Key, Any] = {}
        self._limit = max(1, MAX_TASKS // (len(panels) * width))
        self._workers = run.cluster.workers()

    @property
    def has_lost_workers(self) -> bool:
        """Whether a worker that was there at the start is there no more."""
        try:
            return not self._workers <= self.run.cluster.workers()
        except DlscaleError:
            return False  # the scheduler is gone, which is said elsewhere

    def at(self, i: int, k: int) -> int:
        """The worker of a tile: those of a row block share a row of workers, so that a tile travels along that row only.

        Later panels have more to do, so that they are dealt out to and fro.
        """
        across = max(1, self.run.cluster.facts.n_workers // self.grid.row_blocks)
        turn, place = divmod(k, across)
        return i * across + (across - 1 - place if turn % 2 else place)

    def graph(self, steps: Sequence[int] = ()) -> TaskGraph[V]:
        """A new graph, which carries the facts of these finished panels alone: a scheduler keeps it as long as what it led to."""
        return TaskGraph(self, replace(self.work, verb=self.work.verb.with_facts_of(steps)))

    def windows(self, steps: range, *, fetched: bool) -> Iterator[range]:
        """Cut steps in those of one graph each: it has few tasks, and there is room for the finished panels that it reads."""
        limit = min(self._limit, self.grid.streamed) if fetched else self._limit
        for start in range(0, len(steps), limit):
            yield steps[start : start + limit]

    def go_through(
        self,
        windows: Iterable[range],
        begin: Callable[[TaskGraph[V]], None],
        step: Callable[[TaskGraph[V], int], None],
    ) -> None:
        """Run steps, a graph for each window of them, the first of which also begins the group."""
        for number, window in enumerate(windows):
            graph = self.graph(window)
            if number == 0:
                begin(graph)
            for j in window:
                step(graph, j)
            book = [self.book] if isinstance(self.book, tuple) else []
            self.hold(graph, [*self.tiles.values(), *self.facts.values(), *self.seen.values(), *book])

    def hold(self, graph: TaskGraph[V], keys: Sequence[Key]) -> None:
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

    def gather(self, keys: Iterable[Key]) -> list[Any]:
        """Bring small results that are held to the driver."""
        return self.run.cluster.gather([self.held[key] for key in keys])

    def last_book(self) -> Facts:
        """The book as the last step left it."""
        book: Facts = self.gather([self.book])[0] if isinstance(self.book, tuple) else self.book
        return book

    def let_go(self) -> None:
        """Hold nothing any more; panels of this group would stand beside those of the next one."""
        self.run.cluster.release(self.held.values())
        self.held = {}


def memoised(run: Run, work: Work[V], cost: Cost, panels: range, compute: Callable[[Group[V]], Facts], *, width: int = 1) -> Facts:
    """Compute a step on a group, or take its small results from the checkpoint; then what it wrote is there too.

    Parameters
    ----------
    run : Run
    work : Work
    cost : Cost
    panels : range
    compute : callable
    width : int
        See `Group`.
    """

    def undisturbed(name: str) -> Facts:
        """From its start again, under other keys, where a worker was lost meanwhile."""
        for _ in range(MAX_LOSSES):
            group = Group(run, replace(work, step=name, token=run.token(name)), panels, width=width)
            try:
                facts = compute(group)
                if not group.has_lost_workers:
                    return facts
            except WorkersLostError:
                pass  # it may be back by now
            except Exception:
                # Whatever it is, it may come from panels that were made again wrongly.
                if not group.has_lost_workers:
                    raise
            finally:
                group.let_go()
            run.emit(Warned(f"A worker was lost; {name} starts again."))
        raise WorkersLostError(name, MAX_LOSSES)

    return run.step(work.step, cost, undisturbed, flushed=work.verb.writers)
