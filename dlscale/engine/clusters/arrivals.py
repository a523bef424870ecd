"""What the scheduler of a cluster that was started here does as a worker comes, also in the place of one that was lost."""

from __future__ import annotations

from collections import deque

from distributed import Scheduler, SchedulerPlugin


class Elsewhere(SchedulerPlugin):
    """When a worker comes, lets tasks go to it whose own workers are gone and that others may do too.

    Dask itself does so as long as any worker is left. Where all of them were lost at once, tasks wait for workers that never
    come back.
    """

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        for task in scheduler.unrunnable:
            if task.loose_restrictions and not scheduler.workers.keys() & (task.worker_restrictions or ()):
                task.worker_restrictions = set()


class NoMessagesKept(SchedulerPlugin):
    """Keeps no messages that were sent to a worker, also to one that comes when Dask's settings are others again."""

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        scheduler.stream_comms[worker].recent_message_log = deque(maxlen=0)


def follow_arrivals(scheduler: Scheduler) -> None:
    """Have a scheduler of this process do so."""
    for plugin in (Elsewhere(), NoMessagesKept()):
        scheduler.add_plugin(plugin)
