"""The one reader of what a job wrote for others: a checked value, or an error that says which file is damaged.

A disk that fails, an editor or a full quota may leave anything in a file. Nothing that is read back is used before it has
the types and ranges that its writer gave it.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar

from pydantic import ConfigDict, Field, GetPydanticSchema, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from dlscale.errors import SpecError
from dlscale.storage.descriptions import CertificateRecord, first_fault
from dlscale.storage.files.atomic import open_at_once
from dlscale.storage.signatures import Signature

T = TypeVar("T")

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
State = Annotated[
    str, Field(pattern="^(submitted|queued|planned|running|checkpointed|certifying|succeeded|failed|interrupted|cancelled|lost)$")
]

#: More than this is no file of a job.
MAX_BYTES = 64 * 2**20
_PIECE_BYTES = 2**16


class SummaryRecord(TypedDict, total=False):
    """Of an outcome, in state.json; kinds may add to it."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    certificate: CertificateRecord | None
    estimates: dict[str, Any] | None
    notes: list[str] | None
    machine: dict[str, Any] | None
    image_shape: list[int] | None


#: A mapping to Python, checked as a `SummaryRecord`.
Summary = Annotated[dict[str, Any], GetPydanticSchema(lambda _, handler: handler(SummaryRecord))]


class StepRecord(TypedDict):
    id: str
    where: str


class PlanRecord(TypedDict):
    """plan.json, as far as commands other than `resume` use it."""

    version: int
    steps: list[StepRecord]
    inputs: dict[str, dict[str, Any]]


class SlurmRecord(TypedDict):
    """Slurm's number of a job, and what it was asked for."""

    job: str
    time: NotRequired[str | None]
    nodes: NotRequired[int | None]
    ntasks: NotRequired[int]
    cpus_per_task: NotRequired[int | None]
    memory: NotRequired[str | None]
    partition: NotRequired[str | None]
    account: NotRequired[str | None]
    signal_seconds: NotRequired[int]
    mpi: NotRequired[str]


class SlurmEndRecord(TypedDict):
    """The last word of Slurm on a job; the exit status as wait(2) gives it."""

    job: str
    state: str
    reason: str
    exit_status: int


class StartsRecord(TypedDict):
    """Of a job under Slurm: how much was saved when it was interrupted last, and how many starts in a row saved nothing new."""

    saved: int
    fruitless: int


class InputsRecord(TypedDict):
    """inputs.json: what the inputs were, by role, and the checksum of that."""

    checksum: int
    inputs: dict[str, Signature]


class LimitRecord(TypedDict):
    concurrency: Annotated[int, Field(ge=1)]


@cache
def adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def read(path: Path, model: type[T], *, still: str = "") -> T:
    """The checked content of a JSON file.

    Parameters
    ----------
    path : Path
    model : type
        What it must hold.
    still : str
        What works without it, for the message.

    Raises
    ------
    FileNotFoundError
    SpecError
        If it is damaged.
    """
    return parse(read_bytes(path), model, path, still=still)


def parse(data: bytes, model: type[T], path: str | Path, *, still: str = "") -> T:
    """As `read`, of bytes that were read from the path."""
    try:
        value: T = adapter(model).validate_json(data)  # type: ignore[arg-type]
    except (ValidationError, RecursionError) as error:
        raise damaged(path, error, still=still) from error
    return value


def require_version(data: bytes, version: int, path: str | Path, *, still: str = "") -> None:
    """Refuse what a dlscale wrote that writes another form; what is no JSON of a mapping is left to `parse`."""
    found: Any = None
    with suppress(ValueError, RecursionError):
        found = json.loads(data)
    if isinstance(found, dict) and found.get("version") != version:
        form = found.get("version", 1)
        said = f"{path} is a plan in form {form}, of another version of dlscale; this one reads form {version}."
        raise SpecError(" ".join(filter(None, (said, still))))


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file of a job (SpecError if it cannot be read, FileNotFoundError if it is not there)."""
    try:
        descriptor = open_at_once(path, os.O_RDONLY)
        try:
            # Of thousands of small files, a buffer for the largest that is allowed would cost more than the reading.
            room = min(os.fstat(descriptor).st_size, MAX_BYTES) + 1
            data = os.read(descriptor, room)
            # One that is not filled is the whole file.
            while room <= len(data) <= MAX_BYTES and (more := os.read(descriptor, _PIECE_BYTES)):
                data += more
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > MAX_BYTES:
        raise SpecError(f"{path} is damaged: it has more than {MAX_BYTES:,} bytes.")
    return data


def checksum(data: bytes) -> int:
    """CRC-32C of a file's content."""
    import google_crc32c

    return int(google_crc32c.value(data))


def damaged(path: str | Path, error: Exception, *, still: str = "") -> SpecError:
    """The error for a file whose content is not what it must be."""
    return SpecError(" ".join(filter(None, (f"{path} is damaged: {first_fault(error)}.", still))))
