"""What a report is drawn from: plain data that any job directory can supply."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dlscale.engine.events import Event

#: States in which work was lost or stopped; the report opens with the reason and the way on.
STOPPED = ("failed", "lost", "interrupted", "cancelled")


class RowColor(NamedTuple):
    """A column of a table by its name: its texts, empty where it has no value, in some rows of a sample."""

    name: str
    rows: np.ndarray
    texts: Sequence[str]


@dataclass(frozen=True, eq=False)
class JobRecord:
    """A job as plain data. Everything after `state` may be missing; the report leaves out what it cannot draw.

    Parameters
    ----------
    id, name, kind, state : str
        Identity of the job. `state` is one of planned, running, checkpointed, certifying, succeeded, failed, lost, interrupted,
        cancelled.
    title : str
        The full name of its kind.
    spec : mapping
        The job's spec as parsed: ``{"kind", "input": {"matrix": ...}, "params": {...}, ...}``.
    spec_yaml : str
        The spec as the user wrote it; when empty, `spec` is written as YAML.
    plan : mapping
        ``Plan.to_dict()``. `rates` holds ``matmul_flops_per_second`` and ``read_bytes_per_second`` of the whole cluster.
    certificate : mapping or None
        ``Certificate.to_dict()``; None when the job did not get so far.
    estimates : mapping
        Error estimates, such as ``frobenius_error``, ``spectral_error``, ``singular_value_errors`` (absolute, one a
        value, None where it is not determined).
    notes : sequence of str
        What the job wants its reader to know.
    seconds : float or None
        Wall time from start to end.
    started : float or None
        Unix time; None takes the first event's.
    events : sequence of Event
        Those of events.jsonl, in order; resumed jobs hold the events of all their runs.
    arrays : mapping of str to ndarray
        Small result arrays under their result names (``s``, ``vh``, ``components``, ``mean``, ``r`` ...).
    labels : mapping of str to sequence of str
        Names: ``column`` of all columns, ``row`` of the rows of `sample`.
    sample : ndarray (r, 2) or None
        The first two scores of all rows, or of rows that are spread evenly.
    color : RowColor or None
        A column of the table that colours rows of `sample`.
    machine, versions : mapping
        Facts of the cluster and of the software, shown as they are; suffixes such as ``_bytes`` and ``_seconds`` are formatted.
    image_shape : tuple of int or None
        (height, width) or (height, width, channels) when a row of the matrix is a picture.
    reason : str
        Why the job failed or was interrupted, in words.
    resume : str
        The command that goes on with it; None means that it cannot be resumed.
    memory_limit_bytes : int or None
        Limit of all processes together; None takes the plan's limit per worker times its workers.
    result : str
        Where the result was published.
    """

    id: str
    name: str
    kind: str
    state: str
    title: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)
    spec_yaml: str = ""
    plan: Mapping[str, Any] = field(default_factory=dict)
    certificate: Mapping[str, Any] | None = None
    estimates: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    seconds: float | None = None
    started: float | None = None
    events: Sequence[Event] = ()
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sample: np.ndarray | None = None
    color: RowColor | None = None
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    image_shape: tuple[int, ...] | None = None
    reason: str = ""
    resume: str | None = ""
    memory_limit_bytes: int | None = None
    result: str = ""

    @property
    def params(self) -> Mapping[str, Any]:
        return self.spec.get("params") or {}

    @property
    def matrix(self) -> Mapping[str, Any]:
        return self.plan.get("matrix") or {}

    @property
    def panels(self) -> Mapping[str, Any]:
        """The grid of a factorization; empty where there is none."""
        return (self.plan.get("grids") or {}).get("panels") or {}

    @property
    def limit_bytes(self) -> float | None:
        """The memory limit of all processes together, in bytes."""
        if self.memory_limit_bytes:
            return self.memory_limit_bytes
        per_worker = self.plan.get("memory_limit_bytes")
        return per_worker * self.plan.get("n_workers", 1) if per_worker else None

    @property
    def planned_peak_bytes(self) -> float | None:
        """The planned peak of all workers together, in bytes."""
        per_worker = self.plan.get("peak_bytes_per_worker")
        return per_worker * self.plan.get("n_workers", 1) if per_worker else None

    @property
    def resume_command(self) -> str:
        """The command that goes on with a stopped job; empty when there is none.

        A job that failed its certificate would fail it again: it has none unless `resume` says so.
        """
        if self.resume == "" and self.certificate and not self.certificate.get("passed", True):
            return ""
        return f"dlscale resume {self.id}" if self.resume == "" else self.resume or ""

    def rate(self, key: str) -> float | None:
        """A rate of the plan's machine; None where it is unknown or has no limit."""
        value = (self.plan.get("rates") or {}).get(key)
        # A matrix in memory is read at no cost: its rate is infinite, which is no limit to draw.
        return float(value) if value and math.isfinite(value) else None
