"""A job under Slurm: the batch script that runs it, stops it before its time is over, and queues it again until it is done.

Slurm signals the script a while before the time limit; the job checkpoints and ends with exit code 75; the script then puts
the same Slurm job back into the queue, and its next start resumes the same job of the workspace.

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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dlscale.batch.jobs import records
from dlscale.batch.prepare import Prepared
from dlscale.batch.run import create
from dlscale.batch.spec.secrets import secret_environment
from dlscale.batch.workspace import Job, Workspace
from dlscale.engine.clusters.started import TIME_LIMIT, WORD
from dlscale.errors import DlscaleError, Interrupted, SpecError
from dlscale.storage.files.durable import write_atomically

#: Starts in a row that end without anything new in the checkpoint before the job is given up: its time limit is too short.
N_FRUITLESS_STARTS = 3

#: States of a job in Slurm that it will not leave.
ENDED_IN_SLURM = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")


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
#: by killing them. What somebody cancels is not queued again: by dlscale, the job's state says so; by Slurm, it is not RUNNING.
_SCRIPT = """\
#!/bin/bash
{directives}

folder={folder}
is() {{ grep -q '"state": "'"$1"'"' "$folder/state.json"; }}
if is cancelled; then exit {interrupted}; fi
told=
trap 'told=1; scancel --signal=TERM "$SLURM_JOB_ID.0" 2> /dev/null' TERM
saved() {{ ls -l --time-style=full-iso "$folder/checkpoint.zarr/manifests" 2>/dev/null | cksum; }}

before=$(saved)
srun {srun} {command} &
step=$!
wait "$step"; code=$?
while [ "$code" -gt 128 ] && [ -n "$told" ]; do told=; wait "$step"; code=$?; done
if [ "$code" -ne {interrupted} ] || ! is interrupted; then exit "$code"; fi

if [ "$(saved)" = "$before" ]; then echo >> "$folder/slurm-fruitless"; else rm -f "$folder/slurm-fruitless"; fi
if [ "$(cat "$folder/slurm-fruitless" 2>/dev/null | wc -l)" -ge {fruitless} ]; then
  echo "dlscale: {fruitless} starts in a row saved nothing new; submit the job with a longer --time."
  exit {interrupted}
fi
if [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then
  echo "dlscale: back into the queue, to go on where it stopped."
  sed -i 's/"state": "interrupted"/"state": "submitted"/' "$folder/state.json"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit {interrupted}
"""


def batch_script(folder: Path, command: Sequence[str], request: SlurmRequest) -> str:
    """The text of the script that runs a job.

    Parameters
    ----------
    folder : Path
        Of the job, on a file system that the nodes see.
    command : sequence of str
        Starts the job, or resumes it if it was started before; ends with exit code 75 when it was interrupted.
    request : SlurmRequest
    """
    directives = [
        f"--job-name={folder.name}",
        f"--output={folder}/slurm-%j.txt",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:TERM@{request.signal_seconds}",
        *request.directives(),
    ]
    srun = f"--kill-on-bad-exit=1 --mpi={request.mpi if request.ntasks > 1 else 'none'}"
    return _SCRIPT.format(
        directives="\n".join(f"#SBATCH {directive}" for directive in directives),
        folder=shlex.quote(str(folder)),
        srun=srun,
        command=shlex.join(command),
        interrupted=Interrupted.exit_code,
        fruitless=N_FRUITLESS_STARTS,
    )


def submit_to_slurm(folder: Path, command: Sequence[str], request: SlurmRequest, secrets: Mapping[str, str] | None = None) -> str:
    """Write ``slurm.sh`` into a job's folder and queue it.

    Parameters
    ----------
    folder, command, request
        See `batch_script`.
    secrets : mapping, optional
        Environment variables that sbatch hands on, and that stand in no file of the job.

    Returns
    -------
    str
        Slurm's number of the job, also kept in ``slurm.json``.

    Raises
    ------
    SpecError
        If an option is wrong, or Slurm is not installed here or refuses the job.
    """
    request.check()
    if not re.fullmatch(r"[\w./+,:=@~-]+", str(folder)):  # sbatch reads its own quotes and %-signs in it
        raise SpecError(
            f"--workspace must be of letters, digits and ./_+,:=@~- for a job under Slurm, without spaces; got {folder}."
        )
    script = folder / "slurm.sh"
    write_atomically(script, batch_script(folder, command, request).encode())
    try:
        number = _slurm("sbatch", "--parsable", str(script), environment=secrets).partition(";")[0]
    except DlscaleError as error:
        raise SpecError(f"Slurm did not take the job: {error}") from error
    write_atomically(folder / "slurm.json", json.dumps({"job": number, **asdict(request)}).encode())
    return number


def submit_prepared(root: Workspace, prepared: Prepared, request: SlurmRequest) -> Job:
    """Create a job that was planned, and queue it.

    Parameters
    ----------
    root : Workspace
        On a file system that the nodes see.
    prepared : Prepared
        Planned here; the nodes must have the memory that the plan takes.
    request : SlurmRequest
        Several tasks are the ranks of the job.
    """
    job = root.new_job(prepared.name)
    create(job, prepared, state="submitted")
    ranks = ["--cluster", "mpi"] if request.ntasks > 1 else []
    command = [sys.executable, "-m", "dlscale", "resume", job.id, "--workspace", str(root.root), *ranks]
    try:
        submit_to_slurm(job.folder, command, request, secret_environment(prepared.data))
    except BaseException:
        shutil.rmtree(job.folder, ignore_errors=True)
        raise
    return job


def slurm_number(folder: Path) -> str | None:
    """Slurm's number of a job that was submitted to it."""
    try:
        return records.read(folder / "slurm.json", records.SlurmRecord)["job"]
    except FileNotFoundError:
        return None


def slurm_state(number: str) -> str | None:
    """What Slurm says of a job: PENDING, RUNNING, COMPLETING, ...; None when it has forgotten it."""
    try:
        return _slurm("squeue", "--noheader", "--states=all", "--jobs", number, "--format", "%T") or None
    except DlscaleError:
        return None


def goes_on_in_slurm(folder: Path) -> bool:
    """Whether Slurm has a job that it will start again, or is about to."""
    number = slurm_number(folder)
    return number is not None and slurm_state(number) in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED")


def cancel_in_slurm(number: str) -> None:
    """Take a job out of Slurm's queue, or stop it: a running one checkpoints, and has half a minute for it."""
    _slurm("scancel", number)


def _slurm(program: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    if shutil.which(program) is None:
        raise SpecError(f"{program} is not installed here; submit from a login node of the cluster.")
    variables = {**os.environ, **(environment or {})}
    ended = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False, env=variables)
    if ended.returncode:
        raise DlscaleError(ended.stderr.strip() or f"{program} ended with {ended.returncode}.")
    return ended.stdout.strip()
