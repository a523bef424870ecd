"""The process that runs the jobs of a sweep one after another, or as many at once as the workspace's queue lets run.

Each job has a process of its own, so that one that dies takes none with it. When this process dies, those that wait are lost,
and `dlscale resume` runs what is left.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict
from socket import gethostname

from dlscale.batch.document import read_stored
from dlscale.batch.driver import run_apart
from dlscale.batch.kinds import KINDS
from dlscale.batch.queue import Queue, Ticket
from dlscale.batch.spec import parse_spec
from dlscale.batch.sweeps import store
from dlscale.batch.workspace import HAND_OVER_SECONDS, HandOver, Heartbeat, Job, Workspace
from dlscale.errors import SpecError
from dlscale.storage.files import locks
from dlscale.storage.files.atomic import write_atomically

_POLL_SECONDS = 0.3


def drive(root: Workspace, sweep_id: str, priority: int) -> None:
    """Run the jobs of a sweep that are submitted, in its order."""
    waiting = deque(root.job(each["job"]) for each in store.read(root, sweep_id).jobs)
    running: list[subprocess.Popen[bytes]] = []
    queue, told = Queue(root), time.monotonic()
    while waiting or running:
        running = [process for process in running if process.poll() is None]
        while waiting and len(running) < queue.concurrency:
            job = waiting.popleft()
            with suppress(SpecError, OSError):  # removed, or damaged: its own state says so
                if job.stored_state().state == "submitted":
                    running.append(run_apart(job, _ticket(job, priority)))
        if time.monotonic() - told > HAND_OVER_SECONDS / 3:
            told = time.monotonic()
            _say_that_they_wait(waiting)
        time.sleep(_POLL_SECONDS)


def _ticket(job: Job, priority: int) -> Ticket:
    spec = parse_spec(read_stored(job.spec))
    place = spec.cluster if isinstance(spec.cluster, str) and "://" in spec.cluster else f"local@{gethostname()}"
    return Ticket(job.id, time.time(), priority=priority, cluster=place, collective=KINDS[spec.kind].collective)


def _say_that_they_wait(jobs: deque[Job]) -> None:
    """For those who look from another machine, and cannot see this process."""
    handed = json.dumps(asdict(HandOver(driver=Heartbeat.now()))).encode()
    for job in jobs:
        with suppress(OSError):
            if job.folder.is_dir():
                write_atomically(job.handed_over, handed, fsync=False)


def main(root: str, sweep_id: str, priority: str) -> None:
    workspace = Workspace(root)
    lock = locks.take(store.lock_of(workspace, sweep_id))
    if lock is not None:
        drive(workspace, sweep_id, int(priority))
        lock.release(remove=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
