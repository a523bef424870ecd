"""Errors as the command line says them, in the form of RFC 9457 (application/problem+json)."""

from __future__ import annotations

import http
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import compile_path

from dlscale.errors import DlscaleError, InputError, SpecError, StoreError
from dlscale.service.allowed import NotAllowedError
from dlscale.service.schema import FormError
from dlscale.showing import shown

MEDIA_TYPE = "application/problem+json"

#: A problem in the description of the API.
DESCRIBED = {
    "description": "Why not, as the command line says it.",
    "content": {
        MEDIA_TYPE: {
            "schema": {
                "type": "object",
                "required": ["type", "title", "status", "detail"],
                "properties": {
                    "type": {"type": "string"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "detail": {"type": "string"},
                    "exit_code": {"type": "integer"},
                },
            }
        }
    },
}


class Problem(Exception):
    """An answer that says why it is none.

    Parameters
    ----------
    status : int
        Of HTTP.
    detail : str
        The sentence.
    headers : dict, optional
    exit_code : int, optional
        What the command line ends with for the same reason.
    """

    def __init__(self, status: int, detail: str, *, headers: dict[str, str] | None = None, exit_code: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.exit_code = status, detail, headers or {}, exit_code

    def response(self) -> Response:
        record: dict[str, Any] = {"type": "about:blank", "title": title_of(self.status), "status": self.status}
        record["detail"] = shown(self.detail)
        if self.exit_code is not None:
            record["exit_code"] = self.exit_code
        return JSONResponse(record, self.status, self.headers, media_type=MEDIA_TYPE)


def title_of(status: int) -> str:
    return http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else "Error"


def problem_of(error: Exception) -> Problem:
    """What an error is over HTTP."""
    match error:
        case Problem():
            return error
        case NotAllowedError():
            return Problem(403, str(error), exit_code=error.exit_code)
        case FormError():
            return Problem(422, str(error), exit_code=error.exit_code)
        case SpecError() | InputError():
            return Problem(409, str(error), exit_code=error.exit_code)
        case StoreError():
            return Problem(503, str(error), headers={"Retry-After": "5"}, exit_code=error.exit_code)
        case DlscaleError():
            return Problem(500, str(error), exit_code=error.exit_code)
        case TimeoutError():
            return Problem(504, str(error) or "This took too long.", headers={"Retry-After": "5"})
        case OSError() if error.filename is not None and error.strerror:
            return Problem(500, f"{error.filename} cannot be read or written: {error.strerror}.", exit_code=1)
    return Problem(500, f"The server failed ({type(error).__name__}); its log says more.", exit_code=1)


def _argument_fault(error: RequestValidationError) -> Problem:
    """What was wrong with the query, as one sentence."""
    fault = error.errors()[0]
    name = ".".join(str(part) for part in fault["loc"][1:]) or "request"
    said = fault["msg"][:1].lower() + fault["msg"][1:]
    return Problem(422, f"{name}: got {str(fault.get('input'))[:100]!r}; {said}.", exit_code=2)


def _methods_of(app: FastAPI, path: str) -> list[str]:
    """What may be asked of a path, by the description of the API: a path has a route for each."""
    described = app.openapi()["paths"].items()
    return sorted(method.upper() for known, methods in described if compile_path(known)[0].match(path) for method in methods)


def explain_errors(app: FastAPI, page_of: Callable[[Request, Problem], Response | None]) -> None:
    """Let every error of an app be answered as a problem, or as a page where ``page_of`` makes one of it."""

    def told(request: Request, problem: Problem) -> Response:
        return page_of(request, problem) or problem.response()

    async def answer(request: Request, error: Exception) -> Response:
        return told(request, problem_of(error))

    async def answer_argument(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return told(request, _argument_fault(error))

    async def answer_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = f"There is no {request.url.path}." if error.status_code == 404 else f"{error.detail}: {request.method}."
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_methods_of(app, request.url.path)) or headers.get("allow", "GET")
        return told(request, Problem(error.status_code, detail, headers=headers))

    for kind in (Problem, DlscaleError, TimeoutError, OSError, Exception):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(RequestValidationError, answer_argument)
    app.add_exception_handler(HTTPException, answer_http)
