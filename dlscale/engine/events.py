"""What tasks and drivers say while a job runs: one small type for each kind of event.

An event is a value as long as it is within a process; as a mapping it goes over the network and into a line of events.jsonl.
Keys of that mapping are the fields' names, and ``event`` is the word of its kind. What a later version says by other words is
passed over, and so are keys that are not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, TypeAdapter

#: In seconds since 1970, up to the year 2500.
UnixTime = Annotated[float, Field(ge=0, le=16_725_225_600, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Parameters
    ----------
    time : float, optional
        Seconds since 1970, of whoever wrote it down; None before that.
    """

    word: ClassVar[str]
    time: UnixTime | None = field(default=None, kw_only=True)

    def to_dict(self) -> dict[str, Any]:
        """A mapping for JSON and msgpack, without what is absent."""
        said = {key: value for key, value in vars(self).items() if value is not None and (value or not isinstance(value, tuple))}
        return {"event": self.word, **said}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """The event of a mapping, `to_dict`'s or as damaged as a file may be (ValidationError)."""
        event: Self = _adapter(cls).validate_python(fields)  # type: ignore[arg-type]
        return event


Emit = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A listener that does nothing."""


@dataclass(frozen=True)
class StateChanged(Event):
    """The job went over to a state, for the reason in ``message`` if there is one."""

    word: ClassVar[str] = "state"
    state: str
    message: str = ""


@dataclass(frozen=True)
class Warned(Event):
    """Something that a person should know."""

    word: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True)
class DashboardOpened(Event):
    """Dask's dashboard of the job's cluster can be looked at."""

    word: ClassVar[str] = "dashboard"
    url: str


@dataclass(frozen=True)
class StepStarted(Event):
    """A step begins.

    Parameters
    ----------
    step : str
        Its name, unique in the job.
    flops : float
        That it takes as planned.
    bytes : int
        That it reads.
    """

    word: ClassVar[str] = "pass_started"
    step: str
    flops: Finite = 0.0
    bytes: int = 0


@dataclass(frozen=True)
class WorkDone(Event):
    """What a task did, or did since it told of it last.

    Parameters
    ----------
    step, worker : str
    rows : int
        Of a matrix, that were gone through.
    bytes : int
        Read or written.
    flops : float
    read_seconds, compute_seconds : float
    rss_bytes : int, optional
        Resident memory of the worker's process; told on as `MemoryTaken`.
    inexact : tuple of str
        Matrices with integers that were rounded as they were read.
    thread : int, optional
        Of the operating system; this and what follows are of tasks of factorizations.
    task : str, optional
        What it is: load, fetch, factor, apply, write or product.
    panel, transform : int, optional
        Which panel it worked on, and the transform that it applied.
    started : float, optional
        Seconds since 1970.
    """

    word: ClassVar[str] = "blocks"
    step: str
    worker: str
    rows: int = 0
    bytes: int = 0
    flops: Finite = 0.0
    read_seconds: Finite = 0.0
    compute_seconds: Finite = 0.0
    rss_bytes: int | None = None
    inexact: tuple[str, ...] = ()
    thread: int | None = None
    task: str | None = None
    panel: int | None = None
    transform: int | None = None
    started: Finite | None = None


@dataclass(frozen=True)
class StepFinished(Event):
    """A step ends.

    Parameters
    ----------
    step : str
    seconds : float
    bytes_read, bytes_written : int
    flops : float
        Of the whole step, whether it was computed or not.
    resumed : bool
        Its result was in the checkpoint.
    """

    word: ClassVar[str] = "pass_finished"
    step: str
    seconds: Finite = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    flops: Finite = 0.0
    resumed: bool = False

    @property
    def is_planned(self) -> bool:
        """Whether it is of those that a plan counts: what the driver computes between them has no cost."""
        return bool(self.flops or self.bytes_read or self.bytes_written)


@dataclass(frozen=True)
class Saved(Event):
    """The result of a step is in the checkpoint: so many bytes, written in so many seconds."""

    word: ClassVar[str] = "checkpoint"
    step: str
    bytes: int = 0
    seconds: Finite = 0.0


@dataclass(frozen=True)
class MemoryTaken(Event):
    """Resident memory of a process: the driver, or a worker by its name."""

    word: ClassVar[str] = "memory"
    process: str
    rss_bytes: int


@dataclass(frozen=True)
class SyncChosen(Event):
    """How gradients are added up in a training, and a sentence that says why."""

    word: ClassVar[str] = "sync"
    message: str
    sync: str


@dataclass(frozen=True)
class TrainingResumed(Event):
    """A training goes on behind so many steps and epochs, which took at least so many flops and read so many bytes."""

    word: ClassVar[str] = "resumed"
    steps: int
    epoch: int
    flops: Finite = 0.0
    bytes: int = 0


@dataclass(frozen=True)
class EpochFinished(Event):
    """An epoch of a training ended.

    Parameters
    ----------
    epoch : int
        How many are done.
    values : mapping of str to float
        ``epoch_loss``, and ``validation_<metric>`` where there are validation rows; None where it is not finite.
    """

    word: ClassVar[str] = "epoch"
    epoch: int
    values: Mapping[str, Finite | None]

    def to_dict(self) -> dict[str, Any]:
        """A mapping with the values beside the rest."""
        said = super().to_dict()
        values = said.pop("values")
        return {**said, **values}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        own = ("event", "epoch", "time")
        values = {key: value for key, value in fields.items() if key not in own}
        return super().from_fields({key: fields[key] for key in own if key in fields} | {"values": values})


_TYPES: dict[str, type[Event]] = {
    kind.word: kind
    for kind in (
        StateChanged,
        Warned,
        DashboardOpened,
        StepStarted,
        WorkDone,
        StepFinished,
        Saved,
        MemoryTaken,
        SyncChosen,
        TrainingResumed,
        EpochFinished,
    )
}


@cache
def _adapter(kind: type[Event]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def word_of(record: object) -> str:
    """The word for the kind of an event that is written as a mapping, of a later version too; empty of anything else."""
    word = record.get("event") if isinstance(record, Mapping) else None
    return word if isinstance(word, str) and word.isidentifier() else ""


def event_of(record: Any) -> Event | None:
    """The event of a mapping that `Event.to_dict` made, here or in another version; None of a kind that is not known here.

    Raises
    ------
    ValueError
        If it is no event, or a damaged one.
    """
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        raise ValueError("not an event")
    kind = _TYPES.get(record["event"])
    return None if kind is None else kind.from_fields(record)
