"""Of the server itself: whether it lives, whether it is ready, what it has done, what a job file may hold."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse

from dlscale import __version__
from dlscale.service.desk import Desk, desk_of
from dlscale.service.problems import Problem
from dlscale.service.schema import job_schema

router = APIRouter(tags=["server"])


@router.get("/health")  # which needs no thread: all may wait for a store
async def health() -> dict[str, str]:
    """Whether the server lives."""
    return {"status": "ok", "version": __version__}


@router.get("/ready")
def ready(request: Request) -> dict[str, str]:
    """Whether it has read all jobs, their store answers, and their folder can be written."""
    desk = desk_of(request)
    root = desk.settings.workspace.root
    desk.settings.workspace.require_answers()
    if not desk.table.is_loaded:
        raise Problem(503, "The jobs are still being read.", headers={"Retry-After": "1"})
    if root.exists() and not os.access(root, os.W_OK):
        raise Problem(503, "The workspace cannot be written.")
    return {"status": "ready"}


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request) -> PlainTextResponse:
    """Numbers for Prometheus."""
    return PlainTextResponse("\n".join(_lines(desk_of(request))) + "\n", media_type="text/plain; version=0.0.4")


@router.get("/schema", response_model=dict[str, Any])
def schema() -> JSONResponse:
    """JSON Schema of job files."""
    return JSONResponse(job_schema())


def _lines(desk: Desk) -> Iterator[str]:
    yield "# HELP dlscale_jobs Jobs of the workspace by state."
    yield "# TYPE dlscale_jobs gauge"
    for state, n in desk.table.counts().items():
        yield f'dlscale_jobs{{state="{state}"}} {n}'
    yield "# HELP dlscale_http_responses_total Answers by method and status."
    yield "# TYPE dlscale_http_responses_total counter"
    for (method, status), n in sorted(desk.answers.items()):
        yield f'dlscale_http_responses_total{{method="{method}",status="{status}"}} {n}'
    yield "# HELP dlscale_streams Streams of events that are open."
    yield "# TYPE dlscale_streams gauge"
    yield f"dlscale_streams {desk.n_streams}"
    yield "# HELP dlscale_uptime_seconds Since the server started."
    yield "# TYPE dlscale_uptime_seconds gauge"
    yield f"dlscale_uptime_seconds {time.time() - desk.started:.3f}"
