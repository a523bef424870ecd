"""Forms of the pages: what they hold, and that they are this server's own."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from dlscale.service.desk import read_bounded
from dlscale.service.problems import Problem

SESSION_COOKIE = "dlscale-session"
FORGERY_FIELD = "forgery"
_MAX_FIELDS = 10


def session_of(request: Request) -> str:
    """The random name of a browser's session, made where it has none."""
    found = request.cookies.get(SESSION_COOKIE, "")
    return found if len(found) == 43 and found.isascii() else secrets.token_urlsafe(32)


def keep_session(response: Response, session: str) -> None:
    response.set_cookie(SESSION_COOKIE, session, httponly=True, samesite="strict", path="/")


def forgery_token(session: str) -> str:
    """What a form of this session holds, and a page of a stranger cannot know."""
    return hashlib.sha256(f"dlscale form {session}".encode()).hexdigest()


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form that a page of this server sent (Problem if another did)."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise Problem(415, "This takes a form of the jobs page.")
    body = await read_bounded(request)
    try:
        fields = parse_qs(
            body.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_FIELDS, encoding="utf-8", errors="strict"
        )
    except ValueError as error:
        raise Problem(422, f"This is no form: {error}.") from error
    form = {name: values[-1] for name, values in fields.items()}
    session = request.cookies.get(SESSION_COOKIE, "")
    if not session or not hmac.compare_digest(form.get(FORGERY_FIELD, "").encode(), forgery_token(session).encode()):
        raise Problem(403, "This form is of another session; go back, load the page again, and send it from there.")
    return form
