"""What Slurm says of a job: its place in the queue while it waits there, and why it ended.

Slurm forgets a job minutes after its end, unless it keeps accounts; so its last word is kept in the job's folder.

References
----------
squeue(1): ``--Format``, job state codes, job reasons; sacct(1): ``State``, ``ExitCode``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dlscale.batch.jobs import records
from dlscale.errors import SpecError, StoreError
from dlscale.storage.files.atomic import open_at_once

if TYPE_CHECKING:
    from dlscale.batch.workspace import Job

#: States that a job does not leave by itself; and those in which it holds a node, or is about to.
ENDED_IN_SLURM = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
)  # fmt: skip
WAITS_IN_SLURM = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")

#: Slurm is asked again after so long, in one question for all jobs that were asked for lately; and not for a while when it is dumb.
_FRESH_SECONDS, _LATELY_SECONDS, _DUMB_SECONDS = 2.0, 60.0, 30.0
_TIMEOUT_SECONDS = 5.0
_FORMAT = ",".join(f"{field}:;" for field in ("JobID", "State", "Reason", "exit_code", "NodeList"))
_N_LINES, _TAIL_BYTES = 10, 2**16
#: What slurmstepd and srun write where a task took more memory than it may.
_OUT_OF_MEMORY = re.compile(r"oom[-_ ]?kill|out of memory|exceeded (job |step )?memory limit", re.IGNORECASE)


class InSlurm(NamedTuple):
    """A job as Slurm sees it.

    Parameters
    ----------
    number : str
    state : str
        PENDING, RUNNING, COMPLETED, ...
    reason : str
        Why it waits, or how it ended; empty where Slurm gives none.
    exit_status : int
        As wait(2) gives it, of a job that has ended.
    nodes : str
    """

    number: str
    state: str
    reason: str = ""
    exit_status: int = 0
    nodes: str = ""

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED_IN_SLURM

    @property
    def signal(self) -> int:
        """That ended it, or the command in its batch script; 0 where none did."""
        code = self.exit_status >> 8
        return self.exit_status & 127 or (code - 128 if 128 < code < 160 else 0)

    @property
    def words(self) -> str:
        return slurm_words(self._asdict())


def slurm_words(said: Mapping[str, Any]) -> str:
    """``job 12, PENDING (Priority)``."""
    nodes, reason = said["nodes"], said["reason"]
    return f"job {said['number']}, {said['state']}{f' on {nodes}' if nodes else ''}{f' ({reason})' if reason else ''}"


class _Answers:
    """What Slurm said lately."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, InSlurm | None]] = {}
        self._asked: dict[str, float] = {}
        self._dumb_until = 0.0

    def of(self, number: str) -> InSlurm | None:
        with self._lock:
            now = time.monotonic()
            self._asked[number] = now
            at, known = self._known.get(number, (0.0, None))
            if at and now - at < _FRESH_SECONDS:
                return known
            if now < self._dumb_until:
                return None
            lately = sorted(each for each, asked in self._asked.items() if now - asked < _LATELY_SECONDS)
            try:
                found = _ask(lately)
            except (OSError, subprocess.SubprocessError):
                self._dumb_until = now + _DUMB_SECONDS
                return None
            at = time.monotonic()
            self._known = {each: (at, found.get(each)) for each in lately}
            return found.get(number)


_answers = _Answers()


def in_slurm(job: Job) -> InSlurm | None:
    """What Slurm says of a job that was submitted to it, or said last; None where it says nothing."""
    number = slurm_number(job)
    if number is None:
        return None
    said = _answers.of(number)
    if said is None:
        with suppress(OSError, SpecError):
            kept = records.read(job.slurm_end, records.SlurmEndRecord)
            return InSlurm(number, kept["state"], kept["reason"], kept["exit_status"]) if kept["job"] == number else None
        return None
    if said.has_ended and not job.slurm_end.exists():
        kept = {"job": number, "state": said.state, "reason": said.reason, "exit_status": said.exit_status}
        with suppress(OSError, StoreError):  # whoever may only read sees it as long as Slurm knows it
            job.keep(job.slurm_end, json.dumps(kept).encode())
    return said


def has_place_in_slurm(job: Job) -> InSlurm | None:
    """What Slurm says of a job that waits or runs there; None of all others."""
    said = in_slurm(job)
    return said if said is not None and not said.has_ended else None


