"""/v1/sweeps: arrays of jobs, and the table of what they found. `POST /v1/jobs` makes one of a job file with ``matrix``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from dlscale.batch.jobs.states import MOVING
from dlscale.batch.recorder import plain
from dlscale.batch.sweeps import store
from dlscale.batch.sweeps.store import Sweep
from dlscale.errors import SpecError
from dlscale.service.desk import Desk, desk_of
from dlscale.service.problems import Problem
from dlscale.service.routes.jobs import MAX_LIMIT, facts_of_sweep

router = APIRouter(prefix="/v1/sweeps", tags=["sweeps"])

SweepId = Annotated[str, Path(max_length=200, description="The id of a sweep.")]


def page_of(desk: Desk, *, begins: str = "", limit: int, after: str = "") -> tuple[list[Sweep], str | None]:
    """So many sweeps, the newest first, and behind which the next page begins; a damaged one is left out."""
    ids = [sweep_id for sweep_id in desk.sweep_ids() if sweep_id.startswith(begins)]
    if after and after not in ids:
        raise Problem(404, f"after: there is no sweep {after} in {desk.settings.workspace.place}.", exit_code=2)
    first = ids.index(after) + 1 if after else 0
    found = []
    for sweep_id in ids[first : first + limit]:
        try:
            found.append(desk.read_sweep(sweep_id))
        except SpecError:
            continue
    return found, ids[first + limit - 1] if len(ids) > first + limit else None


def table_of(desk: Desk, sweep: Sweep) -> tuple[list[dict[str, Any]], bool]:
    """The table of a sweep, and whether some of its jobs run or wait, or a process is about to run one."""
    driven = desk.is_driven(sweep)  # asked first: what it did last is seen in the table
    rows = store.rows_of(sweep, desk.settings.workspace.kept_states([each["job"] for each in sweep.jobs]))
    return rows, driven or any(row["state"] in MOVING for row in rows)


@router.get("")
def list_sweeps(
    request: Request,
    begins: Annotated[str, Query(max_length=200, description="Only sweeps whose id begins so.")] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="How many at most.")] = 50,
    after: Annotated[str, Query(max_length=200, description="The id of the sweep behind which the list begins.")] = "",
) -> dict[str, Any]:
    """The sweeps, the newest first."""
    desk = desk_of(request)
    found, following = page_of(desk, begins=begins, limit=limit, after=after)
    counted = [{"n_jobs": len(sweep.jobs), "states": desk.counts_of(sweep)} for sweep in found]
    return {"sweeps": [facts_of_sweep(sweep) | counts for sweep, counts in zip(found, counted, strict=True)], "next": following}


@router.get("/{sweep_id}")
def show(request: Request, sweep_id: SweepId) -> dict[str, Any]:
    """The table of a sweep: what differs between its jobs, how they are, and the numbers that they found."""
    desk = desk_of(request)
    sweep = desk.sweep(sweep_id)
    rows, active = table_of(desk, sweep)
    return plain({**facts_of_sweep(sweep), "active": active, "jobs": rows})  # type: ignore[no-any-return]


@router.get("/{sweep_id}/csv", response_class=Response, responses={200: {"content": {"text/csv": {}}}})
def as_csv(request: Request, sweep_id: SweepId) -> Response:
    """The same table as CSV."""
    desk = desk_of(request)
    sweep = desk.sweep(sweep_id)
    text = store.to_csv(table_of(desk, sweep)[0], sweep.keys)
    return Response(text, media_type="text/csv; charset=utf-8")


@router.post("/{sweep_id}/cancel")
async def cancel(request: Request, sweep_id: SweepId) -> dict[str, Any]:
    """Stop the jobs of a sweep that run or wait; their checkpoints stay. Answers with their ids when they have stopped."""
    desk = desk_of(request)
    sweep = await desk.slowly(desk.sweep, sweep_id)
    try:
        return {"sweep": sweep_id, "jobs": await desk.slowly(desk.starter.sweeps.cancel, sweep)}
    finally:
        await desk.slowly(desk.note_jobs, sweep)


@router.post("/{sweep_id}/resume", status_code=202)
async def resume(request: Request, sweep_id: SweepId) -> dict[str, Any]:
    """Run what is left of a sweep: the jobs that have not succeeded, and would not fail again; their ids."""
    desk = desk_of(request)
    sweep = await desk.slowly(desk.sweep, sweep_id)
    left = await desk.slowly(desk.starter.resume_sweep, sweep)
    await desk.slowly(desk.note_jobs, sweep)
    return {"sweep": sweep_id, "jobs": left}


@router.delete("/{sweep_id}", status_code=204)
async def delete(request: Request, sweep_id: SweepId) -> None:
    """Remove a sweep that runs no more, with all its jobs."""
    desk = desk_of(request)
    sweep = await desk.slowly(desk.sweep, sweep_id)
    try:
        await desk.slowly(desk.starter.remove_sweep, sweep)
    finally:
        await desk.slowly(desk.note_jobs, sweep)
