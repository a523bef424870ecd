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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dlscale.batch.jobs import records
from dlscale.batch.jobs.folder import Job
from dlscale.batch.jobs.newest import newest
from dlscale.batch.jobs.shelf import Shelf
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
from dlscale.errors import SpecError
from dlscale.showing import without_address
from dlscale.storage.files.atomic import PARTIAL, fsync_path
from dlscale.storage.files.locations import local_path
from dlscale.storage.objects.address import Address

__all__ = [
    "ENDED",
    "HAND_OVER_SECONDS",
    "HEARTBEAT_SECONDS",
    "LOST_SECONDS",
    "MIRRORED",
    "RESUMABLE",
    "RUNNING",
    "HandOver",
    "Heartbeat",
    "Job",
    "JobState",
    "ListedJob",
    "Workspace",
]  # fmt: skip

#: The file of a folder that mirrors a workspace in a bucket: the address of that.
MIRRORED = "mirrored"

_DRAFT_SECONDS = 600.0


class Workspace:
    """The folder that holds all jobs.

    Parameters
    ----------
    root : str or Path, optional
        By default the environment's DLSCALE_WORKSPACE, or ``dlscale-workspace`` in the current folder.

    Attributes
    ----------
    place : Path or Address
        Where it is for everybody.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        location = root or os.environ.get("DLSCALE_WORKSPACE") or "dlscale-workspace"
        self.root = local_path(location, "The workspace, if it is no URL of s3:, gs: or az:,").absolute()
        self.place: Path | Address = self.root
        self.jobs_folder = self.root / "jobs"
        self.imports_folder = self.root / "imports"
        self.queue_folder = self.root / "queue"

    #: Whoever shows all jobs looks so often, and at so many at a time of those that rest and could go on.
    look_seconds, n_resting = 0.5, 300
    #: What was asked so lately need not be asked again for whoever only looks.
    fresh_seconds = 0.0

    def require_folder(self, what: str) -> None:
        """Refuse something that needs a workspace on a file system, where this is none (SpecError)."""

    def require_answers(self) -> None:
        """Refuse what needs the workspace, while it does not answer (StoreError)."""

    def require_writable(self) -> None:
        """Refuse a workspace that cannot be written to (SpecError)."""
        from dlscale.batch.jobs.places import check_writable  # which loads what reads matrices

        check_writable(self.root)

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
        return self.job(f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")

    def job(self, job_id: str) -> Job:
        """The job with this id, whether it is there or not."""
        return Job(self.jobs_folder / job_id)

    def watched(self, job_id: str) -> Job:
        """As `job`, for many who read it again and again."""
        return self.job(job_id)

    def follow(self, ids: Iterable[str]) -> Sequence[str]:
        """Bring what lists show of some jobs to what others have written, and find those that came or went (StoreError).

        Returns
        -------
        sequence of str
            The jobs of which something was brought; on a file system all is there anyway.
        """
        return ()

    def shelf(self, name: str) -> Shelf:
        """Small files beside the jobs, in a folder of a name."""
        return Shelf(self.root / name)

    @property
    def sweeps(self) -> Shelf:
        """The files of sweeps."""
        return self.shelf("sweeps")

    def read_states(self, ids: Sequence[str]) -> dict[str, JobState | None]:
        """How each of some jobs is; None of one that was removed, or is damaged."""
        return {job_id: self._state_of(job_id) for job_id in ids}

    def kept_states(self, ids: Sequence[str]) -> dict[str, JobState | None]:
        """As `read_states`, as `follow` has brought them."""
        return {job_id: self._kept_state_of(job_id) for job_id in ids}

    def _state_of(self, job_id: str) -> JobState | None:
        with suppress(SpecError):
            return self.job(job_id).read_state()
        return None

    def _kept_state_of(self, job_id: str) -> JobState | None:
        with suppress(SpecError):
            job = self.job(job_id)
            return job.seen(job.kept_state())
        return None

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
            raise SpecError(f"There is no job yet in {self.place}; `dlscale run` and `dlscale submit` make one.")
        raise SpecError(f"There is no job {job_id} in {self.place}; the newest are: {', '.join(last)}.")

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
            row = replace(row, state=seen.state, message=seen.message, seconds=seen.seconds, progress=seen.progress)
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


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
