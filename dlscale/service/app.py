"""The app: its routes, its errors, its guard."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import Depends, FastAPI, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dlscale import __version__
from dlscale.service.desk import Desk, desk_of
from dlscale.service.guard import Guard
from dlscale.service.pages import routes as pages
from dlscale.service.problems import DESCRIBED, Problem, explain_errors
from dlscale.service.routes import facts, jobs, slices, state, stored, streams, sweeps
from dlscale.service.schema import components

#: Of a query, what may be given again.
_REPEATED = ("state", "kind")


async def _asked_once(request: Request) -> None:
    """Refuse a query that says twice what is meant once."""
    for name in request.query_params.keys() - {*_REPEATED}:
        if len(given := request.query_params.getlist(name)) > 1:
            raise Problem(422, f"{name}: got {len(given)} values; it is given once.", exit_code=2)


async def _workspace_answers(request: Request) -> None:
    """Refuse at once what would wait for a store that does not answer."""
    desk_of(request).settings.workspace.require_answers()


class _App(FastAPI):
    """An app whose description holds the schema of job files."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            described = super().openapi()
            described.setdefault("components", {}).setdefault("schemas", {}).update(components())
        return super().openapi()


def make_app(desk: Desk) -> ASGIApp:
    """The app of one server."""

    def life(app: FastAPI) -> AbstractAsyncContextManager[None]:
        return desk.life()

    app = _App(
        title="dlscale",
        version=__version__,
        summary="Large linear algebra as batch jobs: planned, checkpointed, certified.",
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(_asked_once)],
        responses={"4XX": DESCRIBED, "5XX": DESCRIBED},
    )
    app.state.desk = desk
    explain_errors(app, pages.problem_page)
    for router in (state.router, pages.static_router):
        app.include_router(router)
    for router in (jobs.router, facts.router, slices.router, stored.router, streams.router, sweeps.router, pages.router):
        app.include_router(router, dependencies=[Depends(_workspace_answers)])
    return _Counted(Guard(app, desk.settings), desk)


class _Counted:
    """Counts the answers."""

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self._app, self._desk = app, desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "DELETE") else "other"
                self._desk.answers[method, message["status"]] += 1
            await send(message)

        await self._app(scope, receive, counted)
