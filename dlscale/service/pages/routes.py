"""The pages: a table of jobs, a form, one job. They work without JavaScript, and load nothing from elsewhere."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import jinja2
from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from dlscale.batch.jobs.in_slurm import slurm_facts, slurm_words
from dlscale.batch.kinds import KINDS
from dlscale.batch.sweeps import store
from dlscale.batch.sweeps.store import Sweep
from dlscale.batch.workspace import Job
from dlscale.errors import DlscaleError
from dlscale.report import words
from dlscale.service.desk import Desk, desk_of, grant_of
from dlscale.service.guard import TOKEN_COOKIE
from dlscale.service.pages import forms, telling
from dlscale.service.problems import Problem, problem_of
from dlscale.service.routes.facts import bytes_of
from dlscale.service.routes.jobs import JobId
from dlscale.service.routes.sweeps import SweepId, page_of, table_of
from dlscale.service.starting import read_body
from dlscale.service.table import Filters

router, static_router = APIRouter(include_in_schema=False), APIRouter(include_in_schema=False)

_HERE = Path(__file__).parent
_STATIC = {"style.css": "text/css", "page.js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "frame-src 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_N_ROWS = 50
_STATES = ("queued", "running", "succeeded", "failed", "cancelled", "interrupted", "lost")
#: Of a form that was not sent yet.
_NO_ANSWER: dict[str, Any] = {"good": "", "bad": "", "plan": [], "sweep": None}
_EXAMPLE = "kind: svd\ninput:\n  matrix: data/A.zarr\nparams:\n  n_components: 10\n"

_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.globals.update(tone=telling.tone, percent=telling.percent, left=telling.left, how_far=telling.how_far)
_templates.globals.update(slurm_words=slurm_words)
_templates.filters.update(duration=words.duration, moment=words.moment, number=words.number, value=telling.value_words)
_templates.filters.update(size=words.size, flop=partial(words.quantity, unit="FLOP"))


def page(request: Request, template: str, /, status: int = 200, **values: Any) -> HTMLResponse:
    """A page, or a part of one, for the session of whoever asks."""
    session = forms.session_of(request)
    desk = desk_of(request)
    shared: dict[str, Any] = {"forgery": forms.forgery_token(session), "key": secrets.token_urlsafe(16)}
    shared |= {"workspace": str(desk.settings.workspace.place), "with_tokens": desk.settings.tokens is not None}
    text = _templates.get_template(template).render(**shared, **values)
    response = HTMLResponse(text, status, {"Content-Security-Policy": _POLICY})
    forms.keep_session(response, session)
    return response


def problem_page(request: Request, problem: Problem) -> Response | None:
    """A problem as a page, for a browser that asked for one."""
    if request.url.path.startswith("/v1/") or "text/html" not in request.headers.get("accept", ""):
        return None
    return page(request, "problem.html", problem.status, problem=problem)


@static_router.get("/static/{name}")
def static(name: str) -> Response:
    if name not in _STATIC:
        raise Problem(404, f"There is no /static/{name}.")
    return Response((_HERE / "static" / name).read_bytes(), media_type=_STATIC[name], headers={"Cache-Control": "no-cache"})


@router.get("/")
def jobs(
    request: Request,
    state: Annotated[str, Query(max_length=20)] = "",
    kind: Annotated[str, Query(max_length=64)] = "",
    name: Annotated[str, Query(max_length=64)] = "",
    sweep: Annotated[str, Query(max_length=200)] = "",
    after: Annotated[str, Query(max_length=200)] = "",
    part: Annotated[str, Query(max_length=10)] = "",
) -> Response:
    """The table of jobs."""
    table = desk_of(request).table
    filters = Filters((state,) if state else (), (kind,) if kind else (), name, sweep=sweep)
    rows, following = table.page(filters, limit=_N_ROWS, after=after or None)
    asked = {"state": state, "kind": kind, "name": name, "sweep": sweep}
    query = {key: value for key, value in asked.items() if value}
    values: dict[str, Any] = {"rows": rows, "counts": table.counts(), "loaded": table.is_loaded, "after": after, "asked": asked}
    values["first"], values["following"] = f"/?{urlencode(query)}", following and f"/?{urlencode({**query, 'after': following})}"
    return page(request, "table.html" if part else "jobs.html", **values, kinds=sorted(KINDS), states=_STATES)


@router.get("/sweeps")
def sweeps(request: Request, after: Annotated[str, Query(max_length=200)] = "") -> Response:
    """The sweeps of the workspace, the newest first."""
    desk = desk_of(request)
    found, following = page_of(desk, limit=_N_ROWS, after=after)
    counted = [(sweep, desk.counts_of(sweep)) for sweep in found]
    return page(request, "sweeps.html", sweeps=counted, after=after, following=following)


@router.get("/sweeps/{sweep_id}")
def sweep(request: Request, sweep_id: SweepId) -> Response:
    """The table of a sweep."""
    desk = desk_of(request)
    found = desk.sweep(sweep_id)
    rows, active = table_of(desk, found)
    values: dict[str, Any] = {"rows": rows, "numbers": store.columns(rows), "counts": store.count(row["state"] for row in rows)}
    left = any(row["state"] not in ("succeeded", "removed") for row in rows)
    return page(request, "sweep.html", sweep=found, active=active, left=left, **values)


@router.post("/sweeps/{sweep_id}/cancel")
@router.post("/sweeps/{sweep_id}/resume")
@router.post("/sweeps/{sweep_id}/delete")
async def change_sweep(request: Request, sweep_id: SweepId) -> Response:
    """Cancel, resume or delete the jobs of a sweep, by a button."""
    await forms.read_form(request)
    desk, what = desk_of(request), request.url.path.rpartition("/")[2]
    found, starter = await desk.slowly(desk.sweep, sweep_id), desk.starter
    work: dict[str, Callable[[Sweep], Any]] = {"cancel": starter.sweeps.cancel, "resume": starter.resume_sweep}
    work["delete"] = starter.remove_sweep
    try:
        await desk.slowly(work[what], found)
    finally:
        await desk.slowly(desk.note_jobs, found)
    return RedirectResponse("/sweeps" if what == "delete" else f"/sweeps/{sweep_id}", 303)


@router.get("/new")
def new(request: Request, like: Annotated[str, Query(max_length=200)] = "") -> Response:
    """The form for a job; ``like`` is the id of one to begin from."""
    text = _EXAMPLE
    if like:
        text = bytes_of(desk_of(request).job(like), "spec").decode(errors="replace")
    return page(request, "new.html", spec=text, answer=_NO_ANSWER)


@router.post("/new")
async def send(request: Request, part: Annotated[str, Query(max_length=10)] = "") -> Response:
    """Check, plan or hand over what the form holds."""
    form, desk = await forms.read_form(request), desk_of(request)
    spec, what = form.get("spec", "").replace("\r\n", "\n"), form.get("do", "validate")
    answer: dict[str, Any] = dict(_NO_ANSWER)
    status = 200
    try:
        document = read_body(spec.encode(), is_json=False)
        if what == "submit":
            key, who = form.get("key", ""), grant_of(request).name
            made, _ = await desk.slowly(desk.starter.submit, document, spec.encode(), key=key, who=who)
            if isinstance(made, Sweep):
                await desk.slowly(desk.note_jobs, made)
                return RedirectResponse(f"/sweeps/{made.sweep}", 303)
            await desk.slowly(desk.table.note, made)
            return RedirectResponse(f"/jobs/{made.id}", 303)
        if what == "plan":
            planned = await desk.slowly(desk.starter.plan, document)
            answer |= {"sweep": planned} if "jobs" in planned else {"plan": telling.plan_facts(planned)}
        else:
            answer["good"] = await desk.slowly(desk.starter.validate, document)
    except (DlscaleError, Problem, OSError) as error:
        problem = problem_of(error)
        # A part is news of a fault, and not a fault itself.
        answer["bad"], status = problem.detail, 200 if part else problem.status
    return page(request, "answer.html" if part else "new.html", status, spec=spec, answer=answer)


@router.get("/jobs/{job_id}")
def show(request: Request, job_id: JobId, part: Annotated[str, Query(max_length=10)] = "") -> Response:
    """One job."""
    job = desk_of(request).job(job_id)
    return page(request, "facts.html" if part else "job.html", **_facts(job))


def _facts(job: Job) -> dict[str, Any]:
    state = job.read_state()
    return {
        "job": job,
        "state": state,
        "active": state.moves,
        "slurm": slurm_facts(job),
        "checks": telling.checks_of(state.certificate),
        "plan": telling.plan_facts(job.read_plan()),
        "log": telling.end_of_log(job),
        "notes": [str(note) for note in state.summary.get("notes") or ()],
        "heard": job.events.stat().st_size if job.events.exists() else 0,
    }


@router.post("/jobs/{job_id}/{what}")
async def change(request: Request, job_id: JobId, what: str) -> Response:
    """Cancel, resume or delete a job, by a button."""
    await forms.read_form(request)
    desk: Desk = desk_of(request)
    work = {"cancel": desk.starter.cancel, "resume": desk.starter.resume, "delete": desk.starter.remove}.get(what)
    if work is None:
        raise Problem(404, f"There is no {request.url.path}.")
    await desk.slowly(desk.change, job_id, work)
    return RedirectResponse("/" if what == "delete" else f"/jobs/{job_id}", 303)


@router.get("/login")
def ask_for_token(request: Request) -> Response:
    return page(request, "login.html", wrong=False)


@router.post("/login")
async def login(request: Request) -> Response:
    """Keep a token in a cookie that no script reads and no other site sends."""
    form, tokens = await forms.read_form(request), desk_of(request).settings.tokens
    token = form.get("token", "").strip()
    if tokens is None or tokens.grant(token) is None:
        return page(request, "login.html", 403, wrong=True)
    response = RedirectResponse("/", 303)
    # A proxy may speak TLS for this server.
    secure = request.headers.get("origin", "").startswith("https:")
    response.set_cookie(TOKEN_COOKIE, token, httponly=True, samesite="strict", path="/", secure=secure)
    return response


@router.post("/logout")
async def logout(request: Request) -> Response:
    await forms.read_form(request)
    response = RedirectResponse("/login", 303)
    response.delete_cookie(TOKEN_COOKIE)
    return response
