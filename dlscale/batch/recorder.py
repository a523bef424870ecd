"""What a running job leaves behind while it runs: its state with a heartbeat, its events, its log."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from dlscale.batch.jobs.in_slurm import begun
from dlscale.batch.jobs.progress import Follower, progress_words
from dlscale.batch.workspace import ENDED, HEARTBEAT_SECONDS, Heartbeat, Job, JobState
from dlscale.engine.events import DashboardOpened, Emit, Event, Saved, StateChanged, StepFinished, StepStarted, Warned
from dlscale.engine.progress import MemorySampler
from dlscale.errors import DlscaleError, DoesNotFitError, SpecError, StoreError
from dlscale.showing import shown, without_secrets
from dlscale.storage.files.atomic import open_at_once
from dlscale.storage.files.locks import LockLostError

#: How often a running job looks whether it is to be cancelled.
_CANCEL_SECONDS = 0.5
#: Within a step that is long, the log says so often how far the job is.
TELL_SECONDS = 60.0


class Recorder:
    """Writes a job's files as a context manager; `emit` and `change` may be called from any thread.

    Parameters
    ----------
    job : Job
        Its folder exists.
    state : JobState
    listener : callable
        Receives every event too.
    cancel : callable
        Called, in another thread, when somebody asks for the job's end.
    follower : Follower
        Hears every event, and says how far the job is.

    Attributes
    ----------
    losses : sequence of str
        A sentence on each worker that was lost, which may grow: it is told with the next event.
    """

    def __init__(self, job: Job, state: JobState, listener: Emit, *, cancel: Callable[[], None], follower: Follower) -> None:
        self.job, self.state, self.listener, self.cancel, self.follower = job, state, listener, cancel, follower
        self.started = time.monotonic()
        self.seconds_before = state.seconds
        self.fence: LockLostError | None = None
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._rests, self._told = False, time.monotonic()
        self.losses: Sequence[str] = ()
        self._n_losses_told = 0
        self._pulse = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._sampler = MemorySampler(self.emit)
        self._log = logging.getLogger(f"dlscale.job.{job.id}")

    def __enter__(self) -> Recorder:
        self._claim = self.job.claim()
        try:
            stored = self.job.stored_state()
            if stored.state == "succeeded":
                raise SpecError(f"Job {self.job.id} has succeeded meanwhile; its result is {stored.result}.")
            return self._begin()
        except BaseException:
            self._claim.release()
            raise

    def _begin(self) -> Recorder:
        self.job.remove_leftovers()
        begun(self.job)
        if not self.job.slurm.exists():
            self.state = replace(self.state, slurm="")
        os.close(_open_to_append(self.job.log))
        self._events = _open_to_append(self.job.events)
        self._handler = _QuietFileHandler(self.job.log, encoding="utf-8")
        self._handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._log.addHandler(self._handler)
        self._log.setLevel(logging.INFO)
        self._log.propagate = False
        self._pulse.start()
        self._sampler.start()
        if self._claim.note:
            self.emit(Warned(self._claim.note))
        return self

    def check(self) -> None:
        """Make sure that this process may write for the job still.

        Raises
        ------
        LockLostError
            If the folder of the job is gone, or another process took the job while this one was stopped.
        """
        try:
            self._claim.check()
        except LockLostError as error:
            self.fence = error
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped.set()
        self._sampler.stopped.set()
        self._pulse.join()
        self._sampler.join()
        self._log.removeHandler(self._handler)
        self._handler.close()
        os.close(self._events)
        with suppress(DlscaleError):  # nobody but this process's user is told less
            self.job.send()
        self._claim.release()

    @property
    def seconds(self) -> float:
        """Wall time over all runs of the job."""
        return self.seconds_before + time.monotonic() - self.started

    def emit(self, event: Event) -> None:
        """Append an event, with its time, to events.jsonl, say the telling ones in the log, and let the listener hear it."""
        self._heard(self._noted(event))

    def _noted(self, event: Event) -> Event:
        event = replace(event, time=time.time())
        line = (json.dumps({key: plain(value) for key, value in event.to_dict().items()}) + "\n").encode()
        # One write: a kill cannot mix two lines. A full disk ends the job where it needs the disk, not here.
        with suppress(OSError):
            os.write(self._events, line)
        self.follower(event)
        if sentence := _sentence(event):
            if isinstance(event, StepFinished):
                self._told = time.monotonic()
                sentence += f"; {progress_words(replace(self.follower.progress(), step=''), runs=True)}"
            self._log.log(logging.WARNING if isinstance(event, Warned) else logging.INFO, sentence)
        return event

    def _heard(self, event: Event) -> None:
        self.listener(event)
        self.tell_losses()

    def tell_losses(self) -> None:
        """Say which workers were lost meanwhile, and why."""
        if len(self.losses) == self._n_losses_told:
            return
        with self._lock:
            new = self.losses[self._n_losses_told :]
            self._n_losses_told += len(new)
        for problem in new:
            self.emit(Warned(problem))

    def change(
        self,
        state: str,
        message: str = "",
        *,
        result: str | None = None,
        summary: Mapping[str, Any] | None = None,
        final: bool = False,
        failure_code: int = 1,
    ) -> None:
        """Go over to another state, which is noted first: whoever sees the state finds the job's last words."""
        self.check()
        event = self._noted(StateChanged(state, message))
        with self._lock:
            self.state = replace(
                self.state,
                state=state,
                message=without_secrets(message),
                result=result or self.state.result,
                summary=self.state.summary | plain(dict(summary or {})),
                final=final,
                failure_code=failure_code,
            )
            try:
                self._write(fsync=True)
                self._rests = state in ENDED
            except (OSError, DoesNotFitError, StoreError):
                if state not in ENDED:
                    raise  # else the reason of the end counts; the job is then found lost, and can be resumed
        self._heard(event)

    def failure(self, error: BaseException) -> None:
        """Keep the traceback for whoever must find out."""
        self._log.error("The job failed.", exc_info=error)

    def _beat(self) -> None:
        asked, last = False, time.monotonic()
        while not self._stopped.wait(_CANCEL_SECONDS):
            if not asked and self.job.is_asked_to_stop():
                asked = True
                self.cancel()
            # What was told of the end stays as it was told, however long the report takes.
            if not self._rests and time.monotonic() - last >= HEARTBEAT_SECONDS:
                last = time.monotonic()
                try:
                    with self._lock, suppress(OSError, DoesNotFitError, StoreError):
                        self._write(fsync=False)
                except LockLostError:
                    self.cancel()
                    return
                progress = self.state.progress
                if last - self._told >= TELL_SECONDS and progress is not None and progress.rate is not None:
                    self._told = last
                    self._log.info(progress_words(progress, runs=True))

    def _write(self, *, fsync: bool) -> None:
        self.check()
        progress = self.follower.progress()
        self.state = replace(self.state, heartbeat=Heartbeat.now(), seconds=self.seconds, progress=progress)
        self.job.write_state(self.state, fsync=fsync)


