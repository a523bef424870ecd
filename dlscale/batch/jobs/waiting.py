"""To wait for a job that another process runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from dlscale.batch.jobs.folder import Job
from dlscale.batch.jobs.records import read
from dlscale.batch.jobs.states import ENDED, HandOver, JobState
from dlscale.engine.clusters.client import answers
from dlscale.errors import SpecError

#: The driver of a lost worker starts elsewhere within a few seconds; a job that is lost for longer stays so.
GRACE_SECONDS = 15.0
_REPORT_SECONDS = 20.0
_POLL_SECONDS, _FREE_SECONDS = 0.2, 0.05
#: How often `wait` asks whether a cluster that was to take a job is there.
_ASK_SECONDS = 5.0


def wait(job: Job, *, timeout_seconds: float | None = None, watch: Callable[[JobState], None] = lambda state: None) -> JobState:
    """Wait until a job has ended, or is lost for longer than a driver takes to start elsewhere.

    Parameters
    ----------
    job : Job
    timeout_seconds : float, optional
    watch : callable
        Called with the state now and then.

    Raises
    ------
    TimeoutError
    """
    started, lost = time.monotonic(), 0.0
    asked, taker = 0.0, ""
    while True:
        state, now = job.read_state(), time.monotonic()
        if state.state == "submitted":
            if now - asked > _ASK_SECONDS:
                asked, taker = now, _gone(job)
            state = replace(state, state="lost", message=taker) if taker else state
        watch(state)
        lost = (lost or now) if state.state == "lost" else 0.0
        for_good = lost and (now - lost > GRACE_SECONDS or job.stored_state().state == "lost")
        if state.state in ENDED or for_good:
            until_free(job)
            return state
        if timeout_seconds is not None and now - started > timeout_seconds:
            raise TimeoutError(f"Job {job.id} is {state.state} after {timeout_seconds:g} s.")
        time.sleep(_POLL_SECONDS)


def _gone(job: Job) -> str:
    """Why the cluster that was to take a submitted job never will; empty while it may."""
    with suppress(OSError, SpecError):
        scheduler = read(job.handed_over, HandOver).scheduler
        if scheduler and not answers(scheduler):
            return f"the cluster that was to take it, {scheduler}, does not answer"
    return ""


def until_free(job: Job) -> None:
    """Wait until the process of a job that has ended has written its report too; changes nothing."""
    deadline = time.monotonic() + _REPORT_SECONDS
    while job.is_taken() and time.monotonic() < deadline:
        time.sleep(_FREE_SECONDS)
