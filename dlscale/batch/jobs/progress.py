"""How far a job is, from its events: in its state for whoever asks, and for the bar of a terminal."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from dlscale.engine.events import (
    EpochFinished,
    Event,
    Finite,
    Saved,
    StateChanged,
    StepFinished,
    StepStarted,
    TrainingResumed,
    WorkDone,
)
from dlscale.report import words

#: What a job that stopped had done and not kept is done again.
_STOPPED = ("failed", "interrupted", "cancelled", "lost")


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Parameters
    ----------
    fraction : float
        Of the planned work, from 0 to 1, what was in the checkpoint included; of a job that stopped, what it need not do again.
    step : str
        That runs, or ran last; empty before the first.
    n_done, n_steps : int
        Steps that are finished, and those that were planned.
    rate : float, optional
        FLOP/s (bytes/s of work that is measured in bytes) since this run began; None before anything was done.
    bytes_per_second : float, optional
        That were read.
    seconds_left : float, optional
        At this rate.
    epoch : int
        Of a training: how many are done.
    loss : float, optional
        Of its last epoch.
    """

    fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    step: str = ""
    n_done: int = 0
    n_steps: int = 0
    rate: Finite | None = None
    bytes_per_second: Finite | None = None
    seconds_left: Finite | None = None
    epoch: int = 0
    loss: Finite | None = None


class Follower:
    """Hears the events of a job, from any thread, and knows how far it is.

    Parameters
    ----------
    total : float
        Of the whole plan, in the measure.
    n_steps : int
        Planned ones.
    measure : str
        ``flops`` or ``bytes``: what progress is counted in, so that the remaining time means something.
    before : Progress, optional
        Of a job that goes on, how far it was: told until its first step is heard of, while workers start.
    """

    def __init__(
        self,
        total: float,
        n_steps: int = 0,
        *,
        measure: Literal["flops", "bytes"] = "flops",
        before: Progress | None = None,
    ) -> None:
        self.total, self.n_steps, self.measure, self._before = max(total, 1.0), n_steps, measure, before
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._done, self._resumed, self._in_step, self._n_bytes = 0.0, 0.0, 0.0, 0
        self._step, self._n_done, self._epoch, self._saved = "", 0, 0, ""
        #: Of the step that runs, what an earlier run did.
        self._earlier = 0.0
        #: Work and steps that are in the checkpoint, and work that is lost with a stop.
        self._kept, self._lost = (0.0, 0), 0.0
        #: When the step that runs was begun, and the first work, which workers that start are none of.
        self._step_at, self._began = 0.0, math.inf
        self._loss: float | None = None

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._hear(event)

    def _hear(self, event: Event) -> None:
        match event:
            case StateChanged(state="running"):
                self._begin()
            case StateChanged() if event.state in _STOPPED:
                self._lost = self._done + self._in_step - self._kept[0]
                self._n_done = self._kept[1]
            case StepStarted():
                self._step, self._step_at, self._in_step, self._earlier = event.step, time.monotonic(), 0.0, 0.0
            case TrainingResumed():
                self._earlier = event.flops if self.measure == "flops" else event.bytes
                self._in_step += self._earlier
                self._resumed += self._earlier
            case WorkDone():
                self._step = event.step
                self._in_step += event.flops if self.measure == "flops" else event.bytes
                self._n_bytes += event.bytes
                self._worked(event.read_seconds + event.compute_seconds)
            case Saved():
                self._saved = event.step
                if event.step != self._step:  # a training is kept while it goes on
                    self._kept = self._done + self._in_step, self._n_done
            case StepFinished():
                self._finished(event)
            case EpochFinished():
                self._epoch, self._loss = event.epoch, event.values.get("epoch_loss")

    def _worked(self, seconds: float) -> None:
        """Work of so many seconds has ended, none of which lie before its step."""
        self._began = min(self._began, max(self._step_at, time.monotonic() - seconds))

    def _finished(self, event: StepFinished) -> None:
        amount = event.flops if self.measure == "flops" else event.bytes_read
        self._n_done += event.is_planned or self._earlier > 0
        self._done, self._in_step, self._earlier = self._done + amount + self._earlier, 0.0, 0.0
        if event.resumed:
            self._resumed += amount
        elif event.is_planned:
            self._worked(event.seconds)
        if event.resumed or event.step == self._saved:
            self._kept = self._done, self._n_done

    def progress(self) -> Progress:
        """How far it is by now."""
        with self._lock:
            if self._before is not None and not self._step and not self._n_done:
                return replace(self._before, step="", rate=None, bytes_per_second=None, seconds_left=None)
            done = self._done + self._in_step
            rate = bytes_per_second = seconds_left = None
            if done > self._resumed:
                seconds = max(time.monotonic() - self._began, 1e-3)
                rate, bytes_per_second = (done - self._resumed) / seconds, self._n_bytes / seconds
                left = max(self.total - done + self._lost, 0.0) / rate if rate else math.inf
                seconds_left = left if math.isfinite(left) else None
            loss = self._loss if self._loss is not None and math.isfinite(self._loss) else None
            fraction = min(max(done - self._lost, 0.0) / self.total, 1.0)
            return Progress(
                fraction, self._step, self._n_done, self.n_steps, rate, bytes_per_second, seconds_left, self._epoch, loss
            )  # fmt: skip


