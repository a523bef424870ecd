"""Where a job may write, and who writes there: outputs, folders, imports."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dlscale.errors import SpecError
from dlscale.storage.durable import PARTIAL
from dlscale.storage.groups import result_attributes
from dlscale.storage.results import is_being_written


def is_result_of(path: Path, job: str) -> bool:
    """Whether a job has published its result there."""
    return bool(job) and (result_attributes(str(path)) or {}).get("job") == job


def check_output(data: Mapping[str, Any], *, overwrite: bool, job: str) -> Path | None:
    """The output that a spec asks for, if the job may write there (SpecError if not); None is the job's own folder."""
    location = data.get("output")
    if location is None:
        return None
    output = Path(location.removeprefix("file://"))
    if "://" in location and not location.startswith("file://"):
        raise SpecError(f"got {location}; allowed: a path on a file system of this machine.")
    for role, source in data["input"].items():
        if isinstance(source, str) and (within := _nested(output, Path(source.removeprefix("file://")))):
            raise SpecError(f"{output} {within} the input {role} {source}; choose a path beside it.")
    if is_being_written(output):
        raise SpecError(f"{output} is being written by another job; wait for its end, or choose another path.")
    # A job that goes on may have published just before it was killed.
    if os.path.lexists(output) and not is_result_of(output, job):
        if not overwrite:
            raise SpecError(f"{output} exists already; choose another path, or set overwrite: true.")
        if result_attributes(str(output)) is None:
            raise SpecError(f"{output} is not a result of dlscale, and only such a result is overwritten; choose another path.")
    check_writable(output.parent)
    return output


def _nested(output: Path, source: Path) -> str:
    """How one of two paths lies in the other, or nothing."""
    output, source = Path(os.path.realpath(output)), Path(os.path.realpath(source))
    if output == source:
        return ""
    return "lies in" if source in output.parents else "holds" if output in source.parents else ""


def check_writable(folder: Path) -> None:
    """Write something that never gets a name into the nearest folder that exists."""
    place = folder
    while not os.path.lexists(place):
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"?")
    except OSError as error:
        raise SpecError(f"got {folder}, where nothing can be written ({error.strerror}); choose a folder that is yours.") from error


@contextmanager
def only_importer(destination: Path) -> Iterator[None]:
    """Keep other processes from importing the same; nothing is left of an import that failed or was killed."""
    missing = [folder for folder in destination.parents if not folder.exists()]
    path = destination.with_name(f".{destination.name}.lock")
    while True:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (path.exists() and os.path.samestat(os.fstat(lock.fileno()), os.stat(path))):
                continue  # whoever had it before has removed it
            try:
                _remove_imports_of(destination)
                yield
                return
            finally:
                _remove_imports_of(destination)
                path.unlink(missing_ok=True)
                for folder in missing:
                    with suppress(OSError):
                        folder.rmdir()


def _remove_imports_of(destination: Path) -> None:
    """Remove what killed imports left; one that was interrupted may have threads that write for another moment."""
    for _ in range(40):
        leftovers = list(destination.parent.glob(f".{destination.name}.*{PARTIAL}"))
        for leftover in leftovers:
            shutil.rmtree(leftover, ignore_errors=True)
        if not leftovers:
            return
        time.sleep(0.05)
