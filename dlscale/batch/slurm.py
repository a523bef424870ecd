"""A job under Slurm: the batch script that runs it, stops it before its time is over, and queues it again until it is done.

Slurm signals the script a while before the time limit; the job checkpoints and ends with exit code 75; the script then puts
the same Slurm job back into the queue (`requeue`), and its next start resumes the same job of the workspace.

References
----------
sbatch(1): ``--signal``, ``--requeue``; scontrol(1): ``requeue``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from dlscale.batch.document import read_stored
from dlscale.batch.jobs import records
from dlscale.batch.jobs.in_slurm import has_place_in_slurm, slurm_number
from dlscale.batch.prepare import Prepared
from dlscale.batch.run import create
from dlscale.batch.spec.secrets import secret_environment
from dlscale.batch.workspace import Heartbeat, Job, Workspace
from dlscale.engine.clusters.started import TIME_LIMIT, WORD
from dlscale.errors import DlscaleError, Interrupted, SpecError, StoreError
from dlscale.storage.buckets.checkpoints import open_checkpoint
from dlscale.storage.files.durable import write_atomically
from dlscale.storage.objects.address import Address

#: Starts in a row that end without anything new in the checkpoint before the job is given up: its time limit is too short.
N_FRUITLESS_STARTS = 3


@dataclass(frozen=True)
class SlurmRequest:
    """What to ask Slurm for; what is None is left to its defaults.

    Parameters
    ----------
    time : str, optional
        Time limit of one start: ``30`` (minutes), ``10:00``, ``1:30:00`` or ``2-12:00``. A job may take many starts.
    nodes, cpus_per_task : int, optional
    ntasks : int
        Ranks; more than 1 start the job under MPI.
    memory, partition, account : str, optional
    signal_seconds : int
        How long before the limit the job is told to stop; Slurm may do so up to a minute earlier.
    mpi : str
        Which of ``srun --mpi=list`` connects the ranks.
    """

    time: str | None = None
    nodes: int | None = None
    ntasks: int = 1
    cpus_per_task: int | None = None
    memory: str | None = None
    partition: str | None = None
    account: str | None = None
    signal_seconds: int = 60
    mpi: str = "pmix"

    def check(self) -> None:
        """Check the values.

        Raises
        ------
        SpecError
            Naming the option, what it may be and what was got.
        """
        if self.time is not None and not re.fullmatch(TIME_LIMIT, self.time, re.ASCII):
            raise SpecError(f"--time must be minutes, MM:SS, HH:MM:SS or days-hours; got {self.time!r}.")
        for name in ("nodes", "ntasks", "cpus_per_task", "signal_seconds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SpecError(f"--{name.replace('_', '-')} must be at least 1; got {value}.")
        for name in ("memory", "partition", "account", "mpi"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(WORD, value, re.ASCII):
                raise SpecError(f"--{name} must be one word; got {value!r}.")

    def directives(self) -> list[str]:
        """The options of sbatch that were asked for."""
        asked = {
            "time": self.time,
            "nodes": self.nodes,
            "ntasks": self.ntasks,
            "cpus-per-task": self.cpus_per_task,
            "mem": self.memory,
            "partition": self.partition,
            "account": self.account,
        }
        return [f"--{name}={value}" for name, value in asked.items() if value is not None]


#: A signal ends `wait` before the tasks end: told says so. The tasks are told through scancel, since srun answers SIGTERM
#: by killing them.
_SCRIPT = """\
#!/bin/bash
{directives}

