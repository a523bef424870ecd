"""A job's events as series: passes, throughput and memory over the seconds in which the job ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dlscale.engine.events import Event, MemoryTaken, Saved, StateChanged, StepFinished, StepStarted, WorkDone
from dlscale.report.record import STOPPED

#: An event behind its time, in seconds since 1970.
Timed = tuple[float, Event]

#: A run that starts this long after the last event left a pause behind it, which the time axis leaves out.
PAUSE_SECONDS = 5.0
_N_BINS = 160
_BIN_SECONDS = 0.1
#: Up to so many passes that differ by their number have rows of their own.
_FEW = 8


@dataclass(frozen=True)
class PassRun:
    """One run of a pass, in seconds of the time axis.

    `outcome` is ``done``, ``loaded`` (its checkpoint was read instead) or ``cut`` (the job stopped inside it).
    """

    step: str
    start: float
    stop: float
    flops: float
    bytes_read: float
    outcome: str

    @property
    def seconds(self) -> float:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class Timeline:
    """Series over the job's running time.

    `edges` (n + 1), `read_rate` and `flop_rate` (n) are in seconds, bytes per second and FLOP per second; `pauses` are pairs
    (second of the axis, seconds left out); `memory` maps a process to its resident bytes at `memory_times`.
    """

    seconds: float
    passes: tuple[PassRun, ...]
    edges: np.ndarray
    read_rate: np.ndarray
    flop_rate: np.ndarray
    pauses: tuple[tuple[float, float], ...]
    checkpoints: tuple[tuple[float, str], ...]
    memory_times: np.ndarray
    memory: Mapping[str, np.ndarray]

    @property
    def peak_bytes(self) -> float | None:
        """Largest sum over the processes at one time."""
        return float(np.sum(list(self.memory.values()), axis=0).max()) if self.memory else None

    @property
    def flops(self) -> float:
        return sum(run.flops for run in self.passes)

    @property
    def bytes_read(self) -> float:
        return sum(run.bytes_read for run in self.passes)

    @property
    def pass_seconds(self) -> float:
        return sum(run.seconds for run in self.passes)


def read_timeline(events: Sequence[Event]) -> Timeline | None:
    """Build the series; None when there are no timed events.

    Parameters
    ----------
    events : sequence of Event
        Those without a time are ignored.
    """
    timed = in_order(events)
    if not timed:
        return None
    seconds, pauses = running_seconds(timed)
    passes, knots = _passes(timed, seconds)
    total = max(seconds[-1], 1e-6)
    n_bins = int(np.clip(total / _BIN_SECONDS, 12, _N_BINS))
    edges = np.linspace(0.0, total, n_bins + 1)
    at = np.array([knot[0] for knot in knots]) if knots else np.zeros(1)
    done = np.cumsum([knot[1:] for knot in knots], axis=0) if knots else np.zeros((1, 2))
    rates = [np.diff(np.interp(edges, at, done[:, i])) / np.diff(edges) for i in (0, 1)]
    checkpoints = tuple((x, event.step) for x, (_, event) in zip(seconds, timed, strict=True) if isinstance(event, Saved))
    times, memory = _memory(timed, seconds)
    return Timeline(total, tuple(passes), edges, rates[0], rates[1], tuple(pauses), checkpoints, times, memory)


def in_order(events: Sequence[Event]) -> list[Timed]:
    """The events that have a time, each behind it, in its order."""
    return sorted(((event.time, event) for event in events if event.time is not None), key=lambda timed: timed[0])


def running_seconds(timed: list[Timed]) -> tuple[list[float], list[tuple[float, float]]]:
    """Each event's place on an axis that leaves out the time between a stop and the run that went on from it."""
    seconds: list[float] = []
    pauses: list[tuple[float, float]] = []
    skipped, before = timed[0][0], timed[0][0]
    # From behind: whether a run begins at an event, or soon after it and before any pass (planning may log and take memory first).
    begins, ahead = [], False
    for _, event in reversed(timed):
        if isinstance(event, StateChanged):
            ahead = event.state in ("planned", "running")
        elif isinstance(event, StepStarted | WorkDone | StepFinished):
            ahead = False
        begins.append(ahead)
    for (time, _), starts in zip(timed, reversed(begins), strict=True):
        gap = time - before
        if starts and gap > PAUSE_SECONDS:
            pauses.append((before - skipped, gap))
            skipped += gap
        seconds.append(time - skipped)
        before = time
    return seconds, pauses


