"""The folder of one job: its files by name, and what is read from them and written to them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from dlscale.batch.jobs import records
from dlscale.batch.jobs.seeing import seen
from dlscale.batch.jobs.states import HandOver, Heartbeat, JobState
from dlscale.engine import PLAN_VERSION
from dlscale.engine.events import Event, event_of
from dlscale.errors import DlscaleError, SpecError
from dlscale.storage.files import locks
from dlscale.storage.files.atomic import PARTIAL, make_folder, write_atomically
from dlscale.storage.objects.address import Address
from dlscale.storage.signatures import Signature


class Claim(Protocol):
    """That this process alone works on a job, until `release` or its end; see `locks.Lock`."""

    note: str

    def check(self) -> None: ...

    def release(self, *, remove: bool = False) -> None: ...

    def __enter__(self) -> Claim: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class Job:
    """The folder of one job.

    Parameters
    ----------
    folder : Path

    Attributes
    ----------
    place : Path or Address
        Below which its checkpoint and its result lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name
        self.place: Path | Address = folder
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
        #: Where Slurm writes on its node, as sbatch takes it.
        self.slurm_output = f"{folder}/slurm-%j.txt"

    @property
    def _anew(self) -> str:
        return f"The other files of {self.folder} are as they were; `dlscale run {self.spec}` computes the job anew."

    def stored_state(self) -> JobState:
        """What state.json says (SpecError if the folder holds no job, or the file is damaged)."""
        return self.kept_state()

    def kept_state(self) -> JobState:
        """As `stored_state`, as far as this machine knows without asking others."""
        try:
            return records.read(self.state, JobState, still=self._anew)
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
        still = "`dlscale logs` and the result, if there is one, are as they were; to compute again, run the spec anew."
        try:
            data = records.read_bytes(self.plan)
        except FileNotFoundError:
            return {}
        records.require_version(data, PLAN_VERSION, self.plan, still=still)
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

    @property
    def is_whole(self) -> bool:
        """Whether the files that are written once are as they were."""
        with suppress(SpecError):
            self.check_files()
            return True
        return False

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

    def refresh(self) -> None:
        """Bring the files to what others have written; on a file system they are that anyway."""

    def catch_up(self) -> bool:
        """As `refresh`, of what readers are shown; whether the job is there, damaged or not."""
        return self.exists()

    def send(self) -> None:
        """Let others see what was written since the last state; on a file system they do."""

    def publish(self) -> None:
        """Let others see a job that was created."""

    def exists(self) -> bool:
        """Whether it is there, damaged or not."""
        return self.folder.exists()

    def keep(self, path: Path, data: bytes) -> None:
        """Write a small file of the job that others read."""
        write_atomically(path, data)

    def drop(self, path: Path) -> None:
        """Remove one."""
        path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove what there is of a job that was not made whole."""
        with suppress(DlscaleError):
            self.remove_stored()
        shutil.rmtree(self.folder, ignore_errors=True)

    def say_that_it_waits(self) -> None:
        """Tell those who cannot look up this process that it will start the job."""
        handed = json.dumps(asdict(HandOver(driver=Heartbeat.now()))).encode()
        if self.folder.is_dir():
            write_atomically(self.handed_over, handed, fsync=False)

    def remove_stored(self) -> None:
        """Remove what lies of it outside of its folder, with its result; whoever calls has the claim on it."""

    def size(self) -> int:
        """Bytes on the disk of all that is in its folder; links are not followed."""
        n_bytes = 0
        for place, _, names in os.walk(self.folder):
            for name in names:
                with suppress(OSError):
                    n_bytes += os.lstat(os.path.join(place, name)).st_blocks * 512
        return n_bytes

    def ask_to_stop(self) -> None:
        """Ask for its end; whoever runs it looks now and then."""
        self.cancel.touch()

    def is_asked_to_stop(self) -> bool:
        """Whether somebody asked for its end."""
        return self.cancel.exists()

    def forget_stop(self) -> None:
        """Take back what was asked, once it has stopped."""
        self.cancel.unlink(missing_ok=True)

    def is_taken(self) -> bool:
        """Whether a process has it, as far as that is told at once."""
        return locks.is_held(self.lock)

    def remove_leftovers(self) -> None:
        """Remove the temporary files of a killed process; only whoever has the claim may."""
        for leftover in self.folder.glob(f".*{PARTIAL}"):
            if leftover.is_file():
                leftover.unlink()

    def take(self) -> Claim | None:
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

    def claim(self) -> Claim:
        """As `take`, of a job that no other process has (SpecError)."""
        lock = self.take()
        if lock is None:
            raise SpecError(f"Job {self.id} is running already; `dlscale status {self.id}` shows how far it is.")
        return lock


def _checksum(inputs: Mapping[str, Signature]) -> int:
    return records.checksum(json.dumps([[role, *signature] for role, signature in inputs.items()]).encode())
