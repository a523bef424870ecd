"""The files of jobs: one class owns every name.

    <root>/jobs/<name>-<YYYYmmdd-HHMMSS>-<4 hex>/   spec.yaml state.json plan.json events.jsonl log.txt
                                                    checkpoint.zarr/ result.zarr/ report.html lock cancel
                                                    handed-over.json slurm.json slurm.sh slurm-starts.json slurm-end.json (of
                                                    submitted jobs)
                                                    rows/ (of trainings that write down which rows they used)
    <root>/queue/                                   tickets of the submitted jobs that wait or run (see queue.py)
    <root>/imports/<hash>.zarr                      matrices that were imported for a job

Plain files and atomic renames, so that any process on any machine that sees the folder can read a job.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dlscale.batch.jobs import records
from dlscale.batch.jobs.newest import newest
from dlscale.batch.jobs.seeing import seen
from dlscale.batch.jobs.states import (
    ENDED,
    HAND_OVER_SECONDS,
    HEARTBEAT_SECONDS,
    LOST_SECONDS,
    RESUMABLE,
    RUNNING,
    HandOver,
    Heartbeat,
    JobState,
    ListedJob,
)
from dlscale.engine.events import Event, event_of
from dlscale.errors import SpecError
from dlscale.showing import without_address
from dlscale.storage.files import locks
from dlscale.storage.files.atomic import PARTIAL, fsync_path, make_folder, write_atomically
from dlscale.storage.files.locations import local_path
from dlscale.storage.signatures import Signature

__all__ = [
    "ENDED", "HAND_OVER_SECONDS", "HEARTBEAT_SECONDS", "LOST_SECONDS", "RESUMABLE", "RUNNING",
    "HandOver", "Heartbeat", "Job", "JobState", "ListedJob", "Workspace",
]  # fmt: skip

_DRAFT_SECONDS = 600.0


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
        self.inputs = self.checkpoint / "inputs.json"
        self.result = folder / "result.zarr"
        self.report = folder / "report.html"
        self.rows = folder / "rows"
        self.lock = folder / "lock"
        self.cancel = folder / "cancel"
        self.handed_over = folder / "handed-over.json"
        self.slurm = folder / "slurm.json"
        self.slurm_script = folder / "slurm.sh"
        self.slurm_starts = folder / "slurm-starts.json"
        self.slurm_end = folder / "slurm-end.json"

    def stored_state(self) -> JobState:
        """What state.json says (SpecError if the folder holds no job, or the file is damaged)."""
        try:
            return records.read(self.state, JobState, still=f"The other files of {self.folder} are as they were.")
        except FileNotFoundError as error:
            if self.folder.is_dir():
                raise SpecError(f"{self.folder} is not the folder of a job: there is no {self.state}.") from error
            raise SpecError(f"{self.folder} is not there any more: it was removed or moved.") from error

    def read_state(self) -> JobState:
        """The state as a reader should see it: a job whose process is gone is lost.

        Raises
        ------
        SpecError
            If the folder holds no job, or its state is damaged.
        """
        return self.seen(self.stored_state())

    def seen(self, state: JobState) -> JobState:
        """A stored state as a reader should see it."""
        return seen(self, state)

    def write_state(self, state: JobState, *, fsync: bool = True) -> None:
        """Replace state.json as one step."""
        write_atomically(self.state, json.dumps(asdict(state), default=str).encode(), fsync=fsync)

    def read_events(self) -> list[Event]:
        """All events, in order; a line that a kill tore, that is damaged, or that only another version knows is left out."""
        return [event for event in self._event_lines() if event is not None and not isinstance(event, ValueError)]

    def torn_events(self) -> list[int]:
        """The numbers of the lines of events.jsonl that are damaged; the last one may be torn by a kill, which is none."""
        lines = list(self._event_lines())
        return [number for number, event in enumerate(lines[:-1], 1) if isinstance(event, ValueError)]

    def _event_lines(self) -> Iterator[Event | ValueError | None]:
        """What each line holds: an event, one of a kind that is not known here (None), or none."""
        data = b""
        with suppress(FileNotFoundError):
            data = records.read_bytes(self.events)
        for line in data.splitlines():
            try:
                event = event_of(json.loads(line))
                if event is not None and event.time is None:
                    raise ValueError("an event without its time")
                yield event
            except (ValueError, RecursionError) as error:
                yield ValueError(error)

    def read_plan(self) -> dict[str, Any]:
        """What plan.json holds; empty when the job has none (SpecError if it is damaged, or another version's)."""
        from dlscale.engine.plan import VERSION

        still = "`dlscale logs` and the result, if there is one, are as they were; to compute again, run the spec anew."
        try:
            data = records.read_bytes(self.plan)
        except FileNotFoundError:
            return {}
        records.require_version(data, VERSION, self.plan, still=still)
        records.parse(data, records.PlanRecord, self.plan, still=still)
        plan: dict[str, Any] = json.loads(data)
        return plan

    def check_files(self) -> None:
        """Compare the files that are written once with their checksums (SpecError naming a damaged one)."""
        for name, checksum in self.stored_state().checksums.items():
            path = self.folder / name
            try:
                found = records.checksum(records.read_bytes(path))
            except FileNotFoundError:
                found = -1
            if found != checksum:
                what = "is missing" if found < 0 else "is damaged: its bytes have changed since they were written"
                raise SpecError(f"{path} {what}, so that job {self.id} cannot go on to the same answer; run it anew.")

    def record_inputs(self, signatures: Mapping[str, Signature]) -> None:
        """Keep what the inputs were when the job began to read them."""
        if not self.inputs.exists():
            make_folder(self.inputs.parent)
            inputs = {role: signature._asdict() for role, signature in signatures.items()}
            write_atomically(self.inputs, json.dumps({"checksum": _checksum(signatures), "inputs": inputs}).encode(), fsync=True)

    def read_inputs(self) -> dict[str, Signature]:
        """What each input was when the job began to read it; empty where that was not kept (SpecError if it is damaged)."""
        still = f"Whether the inputs of job {self.id} have changed since it began is thus not known; run it anew."
        try:
            record = records.read(self.inputs, records.InputsRecord, still=still)
        except FileNotFoundError:
            return {}
        # A flipped bit must not read as an input that has changed.
        if _checksum(record["inputs"]) != record["checksum"]:
            raise SpecError(f"{self.inputs} is damaged: its bytes have changed since they were written. {still}")
        return record["inputs"]

    def remove_leftovers(self) -> None:
        """Remove the temporary files of a killed process; only whoever has the claim may."""
        for leftover in self.folder.glob(f".*{PARTIAL}"):
            if leftover.is_file():
                leftover.unlink()

    def take(self) -> locks.Lock | None:
        """Take the job for this process until it is released or the process ends; None if another process has it.

        Raises
        ------
        SpecError
            If its folder cannot be written, or something else stands where its lock must be.
        """
        try:
            return locks.take(self.lock)
        except OSError as error:
            raise SpecError(f"Job {self.id} cannot be taken by this process: {self.lock}: {error.strerror}.") from error

    def claim(self) -> locks.Lock:
        """As `take`, of a job that no other process has (SpecError)."""
        lock = self.take()
        if lock is None:
            raise SpecError(f"Job {self.id} is running already; `dlscale status {self.id}` shows how far it is.")
        return lock


class Workspace:
    """The folder that holds all jobs.

    Parameters
    ----------
    root : str or Path, optional
        By default the environment's DLSCALE_WORKSPACE, or ``dlscale-workspace`` in the current folder.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = local_path(root or os.environ.get("DLSCALE_WORKSPACE") or "dlscale-workspace", "The workspace").absolute()
        self.jobs_folder = self.root / "jobs"
        self.imports_folder = self.root / "imports"
        self.queue_folder = self.root / "queue"

    def make_folder(self, folder: Path) -> None:
        """Create a folder of the workspace, for this user alone unless sharing was asked for.

        It was where the nearest folder that exists hands its group down (setgid), or the workspace itself can be written by its
        group: new folders then follow it, and the umask.
        """
        missing = [folder]
        while not missing[-1].parent.is_dir():
            missing.append(missing[-1].parent)
        around = missing[-1].parent
        mode = around.stat().st_mode
        in_workspace = around == self.root or self.root in around.parents
        shared = mode & stat.S_ISGID or (in_workspace and mode & stat.S_IWGRP and not mode & stat.S_ISVTX)
        for place in reversed(missing):
            place.mkdir(mode=0o777 if shared else 0o700, exist_ok=True)
            fsync_path(place.parent)

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

    def ids(self, begins: str = "") -> list[str]:
        """Of all jobs whose id begins so, in no order; a folder among them that holds no job is one too."""
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.jobs_folder) as entries:
            names = [name for entry in entries if (name := entry.name)[0] != "." and entry.is_dir()]
            return [name for name in names if name.startswith(begins)] if begins else names
        return []

    def jobs(self) -> Iterator[Job]:
        """All jobs, the newest first."""
        return map(self.job, self._newest(self.ids()))

    def _newest(self, ids: Sequence[str], limit: int | None = None) -> list[str]:
        return newest(self.jobs_folder, ids, limit) if ids else []

    def find(self, job_id: str | None) -> Job:
        """The job with this id, or with the only id that begins so; the newest when None.

        Raises
        ------
        SpecError
            If there is none or more than one.
        """
        if job_id and "/" not in job_id and not job_id.startswith(".") and self.job(job_id).state.exists():
            return self.job(job_id)  # without a look at all others
        ids = self.ids()
        found = self._newest([name for name in ids if job_id and name.startswith(job_id)])
        if job_id in found or len(found) == 1:
            return self.job(job_id if job_id in found else found[0])
        if found:
            raise SpecError(f"{job_id!r} is the beginning of {len(found)} jobs: {', '.join(found[:4])}; give more of it.")
        last = self._newest(ids, 4 if job_id else 1)
        if last and job_id is None:
            return self.job(last[0])
        if not last:
            raise SpecError(f"There is no job yet in {self.root}; `dlscale run` and `dlscale submit` make one.")
        raise SpecError(f"There is no job {job_id} in {self.root}; the newest are: {', '.join(last)}.")

    def list_jobs(
        self,
        limit: int | None = None,
        *,
        states: Collection[str] = (),
        kinds: Collection[str] = (),
        name: str | None = None,
        ids: Sequence[str] | None = None,
    ) -> tuple[list[ListedJob], dict[str, str]]:
        """The newest jobs, the newest first, and what is damaged of those that were looked at: id to message.

        Parameters
        ----------
        limit : int, optional
            How many; all when None.
        states, kinds : collection of str
            Only jobs of these; of any when empty.
        name : str, optional
            Only jobs whose id begins so.
        ids : sequence of str, optional
            What `ids` gave, where it was asked before.
        """
        looked_at = self.ids(name or "") if ids is None else [job_id for job_id in ids if job_id.startswith(name or "")]
        if limit is not None:
            looked_at = self._newest(looked_at, None if states or kinds else limit)
        listed: list[ListedJob] = []
        faults: dict[str, str] = {}
        for job_id in looked_at:
            try:
                row = self._row(job_id)
            except SpecError as error:
                faults[job_id] = str(error)
                continue
            if row is not None and (not states or row.state in states) and (not kinds or row.kind in kinds):
                listed.append(row)
                if len(listed) == limit:
                    break
        return sorted(listed, key=lambda row: row.created, reverse=True), faults

    def _row(self, job_id: str) -> ListedJob | None:
        """A job as a reader should see it (SpecError if it is damaged); None where there is none."""
        path = f"{self.jobs_folder}/{job_id}/state.json"
        try:
            row = records.parse(records.read_bytes(path), ListedJob, path)
        except OSError as error:
            if os.path.exists(f"{self.jobs_folder}/{job_id}/spec.yaml"):
                raise SpecError(f"{path} cannot be read: {error.strerror}.") from error
            return None
        if row.state in RUNNING or row.state in ("submitted", "interrupted"):
            seen = self.job(job_id).read_state()
            row = replace(row, state=seen.state, message=seen.message, progress=seen.progress)
        return row

    def import_path(self, request: Mapping[str, Any], version: str) -> Path:
        """Where the matrix of an import request is kept: one place for one request and one content of its source.

        Parameters
        ----------
        request : dict
            The source by ``import``, and the options.
        version : str
            What identifies the content of the source.
        """
        import hashlib

        from dlscale import __version__

        key = json.dumps([dict(request), version, __version__], sort_keys=True)
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        name = without_address(str(request["import"])).rstrip("/").rsplit("/", 1)[-1]
        stem = "".join(c if c.isalnum() else "-" for c in name)[:40].strip("-")
        return self.imports_folder / f"{stem}-{digest}.zarr"


def _checksum(inputs: Mapping[str, Signature]) -> int:
    return records.checksum(json.dumps([[role, *signature] for role, signature in inputs.items()]).encode())


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
