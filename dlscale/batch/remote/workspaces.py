"""A workspace in a bucket, and the folder of this machine that mirrors it."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

from dlscale.batch.jobs.folder import Job
from dlscale.batch.jobs.states import JobState
from dlscale.batch.remote.jobs import BucketJob
from dlscale.batch.remote.shelves import BucketShelf
from dlscale.batch.remote.watched import Follower, WatchedJob, lookers
from dlscale.batch.workspace import MIRRORED, Workspace
from dlscale.errors import SpecError
from dlscale.storage.files.atomic import is_own_folder, write_atomically
from dlscale.storage.files.locations import expand_home
from dlscale.storage.objects.address import Address
from dlscale.storage.objects.conditions import require_conditions
from dlscale.storage.objects.requests import first_look, names

#: So many jobs that were asked for last are known by more than their files.
_N_WATCHED = 4096


class BucketWorkspace(Workspace):
    """The jobs below an address.

    Parameters
    ----------
    place : Address

    Raises
    ------
    SpecError
        If this machine's mirror of it, in the user's cache folder, belongs to somebody else.
    """

    look_seconds, n_resting, fresh_seconds = 1.0, 20, 1.0

    def __init__(self, place: Address) -> None:
        super().__init__(_mirror_of(place))
        self.place: Address = place
        self._is_found = False
        self._watched: OrderedDict[str, WatchedJob] = OrderedDict()
        self._watching = threading.Lock()
        self._follower = Follower(place / "jobs", self.jobs_folder, self.watched)

    def require_folder(self, what: str) -> None:
        raise SpecError(f"{what[0].upper()}{what[1:]} needs a workspace on a file system; got {self.place}.")

    def require_writable(self) -> None:
        self._require_mirror()
        super().require_writable()
        require_conditions(self.place)

    def _require_mirror(self) -> None:
        """Find the bucket, and make the mirror for this user alone (SpecError, StoreError)."""
        if self._is_found:
            return
        first_look(self.place)
        try:
            self.jobs_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not is_own_folder(self.root):
                raise SpecError(f"{self.root} must be a folder of yours, and it is not; set XDG_CACHE_HOME to another folder.")
            self.root.chmod(0o700)
            write_atomically(self.root / MIRRORED, str(self.place).encode(), fsync=False)
        except OSError as error:
            raise SpecError(
                f"{self.root}, which mirrors {self.place}, cannot be written: {error.strerror}; set XDG_CACHE_HOME to a folder "
                "of yours."
            ) from error
        self._is_found = True

    def job(self, job_id: str) -> Job:
        return BucketJob(self.jobs_folder / job_id, self.place / "jobs" / job_id)

    def watched(self, job_id: str) -> WatchedJob:
        with self._watching:
            job = self._watched.get(job_id) or WatchedJob(self.jobs_folder / job_id, self.place / "jobs" / job_id)
            self._watched[job_id] = job
            self._watched.move_to_end(job_id)
            if len(self._watched) > _N_WATCHED:
                self._watched.popitem(last=False)
            return job

    def require_answers(self) -> None:
        self._require_mirror()
        self._follower.require_answers()

    def follow(self, ids: Iterable[str]) -> Sequence[str]:
        self._require_mirror()
        return self._follower.look(ids)

    def shelf(self, name: str) -> BucketShelf:
        self._require_mirror()
        return BucketShelf(self.root / name, self.place / name)

    def read_states(self, ids: Sequence[str]) -> dict[str, JobState | None]:
        self._require_mirror()
        return dict(zip(ids, lookers().map(self._state_of, ids), strict=True))

    def ids(self, begins: str = "") -> list[str]:
        self._require_mirror()
        found = [name for name in names(self.place / "jobs") if name[0] != "." and name.startswith(begins)]
        there = list(lookers().map(self._bring_listed, found))
        return [name for name, is_job in zip(found, there, strict=True) if is_job]

    def find(self, job_id: str | None) -> Job:
        if job_id is None or not self._is_there(job_id):
            job_id = super().find(job_id).id
        job = self.job(job_id)
        job.refresh()
        return job

    def _is_there(self, job_id: str) -> bool:
        self._require_mirror()
        return "/" not in job_id and not job_id.startswith(".") and self._bring_listed(job_id)

    def _bring_listed(self, job_id: str) -> bool:
        """Bring what lists show of a job; whether there is one."""
        return BucketJob(self.jobs_folder / job_id, self.place / "jobs" / job_id).bring_listed()


def _mirror_of(place: Address) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or expand_home("~/.cache")
    digest = hashlib.sha256(str(place).encode()).hexdigest()[:16]
    return Path(cache) / "dlscale" / "workspaces" / digest
