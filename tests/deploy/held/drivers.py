"""Drivers of Slurm's jobs that stand still until a test has done with them what it wants."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from jobs_here import ENVIRONMENT
from slurm_cluster import SlurmCluster

from dlscale.batch.workspace import Job

#: Where the Python of a job finds this dlscale, and what holds it.
PATH_OF_HELD_JOBS = os.pathsep.join([str(Path(__file__).parent), ENVIRONMENT["PYTHONPATH"]])


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def held(folder: Path) -> Path:
    """While this file is there, each start of a job of the folder stands still behind its third checkpoint."""
    (file := folder / "held").touch()
    return file


def driver_of(job: Job) -> psutil.Process:
    """The process of a job that stands still; one that has just started does not hear that it is to stop."""

    def stands_still() -> bool:
        with suppress(psutil.NoSuchProcess, FileNotFoundError):
            return psutil.Process(job.stored_state().heartbeat.pid).status() == psutil.STATUS_STOPPED
        return False

    until(stands_still)
    return psutil.Process(job.stored_state().heartbeat.pid)


def stop(slurm: SlurmCluster, number: str, driver: psutil.Process) -> None:
    """What Slurm does before the time limit; the driver goes on when it has got the signal."""
    slurm.command("scancel", "--signal=TERM", "--batch", number)
    until(lambda: is_pending(signal.SIGTERM, driver))
    driver.resume()


def is_pending(number: int, process: psutil.Process) -> bool:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask >> (number - 1) & 1 for mask in masks)
