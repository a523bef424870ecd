"""What was asked lately and need not be asked again: however many clients ask, the workspace is asked once."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")

#: So many answers are kept.
_N_KEPT = 4096


class Lately:
    """The answers to questions of the last moment.

    Parameters
    ----------
    seconds : float
        How old one may be; 0 asks every time.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._kept: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def asked(self, question: Hashable, ask: Callable[[], T]) -> T:
        """The answer of the last moment, or a new one."""
        with self._lock:
            at, answer = self._kept.get(question, (0.0, None))
        if at and time.monotonic() - at < self._seconds:
            return answer  # type: ignore[no-any-return]
        answer = ask()
        with self._lock:
            self._kept[question] = time.monotonic(), answer
            self._kept.move_to_end(question)
            if len(self._kept) > _N_KEPT:
                self._kept.popitem(last=False)
        return answer

    def forget(self) -> None:
        """Ask anew, since this process has changed something."""
        with self._lock:
            self._kept.clear()