class _Formatter(logging.Formatter):
    """Lines that any terminal may show, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def _open_to_append(path: Path) -> int:
    """A file of the job, made where it is absent (SpecError if something else stands there, such as a link)."""
    try:
        return open_at_once(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SpecError(f"{path} must be a file to write to, and it is not: {error.strerror}.") from error


class _QuietFileHandler(logging.FileHandler):
    """A log whose line is lost when the disk is full, without a traceback in the terminal."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def _sentence(event: Event) -> str:
    """What an event is in the log; nothing where it is not told there."""
    match event:
        case StateChanged():
            return f"{event.state}{': ' if event.message else ''}{event.message}"
        case StepStarted():
            return f"pass {event.step}: {event.flops / 1e9:.3g} GFLOP, {event.bytes / 1e9:.3g} GB"
        case StepFinished():
            return f"pass {event.step}: " + ("taken from the checkpoint" if event.resumed else f"{event.seconds:.2f} s")
        case Saved():
            return f"checkpoint {event.step}: {event.bytes / 1e6:.3g} MB in {event.seconds:.2f} s"
        case Warned():
            return event.message
        case DashboardOpened():
            return f"dashboard: {event.url}"
    return ""


def plain(value: Any) -> Any:
    """A value as JSON can hold it: NumPy numbers as Python's, what is not finite as null, URLs without their secrets."""
    if isinstance(value, str):
        return without_secrets(str(value))
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        return {without_secrets(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # of NumPy, which need not be loaded to say so
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, complex):
        return [value.real, value.imag]
    return without_secrets(str(value))
