"""The files of jobs: one class owns every name.

    <root>/jobs/<name>-<YYYYmmdd-HHMMSS>-<4 hex>/   spec.yaml state.json plan.json events.jsonl log.txt
                                                    checkpoint.zarr/ result.zarr/ report.html lock cancel
    <root>/queue/                                   tickets of the submitted jobs that wait or run (see queue.py)
    <root>/imports/<hash>.zarr                      matrices that were imported for a job

Plain files and atomic renames, so that any process on any machine that sees the folder can read a job.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from dlscale.errors import Interrupted, SpecError
from dlscale.storage.durable import PARTIAL, write_atomically
from dlscale.storage.locations import expand_home

#: A running job writes its state again so often; on another machine it counts as lost after `LOST_SECONDS` without, which
#: allows for clocks that differ. On the same machine its process is looked up.
HEARTBEAT_SECONDS = 5.0
LOST_SECONDS = 15.0

_DRAFT_SECONDS = 600.0

#: Some process works on the job, or waits for its turn to.
RUNNING = ("planned", "queued", "running", "checkpointed", "certifying")
ENDED = ("succeeded", "failed", "interrupted", "cancelled")
RESUMABLE = ("submitted", "interrupted", "cancelled", "lost", "failed")


class Heartbeat(NamedTuple):
    """Who works on a job: the process, by its start time too since numbers come round, and when it last said so."""

    host: str
    pid: int
    started: float
    time: float

    @classmethod
    def now(cls) -> Heartbeat:
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time(), time.time())

    @property
    def alive(self) -> bool:
        if self.host != socket.gethostname():
            return time.time() - self.time < LOST_SECONDS
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) < 2.0 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


@dataclass(frozen=True)
class JobState:
    """What state.json holds.

    Parameters
    ----------
    job, name, kind : str
    state : str
        submitted (handed to a cluster or a batch system, taken by no process yet), queued (a process waits for its turn),
        planned, running, checkpointed, certifying, succeeded, failed, interrupted, cancelled, or lost: its process or its
        cluster vanished.
    created : float
        Unix time.
    seconds : float
        Wall time over all runs of the job.
    message : str
        Why it failed or was interrupted.
    result : str or None
        Where the result was published.
    summary : dict
        Of the outcome: certificate, estimates, notes, image_shape, machine.
    final : bool
        The job failed in a way that another run would only repeat.
    failure_code : int
        Exit code of a job that failed.
    """

    job: str
    name: str
    kind: str
    state: str
    created: float
    heartbeat: Heartbeat
    seconds: float = 0.0
    message: str = ""
    result: str | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    final: bool = False
    failure_code: int = 1

    @property
    def exit_code(self) -> int:
        """What a command that waits for the job ends with."""
        codes = {"succeeded": 0, "interrupted": Interrupted.exit_code, "cancelled": Interrupted.exit_code}
        return codes.get(self.state, self.failure_code)

    @property
    def resumable(self) -> bool:
        return self.state in RESUMABLE and not self.final

    @property
    def certificate(self) -> dict[str, Any] | None:
        return self.summary.get("certificate")


class Job:
    """The folder of one job.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name
        self.spec = folder / "spec.yaml"
        self.state = folder / "state.json"
        self.plan = folder / "plan.json"
        self.events = folder / "events.jsonl"
        self.log = folder / "log.txt"
        self.checkpoint = folder / "checkpoint.zarr"
        self.result = folder / "result.zarr"
        self.report = folder / "report.html"
        self.lock = folder / "lock"
        self.cancel = folder / "cancel"

    def stored_state(self) -> JobState:
        """What state.json says (SpecError if the folder holds no job)."""
        try:
            record = json.loads(self.state.read_bytes())
            return JobState(**{**record, "heartbeat": Heartbeat(*record["heartbeat"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise SpecError(f"{self.folder} is not the folder of a job ({error}).") from error

    def read_state(self) -> JobState:
        """The state as a reader should see it: a job whose process is gone is lost.

        Raises
        ------
        SpecError
            If the folder holds no job.
        """
        state = self.stored_state()
        if state.state in RUNNING and not state.heartbeat.alive:
            message = f"its process (pid {state.heartbeat.pid} on {state.heartbeat.host}) vanished"
            return replace(state, state="lost", message=message)
        return state

    def write_state(self, state: JobState, *, fsync: bool = True) -> None:
        """Replace state.json as one step."""
        write_atomically(self.state, json.dumps(asdict(state), default=str).encode(), fsync=fsync)

    def read_events(self) -> list[dict[str, Any]]:
        """All events, in order; a line that a kill tore is left out."""
        events = []
        for line in self.events.read_bytes().splitlines() if self.events.exists() else []:
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
        return events

    def read_plan(self) -> dict[str, Any]:
        """What plan.json holds; empty when the job has none."""
        plan: dict[str, Any] = json.loads(self.plan.read_bytes()) if self.plan.exists() else {}
        return plan

    def remove_leftovers(self) -> None:
        """Remove the temporary files of a killed process; only whoever has the claim may."""
        for leftover in self.folder.glob(f".*{PARTIAL}"):
            if leftover.is_file():
                leftover.unlink()

    def claim(self) -> int:
        """Take the job for this process until the returned descriptor is closed or the process ends.

        Raises
        ------
        SpecError
            If another process has it.
        """
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise SpecError(f"Job {self.id} is running already; `dlscale status {self.id}` shows how far it is.") from error
        return descriptor

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Have the job for the body (SpecError if another process has it)."""
        descriptor = self.claim()
        try:
            yield
        finally:
            os.close(descriptor)


class Workspace:
    """The folder that holds all jobs.

    Parameters
    ----------
    root : str or Path, optional
        By default the environment's DLSCALE_WORKSPACE, or ``dlscale-workspace`` in the current folder.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(expand_home(root or os.environ.get("DLSCALE_WORKSPACE") or "dlscale-workspace")).absolute()
        self.jobs_folder = self.root / "jobs"
        self.imports_folder = self.root / "imports"
        self.queue_folder = self.root / "queue"

    def remove_drafts(self) -> None:
        """Remove the folders of jobs whose process was killed while it created them, which takes a blink."""
        for draft in self.jobs_folder.glob(f".*{PARTIAL}"):
            if time.time() - _modified(draft) > _DRAFT_SECONDS:
                shutil.rmtree(draft, ignore_errors=True)

    def new_job(self, name: str) -> Job:
        """A job that has an id and no folder yet."""
        return Job(self.jobs_folder / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")

    def job(self, job_id: str) -> Job:
        """The job with this id, whether it is there or not."""
        return Job(self.jobs_folder / job_id)

    def jobs(self) -> Iterator[Job]:
        """All jobs, the newest first."""
        folders = self.jobs_folder.iterdir() if self.jobs_folder.is_dir() else []
        whole = (folder for folder in folders if not folder.name.startswith("."))
        found = [(created, Job(folder)) for folder in whole if (created := _modified(folder / "spec.yaml"))]
        for _, job in sorted(found, key=lambda entry: entry[0], reverse=True):
            yield job

    def find(self, job_id: str | None) -> Job:
        """The job with this id, or with the only id that begins so; the newest when None.

        Raises
        ------
        SpecError
            If there is none or more than one.
        """
        jobs = list(self.jobs())
        if job_id is None and jobs:
            return jobs[0]
        found = [job for job in jobs if job_id and (job.id == job_id or job.id.startswith(job_id))]
        exact = [job for job in found if job.id == job_id]
        if exact or len(found) == 1:
            return (exact or found)[0]
        if found:
            raise SpecError(
                f"{job_id!r} is the beginning of {len(found)} jobs: {', '.join(job.id for job in found[:4])}; give more of it."
            )
        known = ", ".join(job.id for job in jobs[:4]) or "none"
        wanted = f"no job {job_id}" if job_id else "no job yet"
        raise SpecError(f"There is {wanted} in {self.root}; the newest are: {known}.")

    def import_path(self, request: Mapping[str, Any]) -> Path:
        """Where the matrix of an import request is kept, the same for the same request and source file."""
        import hashlib

        source = str(request["import"])
        version = _modified(Path(source)) if "://" not in source else 0
        digest = hashlib.sha256(json.dumps([dict(request), version], sort_keys=True).encode()).hexdigest()[:12]
        stem = "".join(c if c.isalnum() else "-" for c in source.rsplit("/", 1)[-1])[:40].strip("-")
        return self.imports_folder / f"{stem}-{digest}.zarr"


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
