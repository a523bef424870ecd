"""Parts of the arrays of a result, bounded, as JSON, CSV or npy."""

from __future__ import annotations

import csv
import io
import math
import re
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Path, Query, Request
from starlette.responses import JSONResponse, Response

from dlscale.arrays import Array
from dlscale.batch.recorder import plain
from dlscale.service.desk import desk_of
from dlscale.service.problems import Problem
from dlscale.service.routes.facts import result_of
from dlscale.service.routes.jobs import JobId
from dlscale.storage.groups import open_arrays

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["of a job"])

#: Of one part: numbers, and bytes of the chunks that must be read for it.
MAX_VALUES, MAX_CHUNK_BYTES = 1_000_000, 2**29
#: Of each dimension, where nothing is said.
_N_SHOWN = 100

Span = tuple[int, int]
#: In the description of the API; what is none is told in our own words.
_RANGE = {"pattern": "^[0-9]{0,15}:?[0-9]{0,15}$"}


@router.get("/result/{array:path}", response_class=Response)
async def part_of_array(
    request: Request,
    job_id: JobId,
    array: Annotated[str, Path(max_length=300, description="Its name in the result, such as s or parameters/layer-0/weight.")],
    rows: Annotated[
        str,
        Query(max_length=50, description="A range such as 0:100; the first 100 where nothing is said.", json_schema_extra=_RANGE),
    ] = "",
    columns: Annotated[str, Query(max_length=50, description="As rows.", json_schema_extra=_RANGE)] = "",
    format: Annotated[Literal["json", "csv", "npy"], Query(description="How the numbers are sent.")] = "json",
) -> Response:
    """A part of an array of the result, of at most a million numbers."""
    desk = desk_of(request)
    spans, values = await desk.slowly(lambda: _read(result_of(desk.job(job_id)), array, rows, columns))
    if format == "npy":
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        return Response(buffer.getvalue(), media_type="application/octet-stream")
    if format == "csv":
        return Response(await desk.slowly(_csv, values), media_type="text/csv; charset=utf-8")
    facts = {"array": array, "dtype": str(values.dtype), "rows": spans[:1], "columns": spans[1:2]}
    return JSONResponse({**facts, "values": await desk.slowly(plain, values)})


def _read(uri: str, name: str, *asked: str) -> tuple[list[Span], Array]:
    arrays = open_arrays(uri)
    if name not in arrays:
        raise Problem(404, f"There is no array {name} in this result; there are {', '.join(sorted(arrays))}.", exit_code=2)
    array = arrays[name]
    shape: tuple[int, ...] = array.shape
    if len(shape) > 2:
        raise Problem(409, f"{name} has {len(shape)} dimensions; parts are of vectors and matrices.", exit_code=2)
    if asked[1] and len(shape) < 2:
        raise Problem(409, f"columns: {name} has none; its shape is {shape}.", exit_code=2)
    spans = [_span(which, text, length) for which, text, length in zip(("rows", "columns"), asked, shape, strict=False)]
    if (n := math.prod(end - begin for begin, end in spans)) > MAX_VALUES:
        raise Problem(409, f"This part has {n:,} numbers; at most {MAX_VALUES:,} are sent at once.", exit_code=2)
    read = array.dtype.itemsize * math.prod(
        (-(-end // step) - begin // step) * step for (begin, end), step in zip(spans, array.shards or array.chunks, strict=True)
    )
    if read > MAX_CHUNK_BYTES:
        most = f"{MAX_CHUNK_BYTES / 1e9:.1f} GB"
        raise Problem(409, f"This part lies in chunks of {read / 1e9:.1f} GB; at most {most} are read.", exit_code=2)
    part = np.asarray(array[tuple(slice(*span) for span in spans)])
    # Text of any length becomes text of one length, which npy has.
    return spans, np.array(part.tolist(), str) if part.dtype.kind == "T" else part


def _span(which: str, text: str, length: int) -> Span:
    """A range as Python writes it, within an array; without steps."""
    match = re.fullmatch(r"(\d{0,15})(:?)(\d{0,15})", text.strip(), re.ASCII)
    if match is None:
        raise Problem(422, f"{which}: got {text}; allowed: a range such as 0:100, or one number.", exit_code=2)
    begin = int(match[1] or 0)
    after = begin + 1 if match[1] else _N_SHOWN
    if match[2]:
        after = int(match[3]) if match[3] else length
    end = min(after, length)
    if begin >= end and length:
        raise Problem(409, f"{which}: got {text}; there are {length:,}, counted from 0.", exit_code=2)
    return begin, end


def _csv(values: Array) -> bytes:
    text = io.StringIO()
    rows: Any = np.atleast_1d(values)
    csv.writer(text, lineterminator="\n").writerows((row if rows.ndim == 2 else [row]) for row in rows.tolist())
    return text.getvalue().encode()
