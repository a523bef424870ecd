"""Signals that ask for a stop, and a request from another thread, as one exception in the thread of the job."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dlscale.interrupts import asking_to_stop, ends


class Stop(KeyboardInterrupt):
    """A signal arrived. Not an `Exception`, so that no library on the way swallows it."""


class Signals:
    """A context that notes the first signal that asks for a stop; inside `raising` it raises `Stop`. Later ones change nothing.

    Outside the main thread Python handles no signals, and only `stop` has an effect, at the next `check`.
    """

    def __init__(self) -> None:
        self.received = ""
        self._raising = False
        self._thread = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Signals:
        self._thread = threading.get_ident()
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in asking_to_stop()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def raising(self) -> Iterator[None]:
        """The body may be left at any point; everything outside is short and must not be torn."""
        self._raising = True
        try:
            self.check()
            yield
        finally:
            self._raising = False

    def check(self) -> None:
        """Raise `Stop` if a signal came that did not: before `raising`, or swallowed by a library on its way."""
        if self.received and self._raising and threading.get_ident() == self._thread:
            raise Stop(self.received)

    def stop(self) -> None:
        """Ask for a stop from any thread; what the main thread waits for ends."""
        if self._before:
            signal.pthread_kill(self._thread, signal.SIGTERM)
        else:
            self.received = self.received or signal.SIGTERM.name

    def _handle(self, number: int, _: FrameType | None) -> None:
        first = not self.received
        self.received = self.received or signal.Signals(number).name
        ends()
        if first and self._raising:
            raise Stop(self.received)
