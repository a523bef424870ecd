"""A job of a workspace in a bucket.

Its checkpoint and its result are objects, which workers write and read themselves. Its small files are written in the folder of
the mirror, as those of any job, and go up with each state: first they, then state.json on the condition that it is the one that
this machine knows. Who reads brings them down, unless a process of this machine works on the job.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from dlscale.batch.jobs.folder import Claim, Job
from dlscale.batch.jobs.in_slurm import slurm_number
from dlscale.batch.jobs.states import Heartbeat, JobState
from dlscale.batch.remote import claims
from dlscale.batch.remote.copies import Copies
from dlscale.errors import SpecError, StoreError
from dlscale.storage.files import locks
from dlscale.storage.files.locks import LockLostError
from dlscale.storage.objects.address import Address
from dlscale.storage.objects.requests import exists, helpers, listing, put, remove, remove_object

_SLURM = ("slurm.json", "slurm-starts.json", "slurm-end.json")
#: What goes up before the state does.
_FILES = ("spec.yaml", "plan.json", *_SLURM, "checkpoint.zarr/inputs.json", "log.txt", "events.jsonl", "report.html")
#: Of which all files go up, or one.
_FOLDERS = ("rows/", "checkpoint.zarr/")
#: A file that grows goes up as a whole, at this rate at most.
_BYTES_PER_SECOND = 2**20
#: How often the store is asked for a state, or whether a job is to stop.
_ASK_SECONDS = 1.0


class BucketJob(Job):
    """A job whose files others find in a bucket.

    Parameters
    ----------
    folder : Path
        In the mirror.
    place : Address
        In the bucket.
    """

    def __init__(self, folder: Path, place: Address) -> None:
        super().__init__(folder)
        self.place: Address = place
        self.slurm_output = f"/tmp/{self.id}-slurm-%j.txt"  # of the node: there may be no folder that it shares with this machine
        self._copies = Copies(folder, place)
        self._claim: Claim | None = None
        self._sending = threading.RLock()
        self._asked, self._stop_asked, self._stop = float("-inf"), float("-inf"), False
        self._sent: dict[str, float] = {}

    def stored_state(self) -> JobState:
        if not self._is_here() and time.monotonic() - self._asked > _ASK_SECONDS:
            self._asked = time.monotonic()
            if not self.bring_listed():
                raise SpecError(f"There is no job {self.id} in {self.place.parent.parent}: it was removed, or never there.")
        return super().stored_state()

    def write_state(self, state: JobState, *, fsync: bool = True) -> None:
        with self._sending:
            super().write_state(state, fsync=fsync)
            self._send_files(all_of_them=fsync)
            if not self._copies.send_over("state.json"):
                raise LockLostError(
                    f"{self.place}/state.json was written by another process meanwhile, which goes on with the job; this one stops."
                )

    def bring_listed(self) -> bool:
        """Bring what lists show; whether there is such a job."""
        with self._bringing() as alone:
            if not alone:
                return self.state.exists()
            there = self._copies.bring("state.json") and (self.spec.exists() or self._copies.bring("spec.yaml"))
            with suppress(SpecError):
                if there and (number := self.kept_state().slurm) and slurm_number(self) != number:
                    self._copies.bring(self.slurm.name)
        if not there:
            self._copies.forget()
        return there

    def refresh(self) -> None:
        with self._bringing() as alone:
            if alone:
                self._bring_files()
                self._asked = time.monotonic()

    def send(self) -> None:
        if self._claim is not None:
            self._claim.check()
            with self._sending:
                self._send_files(all_of_them=True)

    def publish(self) -> None:
        try:
            with locks.held(self._copies.lock):
                is_new = self._copies.send_new(self.spec.name)
                if is_new:
                    self._send_files(all_of_them=True)
                    is_new = self._copies.send_new(self.state.name)
            if not is_new:
                raise StoreError(f"{self.place} is the place of another job; run the command again.")
        except BaseException:
            self._copies.forget()
            raise

    def exists(self) -> bool:
        return exists(self.place / "state.json")

    def keep(self, path: Path, data: bytes) -> None:
        super().keep(path, data)
        self._copies.send(path.name)

    def drop(self, path: Path) -> None:
        super().drop(path)
        remove_object(self.place / path.name)

    def say_that_it_waits(self) -> None:
        state = self.stored_state()
        if state.state == "submitted":
            self.write_state(replace(state, heartbeat=Heartbeat.now()), fsync=False)

    def remove_stored(self) -> None:
        left = ("state.json", "claim")  # what tells that there is something to remove goes last
        for key in sorted({key.partition("/")[0] for key in listing(self.place)} - {*left}):
            remove(self.place / key)
            remove_object(self.place / key)
        remove_object(self.place / "state.json")

    def size(self) -> int:
        return sum(stamp.size for stamp in listing(self.place).values())

    def ask_to_stop(self) -> None:
        put(self.place / "cancel", b"")

    def is_asked_to_stop(self) -> bool:
        if not self._stop and time.monotonic() - self._stop_asked > _ASK_SECONDS:
            self._stop_asked = time.monotonic()
            with suppress(StoreError):
                self._stop = exists(self.place / "cancel")
        return self._stop

    def forget_stop(self) -> None:
        self._stop = False
        with suppress(StoreError, LockLostError):
            if self._claim is not None:
                self._claim.check()  # which waits less for a store that has not answered for long
            remove_object(self.place / "cancel")

    def is_taken(self) -> bool:
        return super().is_taken() or claims.is_taken(self.place / "claim")

    def take(self) -> Claim | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        claim = claims.take_with(super().take(), self.place / "claim")
        if claim is not None:
            try:
                with locks.held(self._copies.lock):
                    self._bring_files()
            except BaseException:
                claim.release()
                raise
            self._claim = claim
        return claim

    def _is_here(self) -> bool:
        """Whether a process of this machine works on it, and writes its files."""
        return locks.is_held(self.lock)

    @contextmanager
    def _bringing(self) -> Iterator[bool]:
        """Keep others from bringing files for the body; whether no process of this machine writes them."""
        if not self.folder.parent.is_dir():
            yield False
            return
        self.folder.mkdir(exist_ok=True)
        with locks.held(self._copies.lock):
            yield not self._is_here()

    def _bring_files(self) -> None:
        """All files, the state above all, whose version the next one is written over."""
        self._copies.bring("state.json")
        self._copies.bring_all(_FILES, _FOLDERS)

    def _send_files(self, *, all_of_them: bool) -> None:
        def send(name: str) -> None:
            with suppress(FileNotFoundError):
                size = os.path.getsize(self.folder / name)
                due = time.monotonic() - self._sent.get(name, 0.0) > size / _BYTES_PER_SECOND
                if (all_of_them or due) and self._copies.send(name):
                    self._sent[name] = time.monotonic()

        list(helpers().map(send, [*_FILES, *(f"rows/{path.name}" for path in sorted(self.rows.glob("[!.]*")))]))
