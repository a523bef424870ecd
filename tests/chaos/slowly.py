"""The command behind ``python -m dlscale`` with a pause before each pass: ``python slowly.py PYTHON -m dlscale ...``.

A job of many passes then runs for seconds, however quick the machine and however late a test that wants to stop it.
PAUSE_SECONDS in the environment makes it run for longer, without work that takes time from others.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from typing import Any

from dlscale.engine.run import Run

PAUSE_SECONDS = float(os.environ.get("PAUSE_SECONDS", "0.05"))

_step = Run.step


def step(*arguments: Any, **options: Any) -> Any:
    time.sleep(PAUSE_SECONDS)
    return _step(*arguments, **options)


if __name__ == "__main__":
    Run.step = step  # type: ignore[method-assign]
    sys.argv = sys.argv[3:]
    runpy.run_module("dlscale", run_name="__main__", alter_sys=True)
