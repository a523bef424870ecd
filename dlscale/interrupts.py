"""Signals that ask for a stop, as one exception that comes between the steps of a command, and not within one."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: After which a signal that was dropped comes again.
_AGAIN_SECONDS = 0.01
_n_holding = 0
_has_come = _ends = False


def asking_to_stop() -> tuple[signal.Signals, ...]:
    """Ctrl-C, SIGTERM, and the end of the terminal, unless somebody asked to outlive it (nohup)."""
    hangup = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGINT, signal.SIGTERM, *hangup)


def handle_signals() -> None:
    """From now on, let `interrupt` be what signals that ask for a stop do."""
    global _ends
    _ends = False
    for number in asking_to_stop():
        signal.signal(number, interrupt)


def ends() -> None:
    """This command comes to its end because it was asked to: further signals change nothing."""
    global _ends
    _ends = True


def interrupt(number: int, frame: FrameType | None) -> None:
    """As a handler of signals: raise KeyboardInterrupt, after the body of `held_back` where one runs, and not after `ends`."""
    global _has_come
    if _ends:
        return
    if _n_holding:
        _has_come = True
        return
    signal.default_int_handler(number, frame)


def hear_what_is_dropped() -> None:
    """From now on, let a stop that Python drops come again a moment later, for a process that belongs to a command.

    What a handler raises within the callback of a weak reference, or a destructor, goes nowhere: the command would go on.
    """
    show = sys.unraisablehook

    def again(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            show(dropped)
        elif not _ends:
            timer = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), signal.SIGINT))
            timer.daemon = True
            timer.start()

    sys.unraisablehook = again


@contextmanager
def held_back() -> Iterator[None]:
    """Let the body, which takes a moment, end before `interrupt` raises; without effect where that handles no signals."""
    global _n_holding, _has_come
    _n_holding += 1
    try:
        yield
    finally:
        _n_holding -= 1
        if _has_come and not _n_holding:
            _has_come = False
            raise KeyboardInterrupt
