"""The report of a job, from the files that the job left."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dlscale.arrays import Array
from dlscale.batch.document import read_stored
from dlscale.batch.jobs.places import writable
from dlscale.batch.kinds import KINDS
from dlscale.batch.workspace import Job
from dlscale.errors import InputError, SpecError
from dlscale.report.components.planes import MOST_DOTS
from dlscale.report.html import render
from dlscale.report.record import JobRecord, RowColor
from dlscale.storage.files.durable import write_atomically
from dlscale.storage.groups import open_arrays, sampled_color, sampled_rows, small_arrays, small_labels

#: Larger arrays of a result are not drawn, and not read.
_MAX_ARRAY_BYTES = 32 * 2**20
#: Names of more rows, or columns, are not shown.
_MOST_NAMES = 100_000


def write_report(job: Job, path: Path | None = None) -> Path:
    """Draw a job's report anew, whatever state the job is in.

    Parameters
    ----------
    job : Job
    path : Path, optional
        Where it goes; by default to report.html in the job's folder.

    Raises
    ------
    SpecError
        If its state is damaged, or another file so that the report cannot be drawn, or nothing can be written there.
    """
    path = path or job.report
    record = read_record(job)
    try:
        drawn = render(record)
    except Exception as error:  # drawn from numbers and names of files that may be damaged in any way
        raise SpecError(
            f"The report of {job.id} cannot be drawn ({type(error).__name__}: {error}): a file in {job.folder} is damaged. "
            f"`dlscale status {job.id}` and `dlscale logs {job.id}` do not need it."
        ) from error
    if os.path.lexists(path) and not path.is_file():
        raise SpecError(f"The report cannot replace {path}, which is no plain file; name another with `--output FILE.html`.")
    with writable(path, f"draw it elsewhere with `dlscale report {job.id} --output FILE.html`"):
        write_atomically(path, drawn.encode(), fsync=False)
    return path


def _sample(result: str, stored: Mapping[str, Any], small: Array | None) -> Array | None:
    """Two columns of the scores, of which small ones have been read."""
    if small is not None and small.ndim == 2 and small.shape[1] >= 2:
        return small[:, :2]
    return sampled_rows(result, stored, "scores", 2, max_bytes=_MAX_ARRAY_BYTES)


def _color(result: str, stored: Mapping[str, Any]) -> RowColor | None:
    """What colours the rows of which scores are drawn."""
    found = sampled_color(result, stored, "scores", max_bytes=_MAX_ARRAY_BYTES, most=MOST_DOTS)
    return None if found is None else RowColor(*found)


def read_record(job: Job, *, drawn: bool = True) -> JobRecord:
    """A job as the plain data that a report is drawn from; what is damaged is left out, with a note that says so.

    Parameters
    ----------
    job : Job
    drawn : bool
        Whether there will be figures; else the scores, of which no number is told, are not read.
    """
    state = job.read_state()
    faults: list[str] = []
    result = state.result or ""

    def part(read: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return read()
        except (SpecError, InputError) as error:
            faults.append(f"Left out of this report: {error}")
            return otherwise

    spec: dict[str, Any] = part(lambda: read_stored(job.spec).data, {})
    plan = part(job.read_plan, {})
    events = part(job.read_events, [])
    stored: dict[str, Any] = part(lambda: open_arrays(result) if result else {}, {})
    if not drawn:
        stored.pop("scores", None)
    arrays: dict[str, Any] = part(lambda: small_arrays(result, stored, max_bytes=_MAX_ARRAY_BYTES), {})
    summary = dict(state.summary)
    machine = dict(summary.get("machine") or {})
    cluster = spec.get("cluster")
    image_shape = summary.get("image_shape")
    return JobRecord(
        id=job.id,
        name=state.name,
        kind=state.kind,
        state=state.state,
        title=KINDS[state.kind].title if state.kind in KINDS else "",
        spec=spec,
        plan=plan,
        certificate=state.certificate,
        estimates=summary.get("estimates") or {},
        notes=(*(summary.get("notes") or ()), *faults),
        seconds=state.seconds,
        started=state.created,
        events=events,
        arrays=arrays,
        labels=part(lambda: small_labels(result, stored, most=_MOST_NAMES), {}),
        color=part(lambda: _color(result, stored), None),
        sample=part(lambda: _sample(result, stored, arrays.get("scores")), None),
        versions=machine.pop("versions", {}),
        machine=machine,
        image_shape=tuple(image_shape) if image_shape else None,
        reason=state.message,
        resume=f"dlscale resume {job.id}" if state.resumable else None,
        memory_limit_bytes=cluster.get("memory") if isinstance(cluster, dict) else None,
        result=result,
    )
