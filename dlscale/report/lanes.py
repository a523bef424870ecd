"""What every thread did in a factorization by panels: its tasks, what it waited for, the rate of each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.engine.events import Event, StepStarted, WorkDone
from dlscale.report.timeline import in_order, running_seconds

#: The tasks of a factorization, in the order of their legend.
TASKS = ("load", "fetch", "factor", "apply", "write")


@dataclass(frozen=True, eq=False)
class Lanes:
    """Tasks of all threads, ordered by their start; arrays have one entry a task.

    `start`, `stop` and `ready` are seconds of the report's time axis; a task is ready when those that it needs are done. `task`
    is a number in `TASKS`, `transform` the panel that is factored or applied (-1 for the others), `part` a number in `parts`,
    the names of the passes, one for each run of a pass. `lane` is a number in `names`.
    """

    start: np.ndarray
    stop: np.ndarray
    ready: np.ndarray
    lane: np.ndarray
    task: np.ndarray
    panel: np.ndarray
    transform: np.ndarray
    part: np.ndarray
    flops: np.ndarray
    bytes: np.ndarray
    names: tuple[str, ...]
    parts: tuple[str, ...]

    def spans(self) -> list[tuple[float, float]]:
        """When the tasks of each pass began and ended."""
        return [(float(self.start[mine].min()), float(self.stop[mine].max())) for mine in self._each_part()]

    def _each_part(self) -> list[np.ndarray]:
        return [self.part == i for i in range(len(self.parts))]


@dataclass(frozen=True)
class Shares:
    """Where the threads' time went, as parts of it all, between the first and the last task of each pass.

    Parameters
    ----------
    tasks : mapping of str to float
        Of each task.
    scheduling : float
        A thread was free although the task that it ran next was ready.
    waiting : float
        A thread was free, and the task that it ran next was not ready, or there was none left.
    thread_seconds : float
        All of it.
    """

    tasks: Mapping[str, float]
    scheduling: float
    waiting: float
    thread_seconds: float


@dataclass(frozen=True)
class Step:
    """The work of one transform within one pass: its panel factored or fetched, and applied to the panels behind it.

    Parameters
    ----------
    panel, part : int
    start, stop : float
        When so much work was done as there is in the steps before it, and in it too. Steps overlap in truth.
    flops : float
    kernel_rate : float
        FLOP/s if all threads computed at the rate of these tasks all the time.
    """

    panel: int
    part: int
    start: float
    stop: float
    flops: float
    kernel_rate: float

    @property
    def rate(self) -> float:
        """FLOP/s of all threads together, waiting included."""
        return self.flops / max(self.stop - self.start, 1e-9)


def read_lanes(events: Sequence[Event]) -> Lanes | None:
    """Collect the tasks of all factorizations by panels; None when there are none.

    Parameters
    ----------
    events : sequence of Event
        Tasks are the `WorkDone` that name a ``task``; clocks of workers are taken to agree.
    """
    timed = in_order(events)
    seconds, _ = running_seconds(timed) if timed else ([], [])
    found: list[tuple[float, int, WorkDone]] = []
    parts: list[str] = []
    latest: dict[str, int] = {}
    for x, (time, event) in zip(seconds, timed, strict=True):
        if isinstance(event, StepStarted):
            latest.pop(event.step, None)
        elif isinstance(event, WorkDone) and event.task in TASKS and event.started is not None:
            if event.step not in latest:
                latest[event.step] = len(parts)
                parts.append(event.step)
            found.append((event.started - time + x, latest[event.step], event))
    if not found:
        return None
    found.sort(key=lambda item: item[0])
    start = np.array([x for x, _, _ in found])
    part = np.array([number for _, number, _ in found])
    tasks = [event for _, _, event in found]
    stop = start + [event.read_seconds + event.compute_seconds for event in tasks]
    lane, names = _lanes([(event.worker, event.thread) for event in tasks], start, stop)
    panel = np.array([event.panel or 0 for event in tasks])
    task = np.array([TASKS.index(str(event.task)) for event in tasks])
    own = np.isin(task, (TASKS.index("factor"), TASKS.index("fetch")))
    transform = np.where(own, panel, [-1 if event.transform is None else event.transform for event in tasks])
    ready = _ready(stop, task, panel, transform, part)
    flops, n_bytes = np.array([event.flops for event in tasks]), np.array([event.bytes for event in tasks])
    return Lanes(start, stop, ready, lane, task, panel, transform, part, flops, n_bytes, names, tuple(parts))


def _lanes(threads: Sequence[tuple[str, Any]], start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """A lane for each thread. Workers that came one after the other, as after a resume, share a place, and so do their threads."""
    places = _places([worker for worker, _ in threads], start, stop)
    numbers: dict[tuple[str, Any], tuple[int, int]] = {}
    for place in sorted(set(places.values())):
        mine = [i for i, (worker, _) in enumerate(threads) if places[worker] == place]
        lanes = _places([threads[i] for i in mine], start[mine], stop[mine])
        numbers |= {thread: (place, lane) for thread, lane in lanes.items()}
    order = sorted(set(numbers.values()))
    several = order[-1][0] > 0
    names = tuple(f"worker {place}, thread {lane + 1}" if several else f"thread {lane + 1}" for place, lane in order)
    return np.array([order.index(numbers[thread]) for thread in threads]), names


def _places(who: Sequence[Any], start: np.ndarray, stop: np.ndarray) -> dict[Any, int]:
    """Numbers 0, 1, ... for those who worked at the same time; one who came after another may have its number."""
    spans: dict[Any, tuple[float, float]] = {}
    for name, begin, end in zip(who, start, stop, strict=True):
        first, last = spans.get(name, (begin, end))
        spans[name] = min(first, begin), max(last, end)
    until: list[float] = []
    numbers = {}
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        number = next((i for i, free in enumerate(until) if free <= begin), len(until))
        until[number : number + 1] = [end]
        numbers[name] = number
    return numbers


def _ready(stop: np.ndarray, task: np.ndarray, panel: np.ndarray, transform: np.ndarray, part: np.ndarray) -> np.ndarray:
    """When each task could have begun: after the last task on its panel, and after the transform that it applies."""
    ready = np.full(len(stop), -np.inf)
    on_panel: dict[tuple[int, int], float] = {}
    made: dict[tuple[int, int], float] = {}
    loaded: dict[int, list[tuple[int, float]]] = {}
    load, apply = TASKS.index("load"), TASKS.index("apply")
    for i in range(len(stop)):
        key = (int(part[i]), int(panel[i]))
        if task[i] == load:
            # A task may load several panels, and names the first.
            loaded.setdefault(key[0], []).append((key[1], stop[i]))
            continue
        before = on_panel.get(key)
        if before is None:
            before = max(((first, at) for first, at in loaded.get(key[0], ()) if first <= key[1]), default=(0, -np.inf))[1]
        ready[i] = before
        if task[i] == apply:
            ready[i] = max(before, made.get((key[0], int(transform[i])), -np.inf))
        if transform[i] >= 0 and task[i] != apply:
            made[key] = stop[i]
        if task[i] != TASKS.index("fetch"):
            on_panel[key] = stop[i]
    return ready


def shares(lanes: Lanes, n_threads: int | None = None) -> Shares:
    """Where the time went.

    Parameters
    ----------
    lanes : Lanes
    n_threads : int, optional
        Of the cluster, where threads may have had no task at all.
    """
    threads = max(len(lanes.names), n_threads or 0)
    total = scheduling = 0.0
    for i, (begin, end) in enumerate(lanes.spans()):
        total += (end - begin) * threads
        for lane in range(len(lanes.names)):
            mine = np.flatnonzero((lanes.part == i) & (lanes.lane == lane))
            free = np.concatenate([[begin], np.maximum.accumulate(lanes.stop[mine])])[:-1] if len(mine) else np.empty(0)
            scheduling += float(np.maximum(lanes.start[mine] - np.maximum(free, lanes.ready[mine]), 0.0).sum())
    took = lanes.stop - lanes.start
    busy = {name: float(took[lanes.task == i].sum()) / total for i, name in enumerate(TASKS) if (lanes.task == i).any()}
    return Shares(busy, scheduling / total, max(1.0 - sum(busy.values()) - scheduling / total, 0.0), total)


def steps(lanes: Lanes, n_threads: int | None = None) -> list[Step]:
    """The rate of every step, in the order of the work."""
    threads, found = max(len(lanes.names), n_threads or 0), []
    for i in range(len(lanes.parts)):
        mine = np.flatnonzero((lanes.part == i) & (lanes.flops > 0) & (lanes.transform >= 0))
        if not len(mine):
            continue
        # Work done until a time, every task at an even rate; the steps follow each other in it.
        at, changes = _changes(lanes.start[mine], lanes.stop[mine], lanes.flops[mine])
        done = np.concatenate([[0.0], np.cumsum(np.cumsum(changes)[:-1] * np.diff(at))])
        panels = list(dict.fromkeys(lanes.transform[mine].tolist()))
        flops = np.array([lanes.flops[mine][lanes.transform[mine] == j].sum() for j in panels])
        busy = np.array([(lanes.stop - lanes.start)[mine][lanes.transform[mine] == j].sum() for j in panels])
        ends = np.concatenate([at[:1], np.interp(np.cumsum(flops), done, at)])
        found += [
            Step(int(j), i, float(begin), float(end), float(f), float(f / max(b, 1e-9) * threads))
            for j, begin, end, f, b in zip(panels, ends[:-1], ends[1:], flops, busy, strict=True)
        ]
    return found


def _changes(start: np.ndarray, stop: np.ndarray, flops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The times at which tasks begin and end, and by how much the rate of all together changes there."""
    rate = flops / np.maximum(stop - start, 1e-9)
    times = np.concatenate([start, np.maximum(stop, start + 1e-9)])
    order = np.argsort(times, kind="stable")
    return times[order], np.concatenate([rate, -rate])[order]
