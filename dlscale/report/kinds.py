"""How a kind of job is told beside its title and its certificate: what `answers` and the modules of its families fill in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dlscale.report.markup import NOTHING, Markup
from dlscale.report.sections import Job


@dataclass(frozen=True)
class Tile:
    """A key number with its name, and a line below it."""

    name: str
    value: str
    below: str = ""
    bar: Markup = NOTHING


@dataclass(frozen=True)
class Telling:
    """How the answer of a kind is told: `goal` says what was computed, then its numbers and its sections."""

    goal: Callable[[Job], str]
    tiles: Callable[[Job], list[Tile]]
    answer: tuple[Callable[[Job], Markup | None], ...]


def array(job: Job, *names: str) -> np.ndarray | None:
    """The first of these arrays that the result has."""
    found = next((job.record.arrays[name] for name in names if job.record.arrays.get(name) is not None), None)
    return np.asarray(found) if found is not None and np.size(found) else None
