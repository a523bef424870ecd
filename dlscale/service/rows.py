"""One job as lists show it, and the file that keeps the rows of jobs that have ended.

    <root>/index.jsonl    a line a job: its row, and which state.json it was read from; a later line replaces an earlier one

The file is only a copy, which saves reading a hundred thousand states when a server starts: it is made anew where it is absent,
a damaged line is passed over, and a row is read again when its state.json is another one than the line says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dlscale.batch.jobs.progress import Progress
from dlscale.batch.jobs.states import ENDED, RUNNING, JobState
from dlscale.batch.workspace import Job
from dlscale.errors import SpecError
from dlscale.storage.files.atomic import open_at_once, write_atomically

#: Of a list; a whole message is in the job's own state.
_MESSAGE_CHARACTERS = 300


class Stamp(NamedTuple):
    """Which state.json a row was read from: each is a file of its own, renamed over the one before."""

    inode: int
    modified: int

    @classmethod
    def of(cls, path: str | Path) -> Stamp:
        found = os.stat(path)
        return cls(found.st_ino, found.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Row:
    """A job as lists show it.

    Parameters
    ----------
    job, name, kind, state, message : str
    created, seconds : float
    certificate : bool or None
        Whether all its checks passed; None where there is none.
    resumable : bool
    progress : Progress or None
    stamp : Stamp or None
    sweep : str
        The id of the sweep that it is a job of; empty where it is none.
    """

    job: str
    name: str
    kind: str
    state: str
    created: float
    seconds: float
    message: str = ""
    certificate: bool | None = None
    resumable: bool = False
    progress: Progress | None = None
    stamp: Stamp | None = None
    sweep: str = ""

    @property
    def is_active(self) -> bool:
        """Whether somebody works on it, or is about to."""
        return self.state in RUNNING or self.state == "submitted"

    @property
    def is_final(self) -> bool:
        """Whether nothing that is known can change it."""
        return self.state in ENDED and not self.resumable

    def to_dict(self) -> dict[str, Any]:
        record = {key: getattr(self, key) for key in ("job", "name", "kind", "state", "created", "seconds", "message")}
        record |= {"certificate": self.certificate, "resumable": self.resumable, "sweep": self.sweep or None}
        return record | {"progress": None if self.progress is None else asdict(self.progress)}


def row_of(job: Job, state: JobState, stamp: Stamp | None) -> Row:
    """The row of a job in a state, as a reader should see it."""
    seen = job.seen(state)
    checks = (seen.certificate or {}).get("checks")
    return Row(
        job.id,
        seen.name,
        seen.kind,
        seen.state,
        seen.created,
        seen.seconds,
        seen.message[:_MESSAGE_CHARACTERS],
        all(check["passed"] for check in checks) if checks else None,
        seen.resumable,
        seen.progress,
        stamp,
        seen.sweep,
    )


def read_row(job: Job) -> Row | None:
    """A job's row; None where there is no job (any more)."""
    try:
        stamp = Stamp.of(job.state)
        return row_of(job, job.kept_state(), stamp)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not os.path.lexists(job.spec):
            return None
        message = f"{job.state} cannot be read: {error.strerror}."
    except SpecError as error:
        if not os.path.lexists(job.folder):
            return None
        message = str(error)
    with suppress(OSError):
        return Row(job.id, job.id, "", "damaged", os.stat(job.folder).st_mtime, 0.0, message)
    return None


class RowFile:
    """The file with the rows of jobs that have ended.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._n_lines = 0

    def load(self) -> dict[str, Row]:
        """What it holds; nothing where it is absent or cannot be read."""
        rows: dict[str, Row] = {}
        with suppress(OSError), open(self.path, "rb", opener=open_at_once) as file:
            for line in file:
                self._n_lines += 1
                with suppress(ValueError, TypeError, KeyError, RecursionError):
                    row = _row_of_line(json.loads(line))
                    rows[row.job] = row
        return rows

    def add(self, rows: Iterable[Row], known: Mapping[str, Row]) -> None:
        """Append rows; where more lines than twice the known rows have gathered, the file is written anew."""
        new = [row for row in rows if row.state in ENDED]
        if not new:
            return
        with suppress(OSError, SpecError):  # a disk that is full costs time at the next start, no more
            if self._n_lines + len(new) > 2 * len(known) + 1000:
                new = [row for row in known.values() if row.state in ENDED]
                write_atomically(self.path, b"".join(map(_line_of_row, new)), fsync=False)
                self._n_lines = len(new)
                return
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                file.write(b"\n" + b"".join(map(_line_of_row, new)))  # what a kill tore before ends here
            self._n_lines += len(new)


def _line_of_row(row: Row) -> bytes:
    fields = [row.job, row.name, row.kind, row.state, row.created, row.seconds, row.message, row.certificate, row.resumable]
    return json.dumps([*fields, row.sweep, row.stamp]).encode() + b"\n"


def _row_of_line(fields: Any) -> Row:
    job, name, kind, state, created, seconds, message, certificate, resumable, sweep, stamp = fields
    words = all(isinstance(word, str) for word in (job, name, kind, state, message, sweep))
    if not words or state not in ENDED or not isinstance(resumable, bool) or certificate not in (None, True, False):
        raise ValueError("no row")
    read_from = Stamp(*map(int, stamp))
    return Row(job, name, kind, state, float(created), float(seconds), message, certificate, resumable, None, read_from, sweep)
