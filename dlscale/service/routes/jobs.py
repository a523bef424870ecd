"""/v1/jobs: submit, list, look at, cancel, resume, remove."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import BeforeValidator, StringConstraints
from starlette.responses import JSONResponse

from dlscale.batch.jobs.in_slurm import slurm_facts
from dlscale.batch.recorder import plain
from dlscale.batch.sweeps.store import Sweep
from dlscale.batch.workspace import Job
from dlscale.service.desk import Desk, desk_of, grant_of, read_bounded
from dlscale.service.problems import DESCRIBED, Problem
from dlscale.service.schema import JOB
from dlscale.service.starting import read_body
from dlscale.service.table import Filters

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

MAX_LIMIT = 1000
JobId = Annotated[str, Path(max_length=200, description="The id of a job.")]
Word = Annotated[str, StringConstraints(max_length=64)]
_ANY: list[str] = []
#: In the description of the API, of what is asked for often: made as JSON here, it is not checked, converted and handed to
#: another thread on its way out.
_RECORD = dict[str, Any]
#: ``?plan_only`` alone says yes.
Flag = Annotated[bool, BeforeValidator(lambda value: True if value == "" else value)]

#: How a job file is sent; text without a word on what it is, is YAML, of which JSON is nearly a part.
_YAML_TYPES = ("", "application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml", "text/plain")


_BODY = {
    "requestBody": {
        "required": True,
        "description": "A job file.",
        "content": {"application/json": {"schema": JOB}, "application/yaml": {"schema": JOB}},
    }
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "With validate_only or plan_only: that the job file is valid, or what the job would do and take."},
    201: {"description": "The id of the job and its plan; of a sweep, its id and those of its jobs."},
    403: {**DESCRIBED, "description": "The job file names what is not allowed on this server, or the token may not submit."},
    409: {
        **DESCRIBED,
        "description": "The job file fits the schema and cannot be run as things stand: its options contradict each other, an "
        "input is not there or cannot be computed on, its place is taken, or its Idempotency-Key belongs to another job file.",
    },
    422: {**DESCRIBED, "description": "What was sent does not fit the schema."},
}


def facts_of(job: Job) -> dict[str, Any]:
    """What `dlscale status --json` says of a job, and what else its state holds."""
    state = job.read_state()
    record = {"job": state.job, "name": state.name, "kind": state.kind, "state": state.state, "created": state.created}
    record |= {"seconds": state.seconds, "message": state.message, "result": state.result}
    record |= {"resumable": state.resumable and job.is_whole}
    record |= {"exit_code": state.exit_code, "heartbeat": state.heartbeat._asdict(), "progress": vars_of(state.progress)}
    record |= {"slurm": slurm_facts(job), "sweep": state.sweep or None}
    return plain({**record, "certificate": state.certificate, "estimates": state.summary.get("estimates")})  # type: ignore[no-any-return]


def facts_of_sweep(sweep: Sweep) -> dict[str, Any]:
    """What a sweep is, without its jobs."""
    return {key: getattr(sweep, key) for key in ("sweep", "name", "kind", "created", "keys")}


def vars_of(value: Any) -> dict[str, Any] | None:
    return None if value is None else dict(vars(value))


@router.post("", status_code=201, openapi_extra=_BODY, responses=_ANSWERS)
async def submit(
    request: Request,
    response: Response,
    idempotency_key: Annotated[str, Header(max_length=255)] = "",
    validate_only: Annotated[Flag, Query(description="Check the job file; read no matrix.")] = False,
    plan_only: Annotated[Flag, Query(description="Say what the job would do and take.")] = False,
    priority: Annotated[int, Query(ge=-1000, le=1000, description="Jobs with a higher one go first.")] = 0,
) -> dict[str, Any]:
    """Hand over the job of a job file, or the jobs of one with ``matrix``, a sweep; or only check or plan them."""
    desk = desk_of(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or kind.endswith("+json")
    if not is_json and kind not in _YAML_TYPES:
        raise Problem(415, f"A job file is sent with Content-Type: application/yaml, or application/json; got {kind}.", exit_code=2)
    body = await read_bounded(request)
    document = read_body(body, is_json=is_json)
    if validate_only:
        response.status_code = 200
        return {"valid": True, "kind": document.data.get("kind"), "message": await desk.slowly(desk.starter.validate, document)}
    if plan_only:
        response.status_code = 200
        return plain(await desk.slowly(desk.starter.plan, document))  # type: ignore[no-any-return]
    who = grant_of(request).name
    made, new = await desk.slowly(desk.starter.submit, document, body, key=idempotency_key, who=who, priority=priority)
    if not new:
        response.headers["Idempotency-Replayed"] = "true"
    if isinstance(made, Sweep):
        await desk.slowly(desk.note_jobs, made)
        response.headers["Location"] = f"/v1/sweeps/{made.sweep}"
        return facts_of_sweep(made) | {"jobs": [each["job"] for each in made.jobs]}
    response.headers["Location"] = f"/v1/jobs/{made.id}"
    return await desk.slowly(_told, desk, made)


def _told(desk: Desk, made: Job) -> dict[str, Any]:
    desk.table.note(made)
    return {"job": made.id, "state": made.read_state().state, "plan": made.read_plan()}


async def _filters(
    state: Annotated[list[Word], Query(max_length=20, description="Only jobs in this state; may be given again.")] = _ANY,
    kind: Annotated[list[Word], Query(max_length=64, description="Only jobs of this kind; may be given again.")] = _ANY,
    name: Annotated[str, Query(max_length=64, description="Only jobs whose name holds this.")] = "",
    begins: Annotated[str, Query(max_length=200, description="Only jobs whose id begins so.")] = "",
    sweep: Annotated[str, Query(max_length=200, description="Only jobs of the sweep with this id.")] = "",
) -> Filters:
    return Filters(tuple(filter(None, state)), tuple(filter(None, kind)), name, begins, sweep)


@router.get("", response_model=_RECORD)
def list_jobs(
    request: Request,
    filters: Annotated[Filters, Depends(_filters)],
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="How many at most.")] = 50,
    after: Annotated[str, Query(max_length=200, description="The id of the job behind which the list begins.")] = "",
) -> Response:
    """The jobs, the newest first."""
    rows, following = desk_of(request).table.page(filters, limit=limit, after=after or None)
    return JSONResponse({"jobs": [row.to_dict() for row in rows], "next": following})


@router.get("/{job_id}", response_model=_RECORD)
def show(request: Request, job_id: JobId) -> Response:
    """One job: how far it is, how it ended."""
    return JSONResponse(facts_of(desk_of(request).job(job_id)))


@router.post("/{job_id}/cancel")
async def cancel(request: Request, job_id: JobId) -> dict[str, Any]:
    """Stop a job wherever it runs or waits; its checkpoint stays. Answers when it has stopped."""
    desk = desk_of(request)
    return await desk.slowly(lambda: facts_of(desk.change(job_id, desk.starter.cancel)))


@router.post("/{job_id}/resume", status_code=202)
async def resume(request: Request, job_id: JobId) -> dict[str, Any]:
    """Let a stopped job go on from its last checkpoint."""
    desk = desk_of(request)
    return await desk.slowly(lambda: facts_of(desk.change(job_id, desk.starter.resume)))


@router.delete("/{job_id}", status_code=204)
async def delete(request: Request, job_id: JobId) -> None:
    """Remove a job that has ended, with all that is in its folder; a result that went to another place stays."""
    desk = desk_of(request)
    await desk.slowly(desk.change, job_id, desk.starter.remove)
