"""Who of the submitted jobs of a workspace may run now: a folder of tickets, and a lock around the decision.

    <root>/queue/<job>.ticket.json   a ticket: what decides the order, and whether its turn has come
    <root>/queue/limit.json          how many submitted jobs run at once
    <root>/queue/lock

The order is strict: the ticket with the highest priority, then the oldest, goes next, and none overtakes it. A plan counts on
the whole memory of a worker, so one job at a time is the default.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dlscale.batch.workspace import ENDED, RUNNING, Workspace
from dlscale.errors import SpecError
from dlscale.storage.durable import write_atomically

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
    submitted: float
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

    @property
    def concurrency(self) -> int:
        """How many submitted jobs run at once."""
        try:
            return int(json.loads(self._limit.read_bytes())["concurrency"])
        except (OSError, ValueError, KeyError):
            return DEFAULT_CONCURRENCY

    def limit(self, concurrency: int) -> None:
        """Let so many submitted jobs run at once, from now on; those that run go on."""
        if concurrency < 1:
            raise SpecError(f"--concurrency must be at least 1; got {concurrency}.")
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._limit, json.dumps({"concurrency": concurrency}).encode(), fsync=False)

    def join(self, ticket: Ticket) -> None:
        """Put a job into the queue, or its ticket in place of the one it had."""
        self._folder.mkdir(parents=True, exist_ok=True)
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
        with self._decision():
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
            try:
                yield Ticket(**json.loads(path.read_bytes()))
            except (OSError, ValueError, TypeError):
                continue  # it left the queue just now

    def _alive(self, ticket: Ticket) -> bool:
        """Whether some process works for a job; the tickets of ended jobs are removed, those of lost ones wait for their return."""
        try:
            state = self._workspace.job(ticket.job).read_state().state
        except SpecError:
            state = ENDED[0]
        if state in ENDED:
            self.leave(ticket.job)
        return state in RUNNING

    @contextmanager
    def _decision(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
