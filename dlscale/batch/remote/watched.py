"""Jobs of a bucket as a server's many readers see them, and which of them have come, changed or gone.

However many ask, the store is asked for a job once a second at most, and by one of them at a time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

from dlscale.batch.jobs.states import ENDED, JobState
from dlscale.batch.remote.jobs import BucketJob
from dlscale.errors import SpecError, StoreError
from dlscale.storage.objects.address import Address
from dlscale.storage.objects.requests import names

_ASK_SECONDS = 1.0
_N_TOGETHER = 16
#: What readers are shown beside the state.
_SHOWN = ("spec.yaml", "plan.json", "slurm.json", "slurm-end.json", "log.txt", "events.jsonl", "report.html")
#: A job is created here first, and a blink later in the bucket; one that was never seen there is left for so long.
_CREATED_SECONDS = 60.0
#: A look goes through many objects one after another; each answer counts.
_SILENT_SECONDS = 8.0


class WatchedJob(BucketJob):
    """A job that many read; nobody writes with it."""

    def __init__(self, folder: Path, place: Address) -> None:
        super().__init__(folder, place)
        self._looking = threading.Lock()
        self._looked, self._is_there, self._fault = float("-inf"), False, ""
        #: Of the state with which the files were brought, and whether a process had the job then.
        self._brought, self._was_in_use = "", False

    def stored_state(self) -> JobState:
        if not self.catch_up():
            raise SpecError(f"There is no job {self.id} in {self.place.parent.parent}: it was removed, or never there.")
        return self.kept_state()

    def catch_up(self) -> bool:
        with self._looking:
            if time.monotonic() - self._looked > _ASK_SECONDS:
                self._is_there, self._fault = False, ""
                try:
                    self._is_there = self.bring_listed() and self._bring_shown()
                except StoreError as error:  # told to all who waited
                    self._fault = str(error)
                self._looked = time.monotonic()
            if self._fault:
                raise StoreError(self._fault)
            return self._is_there

    def bring_state(self) -> bool:
        """Bring what lists show; whether it has changed."""
        with self._looking:
            before = _stamp(self.state)
            self.bring_listed()
            return _stamp(self.state) != before

    def _bring_shown(self) -> bool:
        """Bring the files that go up before a state, if that is new, or if its process was about to write the last ones."""
        with self._bringing() as alone:
            version = self._copies.version_of(self.state.name)
            if alone and (version != self._brought or (self._was_in_use and self._has_ended())):
                self._was_in_use = "claim" in self._copies.bring_all(_SHOWN, ())
                self._brought = version
        return True

    def _has_ended(self) -> bool:
        with suppress(SpecError):
            return self.kept_state().state in ENDED
        return False


class Follower:
    """Keeps the mirror of a workspace as its bucket is, as far as lists show it.

    Parameters
    ----------
    place : Address
        Of the jobs.
    mirror : Path
    watched : callable
        A job by its id.
    """

    def __init__(self, place: Address, mirror: Path, watched: Callable[[str], WatchedJob]) -> None:
        self._place, self._mirror, self._watched = place, mirror, watched
        self._known: set[str] = set()
        self._answered = float("inf")

    def require_answers(self) -> None:
        """Refuse what needs the store, while that does not answer (StoreError)."""
        silent = time.monotonic() - self._answered
        if silent > _SILENT_SECONDS:
            raise StoreError(f"{self._place} has not answered for {silent:.0f} s; its jobs go on. Ask again later.")

    def look(self, of: Iterable[str]) -> list[str]:
        """Bring what is new of some jobs, and of all that came or went; the ids of those that have changed (StoreError)."""
        self._answered = min(self._answered, time.monotonic())
        began = time.time()
        listed = {name for name in names(self._place) if name and name[0] != "."}
        self._answered = time.monotonic()
        here = {entry.name for entry in os.scandir(self._mirror) if entry.name[0] != "."}
        came = [name for name in listed - self._known if not self._is_here(name)]
        gone = [name for name in here - listed if name in self._known or self._is_here(name, before=began - _CREATED_SECONDS)]
        looked_at = list({*came, *gone, *(name for name in of if name in listed)})
        changed = list(lookers().map(self._bring, looked_at))
        self._known = {name for name in listed if name in self._known or self._is_here(name)}
        return [name for name, has_changed in zip(looked_at, changed, strict=True) if has_changed]

    def _bring(self, name: str) -> bool:
        changed = self._watched(name).bring_state()
        self._answered = time.monotonic()
        return changed

    def _is_here(self, name: str, *, before: float = float("inf")) -> bool:
        with suppress(OSError):
            return os.stat(f"{self._mirror}/{name}/state.json").st_ctime < before
        return False


def _stamp(path: Path) -> tuple[int, int]:
    with suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_ctime_ns
    return 0, 0


@cache
def lookers() -> ThreadPoolExecutor:
    """Threads that look at one job each; what they ask for is asked by others (`helpers`), which wait for none of them."""
    return ThreadPoolExecutor(_N_TOGETHER, thread_name_prefix="dlscale-jobs")
