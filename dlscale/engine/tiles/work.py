"""What the tasks of a factorization share: the matrix, its grid, what is done with the panels; and how they tell of it."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

from dlscale.arrays import Array
from dlscale.engine.events import WorkDone
from dlscale.engine.progress import resident_bytes, send, worker_name
from dlscale.engine.targets import Target
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.methods import Change, Factored, TiledMethod
from dlscale.storage.matrix import Matrix
from dlscale.storage.results import ArrayWriter


class Verb:
    """What is done with the panels of a group, and what with."""

    @property
    def writers(self) -> tuple[ArrayWriter, ...]:
        """What tasks write to."""
        return ()

    def with_facts_of(self, steps: Sequence[int]) -> Self:
        """The same for a graph that needs the facts of these finished panels alone."""
        return self


class Writing(Verb):
    """Panels go to a target."""

    target: Target

    @property
    def writers(self) -> tuple[ArrayWriter, ...]:
        return self.target.writers


#: A `Method`, or a `TiledMethod`.
M = TypeVar("M", covariant=True)
V = TypeVar("V", bound=Verb, covariant=True)


@dataclass(frozen=True, kw_only=True)
class Applying(Verb, Generic[M]):
    """Transforms of finished panels are read and applied."""

    method: M
    finished: Factored

    def with_facts_of(self, steps: Sequence[int]) -> Self:
        facts = [fact if j in steps else {} for j, fact in enumerate(self.finished.facts)]
        return replace(self, finished=replace(self.finished, facts=facts))


@dataclass(frozen=True, kw_only=True)
class Filling(Applying[M], Writing):
    """They are applied to panels that go to a target, each changed at last."""

    target: Target
    change: Change | None = None


@dataclass(frozen=True, kw_only=True)
class Factoring(Filling[M]):
    """They are applied to the panels of a matrix, which are factored then; probes are multiplied with it while it is read."""

    probes: Array


@dataclass(frozen=True, kw_only=True)
class Unapplying(Applying[TiledMethod]):
    """The transforms, the last one first, are applied to a few vectors (m, k)."""

    vectors: Array


@dataclass(frozen=True)
class Copying(Writing):
    """Tiles go to another place, each changed; the target may have fewer rows than the matrix."""

    target: Target
    change: Change


@dataclass(frozen=True)
class Placing(Writing):
    """Rows go to their final places: row q of group g comes from stored row ``sources[g][q]``."""

    target: Target
    sources: Sequence[Array]


@dataclass(frozen=True)
class Work(Generic[V]):
    """What all tasks of a group share, shipped to each worker once and as one piece (see `Parcel`).

    Parameters
    ----------
    step : str
        Under which the tasks tell what they do.
    A : Matrix
        What is read.
    grid : PanelGrid
    verb : Verb
    token : str
        Of the messages of one attempt.
    """

    step: str
    A: Matrix
    grid: PanelGrid
    verb: V
    token: str = ""

    def __reduce__(self) -> tuple[Callable[..., Work[Any]], tuple[bytes]]:
        return _unpack, (pickle.dumps((self.step, self.A, self.grid, self.verb, self.token), protocol=4),)


def _unpack(fields: bytes) -> Work[Any]:
    return Work(*pickle.loads(fields))


def measured(
    work: Work[Verb], task: str, panel: int, started: float, *, flops: float = 0.0, n_bytes: int = 0, transform: int | None = None
) -> None:
    """Report what a task did."""
    seconds = time.perf_counter() - started
    event = WorkDone(
        work.step,
        worker_name(),
        bytes=n_bytes,
        flops=flops,
        read_seconds=seconds if n_bytes else 0.0,
        compute_seconds=0.0 if n_bytes else seconds,
        rss_bytes=resident_bytes(),
        inexact=tuple(sorted(work.A.inexact())),
        thread=threading.get_native_id(),
        task=task,
        panel=panel,
        transform=transform,
        started=time.time() - seconds,
    )
    send(work.token, event)
