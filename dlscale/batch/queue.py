"""Who of the submitted jobs of a workspace may run now: a folder of tickets, and a lock around the decision.

    <root>/queue/<job>.ticket.json   a ticket: what decides the order, and whether its turn has come
    <root>/queue/limit.json          how many submitted jobs run at once
    <root>/queue/lock

The order is strict: the ticket with the highest priority, then the oldest, goes next, and none overtakes it. A plan counts on
the whole memory of a worker, so one job at a time is the default.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dlscale.batch.jobs import records
from dlscale.batch.workspace import ENDED, LOST_SECONDS, RUNNING, Heartbeat, Workspace
from dlscale.errors import SpecError
from dlscale.storage.files import locks
from dlscale.storage.files.atomic import write_atomically

DEFAULT_CONCURRENCY = 1


@dataclass(frozen=True)
class Ticket:
    """A submitted job's place in the queue.

    Parameters
    ----------
    job : str
    submitted : float
        Unix time.
    priority : int
        A higher one goes first.
    cluster : str
        Where it runs, as the spec says it.
    collective : bool
        Whether its workers wait for each other: it gets all of a cluster's workers, so no other job runs there meanwhile.
    running : bool
    """

    job: str
    submitted: Annotated[float, Field(allow_inf_nan=False)]
    priority: int = 0
    cluster: str = "local"
    collective: bool = False
    running: bool = False

    @property
    def order(self) -> tuple[int, float, str]:
        return -self.priority, self.submitted, self.job


class Queue:
    """The queue of a workspace, shared by all processes that see its folder.

    Parameters
    ----------
    workspace : Workspace
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._folder = workspace.queue_folder
        self._limit = self._folder / "limit.json"
        self._beats: dict[str, tuple[Heartbeat, float]] = {}

    @property
    def concurrency(self) -> int:
        """How many submitted jobs run at once."""
        try:
            return records.read(self._limit, records.LimitRecord)["concurrency"]
        except (OSError, SpecError):
            return DEFAULT_CONCURRENCY

    def limit(self, concurrency: int) -> None:
        """Let so many submitted jobs run at once, from now on; those that run go on."""
        if concurrency < 1:
            raise SpecError(f"--concurrency must be at least 1; got {concurrency}.")
        self._workspace.make_folder(self._folder)
        write_atomically(self._limit, json.dumps({"concurrency": concurrency}).encode(), fsync=False)

    def join(self, ticket: Ticket) -> None:
        """Put a job into the queue, or its ticket in place of the one it had."""
        self._workspace.make_folder(self._folder)
        write_atomically(self._path(ticket.job), json.dumps(asdict(ticket)).encode(), fsync=False)

    def leave(self, job: str) -> None:
        """Take a job out of the queue."""
        self._path(job).unlink(missing_ok=True)

    def take_turn(self, ticket: Ticket) -> list[str]:
        """Start a job if its turn has come.

        Parameters
        ----------
        ticket : Ticket
            Of a job for which the caller works, and whose state it keeps beating.

        Returns
        -------
        list of str
            The jobs that it waits for; empty when it may run now, which the queue then knows.
        """
        self._workspace.make_folder(self._folder)
        with locks.held(self._folder / "lock"):
            tickets = {ticket.job: ticket for ticket in self._tickets()}
            mine = tickets.pop(ticket.job, ticket)
            alive = [ticket for ticket in tickets.values() if self._alive(ticket)]
            running = [ticket for ticket in alive if ticket.running]
            ahead = [ticket for ticket in alive if not ticket.running and ticket.order < mine.order]
            if ahead or len(running) >= self.concurrency:
                return [ticket.job for ticket in (*running, *ahead)]
            beside = [ticket for ticket in running if ticket.cluster == mine.cluster and (ticket.collective or mine.collective)]
            if not beside:
                self.join(replace(mine, running=True))
            return [ticket.job for ticket in beside]

    def _path(self, job: str) -> Path:
        return self._folder / f"{job}.ticket.json"

    def _tickets(self) -> Iterator[Ticket]:
        for path in sorted(self._folder.glob("[!.]*.ticket.json")):
            job = path.name.removesuffix(".ticket.json")
            try:
                ticket = records.read(path, Ticket)
            except FileNotFoundError:
                continue  # it left the queue just now
            except SpecError:
                # What a damaged ticket said is lost; that its job runs, if it does, must count.
                ticket = Ticket(job, 0.0, running=True)
                if self._state(job) == "queued":
                    continue
            if ticket.job == job:
                yield ticket

    def _alive(self, ticket: Ticket) -> bool:
        """Whether some process works for a job; the tickets of ended jobs are removed, those of lost ones wait for their return."""
        state = self._state(ticket.job)
        if state in ENDED:
            self.leave(ticket.job)
        return state in RUNNING

    def _state(self, name: str) -> str:
        """The state of a job as the queue counts it."""
        job = self._workspace.job(name)
        if not job.state.exists():
            return ENDED[0]
        try:
            stored = job.stored_state()
        except SpecError:
            return "running" if locks.is_held(job.lock) else "lost"  # damaged: the lock tells
        state, beat = job.seen(stored).state, stored.heartbeat
        looks_lost = state == "lost" and stored.state in RUNNING and not beat.owner.is_near
        return stored.state if looks_lost and self._beats_still(name, beat) else state

    def _beats_still(self, job: str, beat: Heartbeat) -> bool:
        """Whether a job of another machine may live, by this process's own clock, which nobody sets."""
        known, since = self._beats.get(job, (None, 0.0))
        if known != beat:
            since = time.monotonic()
            self._beats[job] = beat, since
        return time.monotonic() - since < LOST_SECONDS
