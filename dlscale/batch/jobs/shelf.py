"""Small files of a workspace beside its jobs, which all who see it read, and locks that hold among them all."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from dlscale.batch.jobs.folder import Claim
from dlscale.batch.jobs.records import read_bytes
from dlscale.storage.files import locks
from dlscale.storage.files.atomic import write_atomically


class Shelf:
    """A folder of small files.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self, begins: str, ends: str) -> list[str]:
        """Of the files whose names begin and end so, the newest first."""
        with suppress(OSError):
            found = [path for path in self.folder.glob(f"[!.]*{ends}") if path.name.startswith(begins) and path.is_file()]
            return [path.name for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]
        return []

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.folder / name).is_file()

    def read(self, name: str) -> bytes:
        """The bytes of a file (FileNotFoundError if it is not there, SpecError if it cannot be read)."""
        return read_bytes(self.folder / name)

    def write(self, name: str, data: bytes) -> None:
        """Write a file, in place of one that is there; the folder exists."""
        write_atomically(self.folder / name, data)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.folder / name).unlink(missing_ok=True)

    def forget_older(self, seconds: float) -> None:
        """Remove the files that were written longer ago."""
        for entry in os.scandir(self.folder) if self.folder.is_dir() else ():
            if time.time() - entry.stat().st_mtime > seconds:
                os.unlink(entry)

    def take(self, name: str) -> Claim | None:
        """Take a lock for this process; None if another one has it. The folder exists."""
        return locks.take(self.folder / name)

    def is_taken(self, name: str) -> bool:
        """Whether a process has a lock."""
        return locks.is_held(self.folder / name)
