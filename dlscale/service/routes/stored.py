"""The result as it is stored: a Zarr group whose files are read over HTTP, whole or by ranges."""

from __future__ import annotations

import os
import re
from itertools import chain
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from starlette.responses import FileResponse, Response, StreamingResponse

from dlscale.service.desk import desk_of
from dlscale.service.problems import Problem
from dlscale.service.routes.facts import result_of, span_of
from dlscale.service.routes.jobs import JobId
from dlscale.storage.objects.address import Address, is_object_url
from dlscale.storage.objects.requests import PIECE_BYTES, get, stamp_of

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["of a job"])

#: Of a key of Zarr: no part begins with a dot, but for the metadata of format 2.
_PART = re.compile(r"(?!\.)[\w.+-]+|\.zarray|\.zgroup|\.zattrs|\.zmetadata", re.ASCII)


@router.head("/zarr/{key:path}", response_class=Response, include_in_schema=False)
@router.get("/zarr/{key:path}", response_class=Response)
def read(
    request: Request, job_id: JobId, key: Annotated[str, PathParameter(max_length=1000, description="Such as zarr.json or s/c/0.")]
) -> Response:
    """A file of the result, whole or by ranges: ``/v1/jobs/ID/zarr`` is the group for whatever reads Zarr over HTTP."""
    uri = result_of(desk_of(request).job(job_id))
    media_type = "application/json" if key.endswith(".json") else "application/octet-stream"
    try:
        if not all(map(_PART.fullmatch, key.split("/"))):
            raise FileNotFoundError(key)
        if is_object_url(uri):
            return _object(Address.of(uri) / key, request, media_type)
        return FileResponse(_file(uri, key), media_type=media_type)
    except FileNotFoundError:
        raise Problem(404, f"There is no {key} in this result.", exit_code=2) from None


def _file(uri: str, key: str) -> Path:
    root = Path(os.path.realpath(uri))
    place = Path(os.path.realpath(root.joinpath(*key.split("/"))))
    if root not in place.parents or not os.path.isfile(place):
        raise FileNotFoundError(key)
    return place


def _object(place: Address, request: Request, media_type: str) -> Response:
    """An object, or a range of it, in pieces that are in memory one at a time."""
    size, version, _ = stamp_of(place)
    asked = request.headers.get("range")
    span = None if asked is None else span_of(asked, size)
    begin, end = span or (0, size)
    headers = {"Accept-Ranges": "bytes", "Content-Length": str(end - begin), "ETag": f'"{version.strip(chr(34))}"'}
    if span is not None:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
    status = 200 if span is None else 206
    if request.method == "HEAD" or begin == end:
        return Response(None, status, headers, media_type)
    pieces = (get(place, (at, min(at + PIECE_BYTES, end))) for at in range(begin, end, PIECE_BYTES))
    first = next(pieces)  # a store that does not answer is told while there is no answer yet
    return StreamingResponse(chain([first], pieces), status, headers, media_type)
