"""Events as server-sent events, each with the place in events.jsonl behind it: whoever comes back goes on exactly there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import anyio
from fastapi import APIRouter, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from dlscale.batch.workspace import RUNNING, Job
from dlscale.engine.events import word_of
from dlscale.errors import StoreError
from dlscale.service.desk import Desk, desk_of
from dlscale.service.problems import Problem
from dlscale.service.routes.jobs import JobId
from dlscale.storage.files.atomic import open_at_once

router = APIRouter(tags=["streams"])

#: In the description of the API; what is none is told in our own words.
_NUMBER = {"pattern": "^[0-9]*$"}
_POLL_SECONDS = 0.3
_KEEP_ALIVE_SECONDS = 15.0
#: Of events.jsonl, read at once; a line is far shorter.
_PIECE_BYTES = 2**18


class EventStream(StreamingResponse):
    """An answer of server-sent events, one of so many that a server has open."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], desk: Desk) -> None:
        super().__init__(events, headers={"X-Accel-Buffering": "no"})
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._desk.stream():
            await super().__call__(scope, receive, send)


@router.get("/v1/jobs/{job_id}/events", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}})
async def events(
    request: Request,
    job_id: JobId,
    last_event_id: Annotated[
        str, Header(max_length=20, description="Where to go on: the id of the last event.", json_schema_extra=_NUMBER)
    ] = "",
    after: Annotated[int, Query(ge=0, le=2**53, description="The same, for what sends no such header.")] = 0,
) -> EventStream:
    """The events of a job as they happen, from its first one; the last one, ``end``, comes when the job rests."""
    desk = desk_of(request)
    job = await run_in_threadpool(desk.job, job_id)
    if last_event_id and not (last_event_id.isascii() and last_event_id.isdigit()):
        raise Problem(422, f"Last-Event-ID: got {last_event_id}; allowed: the id of an event of this stream.", exit_code=2)
    return EventStream(_follow(job, int(last_event_id or after), desk), desk)


@router.get("/live", response_class=StreamingResponse, include_in_schema=False)
async def live(request: Request) -> EventStream:
    """Says that something has changed in the table of jobs."""
    desk = desk_of(request)
    return EventStream(_changes(desk), desk)


async def _follow(job: Job, offset: int, desk: Desk) -> AsyncIterator[bytes]:
    offset = await run_in_threadpool(_line_at, job, offset)
    spoke = time.monotonic()
    yield b"retry: 1000\n\n"
    while not desk.stopping:
        # Asked before the file is read: what was written before the job came to rest is in it then.
        state = await run_in_threadpool(_rest_of, job, desk)
        found, offset = await run_in_threadpool(_events_from, job, offset)
        if found:
            yield b"".join(found)
        elif state:
            yield _event(offset, "end", json.dumps({"state": state}).encode())
            return
        else:
            if time.monotonic() - spoke > _KEEP_ALIVE_SECONDS:
                yield b": waiting\n\n"
            else:
                await anyio.sleep(_POLL_SECONDS)
                continue
        spoke = time.monotonic()


async def _changes(desk: Desk) -> AsyncIterator[bytes]:
    version, spoke = desk.table.version, time.monotonic()
    yield b"retry: 2000\n\n"
    while not desk.stopping:
        await anyio.sleep(1.0)
        if desk.table.version != version:
            version, spoke = desk.table.version, time.monotonic()
            yield _event(version, "changed", b"{}")
        elif time.monotonic() - spoke > _KEEP_ALIVE_SECONDS:
            spoke = time.monotonic()
            yield b": waiting\n\n"


def _rest_of(job: Job, desk: Desk) -> str:
    """The state of a job that nobody works on; empty while somebody does, or is about to."""
    try:
        desk.settings.workspace.require_answers()
        state = job.read_state().state
        if state in (*RUNNING, "submitted") or job.is_taken():
            return ""
        job.refresh()
        return state
    except StoreError:
        return ""
    except Exception:
        return "damaged" if job.folder.is_dir() else "removed"


def _events_from(job: Job, offset: int) -> tuple[list[bytes], int]:
    """The events of the whole lines from a place on, ready to send, and the place behind them."""
    try:
        with open(job.events, "rb", opener=open_at_once) as file:
            # A process that was killed may have told more of it here than in a bucket.
            offset = min(offset, os.fstat(file.fileno()).st_size)
            file.seek(offset)
            data = file.read(_PIECE_BYTES)
    except OSError:
        return [], offset
    end = data.rfind(b"\n") + 1
    if not end and len(data) == _PIECE_BYTES:
        return [], offset + len(data)  # no line of ours is so long
    return list(_told(data[:end], offset)), offset + end


def _told(data: bytes, offset: int) -> Iterator[bytes]:
    for line in data.splitlines(keepends=True):
        offset += len(line)
        try:
            word = word_of(json.loads(line))
        except (ValueError, RecursionError):
            continue  # torn by a kill
        if word:
            yield _event(offset, word, line.strip())


def _line_at(job: Job, offset: int) -> int:
    """A place from which whole lines are read: the given one, if a line ends there."""
    try:
        with open(job.events, "rb", opener=open_at_once) as file:
            size = file.seek(0, 2)
            if not 0 < offset <= size:
                return min(offset, size)
            file.seek(offset - 1)
            file.readline(_PIECE_BYTES)
            return file.tell()
    except OSError:
        return 0


def _event(number: int, word: str, data: bytes) -> bytes:
    return f"id: {number}\nevent: {word}\ndata: ".encode() + data + b"\n\n"