def slurm_number(job: Job) -> str | None:
    """Slurm's number of a job that was submitted to it."""
    try:
        return records.read(job.slurm, records.SlurmRecord)["job"]
    except FileNotFoundError:
        return None


def begun(job: Job) -> None:
    """Forget how a job ended in Slurm, now that it goes on; outside of Slurm, that it was ever there."""
    number = None
    with suppress(SpecError):
        number = slurm_number(job)
    if number is None:
        return
    outside = os.environ.get("SLURM_JOB_ID") != number
    if outside and ((said := in_slurm(job)) is None or said.has_ended):
        job.drop(job.slurm)
    job.drop(job.slurm_end)


def slurm_facts(job: Job) -> dict[str, Any] | None:
    """What is told of a job under Slurm beside its state: number, state, reason, nodes, and the last lines where it ended badly."""
    said = None
    with suppress(SpecError):
        said = in_slurm(job)
    if said is None:
        return None
    lines = last_lines(job, said.number) if said.has_ended and said.state != "COMPLETED" else []
    return {"number": said.number, "state": said.state, "reason": said.reason, "nodes": said.nodes, "last_lines": lines}


def ending(job: Job, said: InSlurm) -> tuple[str, str] | None:
    """State and message of a job that Slurm has ended; None where the job itself says how it ended."""
    number = said.number
    match said.state:
        case "CANCELLED":
            return "cancelled", f"Slurm's job {number} was cancelled; what was finished is in the checkpoint."
        case "TIMEOUT" | "DEADLINE":
            return "interrupted", f"Slurm's job {number} reached its time limit; what was finished is in the checkpoint."
        case "NODE_FAIL" | "BOOT_FAIL" | "PREEMPTED":
            why = "was preempted" if said.state == "PREEMPTED" else f"lost its node ({said.state})"
            return "interrupted", f"Slurm's job {number} {why}; what was finished is in the checkpoint."
        case "OUT_OF_MEMORY" | "FAILED":
            lines = last_lines(job, number)
            if said.state == "OUT_OF_MEMORY" or (said.signal and any(map(_OUT_OF_MEMORY.search, lines))):
                return "failed", f"Slurm's job {number} ran out of memory; submit the job with more --memory."
            if said.signal:
                return "failed", f"Slurm's job {number} was killed (signal {said.signal})."
            return "failed", f"Slurm's job {number} failed with exit code {said.exit_status >> 8}."
    return None


def last_lines(job: Job, number: str) -> list[str]:
    """The end of what Slurm wrote down of a job's last start."""
    for path in (Path(job.slurm_output.replace("%j", number)), job.log):
        lines = _tail(path)
        begins = max((i + 1 for i, line in enumerate(lines) if line.startswith("dlscale: back into the queue")), default=0)
        if lines[begins:]:
            return lines[begins:][-_N_LINES:]
    return []


def _tail(path: Path) -> list[str]:
    try:
        with open(path, "rb", opener=open_at_once) as file:
            file.seek(max(file.seek(0, 2) - _TAIL_BYTES, 0))
            text = file.read(_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def _ask(numbers: list[str]) -> dict[str, InSlurm]:
    """What the queue says of jobs, and the accounts of those that it has forgotten."""
    found: dict[str, InSlurm] = {}
    for line in _run("squeue", "--noheader", "--states=all", f"--jobs={','.join(numbers)}", "--Format", _FORMAT).splitlines():
        number, state, reason, status, nodes = [field.strip() for field in f"{line};;;;".split(";")[:5]]
        if number:
            reason = "" if reason in ("None", "N/A") else reason
            found[number] = InSlurm(number, state, reason, int(status) if status.isdecimal() else 0, nodes)
    if forgotten := [number for number in numbers if number not in found]:
        listed = _run("sacct", "-X", "-n", "-P", f"--jobs={','.join(forgotten)}", "--format=JobID,State,ExitCode")
        for line in listed.splitlines():
            number, state, code = f"{line}||".split("|")[:3]
            exit_code, _, number_of_signal = code.partition(":")
            if state and exit_code.isdecimal():
                found[number] = InSlurm(number, state.split()[0], "", int(exit_code) << 8 | int(number_of_signal or 0))
    return found


def _run(*command: str) -> str:
    """Output of a command; nothing where it is not there, knows none of the jobs, or keeps no accounts."""
    if shutil.which(command[0]) is None:
        return ""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    if ended.returncode and command[0] == "squeue" and "Invalid job id" not in ended.stderr:
        raise subprocess.SubprocessError(ended.stderr)
    return ended.stdout
