"""Messages from tasks to the driver: rows read, bytes, flops, seconds, memory.

A task calls `send` with the token of its pass. In the driver's own process the message goes straight to the listener; on
a Dask worker it travels as a worker event, which the driver's client receives.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress

import psutil

from dlscale.engine.events import Emit, Event, MemoryTaken, WorkDone

_listeners: dict[str, Emit] = {}
_process = psutil.Process()
#: When the memory of this process was last asked for, and what it was. Asking opens a file, which costs a thread that waits
#: for the interpreter 0.1 ms; tasks of less than that ask it again and again.
_resident = (-1.0, 0)
_RESIDENT_SECONDS = 0.05


def listen(token: str, listener: Emit) -> None:
    """Receive what tasks in this process send under this token."""
    _listeners[token] = listener


def unlisten(token: str) -> None:
    _listeners.pop(token, None)


def send(token: str, event: Event) -> None:
    """Send an event from a task to whoever listens to the token."""
    listener = _listeners.get(token)
    if listener is not None:
        listener(event)
        return
    from distributed import get_worker

    get_worker().log_event(token, event.to_dict())


def resident_bytes() -> int:
    """Resident memory of this process, not more than 0.05 s ago."""
    global _resident
    now = time.monotonic()
    if now - _resident[0] > _RESIDENT_SECONDS:
        _resident = now, int(_process.memory_info().rss)
    return _resident[1]


def worker_name() -> str:
    """A short name of the process that runs a task."""
    # Where nobody has loaded distributed there is no worker, and loading it takes as long as a small job.
    if "distributed" in sys.modules:
        from distributed import get_worker

        with suppress(ValueError):
            return str(get_worker().name)
    return f"pid {os.getpid()}"


class Meter:
    """Adds up what a task does and sends it at most four times a second.

    Parameters
    ----------
    token, step : str
        Where to send, and the pass it belongs to.
    flops_per_row : float

    Attributes
    ----------
    inexact : set of str
        Matrices with integers that were rounded as they were read.
    """

    interval_seconds = 0.25

    def __init__(self, token: str, step: str, flops_per_row: float) -> None:
        self.token, self.step, self.flops_per_row = token, step, flops_per_row
        self.inexact: set[str] = set()
        self.worker = worker_name()
        self._start()

    def _start(self) -> None:
        self.since = time.perf_counter()
        self.rows, self.bytes, self.read_seconds, self.compute_seconds = 0, 0, 0.0, 0.0

    def add(self, *, rows: int, n_bytes: int, read_seconds: float, compute_seconds: float) -> None:
        self.rows += rows
        self.bytes += n_bytes
        self.read_seconds += read_seconds
        self.compute_seconds += compute_seconds
        if time.perf_counter() - self.since > self.interval_seconds:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            event = WorkDone(
                self.step,
                self.worker,
                rows=self.rows,
                bytes=self.bytes,
                flops=self.flops_per_row * self.rows,
                read_seconds=self.read_seconds,
                compute_seconds=self.compute_seconds,
                rss_bytes=resident_bytes(),
                inexact=tuple(sorted(self.inexact)),
            )
            send(self.token, event)
        self._start()


class MemorySampler(threading.Thread):
    """Emits the resident memory of the driver once a second, until stopped."""

    def __init__(self, emit: Emit) -> None:
        super().__init__(name="memory-sampler", daemon=True)
        self.emit = emit
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(1.0):
            self.emit(MemoryTaken("driver", resident_bytes()))
