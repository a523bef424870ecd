"""SIGINT and SIGTERM as one exception in the main thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop(KeyboardInterrupt):
    """A signal arrived. Not an `Exception`, so that no library on the way swallows it."""


class Signals:
    """A context in which the first SIGINT or SIGTERM raises `Stop`; later ones change nothing once it is being handled.

    Outside the main thread, where Python handles no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.received = ""
        self._shielded = False
        self._stopping = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Let the body finish whatever arrives; it is short and must not be torn."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False

    def stopping(self) -> None:
        """From now on signals change nothing: the job is on its way out."""
        self._stopping = True

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if not self._shielded and not self._stopping:
            raise Stop(self.received)
