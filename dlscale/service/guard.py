"""What every request passes before anything else looks at it: by which name, from which page, with which token."""

from __future__ import annotations

import asyncio
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dlscale.service.problems import Problem, problem_of
from dlscale.service.settings import IDLE_SECONDS, Settings
from dlscale.service.tokens import EVERYTHING, Grant

#: Holds the token of a browser.
TOKEN_COOKIE = "dlscale-token"
#: What says nothing of any job.
_OPEN = ("/health", "/ready", "/login")
_READING = ("GET", "HEAD", "OPTIONS")

#: Of what is not a page with a policy of its own: nothing in it is run or loaded, wherever it is shown.
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
}


class Guard:
    """Around an app.

    Parameters
    ----------
    app : ASGI application
        Finds what whoever asks may do in ``scope["state"]["grant"]``.
    settings : Settings
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_within(message: Message) -> None:
            """As `send`, which waits for a slow reader, but not for ever."""
            if message["type"] == "http.response.start":
                sent = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(item for item in _HEADERS.items() if item[0] not in sent)]
            async with asyncio.timeout(IDLE_SECONDS):
                await send(message)

        headers = Headers(scope=scope)
        try:
            self._require_own_page(headers)
            self._require_scope(scope, headers)
        except Problem as problem:
            response = problem.response()
            if problem.status == 401 and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
                response = RedirectResponse("/login", 303)
            await response(scope, receive, send_within)
            return
        await self._app(scope, receive, send_within)

    def _require_own_page(self, headers: Headers) -> None:
        """Refuse what a page of somebody else makes a browser ask for, whatever the method."""
        host = headers.get("host", "")
        name = _name_of(host)
        if len(headers.getlist("host")) != 1 or name is None or not self._settings.knows_host(name):
            raise Problem(403, f"This server is not known as {host[:100] or 'nothing'}; ask it by its own name, or give it --name.")
        if (origin := headers.get("origin")) is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Problem(403, f"Pages of {origin[:100]} may not ask this server for anything.")
        if (site := headers.get("sec-fetch-site", "none")) not in ("none", "same-origin"):
            raise Problem(403, f"Pages of other sites may not ask this server for anything (Sec-Fetch-Site: {site[:20]}).")

    def _require_scope(self, scope: Scope, headers: Headers) -> None:
        state = scope.setdefault("state", {})
        path, method = scope["path"], scope["method"]
        if self._settings.tokens is None:
            state["grant"] = EVERYTHING
            return
        if path in _OPEN or path.startswith("/static/"):
            state["grant"] = Grant("", frozenset())
            return
        token = _bearer(headers) or (_cookie(headers) if method in _READING or not path.startswith("/v1/") else "")
        try:
            grant = self._settings.tokens.grant(token) if token else None
        except Exception as error:
            raise problem_of(error) from error
        if grant is None:
            said = "This token is not known." if token else "A token is needed: Authorization: Bearer TOKEN."
            said += " dlscale and dlscale.Client take it from DLSCALE_TOKEN."
            raise Problem(401, said, headers={"WWW-Authenticate": "Bearer"}, exit_code=2)
        needed = _needed(method, path)
        if not grant.allows(needed):
            raise Problem(403, f"The token {grant.name} may not do this; it takes one with the scope {needed}.", exit_code=2)
        state["grant"] = grant


def _needed(method: str, path: str) -> str:
    """The scope that a request takes: jobs are looked at, started and stopped, or removed."""
    if method in _READING:
        return "read"
    if path == "/logout":
        return "read"
    return "admin" if method == "DELETE" or path.endswith("/delete") else "submit"


def _name_of(host: str) -> str | None:
    """The name in a Host header, without the port; None if it is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host and not parts.path else None


def _bearer(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(TOKEN_COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""
