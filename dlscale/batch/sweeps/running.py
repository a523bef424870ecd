"""Sweeps are submitted, resumed, cancelled and waited for."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from dlscale.batch.document import Document
from dlscale.batch.driver import start_detached
from dlscale.batch.jobs.in_slurm import begun, has_place_in_slurm
from dlscale.batch.prepare import Prepared
from dlscale.batch.queue import Queue
from dlscale.batch.run import create
from dlscale.batch.slurm import SlurmRequest, leave_the_queue, queue_again, submit_to_slurm
from dlscale.batch.spec import parse_spec
from dlscale.batch.spec.expanding import KEY, expand
from dlscale.batch.spec.secrets import secret_environment
from dlscale.batch.submit import cancel, check_place, check_workers_see
from dlscale.batch.sweeps import store
from dlscale.batch.sweeps.store import Sweep, SweptJob
from dlscale.batch.workspace import RUNNING, HandOver, Heartbeat, Job, JobState, Workspace
from dlscale.errors import Interrupted, SpecError
from dlscale.storage.files import locks
from dlscale.storage.files.atomic import write_atomically

_POLL_SECONDS = 1.0
_TAKEN_SECONDS, _TAKEN_POLL_SECONDS = 20.0, 0.05


def check(document: Document) -> tuple[str, int]:
    """Check every job of a sweep; their kind, and how many they are (SpecError if one of them is none)."""
    kinds = [parse_spec(made).kind for _, made in expand(document)]
    return kinds[0], len(kinds)


def submit(
    root: Workspace,
    document: Document,
    plan: Callable[[Document], Prepared],
    *,
    priority: int = 0,
    concurrency: int | None = None,
    slurm: Mapping[str, Any] | None = None,
) -> Sweep:
    """Plan all jobs of a sweep, create them, and start the process that runs them one after another, or queue them with Slurm.

    Parameters
    ----------
    root : Workspace
    document : Document
        With ``matrix:``.
    plan : callable
        The plan of one job file.
    priority : int
        Of each job.
    concurrency : int, optional
        How many submitted jobs of the workspace run at once from now on.
    slurm : mapping, optional
        Fields of a `SlurmRequest`, the same for each job.

    Raises
    ------
    SpecError, InputError
        Before anything is created.
    """
    check(document)
    planned = [(list(values.values()), plan(made)) for values, made in expand(document)]
    if slurm is None:
        for _, prepared in planned:
            check_place(prepared)
    if concurrency is not None:
        Queue(root).limit(concurrency)
    first = planned[0][1]
    name = str(document.data.get("name") or first.spec.kind)
    jobs = [root.new_job(prepared.name) for _, prepared in planned]
    swept: list[SweptJob] = [{"job": job.id, "values": values} for job, (values, _) in zip(jobs, planned, strict=True)]
    keys = list(document.data[KEY])
    sweep = Sweep(store.new_id(name), name, first.spec.kind, time.time(), keys, swept)
    prepared_jobs = [(job, prepared) for job, (_, prepared) in zip(jobs, planned, strict=True)]
    try:
        for job, prepared in prepared_jobs:
            create(job, prepared, state="submitted")
        store.keep(root, sweep)
        if slurm is not None:
            for job, prepared in prepared_jobs:
                submit_to_slurm(job, SlurmRequest(**slurm), secret_environment(prepared.data))
            return sweep
        for address, job in {prepared.facts.address: job for job, prepared in prepared_jobs if prepared.facts.address}.items():
            check_workers_see(address, job)
        secrets = ChainMap(*(secret_environment(prepared.data) for _, prepared in prepared_jobs))
        _start(root, sweep, jobs, secrets, priority)
    except BaseException:
        _undo(root, sweep, jobs)
        raise
    return sweep


def _undo(root: Workspace, sweep: Sweep, jobs: Sequence[Job]) -> None:
    for job in jobs:
        leave_the_queue(job)
        shutil.rmtree(job.folder, ignore_errors=True)
    (store.folder_of(root) / f"{sweep.sweep}.json").unlink(missing_ok=True)


def resume(root: Workspace, sweep: Sweep, *, priority: int = 0, slurm: Mapping[str, Any] | None = None) -> list[str]:
    """Run what is left of a sweep: the jobs that have not succeeded, would not fail again, and are not in Slurm; their ids.

    Parameters
    ----------
    root, sweep, priority
        See `submit`.
    slurm : mapping, optional
        To queue them with Slurm: fields of a `SlurmRequest` that are not to be as they were.

    Raises
    ------
    SpecError
        If nothing is left, the sweep runs, or the files of a job are damaged.
    """
    if locks.is_held(store.lock_of(root, sweep.sweep)):
        raise SpecError(f"Sweep {sweep.sweep} is running already; `dlscale jobs --sweep {sweep.sweep}` shows how far it is.")
    left: list[tuple[Job, JobState]] = []
    for job_id, state in store.states_of(root, sweep).items():
        job = root.job(job_id)
        if state is not None and state.state not in RUNNING and state.resumable and not has_place_in_slurm(job):
            job.check_files()
            left.append((job, state))
    if not left:
        raise SpecError(f"Nothing is left to run of sweep {sweep.sweep}: {told(store.states_of(root, sweep))}.")
    if slurm is not None:
        for job, _ in left:
            queue_again(job, slurm)
        return [job.id for job, _ in left]
    for job, state in left:
        with job.claim():
            begun(job)
            job.cancel.unlink(missing_ok=True)
            job.handed_over.unlink(missing_ok=True)
            job.write_state(replace(state, state="submitted", message="", heartbeat=Heartbeat.now()), fsync=False)
    _start(root, sweep, [job for job, _ in left], {}, priority)
    return [job.id for job, _ in left]


def cancel_all(root: Workspace, sweep: Sweep) -> int:
    """Cancel the jobs of a sweep that run or wait, those that wait first; how many they were."""
    moving = [
        job_id
        for job_id, state in store.states_of(root, sweep).items()
        if state is not None and state.state in (*RUNNING, "submitted")
    ]
    n_cancelled = 0
    for job_id in reversed(moving):
        try:
            cancel(root.job(job_id), root)
            n_cancelled += 1
        except SpecError:
            if root.job(job_id).read_state().state in (*RUNNING, "submitted"):
                raise
    return n_cancelled


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
        driven = locks.is_held(store.lock_of(root, sweep.sweep))  # asked first: what it did last is seen below
        states = store.states_of(root, sweep)
        watch(states)
        if not driven and not store.moves(states):
            return states
        if timeout_seconds is not None and time.monotonic() - started > timeout_seconds:
            raise TimeoutError(f"Sweep {sweep.sweep} has not ended after {timeout_seconds:g} s: {told(states)}.")
        time.sleep(_POLL_SECONDS)


def told(states: Mapping[str, JobState | None]) -> str:
    """``3 succeeded, 1 failed``."""
    return ", ".join(f"{n} {state}" for state, n in store.counts(states).items())


def exit_code(states: Mapping[str, JobState | None]) -> int:
    """0 where all jobs succeeded, 1 where one failed or is lost, otherwise 75: `dlscale resume` goes on."""
    found = store.counts(states)
    if set(found) == {"succeeded"}:
        return 0
    return 1 if found.keys() & {"failed", "lost", "removed"} else Interrupted.exit_code


def _start(root: Workspace, sweep: Sweep, jobs: Sequence[Job], secrets: Mapping[str, str], priority: int) -> None:
    command = [sys.executable, "-m", "dlscale.batch.sweeps.driver", str(root.root), sweep.sweep, str(priority)]
    driver = start_detached(command, store.log_of(root, sweep.sweep), secrets)
    handed = json.dumps(asdict(HandOver(driver=driver))).encode()
    for job in jobs:
        write_atomically(job.handed_over, handed, fsync=False)
    # Whoever resumes it from now on finds that it runs.
    deadline = time.monotonic() + _TAKEN_SECONDS
    while driver.alive and not locks.is_held(store.lock_of(root, sweep.sweep)) and time.monotonic() < deadline:
        time.sleep(_TAKEN_POLL_SECONDS)