told=
trap 'told=1; scancel --signal=TERM "$SLURM_JOB_ID.0" 2> /dev/null' TERM
srun {srun} {resume} &
step=$!
wait "$step"; code=$?
while [ "$code" -gt 128 ] && [ -n "$told" ]; do told=; wait "$step"; code=$?; done
if [ "$code" -eq {interrupted} ]; then {requeue}; fi
exit "$code"
"""


def batch_script(job: Job, request: SlurmRequest) -> str:
    """The text of the script that runs a job, or goes on with it.

    Parameters
    ----------
    job : Job
        On a file system that the nodes see, or in a bucket, which they reach with what is in their environment.
    request : SlurmRequest
        Several tasks are the ranks of the job.
    """
    program, workspace = [sys.executable, "-m", "dlscale"], [job.id, "--workspace", str(job.place.parent.parent)]
    resume = [*program, "resume", *workspace, "--unless-cancelled", *(["--cluster", "mpi"] if request.ntasks > 1 else [])]
    directives = [
        f"--job-name={job.id}",
        f"--output={job.slurm_output}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:TERM@{request.signal_seconds}",
        *request.directives(),
    ]
    srun = f"--kill-on-bad-exit=1 --mpi={request.mpi if request.ntasks > 1 else 'none'}"
    return _SCRIPT.format(
        directives="\n".join(f"#SBATCH {directive}" for directive in directives),
        srun=srun,
        resume=shlex.join(resume),
        requeue=shlex.join([*program, "requeue", *workspace]),
        interrupted=Interrupted.exit_code,
    )


def submit_to_slurm(job: Job, request: SlurmRequest, secrets: Mapping[str, str] | None = None) -> str:
    """Write the batch script of a job and queue it.

    Parameters
    ----------
    job, request
        See `batch_script`.
    secrets : mapping, optional
        Environment variables that sbatch hands on, and that stand in no file of the job.

    Returns
    -------
    str
        Slurm's number of the job, also kept in its folder.

    Raises
    ------
    SpecError
        If an option is wrong, or Slurm is not installed here or refuses the job.
    """
    request.check()
    if not re.fullmatch(r"[\w./+,:=@~-]+", job.slurm_output.replace("%j", "")):  # sbatch reads its own quotes and %-signs in it
        raise SpecError(
            f"--workspace must be of letters, digits and ./_+,:=@~- for a job under Slurm, without spaces; got {job.folder}."
        )
    write_atomically(job.slurm_script, batch_script(job, request).encode())
    try:
        # It is let go when all who see the job can know of it.
        number = _slurm("sbatch", "--parsable", "--hold", str(job.slurm_script), environment=secrets).partition(";")[0]
    except DlscaleError as error:
        raise SpecError(f"Slurm did not take the job: {error}") from error
    try:
        job.keep(job.slurm, json.dumps({"job": number, **asdict(request)}).encode())
        job.write_state(replace(job.stored_state(), slurm=number))
        _slurm("scontrol", "release", number)
    except BaseException:
        with suppress(DlscaleError):
            _slurm("scancel", number)
        raise
    return number


def submit_prepared(root: Workspace, prepared: Prepared, request: SlurmRequest) -> Job:
    """Create a job that was planned, and queue it.

    Parameters
    ----------
    root : Workspace
    prepared : Prepared
        Planned here; the nodes must have the memory that the plan takes.
    request : SlurmRequest
        Several tasks are the ranks of the job.
    """
    job = root.new_job(prepared.name)
    create(job, prepared, state="submitted")
    try:
        submit_to_slurm(job, request, secret_environment(prepared.data))
    except BaseException:
        job.discard()
        raise
    return job


def queue_again(job: Job, asked: Mapping[str, Any], secrets: Mapping[str, str] | None = None) -> str:
    """Queue a stopped job as a new one of Slurm, to go on from its checkpoint.

    Parameters
    ----------
    job : Job
        That can go on, and runs nowhere.
    asked : mapping
        Fields of a `SlurmRequest`; others are as they were the last time, if it was in Slurm then.
    secrets : mapping, optional
        See `submit_to_slurm`.

    Returns
    -------
    str
        Slurm's number of the job.

    Raises
    ------
    SpecError
        As of `submit_to_slurm`; or if Slurm has the job still. The job's state is then as it was.
    """
    if said := has_place_in_slurm(job):
        raise SpecError(f"Job {job.id} is in Slurm's queue: {said.words}.")
    last = _last_record(job)
    request = replace(SlurmRequest(**{name: value for name, value in last.items() if name != "job"}), **asked)
    request.check()
    before = job.stored_state()
    job.forget_stop()
    job.handed_over.unlink(missing_ok=True)
    for stale in (job.slurm, job.slurm_starts, job.slurm_end):
        job.drop(stale)
    job.write_state(replace(before, state="submitted", message="", heartbeat=Heartbeat.now()))
    try:
        return submit_to_slurm(job, request, secrets)
    except BaseException:
        if last:
            job.keep(job.slurm, json.dumps(last).encode())
        job.write_state(before)
        raise


def _last_record(job: Job) -> dict[str, Any]:
    """Slurm's number of a job, and what it was asked for the last time; empty where it never was in Slurm."""
    try:
        return {**records.read(job.slurm, records.SlurmRecord)}
    except FileNotFoundError:
        return {}


