"""Where a job may write, and who writes there: outputs, folders, imports."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlscale.errors import DoesNotFitError, InputError, SpecError
from dlscale.interrupts import held_back
from dlscale.storage.buckets.results import require_free, require_writable
from dlscale.storage.files import locks
from dlscale.storage.files.atomic import PARTIAL, hidden
from dlscale.storage.groups import result_attributes
from dlscale.storage.objects.address import Address, is_object_url
from dlscale.storage.objects.requests import exists, first_look
from dlscale.storage.results import check_name_length, check_place, is_being_written
from dlscale.storage.zarr_stores import wait_until_idle

if TYPE_CHECKING:  # an import of a matrix needs no kinds of jobs
    from dlscale.batch.spec.sections import JobSpec

_POLL_SECONDS = 0.1


def is_result_of(path: Path | Address, job: str) -> bool:
    """Whether a job has published its result there."""
    with suppress(InputError):
        return bool(job) and (result_attributes(str(path)) or {}).get("job") == job
    return False


#: Keys of an input that are no roles.
OPTIONS = ("missing_chunks", "transforms", "color")


def check_output(data: Mapping[str, Any], *, overwrite: bool, job: str) -> Path | Address | None:
    """The output that a spec asks for, if the job may write there (SpecError if not); None is the job's own folder."""
    location = data.get("output")
    if location is None:
        return None
    if is_object_url(location):
        return _check_address(Address.of(location), data["input"], overwrite=overwrite, job=job)
    output = Path(location.removeprefix("file://"))
    if "://" in location and not location.startswith("file://"):
        raise SpecError(f"got {location}; allowed: a path on a file system of this machine, or s3://, gs:// or az://.")
    for role, source in data["input"].items():
        if role not in OPTIONS and isinstance(source, str) and (within := _nested(output, Path(source.removeprefix("file://")))):
            raise SpecError(f"{output} {within} the input {role} {source}; choose a path beside it.")
    check_name_length(output)
    check_place(output)
    if is_being_written(output):
        raise SpecError(f"{output} is being written by another job; wait for its end, or choose another path.")
    # A job that goes on may have published just before it was killed.
    if os.path.lexists(output) and not is_result_of(output, job):
        if not overwrite:
            raise SpecError(f"{output} exists already; choose another path, or set overwrite: true.")
        if output.is_symlink():
            raise SpecError(f"{output} is a link to {os.readlink(output)}, and links are not overwritten; name the result itself.")
        if not _is_result(output):
            raise SpecError(f"{output} is not a result of dlscale, and only such a result is overwritten; choose another path.")
    check_writable(output.parent)
    return output


def check_checkpoint(spec: JobSpec) -> None:
    """Refuse an address for checkpoints that cannot be used (SpecError, StoreError)."""
    if spec.checkpoint.at is None:
        return
    place = Address.of(spec.checkpoint.at)
    first_look(place)
    require_writable(place / "checkpoint")


def _check_address(place: Address, inputs: Mapping[str, Any], *, overwrite: bool, job: str) -> Address:
    if not place.key:
        raise SpecError(f"got {place}; allowed: a name in the bucket, such as {place}/result.zarr.")
    first_look(place)
    for role, source in inputs.items():
        if role not in OPTIONS and is_object_url(source):
            read = Address.of(source)
            if place.holds(read) or read.holds(place):
                raise SpecError(f"{place} lies in or holds the input {role} {source}; choose a place beside it.")
    if not is_result_of(place, job):
        require_free(place, overwrite=overwrite, owner=job)
        if exists(place / "zarr.json") and not _is_result(place):
            raise SpecError(f"{place} is not a result of dlscale, and only such a result is overwritten; choose another place.")
    require_writable(place)
    return place


def _is_result(path: Path | Address) -> bool:
    try:
        return result_attributes(str(path)) is not None
    except InputError:
        return True  # a result whose description is damaged


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
def writable(path: Path, advice: str) -> Iterator[None]:
    """Say of a place where the body cannot write that it cannot, and what to do (SpecError)."""
    try:
        yield
    except DoesNotFitError as error:
        why = getattr(error.__cause__, "strerror", None) or "the disk is full"
        raise DoesNotFitError(f"{path} cannot be written ({why}); free some space, or {advice}.") from error
    except OSError as error:
        raise SpecError(f"{path} cannot be written ({error.strerror or error}); {advice}.") from error


#: What imports that have not ended must remove: a signal may end a command between any two of its steps.
_unfinished: dict[int, Callable[[], None]] = {}


def clean_up() -> None:
    """Remove what interrupted imports of this process left; for a process that ends without unwinding."""
    for number in list(_unfinished):
        _unfinished.pop(number)()


@contextmanager
def only_importer(destination: Path, *, make_folder: Callable[[Path], None] | None = None) -> Iterator[None]:
    """Keep other processes from importing the same; nothing is left of an import that failed or was killed.

    Parameters
    ----------
    destination : Path
    make_folder : callable, optional
        Makes the folder around it; by default as the umask says.
    """
    missing = [folder for folder in destination.parents if not folder.exists()]
    path = hidden(destination, ".lock")
    taken: list[locks.Lock] = []

    def clean() -> None:
        with held_back():
            _unfinished.pop(number, None)
            if taken:
                _remove_imports_of(destination)
                taken.pop().release(remove=True)
            for folder in missing:
                with suppress(OSError):
                    folder.rmdir()

    number = id(clean)
    _unfinished[number] = clean
    try:
        with writable(destination, "choose another destination"):
            if make_folder is not None:
                make_folder(destination.parent)
            destination.parent.mkdir(parents=True, exist_ok=True)
            while not taken:
                with held_back():  # a lock that nobody knows of would never be removed
                    if (lock := locks.take(path)) is not None:
                        taken.append(lock)
                if not taken:
                    time.sleep(_POLL_SECONDS)
        _remove_imports_of(destination)
        yield
    except BaseException:
        wait_until_idle()
        raise
    finally:
        clean()


def _remove_imports_of(destination: Path) -> None:
    """Remove what killed imports left."""
    for leftover in destination.parent.glob(f".{destination.name}.*{PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)
