"""Sweeps are submitted, resumed, cancelled and waited for."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from dlscale.batch.driver import start_detached
from dlscale.batch.jobs.in_slurm import begun, has_place_in_slurm
from dlscale.batch.queue import Queue
from dlscale.batch.run import create
from dlscale.batch.slurm import SlurmRequest, leave_the_queue, queue_again, submit_to_slurm
from dlscale.batch.spec.consent import TRUSTED
from dlscale.batch.spec.secrets import secret_environment
from dlscale.batch.submit import cancel, check_place, check_workers_see
from dlscale.batch.sweeps import store
from dlscale.batch.sweeps.planning import Planned
from dlscale.batch.sweeps.store import Sweep, told
from dlscale.batch.workspace import HandOver, Heartbeat, Job, JobState, Workspace
from dlscale.errors import SpecError
from dlscale.showing import without_secrets
from dlscale.storage.files.atomic import write_atomically

#: How often `wait` looks, or after so many times what looking takes.
_POLL_SECONDS, _POLL_SHARE = 1.0, 5.0
_TAKEN_SECONDS, _TAKEN_POLL_SECONDS = 20.0, 0.05


def submit(
    root: Workspace,
    sweep: Sweep,
    planned: Sequence[Planned],
    *,
    priority: int = 0,
    concurrency: int | None = None,
    slurm: Mapping[str, Any] | None = None,
) -> None:
    """Create the jobs of a sweep, and start the process that runs them one after another, or queue them with Slurm.

    Parameters
    ----------
    root : Workspace
    sweep, planned
        From `new_sweep` and `plan_all`.
    priority : int
        Of each job.
    concurrency : int, optional
        How many submitted jobs of the workspace run at once from now on.
    slurm : mapping, optional
        Fields of a `SlurmRequest`, the same for each job.

    Raises
    ------
    SpecError, InputError
        Nothing is left then.
    """
    secrets = {} if slurm is not None else _shared_secrets(planned)
    if slurm is None:
        for each in planned:
            check_place(each.prepared, root)
    if concurrency is not None:
        Queue(root).limit(concurrency)
    jobs = jobs_of(root, sweep)
    prepared_jobs = [(job, each.prepared) for job, each in zip(jobs, planned, strict=True)]
    try:
        for job, prepared in prepared_jobs:
            create(job, prepared, state="submitted", sweep=sweep.sweep)
        store.keep(root, sweep)
        if slurm is not None:
            for job, prepared in prepared_jobs:
                submit_to_slurm(job, SlurmRequest(**slurm), secret_environment(prepared.data))
            return
        addresses = {prepared.facts.address: job for job, prepared in prepared_jobs if prepared.facts.address}
        for address, job in addresses.items():
            check_workers_see(address, job)
        _start(root, sweep, jobs, {**secrets, **_trusting(addresses)}, priority)
    except BaseException:
        undo(root, sweep.sweep, jobs)
        raise


def _shared_secrets(planned: Sequence[Planned]) -> dict[str, str]:
    """The URLs that no file keeps, for the process that runs all jobs (SpecError if they differ between them)."""
    secrets: dict[str, str] = {}
    for each in planned:
        for variable, url in secret_environment(each.prepared.data).items():
            if secrets.setdefault(variable, url) != url:
                raise SpecError(
                    f"{each.prepared.name}: {without_secrets(url)} has a password or a signature, and the process that runs the "
                    "jobs of a sweep holds one such URL for an input; submit these jobs one by one."
                )
    return secrets


def jobs_of(root: Workspace, sweep: Sweep) -> list[Job]:
    """Its jobs, whether they are there or not."""
    return [root.job(each["job"]) for each in sweep.jobs]


def undo(root: Workspace, sweep_id: str, jobs: Sequence[Job]) -> None:
    """Remove what a sweep that was not made whole has left."""
    for job in jobs:
        leave_the_queue(job)
        job.discard()
    store.forget(root, sweep_id)


def resume(
    root: Workspace,
    sweep: Sweep,
    *,
    priority: int = 0,
    slurm: Mapping[str, Any] | None = None,
    check: Callable[[Job], None] = lambda job: None,
    trusted: Sequence[str] = (),
) -> list[str]:
    """Run what is left of a sweep: the jobs that have not succeeded, would not fail again, and are not in Slurm; their ids.

    Parameters
    ----------
    root, sweep, priority
        See `submit`.
    slurm : mapping, optional
        To queue them with Slurm: fields of a `SlurmRequest` that are not to be as they were.
    check : callable
        Raises where one of them may not go on.
    trusted : sequence of str
        Addresses of clusters that whoever resumes it names, beside the job files.

    Raises
    ------
    SpecError
        If nothing is left, the sweep runs, or the files of a job are damaged.
    """
    if is_driven(root, sweep.sweep):
        raise SpecError(f"Sweep {sweep.sweep} is running already; `dlscale jobs --sweep {sweep.sweep}` shows how far it is.")
    left: list[tuple[Job, JobState]] = []
    for job_id, state in store.states_of(root, sweep).items():
        job = root.job(job_id)
        if state is not None and state.resumable and not has_place_in_slurm(job):
            job.refresh()
            job.check_files()
            check(job)
            left.append((job, state))
    if not left:
        raise SpecError(f"Nothing is left to run of sweep {sweep.sweep}: {told(store.counts_of(root, sweep))}.")
    if slurm is not None:
        for job, _ in left:
            queue_again(job, slurm)
        return [job.id for job, _ in left]
    for job, state in left:
        with job.claim():
            begun(job)
            job.forget_stop()
            job.handed_over.unlink(missing_ok=True)
            job.write_state(replace(state, state="submitted", message="", heartbeat=Heartbeat.now()), fsync=False)
    _start(root, sweep, [job for job, _ in left], _trusting(trusted), priority)
    return [job.id for job, _ in left]


def cancel_all(root: Workspace, sweep: Sweep) -> list[str]:
    """Cancel the jobs of a sweep that run or wait, those that wait first; their ids."""
    moving = [job_id for job_id, state in store.states_of(root, sweep).items() if state is not None and state.moves]
    cancelled = []
    for job_id in reversed(moving):
        try:
            cancel(root.job(job_id), root)
            cancelled.append(job_id)
        except SpecError:
            if root.job(job_id).read_state().moves:
                raise
    _until(lambda: not is_driven(root, sweep.sweep))  # so that it can be resumed at once
    return cancelled


def is_driven(root: Workspace, sweep_id: str) -> bool:
    """Whether the process that runs a sweep lives."""
    return root.sweeps.is_taken(store.lock_of(sweep_id))


def wait(
    root: Workspace,
    sweep: Sweep,
    *,
    timeout_seconds: float | None = None,
    watch: Callable[[Mapping[str, JobState | None]], None] = lambda states: None,
) -> Mapping[str, JobState | None]:
    """Wait until no job of a sweep runs or waits; how each is then (TimeoutError if that is not in time)."""
    started = time.monotonic()
    while True:
        looked = time.monotonic()
        driven = is_driven(root, sweep.sweep)  # asked first: what it did last is seen below
        states = store.states_of(root, sweep)
        watch(states)
        if not driven and not store.moves(states):
            return states
        if timeout_seconds is not None and time.monotonic() - started > timeout_seconds:
            raise TimeoutError(f"Sweep {sweep.sweep} has not ended after {timeout_seconds:g} s: {told(store.counts(states))}.")
        time.sleep(max(_POLL_SECONDS, _POLL_SHARE * (time.monotonic() - looked)))


def _trusting(addresses: Iterable[str]) -> dict[str, str]:
    """The environment of a process whose jobs may run on clusters that were named for them, and not by their files alone."""
    return {TRUSTED: ",".join([os.environ.get(TRUSTED, ""), *addresses])}


def _start(root: Workspace, sweep: Sweep, jobs: Sequence[Job], environment: Mapping[str, str], priority: int) -> None:
    root.make_folder(root.sweeps.folder)
    command = [sys.executable, "-m", "dlscale.batch.sweeps.driver", str(root.root), sweep.sweep, str(priority)]
    driver = start_detached(command, store.log_of(root, sweep.sweep), environment)
    handed = json.dumps(asdict(HandOver(driver=driver))).encode()
    for job in jobs:
        write_atomically(job.handed_over, handed, fsync=False)
    # Whoever resumes it from now on finds that it runs.
    _until(lambda: not driver.alive or is_driven(root, sweep.sweep))


def _until(condition: Callable[[], bool]) -> None:
    """Wait for another process, but not for ever."""
    deadline = time.monotonic() + _TAKEN_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(_TAKEN_POLL_SECONDS)
