"""How a computation on a cluster is followed, and what it prefers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dlscale.engine.events import Emit, Event, ignore


@dataclass(frozen=True)
class Watch:
    """How a computation is followed.

    Parameters
    ----------
    token : str
    listener : callable
        Receives the events that tasks send under the token.
    stalled : callable
        Asked about once a second; a sentence ends the computation with `StalledError`.
    """

    token: str
    listener: Emit
    stalled: Callable[[], str]


@dataclass(frozen=True)
class Wishes:
    """When and where the tasks of a graph should run.

    Parameters
    ----------
    priority : mapping
        A smaller number runs first.
    worker : mapping
        The number of the worker that a task prefers, modulo how many there are.
    """

    priority: Mapping[Any, float]
    worker: Mapping[Any, int]


def watchdog(seconds: float | None) -> tuple[Emit, Callable[[], str]]:
    """A pair: call the first on every event; the second says so when none came for that long (None: never)."""
    if seconds is None:
        return ignore, lambda: ""
    last = time.monotonic()

    def touch(_: Event) -> None:
        nonlocal last
        last = time.monotonic()

    def check() -> str:
        return f"No progress for {seconds:g} s." if time.monotonic() - last > seconds else ""

    return touch, check
