"""The result as it is stored: a Zarr group whose files are read over HTTP, whole or by ranges."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from starlette.responses import FileResponse, Response

from dlscale.service.desk import desk_of
from dlscale.service.problems import Problem
from dlscale.service.routes.facts import result_of
from dlscale.service.routes.jobs import JobId

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["of a job"])

#: Of a key of Zarr: no part begins with a dot, but for the metadata of format 2.
_PART = re.compile(r"(?!\.)[\w.+-]+|\.zarray|\.zgroup|\.zattrs|\.zmetadata", re.ASCII)


@router.head("/zarr/{key:path}", response_class=Response, include_in_schema=False)
@router.get("/zarr/{key:path}", response_class=Response)
def read(
    request: Request, job_id: JobId, key: Annotated[str, PathParameter(max_length=1000, description="Such as zarr.json or s/c/0.")]
) -> Response:
    """A file of the result, whole or by ranges: ``/v1/jobs/ID/zarr`` is the group for whatever reads Zarr over HTTP."""
    root = Path(os.path.realpath(result_of(desk_of(request).job(job_id))))
    place = Path(os.path.realpath(root.joinpath(*key.split("/")))) if all(map(_PART.fullmatch, key.split("/"))) else root
    if root not in place.parents or not os.path.isfile(place):
        raise Problem(404, f"There is no {key} in this result.", exit_code=2)
    return FileResponse(place, media_type="application/json" if place.name.endswith(".json") else "application/octet-stream")