def _passes(timed: list[Timed], seconds: list[float]) -> tuple[list[PassRun], list[tuple[float, float, float]]]:
    """Runs of passes, and knots (second, bytes, flops) whose running sum is piecewise linear between them."""
    runs: list[PassRun] = []
    knots: list[tuple[float, float, float]] = []
    open_runs: dict[str, list[float]] = {}

    def cut(stop: float) -> None:
        runs.extend(PassRun(step, start, stop, flops, read, "cut") for step, (start, read, flops) in open_runs.items())
        open_runs.clear()

    for x, (_, event) in zip(seconds, timed, strict=True):
        match event:
            case StepStarted():
                open_runs[event.step] = [x, 0.0, 0.0]
                knots.append((x, 0.0, 0.0))
            case WorkDone():
                run = open_runs.setdefault(event.step, [x, 0.0, 0.0])
                run[1] += event.bytes
                run[2] += event.flops
                knots.append((x, float(event.bytes), event.flops))
            case StepFinished():
                start, seen_read, seen_flops = open_runs.pop(event.step, [max(x - event.seconds, 0.0), 0.0, 0.0])
                read = 0.0 if event.resumed else event.bytes_read or seen_read
                flops = 0.0 if event.resumed else event.flops or seen_flops
                runs.append(PassRun(event.step, start, x, flops, read, "loaded" if event.resumed else "done"))
                if not event.resumed:
                    if not seen_read and not seen_flops:
                        knots.append((start, 0.0, 0.0))
                    knots.append((x, max(read - seen_read, 0.0), max(flops - seen_flops, 0.0)))
            case StateChanged() if event.state in (*STOPPED, "planned", "running"):
                cut(max((k[0] for k in knots), default=x) if event.state in ("planned", "running") else x)
    cut(seconds[-1])
    return runs, sorted(knots, key=lambda knot: knot[0])


def folded(passes: Sequence[PassRun]) -> list[PassRun]:
    """The passes, of which more than a few that differ by their number alone are one, with their sums."""
    alike: dict[tuple[str, str], list[PassRun]] = {}
    for run in passes:
        name, _, number = run.step.rpartition("-")
        alike.setdefault((name if number.isdecimal() else run.step, run.outcome), []).append(run)
    told: list[tuple[float, PassRun]] = []
    for (name, outcome), runs in alike.items():
        if len(runs) <= _FEW:
            told += [(run.start, run) for run in runs]
            continue
        seconds, flops, n_bytes = (sum(values) for values in zip(*((r.seconds, r.flops, r.bytes_read) for r in runs), strict=True))
        first, last = (run.step.rpartition("-")[2] for run in (runs[0], runs[-1]))
        step = f"{name}-{first} to {last} ({len(runs)})" if runs[0].step != name else f"{name} ({len(runs)})"
        told.append((runs[0].start, PassRun(step, 0.0, seconds, flops, n_bytes, outcome)))
    return [run for _, run in sorted(told, key=lambda each: each[0])]


def _memory(timed: list[Timed], seconds: list[float]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Resident bytes of every process on common times; a process counts from its first to its last sample."""
    samples: dict[str, list[tuple[float, float]]] = {}
    for x, (_, event) in zip(seconds, timed, strict=True):
        if isinstance(event, MemoryTaken):
            # Tasks outside a Dask worker name themselves by their process, which is the driver's: it counts once.
            name = "driver" if event.process.startswith("pid ") else event.process
            samples.setdefault(name, []).append((x, float(event.rss_bytes)))
    if not samples:
        return np.zeros(0), {}
    # The driver first, so that it is the ground on which the workers are stacked.
    names = sorted(samples, key=lambda name: (name != "driver", name))
    times = np.unique([x for series in samples.values() for x, _ in series])
    memory = {}
    for name in names:
        x, rss = np.array(samples[name]).T
        held = rss[np.clip(np.searchsorted(x, times, side="right") - 1, 0, None)]
        # Samples of one round arrive a little apart; a process is alive for a round more than its last sample.
        memory[name] = np.where((times >= x[0]) & (times <= x[-1] + 2.0), held, 0.0)
    return times, memory
