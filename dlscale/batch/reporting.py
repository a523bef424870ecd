"""The report of a job, from the files that the job left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dlscale.batch.workspace import Job
from dlscale.report.html import render
from dlscale.report.record import JobRecord
from dlscale.storage.durable import write_atomically
from dlscale.storage.groups import small_arrays

#: Larger arrays of a result are not drawn, and not read.
_MAX_ARRAY_BYTES = 32 * 2**20


def write_report(job: Job) -> Path:
    """Draw report.html anew, whatever state the job is in."""
    write_atomically(job.report, render(read_record(job)).encode(), fsync=False)
    return job.report


def read_record(job: Job) -> JobRecord:
    """A job as the plain data that a report is drawn from."""
    state = job.read_state()
    spec: dict[str, Any] = yaml.safe_load(job.spec.read_text(encoding="utf-8"))
    summary = dict(state.summary)
    machine = dict(summary.get("machine") or {})
    cluster = spec.get("cluster")
    image_shape = summary.get("image_shape")
    return JobRecord(
        id=job.id,
        name=state.name,
        kind=state.kind,
        state=state.state,
        spec=spec,
        plan=job.read_plan(),
        certificate=state.certificate,
        estimates=summary.get("estimates") or {},
        notes=summary.get("notes") or (),
        seconds=state.seconds,
        started=state.created,
        events=job.read_events(),
        arrays=small_arrays(state.result, max_bytes=_MAX_ARRAY_BYTES) if state.result else {},
        versions=machine.pop("versions", {}),
        machine=machine,
        image_shape=tuple(image_shape) if image_shape else None,
        reason=state.message,
        resume=f"dlscale resume {job.id}" if state.resumable else None,
        memory_limit_bytes=cluster.get("memory") if isinstance(cluster, dict) else None,
        result=state.result or "",
    )
