"""What the routes share: the settings, the table, who may start a job, and how a job is found by its id."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from dlscale.batch.removing import DONE
from dlscale.batch.sweeps import store
from dlscale.batch.sweeps.running import is_driven
from dlscale.batch.sweeps.store import Sweep
from dlscale.batch.workspace import Job
from dlscale.errors import SpecError, StoreError
from dlscale.service.lately import Lately
from dlscale.service.problems import Problem
from dlscale.service.retention import LOOK_SECONDS, N_AT_ONCE
from dlscale.service.settings import IDLE_SECONDS, MAX_BODY_BYTES, MAX_SLOW, MAX_STREAMS, SLOW_SECONDS, Settings
from dlscale.service.starting import Starter
from dlscale.service.table import Table
from dlscale.service.tokens import Grant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

T = TypeVar("T")

#: As `Workspace.new_job` makes them: no slash, and no beginning with a dot.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
_SEE_OFF_SECONDS = 1.0
_log = logging.getLogger("dlscale.service")


class Desk:
    """Of one server.

    Parameters
    ----------
    settings : Settings
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.table = Table(settings.workspace)
        self.starter = Starter(settings)
        self.started = time.time()
        self.stopping = False
        self.n_streams = 0
        #: (method, status) of answers.
        self.answers: Counter[tuple[str, int]] = Counter()
        fresh = settings.workspace.fresh_seconds
        self._lately, self._sweeps = Lately(fresh), Lately(math.inf if fresh else 0.0)  # a sweep stays what it is
        self._slow = asyncio.Semaphore(MAX_SLOW)

    def job(self, job_id: str) -> Job:
        """The job with this id, to read it (Problem if there is none)."""
        job = self.settings.workspace.watched(job_id) if _ID.fullmatch(job_id) else None
        if job is None or not job.catch_up():
            raise Problem(404, f"There is no job {job_id} in {self.settings.workspace.place}.", exit_code=2)
        return job

    def change(self, job_id: str, change: Callable[[Job], Any]) -> Job:
        """Change the job with this id; it is read again (Problem if there is none)."""
        found, job = self.job(job_id), self.settings.workspace.job(job_id)
        try:
            change(job)
        finally:
            self.table.note(job)
        return found

    def sweep(self, sweep_id: str) -> Sweep:
        """The sweep with this id (Problem if there is none)."""
        root = self.settings.workspace
        if not _ID.fullmatch(sweep_id) or not self._lately.asked(("there", sweep_id), lambda: store.exists(root, sweep_id)):
            raise Problem(404, f"There is no sweep {sweep_id} in {root.place}.", exit_code=2)
        return self.read_sweep(sweep_id)

    def read_sweep(self, sweep_id: str) -> Sweep:
        """A sweep that is there (SpecError if its file is damaged, or was removed just now)."""
        return self._sweeps.asked(sweep_id, lambda: store.read(self.settings.workspace, sweep_id))

    def sweep_ids(self) -> list[str]:
        """Of all sweeps, the newest first."""
        return self._lately.asked("sweeps", lambda: store.sweep_ids(self.settings.workspace))

    def is_driven(self, sweep: Sweep) -> bool:
        """Whether the process that runs a sweep lives."""
        return self._lately.asked(("driven", sweep.sweep), lambda: is_driven(self.settings.workspace, sweep.sweep))

    def counts_of(self, sweep: Sweep) -> dict[str, int]:
        """How many jobs of a sweep are in each state, as the table has them."""
        return store.count(self.table.states_of(each["job"] for each in sweep.jobs))

    def note_jobs(self, sweep: Sweep) -> None:
        """Read the jobs of a sweep again that have changed."""
        self._lately.forget()
        for each in sweep.jobs:
            self.table.note(self.settings.workspace.job(each["job"]))

    async def slowly(self, work: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Do in a thread what takes long; only so many at once."""
        try:
            async with asyncio.timeout(SLOW_SECONDS):
                await self._slow.acquire()
        except TimeoutError:
            raise Problem(503, "The server is busy with other jobs; come again.", headers={"Retry-After": "10"}) from None
        try:
            return await run_in_threadpool(work, *arguments, **named)
        finally:
            self._slow.release()

    @asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        """While the server serves."""
        self.table.start()
        await run_in_threadpool(self.starter.forget_old_keys)
        watching = [asyncio.create_task(self._see_off())]
        if self.settings.retention.removes:
            watching.append(asyncio.create_task(self._let_go()))
        try:
            yield
        finally:
            for task in watching:
                task.cancel()
            await run_in_threadpool(self.table.stop)

    async def _see_off(self) -> None:
        while True:
            await asyncio.sleep(_SEE_OFF_SECONDS)
            self.starter.see_off()

    async def _let_go(self) -> None:
        """Remove what is not to be kept, when all jobs are known and then now and then."""
        while True:
            while not self.table.is_loaded:
                await asyncio.sleep(_SEE_OFF_SECONDS)
            expired = list(self.settings.retention.expired(self.table.newest_first(), time.time()))
            for begin in range(0, len(expired), N_AT_ONCE):
                await run_in_threadpool(self._remove, expired[begin : begin + N_AT_ONCE])
            await asyncio.sleep(LOOK_SECONDS)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            job = self.settings.workspace.job(name)
            try:
                # The table may be behind: whoever resumed it meanwhile wants it to stay.
                if job.read_state().state in DONE:
                    self.starter.remove(job)
            except (Problem, SpecError, StoreError, OSError) as error:
                _log.warning("Job %s could not be removed: %s", name, error)
            self.table.note(job)

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[None]:
        """While a stream is open (Problem if too many are)."""
        if self.n_streams >= MAX_STREAMS:
            raise Problem(503, f"{MAX_STREAMS} streams are open already; come again.", headers={"Retry-After": "10"})
        self.n_streams += 1
        try:
            yield
        finally:
            self.n_streams -= 1


def desk_of(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def grant_of(request: Request) -> Grant:
    grant: Grant = request.state.grant
    return grant


async def read_bounded(request: Request) -> bytes:
    """The body of a request (Problem if it is too long, or takes too long to come)."""
    said = f"A job file has at most {MAX_BODY_BYTES:,} bytes; this one has more."
    if int(request.headers.get("content-length", "0")) > MAX_BODY_BYTES:
        raise Problem(413, said, exit_code=2)
    body = bytearray()
    try:
        async with asyncio.timeout(IDLE_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise Problem(413, said, exit_code=2)
    except TimeoutError:
        raise Problem(408, "The request did not come to its end.") from None
    return bytes(body)
