"""A job's events as series: passes, throughput and memory over the seconds in which the job ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.report.record import STOPPED

#: A run that starts this long after the last event left a pause behind it, which the time axis leaves out.
PAUSE_SECONDS = 5.0
_N_BINS = 160
_BIN_SECONDS = 0.1


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


def read_timeline(events: Sequence[Mapping[str, Any]]) -> Timeline | None:
    """Build the series; None when there are no timed events.

    Parameters
    ----------
    events : sequence of mapping
        The lines of events.jsonl; those without a ``time`` are ignored.
    """
    timed = sorted((e for e in events if isinstance(e.get("time"), int | float)), key=lambda e: e["time"])
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
    checkpoints = tuple((x, str(e.get("step", ""))) for x, e in zip(seconds, timed, strict=True) if e.get("event") == "checkpoint")
    times, memory = _memory(timed, seconds)
    return Timeline(total, tuple(passes), edges, rates[0], rates[1], tuple(pauses), checkpoints, times, memory)


def running_seconds(timed: list[Mapping[str, Any]]) -> tuple[list[float], list[tuple[float, float]]]:
    """Each event's place on an axis that leaves out the time between a stop and the run that went on from it."""
    seconds: list[float] = []
    pauses: list[tuple[float, float]] = []
    skipped, before = timed[0]["time"], timed[0]["time"]
    # From behind: whether a run begins at an event, or soon after it and before any pass (planning may log and take memory first).
    begins, ahead = [], False
    for event in reversed(timed):
        if event.get("event") == "state":
            ahead = event.get("state") in ("planned", "running")
        elif event.get("event") in ("pass_started", "blocks", "pass_finished"):
            ahead = False
        begins.append(ahead)
    for event, starts in zip(timed, reversed(begins), strict=True):
        gap = event["time"] - before
        if starts and gap > PAUSE_SECONDS:
            pauses.append((before - skipped, gap))
            skipped += gap
        seconds.append(event["time"] - skipped)
        before = event["time"]
    return seconds, pauses


def _passes(timed: list[Mapping[str, Any]], seconds: list[float]) -> tuple[list[PassRun], list[tuple[float, float, float]]]:
    """Runs of passes, and knots (second, bytes, flops) whose running sum is piecewise linear between them."""
    runs: list[PassRun] = []
    knots: list[tuple[float, float, float]] = []
    open_runs: dict[str, list[float]] = {}

    def cut(stop: float) -> None:
        runs.extend(PassRun(step, start, stop, flops, read, "cut") for step, (start, read, flops) in open_runs.items())
        open_runs.clear()

    for x, event in zip(seconds, timed, strict=True):
        step = str(event.get("step", ""))
        match event.get("event"):
            case "pass_started":
                open_runs[step] = [x, 0.0, 0.0]
                knots.append((x, 0.0, 0.0))
            case "blocks":
                read, flops = float(event.get("bytes", 0)), float(event.get("flops", 0))
                run = open_runs.setdefault(step, [x, 0.0, 0.0])
                run[1] += read
                run[2] += flops
                knots.append((x, read, flops))
            case "pass_finished":
                took = float(event.get("seconds") or 0.0)
                start, seen_read, seen_flops = open_runs.pop(step, [max(x - took, 0.0), 0.0, 0.0])
                loaded = bool(event.get("resumed"))
                read = 0.0 if loaded else float(event.get("bytes_read") or seen_read)
                flops = 0.0 if loaded else float(event.get("flops") or seen_flops)
                runs.append(PassRun(step, start, x, flops, read, "loaded" if loaded else "done"))
                if not loaded:
                    if not seen_read and not seen_flops:
                        knots.append((start, 0.0, 0.0))
                    knots.append((x, max(read - seen_read, 0.0), max(flops - seen_flops, 0.0)))
            case "state" if event.get("state") in (*STOPPED, "planned", "running"):
                cut(max((k[0] for k in knots), default=x) if event.get("state") in ("planned", "running") else x)
    cut(seconds[-1])
    return runs, sorted(knots, key=lambda knot: knot[0])


def _memory(timed: list[Mapping[str, Any]], seconds: list[float]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Resident bytes of every process on common times; a process counts from its first to its last sample."""
    samples: dict[str, list[tuple[float, float]]] = {}
    for x, event in zip(seconds, timed, strict=True):
        if event.get("event") == "memory" and event.get("rss_bytes") is not None:
            name = str(event.get("process", "job"))
            # Tasks outside a Dask worker name themselves by their process, which is the driver's: it counts once.
            samples.setdefault("driver" if name.startswith("pid ") else name, []).append((x, float(event["rss_bytes"])))
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