def caught_up(progress: Progress, events: Iterable[Event], total: float) -> Progress:
    """The progress of a job that was killed, which was written down now and then, as far as its events tell it since.

    Parameters
    ----------
    progress : Progress
    events : iterable of Event
        All of the job.
    total : float
        Flops of the whole plan.
    """
    follower = Follower(total, progress.n_steps)
    for event in events:
        follower(event)
    told = follower.progress()
    if told.fraction < progress.fraction:  # events were lost
        return progress
    follower(StateChanged("lost"))
    told = follower.progress()
    return replace(progress, fraction=told.fraction, step=told.step, n_done=told.n_done, epoch=told.epoch, loss=told.loss)


def rates_of(progress: Progress, measure: str = "flops") -> Iterator[str]:
    """How fast work is done; nothing before anything was done."""
    if progress.rate is None:
        return
    if measure == "flops":
        yield words.quantity(progress.rate, "FLOP/s")
    if progress.bytes_per_second:
        yield words.quantity(progress.bytes_per_second, "B/s")


def time_left(progress: Progress) -> Iterator[str]:
    """How long what is left takes at this rate; nothing before anything was done."""
    if (left := progress.seconds_left) is not None:
        yield f"{left:.0f} s left" if left < 60 else f"{words.duration(left)} left"


def step_words(progress: Progress) -> str:
    """Which step runs: ``step 3 of 12 (iteration-2)``; between steps, how many are finished.

    How many were planned is left out where more are done: what was planned as one may be done in parts.
    """
    if progress.n_done > progress.n_steps:
        return f"step {progress.n_done + 1} ({progress.step})" if progress.step else f"{progress.n_done} steps"
    if progress.step and progress.n_done < progress.n_steps:
        return f"step {progress.n_done + 1} of {progress.n_steps} ({progress.step})"
    return f"{progress.n_done} of {progress.n_steps} steps"


def learned(progress: Progress) -> Iterator[str]:
    """Of a training: ``epoch 4, loss 0.250``."""
    if progress.epoch:
        yield f"epoch {progress.epoch}" + ("" if progress.loss is None else f", loss {words.number(progress.loss)}")


def progress_words(progress: Progress, *, runs: bool) -> str:
    """How far a job is, or was when it stopped: ``42%, 3 min 02 s left, step 3 of 12 (iteration-2), 5.1 GFLOP/s``.

    A narrow terminal cuts the end, which is what is missed least.
    """
    said = [f"{math.floor(100 * progress.fraction)}%"]
    if not runs:
        return ", ".join([*said, step_words(replace(progress, step="")), *learned(progress)])
    return ", ".join([*said, *time_left(progress), step_words(progress), *learned(progress), *rates_of(progress)])
