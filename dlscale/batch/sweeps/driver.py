"""The process that runs the jobs of a sweep one after another, or as many at once as the workspace's queue lets run.

Each job has a process of its own, so that one that dies takes none with it. When this process dies, those that wait are lost,
and `dlscale resume` runs what is left.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from socket import gethostname

from dlscale.batch.document import read_stored
from dlscale.batch.driver import run_apart
from dlscale.batch.kinds import KINDS
from dlscale.batch.queue import Queue, Ticket
from dlscale.batch.remote.opening import open_workspace
from dlscale.batch.spec import parse_spec
from dlscale.batch.sweeps import store
from dlscale.batch.workspace import HAND_OVER_SECONDS, Job, Workspace
from dlscale.errors import DlscaleError, SpecError, StoreError
from dlscale.showing import shown

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
            try:
                if job.stored_state().state == "submitted":
                    running.append(run_apart(job, _ticket(job, priority)))
            except StoreError as error:  # asked again later
                print(shown(str(error)), flush=True)
                waiting.appendleft(job)
                break
            except (SpecError, OSError):  # removed, or damaged: its own state says so
                pass
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
    for job in jobs:
        with suppress(DlscaleError, OSError):
            job.say_that_it_waits()


def main(root: str, sweep_id: str, priority: str) -> None:
    workspace = open_workspace(root)
    claim = workspace.sweeps.take(store.lock_of(sweep_id))
    if claim is not None:
        with claim:
            drive(workspace, sweep_id, int(priority))


if __name__ == "__main__":
    main(*sys.argv[1:])
