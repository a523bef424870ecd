"""Below one job: its plan, certificate, job file, size, log, report and result."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse, Response

from dlscale.batch.jobs.records import read_bytes
from dlscale.batch.recorder import plain
from dlscale.batch.reporting import read_record
from dlscale.batch.workspace import ENDED, Job
from dlscale.report.html import render
from dlscale.service.desk import desk_of
from dlscale.service.problems import Problem
from dlscale.service.routes.jobs import JobId
from dlscale.service.settings import MAX_LOG_BYTES
from dlscale.storage.files.atomic import open_at_once
from dlscale.storage.groups import open_arrays, result_attributes

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["of a job"])

#: What a report holds is numbers and names of strangers: it runs nothing, loads nothing and is not of this server's origin.
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; form-action 'none'"


@router.get("/plan")
def plan(request: Request, job_id: JobId) -> dict[str, Any]:
    """What the job was planned to do and take."""
    return desk_of(request).job(job_id).read_plan()


@router.get("/certificate")
def certificate(request: Request, job_id: JobId) -> dict[str, Any]:
    """What was checked of the answer, and how it came out."""
    job = desk_of(request).job(job_id)
    state = job.read_state()
    if state.certificate is None:
        raise Problem(404, f"Job {job.id} has no certificate; it is {state.state}.", exit_code=1)
    return plain(state.certificate)  # type: ignore[no-any-return]


@router.get("/spec", response_class=Response)
def spec(request: Request, job_id: JobId) -> Response:
    """The job file, with absolute paths."""
    return Response(bytes_of(desk_of(request).job(job_id), "spec"), media_type="application/yaml")


@router.get("/size")
async def size(request: Request, job_id: JobId) -> dict[str, int]:
    """Bytes on the disk of all that is in the job's folder."""
    desk = desk_of(request)
    return {"bytes": await desk.slowly(lambda: desk.job(job_id).size())}


@router.get("/log", response_class=Response)
def log(
    request: Request,
    job_id: JobId,
    offset: Annotated[int, Query(ge=0, le=2**53, description="Byte at which the part begins.")] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_LOG_BYTES, description="How many bytes at most.")] = MAX_LOG_BYTES,
) -> Response:
    """A part of the log; ``Range: bytes=...`` is understood too, and ``X-Next-Offset`` says where the next part begins."""
    job = desk_of(request).job(job_id)
    return log_part(job, request.headers.get("range"), offset, limit)


def log_part(job: Job, asked: str | None, offset: int, limit: int) -> Response:
    """A part of a job's log, by a range of bytes or by where it begins and how long it is."""
    try:
        with open(job.log, "rb", opener=open_at_once) as file:
            size = os.fstat(file.fileno()).st_size
            span = None if asked is None else span_of(asked, size)
            if span is not None:
                offset, limit = span[0], min(span[1] - span[0], MAX_LOG_BYTES)
            data = b""
            if offset < size:  # no file system has all places that can be asked for
                file.seek(offset)
                data = file.read(limit)
    except FileNotFoundError:
        size, span, data = 0, None, b""
    headers = {"X-Next-Offset": str(offset + len(data)), "X-Size": str(size), "Accept-Ranges": "bytes"}
    if span is not None:
        headers["Content-Range"] = f"bytes {offset}-{offset + len(data) - 1}/{size}"
    return Response(data, 206 if span is not None else 200, headers, media_type="text/plain; charset=utf-8")


def span_of(asked: str, size: int) -> tuple[int, int] | None:
    """Begin and end of the one range that a request asks for; None where it is none that is understood.

    Raises
    ------
    Problem
        If nothing is there.
    """
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", asked.strip(), re.ASCII)
    if match is None or not any(match.groups()):
        return None
    if not match[1]:
        begin, end = max(size - int(match[2]), 0), size
    else:
        begin, end = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
    if begin >= end:
        raise Problem(416, f"There is nothing at {asked}; there are {size} bytes.", headers={"Content-Range": f"bytes */{size}"})
    return begin, end


@router.get("/report", response_class=HTMLResponse)
async def report(request: Request, job_id: JobId) -> Response:
    """The report, in a sandbox: the one that was drawn at the end, or one of how far the job is."""
    desk = desk_of(request)
    page = await desk.slowly(lambda: _report_of(desk.job(job_id)))
    return HTMLResponse(page, headers={"Content-Security-Policy": REPORT_POLICY})


def _report_of(job: Job) -> bytes:
    if job.read_state().state in ENDED and job.report.exists():
        return bytes_of(job, "report")
    return render(read_record(job)).encode()


@router.get("/result")
def result(request: Request, job_id: JobId) -> dict[str, Any]:
    """What the result is: its arrays, what was asked, what was checked."""
    uri = result_of(desk_of(request).job(job_id))
    attributes = result_attributes(uri) or {}
    arrays = {
        name: {"shape": list(array.shape), "dtype": str(array.dtype), "chunks": list(array.chunks)}
        for name, array in sorted(open_arrays(uri).items())
    }
    return {"uri": uri, "arrays": arrays, **plain({key: value for key, value in attributes.items() if key != "plan"})}


def result_of(job: Job) -> str:
    """Where a job's result is (Problem if it has none)."""
    state = job.read_state()
    if state.result is None:
        raise Problem(404, f"Job {job.id} has no result; it is {state.state}.", exit_code=1)
    return state.result


def bytes_of(job: Job, name: str) -> bytes:
    """A small file of a job (Problem if it is not there)."""
    path = getattr(job, name)
    try:
        return read_bytes(path)
    except FileNotFoundError:
        raise Problem(404, f"Job {job.id} has no {path.name} (yet).", exit_code=1) from None