def requeue(job: Job) -> str:
    """Put a job that was interrupted back into the queue, to go on where it stopped; what was done, in a sentence.

    What somebody cancels is not queued again: by dlscale, the job's state says so; by Slurm, its own does. Nor is what has
    started several times in a row without anything new in its checkpoint.
    """
    with job.claim():
        state, number = job.stored_state(), slurm_number(job)
        if state.state != "interrupted" or number is None:
            return f"Job {job.id} is {state.state}; it is not queued again."
        before = _starts(job)
        saved = before["saved"]
        with suppress(StoreError):  # a store that does not answer tells of nothing new
            saved = _n_saved(job)
        fruitless = before["fruitless"] + 1 if saved == before["saved"] else 0
        job.keep(job.slurm_starts, json.dumps({"saved": saved, "fruitless": fruitless}).encode())
        if fruitless >= N_FRUITLESS_STARTS:
            return f"{fruitless} starts in a row saved nothing new; submit the job with a longer --time."
        if (said := slurm_state(number)) != "RUNNING":
            return f"Slurm says that its job {number} is {said}; it is not queued again."
        # Before it is queued: what follows may be cut short by the end of the batch script.
        job.write_state(replace(state, state="submitted", message=""))
    try:
        _slurm("scontrol", "requeue", number)
    except DlscaleError:
        with job.claim():
            job.write_state(state)
        raise
    return "back into the queue, to go on where it stopped."


def _n_saved(job: Job) -> int:
    """The number of the newest step in a job's checkpoint, wherever that is."""
    at = (read_stored(job.spec).data.get("checkpoint") or {}).get("at")
    return open_checkpoint(str(job.place / "checkpoint.zarr") if at is None else str(Address.of(at) / job.id)).n_saved


def _starts(job: Job) -> records.StartsRecord:
    try:
        return records.read(job.slurm_starts, records.StartsRecord)
    except FileNotFoundError:
        return {"saved": 0, "fruitless": 0}


def slurm_state(number: str) -> str | None:
    """What Slurm says of a job: PENDING, RUNNING, COMPLETING, ...; None when it has forgotten it."""
    try:
        return _slurm("squeue", "--noheader", "--states=all", "--jobs", number, "--format", "%T") or None
    except DlscaleError:
        return None


def leave_the_queue(job: Job) -> None:
    """Take a job that was cancelled out of Slurm's queue, where it has not begun (any more)."""
    if number := slurm_number(job):
        with suppress(DlscaleError, OSError, subprocess.SubprocessError):  # if it starts there, it ends at once
            _slurm("scancel", "--state=PENDING", number)


def _slurm(program: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    if shutil.which(program) is None:
        raise SpecError(f"{program} is not installed here; submit from a login node of the cluster.")
    variables = {**os.environ, **(environment or {})}
    ended = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False, env=variables)
    if ended.returncode:
        raise DlscaleError(ended.stderr.strip() or f"{program} ended with {ended.returncode}.")
    return ended.stdout.strip()
