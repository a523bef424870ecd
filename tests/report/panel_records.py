"""Records of factorizations by panels for the report's tests: tasks on two threads that follow each other by known rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
from job_records import START, certificate, plan

from dlscale.engine.events import Event, StepStarted, WorkDone
from dlscale.report.record import JobRecord

#: What a task takes.
SECONDS = {"load": 1.0, "factor": 0.5, "apply": 1.0, "fetch": 0.25, "write": 0.5}
#: What a task that computes does.
FLOPS = 1e9


def block(step: str, task: str, panel: int, start: float, *, thread: int = 1, worker: str = "0", **more: Any) -> WorkDone:
    """The event of one task that began `start` seconds after `START`."""
    seconds, computes = more.pop("seconds", SECONDS[task]), task in ("factor", "apply")
    return WorkDone(
        step,
        worker,
        bytes=0 if computes else 8_000_000,
        flops=FLOPS if computes else 0.0,
        read_seconds=0.0 if computes else seconds,
        compute_seconds=seconds if computes else 0.0,
        thread=thread,
        task=task,
        panel=panel,
        started=START + start,
        time=START + start + seconds + 0.001,
        **more,
    )


def two_panels() -> list[Event]:
    """Panels 0 and 1 on two threads.

    From 0 to 4 seconds on thread 1: load, factor, apply 0 to 1 after a pause of 0.25 s, factor 1, write 1 after a pause of
    0.25 s. On thread 2: load from 0 to 1, write of panel 0 from 3 to 3.5.
    """
    return [
        StepStarted("lu-1", 3e9, 8_000_000, time=START),
        block("lu-1", "load", 0, 0.0),
        block("lu-1", "load", 1, 0.0, thread=2),
        block("lu-1", "factor", 0, 1.0),
        block("lu-1", "apply", 1, 1.75, transform=0),
        block("lu-1", "factor", 1, 2.75),
        block("lu-1", "write", 0, 3.0, thread=2),
        block("lu-1", "write", 1, 3.5),
    ]


def many_panels(n: int, step: str = "lu-1", *, start: float = 0.0) -> list[Event]:
    """A right-looking factorization of n panels in tasks of a millisecond on two threads, without look-ahead."""
    events: list[Event] = [StepStarted(step, 1e9, 1, time=START + start)]
    now = start
    for j in range(n):
        events.append(block(step, "factor", j, now, seconds=0.001))
        now += 0.001
        for i, k in enumerate(range(j + 1, n)):
            events.append(block(step, "apply", k, now + 0.001 * (i // 2), thread=1 + i % 2, seconds=0.001, transform=j))
        now += 0.001 * -(-(n - j - 1) // 2)
    return events


def lu_record(n: int = 48, **changes: Any) -> JobRecord:
    """The LU factorization of a random matrix."""
    lu, piv = scipy.linalg.lu_factor(np.random.default_rng(0).standard_normal((n, n)))
    panels = {"shape": [n, n], "panel": n // 2, "group": 2, "row_blocks": 1, "streamed": 4, "n_panels": 2, "n_groups": 1}
    fields: dict[str, Any] = {
        "id": "20260812-1702-random-51bc",
        "name": "Random matrix",
        "kind": "lu",
        "state": "succeeded",
        "spec": {"kind": "lu", "input": {"matrix": "data/random.zarr"}},
        "plan": plan("lu", (n, n), ["lu-1"], algorithm="blocked LU")
        | {"grids": {"panels": panels}, "n_workers": 1, "threads_per_worker": 2},
        "certificate": certificate(0.2),
        "estimates": {"growth_factor": 3.7},
        "seconds": 5.4,
        "events": two_panels(),
        "arrays": {"lu": lu, "piv": piv},
    }
    return JobRecord(**fields | changes)
