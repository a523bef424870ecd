"""Ranks of a launcher that stands still: about a quarter of a second after it has lost one, it kills those that are left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable

import psutil

#: Only what is wrong lets a test wait for so long.
LONG_SECONDS = 240.0


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_gone(process: psutil.Process) -> bool:
    """Whether all threads of a process have ended, and with the last one its connections, though its launcher has not looked."""
    return process.status() == psutil.STATUS_ZOMBIE and len(os.listdir(f"/proc/{process.pid}/task")) == 1


def end(launcher: subprocess.Popen[str], noted: Callable[[], object]) -> tuple[int, str, str]:
    """Let a launcher that one of its ranks has stopped go on when the others have noted why; how it ends, and what it says."""
    with launcher:
        try:
            wait_for(lambda: noted() or launcher.poll() is not None)
            launcher.send_signal(signal.SIGCONT)
            out, err = launcher.communicate(timeout=LONG_SECONDS)
        finally:
            launcher.kill()
    return launcher.returncode, out, err
