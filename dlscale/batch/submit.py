"""Jobs that outlive their client: submit, wait, cancel, send back. What they share with their driver is the workspace's files."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from socket import gethostname
from typing import Any
from uuid import uuid4

import yaml

from dlscale.batch.arrays import with_arrays_stored
from dlscale.batch.document import read_document
from dlscale.batch.driver import detach, drive_on_worker, mark_cancelled
from dlscale.batch.jobs.in_slurm import begun
from dlscale.batch.jobs.places import writable
from dlscale.batch.jobs.records import checksum
from dlscale.batch.jobs.waiting import until_free, wait
from dlscale.batch.kinds import KINDS
from dlscale.batch.notebooks import ReportPage, card, report_page
from dlscale.batch.prepare import Prepared, prepare
from dlscale.batch.queue import Queue, Ticket
from dlscale.batch.recorder import plain
from dlscale.batch.remote.opening import job_in, open_workspace
from dlscale.batch.run import create
from dlscale.batch.slurm import leave_the_queue
from dlscale.batch.spec import parse_spec
from dlscale.batch.spec.secrets import secret_environment
from dlscale.batch.workspace import ENDED, HandOver, Heartbeat, Job, JobState, Workspace
from dlscale.engine.clusters.client import connect
from dlscale.errors import InputError, SpecError
from dlscale.storage.files.atomic import write_atomically
from dlscale.storage.groups import open_arrays

#: A worker takes a submitted job at once, if it is not busy with a long block of another one.
_TAKEN_SECONDS = 20.0
_CANCEL_SECONDS = 60.0
_POLL_SECONDS = 0.2
#: How long all workers of a cluster have to answer.
_ANSWER_SECONDS = 30.0


@dataclass(frozen=True)
class SubmittedJob:
    """A job that runs without this process.

    Parameters
    ----------
    id : str
    folder : Path
        Where its files are.
    """

    id: str
    folder: Path

    @property
    def state(self) -> str:
        """submitted, queued, running, certifying, succeeded, failed, interrupted, cancelled or lost."""
        return job_in(self.folder).read_state().state

    def wait(self, timeout_seconds: float | None = None) -> str:
        """Wait for the end of the job; its state then (TimeoutError if it has not ended in time)."""
        return wait(job_in(self.folder), timeout_seconds=timeout_seconds).state

    def cancel(self) -> str:
        """Stop the job within seconds, its checkpoint kept; its state then."""
        return cancel(job_in(self.folder), open_workspace(self.folder.parent.parent)).state

    def report(self) -> ReportPage:
        """The report as far as the job is: a path, and in a notebook the page itself."""
        return report_page(self.folder)

    def _repr_html_(self) -> str:
        return card(self.folder)

    def open(self) -> dict[str, Any]:
        """The result's arrays by name, opened for reading.

        Raises
        ------
        InputError
            If the job has no result (yet).
        """
        state = job_in(self.folder).read_state()
        if state.result is None:
            raise InputError(f"Job {self.id} has no result; it is {state.state}.")
        return open_arrays(state.result)


def submit(
    spec: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    workspace: str | Path | None = None,
    priority: int = 0,
    concurrency: int | None = None,
) -> SubmittedJob:
    """Plan a job and hand it over: to the running Dask cluster of the spec, or to a process of its own on this machine.

    Parameters
    ----------
    spec : str, Path or mapping
        As for `dlscale.run`.
    overrides : iterable of str
        ``section.key=value``.
    workspace : path or URL, optional
        Where jobs are kept, seen by all workers; by default DLSCALE_WORKSPACE or ``./dlscale-workspace``.
    priority : int
        Jobs with a higher one go first.
    concurrency : int, optional
        How many submitted jobs of the workspace run at once from now on; 1 if it was never said.

    Returns
    -------
    SubmittedJob

    Raises
    ------
    SpecError, InputError
        Before anything is created.
    """
    root = open_workspace(workspace)
    document = read_document(with_arrays_stored(spec, root), overrides)
    prepared = prepare(parse_spec(document), document, root)
    job = submit_prepared(root, prepared, priority=priority, concurrency=concurrency)
    return SubmittedJob(job.id, job.folder)


def jobs(workspace: str | Path | None = None, *, limit: int | None = None) -> list[SubmittedJob]:
    """The jobs of a workspace, the newest first.

    Parameters
    ----------
    workspace : path or URL, optional
        By default DLSCALE_WORKSPACE or ``./dlscale-workspace``.
    limit : int, optional
        Only so many.

    Returns
    -------
    list of SubmittedJob
        Whoever runs them.

    Warns
    -----
    UserWarning
        Of each job whose files are damaged, which is left out.
    """
    root = open_workspace(workspace)
    listed, faults = root.list_jobs(limit)
    for fault in faults.values():
        warnings.warn(fault, stacklevel=2)
    return [SubmittedJob(row.job, root.job(row.job).folder) for row in listed]


def submit_prepared(
    root: Workspace, prepared: Prepared, *, priority: int = 0, concurrency: int | None = None, job: Job | None = None
) -> Job:
    """As `submit`, for a job that was planned; ``job`` has its id already where that must be known before."""
    check_place(prepared, root)
    queue = Queue(root)
    missing = [folder for folder in (root.jobs_folder, root.root, *root.root.parents) if not folder.exists()]
    job = job or root.new_job(prepared.name)
    create(job, prepared, state="submitted")
    try:
        if prepared.facts.kind == "tcp":
            check_workers_see(prepared.facts.address, job)
        if concurrency is not None:
            queue.limit(concurrency)
        _hand_over(job, prepared, priority, job.read_state().created)
    except BaseException:
        job.discard()
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise
    return job


def resubmit(job: Job, root: Workspace, prepared: Prepared, *, priority: int = 0) -> None:
    """Hand a stopped job over again, to go on from its checkpoint; ``prepared`` is from `reopen`."""
    check_place(prepared, root)
    before = job.read_state()
    begun(job)
    job.forget_stop()
    if prepared.facts.kind == "tcp":
        check_workers_see(prepared.facts.address, job)
    job.handed_over.unlink(missing_ok=True)
    # The driver reads there where it runs.
    spec = yaml.safe_dump(plain(prepared.data), sort_keys=False).encode()
    checksums = before.checksums | {job.spec.name: checksum(spec)}
    job.write_state(replace(before, state="submitted", message="", heartbeat=Heartbeat.now(), checksums=checksums))
    write_atomically(job.spec, spec)
    try:
        _hand_over(job, prepared, priority, time.time())
    except BaseException:
        job.write_state(before)
        raise


def cancel(job: Job, root: Workspace) -> JobState:
    """Stop a job wherever it runs; what it has finished stays in its checkpoint.

    Raises
    ------
    SpecError
        If it has ended, or its folder cannot be written.
    TimeoutError
        If its process does not answer; it stops as soon as it does.
    """
    state = job.read_state()
    if state.state in ENDED:
        raise SpecError(f"Job {job.id} has ended already; it is {state.state}.")
    with writable(job.cancel, "cancel it where its workspace can be written"):
        job.ask_to_stop()
    deadline = time.monotonic() + _CANCEL_SECONDS
    while time.monotonic() < deadline:
        state = job.read_state()
        if state.state in ENDED:
            until_free(job)
            return state
        if state.state in ("submitted", "lost") and _cancelled_here(job, root):
            return job.read_state()
        time.sleep(_POLL_SECONDS)
    raise TimeoutError(f"Job {job.id} has not stopped in {_CANCEL_SECONDS:.0f} s; it stops when its process answers.")


def _cancelled_here(job: Job, root: Workspace) -> bool:
    """Cancel a job that no process runs; False if one has taken it meanwhile."""
    try:
        lock = job.take()
        if lock is not None:
            with lock:
                mark_cancelled(job, Queue(root))
            leave_the_queue(job)
    except SpecError:
        job.forget_stop()
        raise
    return lock is not None


def check_place(prepared: Prepared, root: Workspace) -> None:
    """Refuse a job that cannot be submitted to its cluster (SpecError)."""
    if prepared.facts.kind not in ("local", "threads", "tcp"):
        raise SpecError(f"cluster: got {prepared.facts.kind}; a job is submitted to tcp://host:port, local or threads.")
    if prepared.facts.kind == "tcp":
        root.require_folder("a job that a cluster's workers drive")


def _hand_over(job: Job, prepared: Prepared, priority: int, submitted: float) -> None:
    def note(handed: HandOver) -> None:
        write_atomically(job.handed_over, json.dumps(asdict(handed)).encode())

    facts, kind = prepared.facts, prepared.spec.kind
    place = facts.address or f"local@{gethostname()}"
    ticket = Ticket(job.id, submitted, priority=priority, cluster=place, collective=KINDS[kind].collective)
    secrets = secret_environment(prepared.data)
    if facts.kind != "tcp":
        note(HandOver(driver=detach(job, ticket, secrets)))
        _until_taken(job)
        return
    from distributed import fire_and_forget

    with connect(facts.address) as client:
        # A task of this name runs once; its priority lets it start before the blocks of jobs that run.
        future = client.submit(
            drive_on_worker, str(job.folder), ticket, secrets, key=f"dlscale-driver-{job.id}-{uuid4().hex[:8]}", priority=10**6
        )
        fire_and_forget(future)  # type: ignore[no-untyped-call]
        note(HandOver(scheduler=facts.address))
        _until_taken(job)


def check_workers_see(address: str, job: Job) -> None:
    with connect(address) as client:
        try:
            told = client.sync(client._run, _sees, str(job.state), on_error="return", callback_timeout=_ANSWER_SECONDS)
        except TimeoutError as error:
            raise SpecError(
                f"cluster: not all workers of {address} answered within {_ANSWER_SECONDS:.0f} s; some are frozen or cut off. "
                "End those, or wait until the cluster has noticed, and submit again."
            ) from error
    for worker, seen in told.items():
        if seen is not True:
            why = "does not see it" if seen is False else f"cannot tell ({type(seen).__name__}: {seen})"
            raise SpecError(
                f"--workspace: must be a folder that all workers see, and {worker} {why}: {job.folder.parent.parent}. "
                "Choose one on a shared file system; dlscale must be installed there too."
            )


def _sees(path: str) -> bool:
    return Path(path).exists()


def _until_taken(job: Job) -> None:
    """Wait until another process has the job; it does not need this one any more."""
    deadline = time.monotonic() + _TAKEN_SECONDS
    while job.read_state().state == "submitted" and time.monotonic() < deadline:
        time.sleep(0.05)
