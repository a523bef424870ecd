"""/v1/sweeps: arrays of jobs, and the table of what they found."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from dlscale.batch.recorder import plain
from dlscale.batch.sweeps import store
from dlscale.batch.sweeps.store import Sweep
from dlscale.batch.workspace import Workspace
from dlscale.errors import SpecError
from dlscale.service.desk import Desk, desk_of
from dlscale.service.problems import Problem

router = APIRouter(prefix="/v1/sweeps", tags=["sweeps"])

#: Of the list; `dlscale jobs --sweep` knows all.
_N_NEWEST = 50
SweepId = Annotated[str, Path(max_length=200, description="The id of a sweep.")]


def newest(root: Workspace) -> list[Sweep]:
    """The newest sweeps; a damaged one is left out."""
    found = []
    for sweep_id in store.sweep_ids(root)[:_N_NEWEST]:
        try:
            found.append(store.read(root, sweep_id))
        except SpecError:
            continue
    return found


def table_of(desk: Desk, sweep_id: str) -> tuple[Sweep, list[dict[str, Any]]]:
    """A sweep and its table (Problem if there is none)."""
    root = desk.settings.workspace
    if sweep_id not in store.sweep_ids(root):
        raise Problem(404, f"There is no sweep {sweep_id} in {root.root}.", exit_code=2)
    sweep = store.read(root, sweep_id)
    return sweep, store.table(root, sweep)


@router.get("")
def list_sweeps(request: Request) -> dict[str, Any]:
    """The fifty newest sweeps, the newest first."""
    found = newest(desk_of(request).settings.workspace)
    keys = ("sweep", "name", "kind", "created", "keys")
    return {"sweeps": [{key: getattr(sweep, key) for key in keys} | {"n_jobs": len(sweep.jobs)} for sweep in found]}


@router.get("/{sweep_id}")
def show(request: Request, sweep_id: SweepId) -> dict[str, Any]:
    """The table of a sweep: what differs between its jobs, how they are, and the numbers that they found."""
    sweep, rows = table_of(desk_of(request), sweep_id)
    return plain({"sweep": sweep.sweep, "kind": sweep.kind, "keys": sweep.keys, "jobs": rows})  # type: ignore[no-any-return]


@router.get("/{sweep_id}/csv", response_class=Response, responses={200: {"content": {"text/csv": {}}}})
def as_csv(request: Request, sweep_id: SweepId) -> Response:
    """The same table as CSV."""
    sweep, rows = table_of(desk_of(request), sweep_id)
    return Response(store.to_csv(rows, sweep.keys), media_type="text/csv; charset=utf-8")
