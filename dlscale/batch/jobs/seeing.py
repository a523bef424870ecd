"""How a reader sees a job: what its state.json says, unless whoever works on it is gone."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from dlscale.batch.jobs import records
from dlscale.batch.jobs.in_slurm import WAITS_IN_SLURM, InSlurm, ending, in_slurm
from dlscale.batch.jobs.states import HAND_OVER_SECONDS, LOST_SECONDS, RUNNING, HandOver, Heartbeat, JobState
from dlscale.errors import SpecError
from dlscale.storage.files import locks

if TYPE_CHECKING:
    from dlscale.batch.workspace import Job


def seen(job: Job, state: JobState) -> JobState:
    """A stored state as a reader should see it: a job whose process is gone is lost, or what Slurm says that it is."""
    if state.state not in (*RUNNING, "submitted", "interrupted"):
        return state
    beat = state.heartbeat
    near = state.state in RUNNING and _is_here(job, beat)
    if not near and job.slurm.exists():
        with suppress(SpecError):
            said = in_slurm(job)
            told = None if said is None else _seen_in_slurm(job, state, said)
            if told is not None:
                return told
    where = f"(pid {beat.pid} on {beat.host})"
    if state.state in RUNNING and not (near or _beats(job, beat)):
        return replace(state, state="lost", message=f"its process {where} vanished", seconds=state.seconds + _went_on(job, state))
    if state.state == "submitted" and not _is_on_its_way(job, beat):
        return replace(state, state="lost", message=f"the process {where} that was to take it, or to hand it over, vanished")
    return state


def _went_on(job: Job, state: JobState) -> float:
    """Seconds for which a job that was killed still wrote events when its state had been written, which it is now and then."""
    # The files of a mirror are as old as their last copy.
    if state.state in RUNNING and isinstance(job.place, Path):
        with suppress(OSError):
            return max(0.0, os.lstat(job.events).st_mtime - os.lstat(job.state).st_mtime)
    return 0.0


def _seen_in_slurm(job: Job, state: JobState, said: InSlurm) -> JobState | None:
    """A job that no process of this machine works on, as Slurm has it; None where Slurm knows nothing better."""
    number = said.number
    if said.has_ended:
        # A job that stopped by itself said why, but not who wanted it to stop. What ended in order wrote down how, and
        # a file system may show that a little later.
        if state.state == "interrupted" and said.state not in ("CANCELLED", "TIMEOUT", "DEADLINE"):
            return None
        if said.state == "FAILED" and state.state in RUNNING and not said.signal:
            return None
        told = ending(job, said)
        if told is None:
            return None
        return replace(state, state=told[0], message=told[1], seconds=state.seconds + _went_on(job, state))
    if state.state == "interrupted":
        return replace(state, state="submitted", message=f"It was interrupted; Slurm's {said.words}.")
    if said.state in WAITS_IN_SLURM:
        goes_on = "" if state.state == "submitted" else ", and goes on from its checkpoint"
        return replace(state, state="submitted", message=f"Slurm's {said.words}{goes_on}.")
    if state.state == "submitted":
        return replace(state, message=f"Slurm's {said.words}; dlscale starts there.")
    if said.state == "COMPLETING":
        return replace(state, message=f"Slurm ends its job {number}.")
    return None


def _is_here(job: Job, beat: Heartbeat) -> bool:
    """Whether a process of this machine works on a job."""
    # A killed process is a zombie when its first thread has gone, and has its lock, which keeps others out, until the last one.
    return (beat.owner.is_near and beat.alive) or locks.is_held(job.lock)


def _beats(job: Job, beat: Heartbeat) -> bool:
    """Whether a process of another machine said lately that it works on a job."""
    if beat.owner.is_near:
        return False
    if beat.alive:
        return True
    # The clock of either machine may have been set; that of the file system counts for both.
    with suppress(OSError):
        return abs(locks.age_of(job.state)) < LOST_SECONDS
    return False


def _is_on_its_way(job: Job, beat: Heartbeat) -> bool:
    """Whether a submitted job has somebody who will take it: a batch system, a cluster, a process, or its client still."""
    if job.slurm.exists():
        return True
    with suppress(OSError, SpecError):
        handed = records.read(job.handed_over, HandOver)
        if handed.scheduler:
            return True
        # What an earlier hand-over left in this machine's mirror of a bucket says nothing of a later one elsewhere.
        beat = max(beat, handed.driver or beat, key=attrgetter("time"))
    if beat.owner.is_near:
        return beat.alive or locks.is_held(job.lock)
    return abs(time.time() - beat.time) < HAND_OVER_SECONDS
