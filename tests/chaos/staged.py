"""The command behind ``python -m dlscale``, or another module, as a test wants it: ``python staged.py PYTHON -m dlscale ...``.

How quick the machine is, and how late a test that watches from outside, is then no matter. In the environment:

PAUSE_SECONDS : before each pass, so that a job of many passes runs for seconds without work that takes time from others.
HELD_AT : ``pass_started lu-2``, an event and the step that it is of (``.*`` of any, as a regular expression): the process stops
    itself when it has written that event, and goes on at SIGCONT. ``pass_started .* 3`` is the third one.
GROUP_FLOPS : of a group of slabs of columns to which factors are applied.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import sys
import time
from typing import Any

from dlscale.batch.recorder import Recorder
from dlscale.engine import columns
from dlscale.engine.events import Event
from dlscale.engine.run import Run

PAUSE_SECONDS = float(os.environ.get("PAUSE_SECONDS", "0"))
NAME, STEP, N_TIMES = (*os.environ.get("HELD_AT", "- -").split(), "1")[:3]

_step, _emit = Run.step, Recorder.emit
_seen = 0


def step(*arguments: Any, **options: Any) -> Any:
    time.sleep(PAUSE_SECONDS)
    return _step(*arguments, **options)


def emit(self: Recorder, event: Event) -> None:
    global _seen
    _emit(self, event)
    if event.word == NAME and re.fullmatch(STEP, getattr(event, "step", "")):
        _seen += 1
        if _seen == int(N_TIMES):
            os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    Run.step, Recorder.emit = step, emit  # type: ignore[method-assign]
    columns.GROUP_FLOPS = float(os.environ.get("GROUP_FLOPS", columns.GROUP_FLOPS))
    sys.argv = sys.argv[3:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
