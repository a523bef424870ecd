"""A server's jobs from Python: `dlscale.Client`."""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import uuid4

from dlscale.arrays import Array
from dlscale.batch.document import read_document
from dlscale.batch.jobs.states import ENDED, MOVING
from dlscale.batch.jobs.waiting import GRACE_SECONDS
from dlscale.batch.sweeps.store import count, told
from dlscale.errors import DlscaleError, SpecError

try:
    import httpx
except ImportError as error:  # pragma: no cover
    raise SpecError("dlscale.Client needs the package httpx; install it with `pip install 'dlscale[client]'`.") from error

T = TypeVar("T")

_POLL_SECONDS = 0.5
#: A server that is started anew is waited for.
_AWAY_SECONDS = 30.0
_TIMEOUT = httpx.Timeout(90.0, connect=10.0)
#: What plans or stops a thousand jobs may take so long, also where the connection is lost and the request is sent again.
_PATIENCE_SECONDS = 900.0
_PATIENT = httpx.Timeout(_PATIENCE_SECONDS, connect=10.0)


class RefusedError(DlscaleError):
    """A server says why not, in the words of the command line.

    Parameters
    ----------
    detail : str
    status : int
        Of HTTP.
    exit_code : int
        What the command line ends with for the same reason.
    """

    def __init__(self, detail: str, status: int, exit_code: int) -> None:
        super().__init__(detail)
        self.status, self.exit_code = status, exit_code


class Client:
    """The jobs of a server that `dlscale serve` runs.

    Parameters
    ----------
    url : str, optional
        Such as ``http://127.0.0.1:8787``; by default the environment's DLSCALE_SERVER.
    token : str, optional
        By default the environment's DLSCALE_TOKEN, or none.

    Notes
    -----
    Paths in a job file are those of the server. Where a server does not answer, it is asked again for half a minute; a job is
    handed over once whatever happens to the answer. What it refuses is a `DlscaleError` in the words of the command line.
    """

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        url = url or os.environ.get("DLSCALE_SERVER", "")
        if not re.match(r"https?://[^/]", url):
            raise SpecError(f"--server: must be the address of a server, such as http://127.0.0.1:8787; got {url or 'nothing'}.")
        token = token or os.environ.get("DLSCALE_TOKEN", "")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=_TIMEOUT)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(self, spec: str | Path | Mapping[str, Any], overrides: Iterable[str] = (), *, priority: int = 0) -> str:
        """Hand a job over, as `dlscale.submit` does, or the jobs of a file with ``matrix``; its id, or that of the sweep."""
        made = self._send(spec, overrides, {"priority": priority}, {"Idempotency-Key": uuid4().hex})
        return str(made["sweep"] if "sweep" in made else made["job"])

    def plan(self, spec: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> dict[str, Any]:
        """What a job would do and take there; of a sweep, what each of its ``jobs`` would."""
        return self._send(spec, overrides, {"plan_only": True}, {})

    def validate(self, spec: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> str:
        """Check a job file there, as `dlscale validate` does; the kind of its job, or of those of the sweep."""
        return str(self._send(spec, overrides, {"validate_only": True}, {})["kind"])

    def jobs(
        self,
        *,
        state: str | Sequence[str] = (),
        kind: str | Sequence[str] = (),
        name: str = "",
        begins: str = "",
        sweep: str = "",
        page: int = 50,
    ) -> Iterator[dict[str, Any]]:
        """The jobs, the newest first, fetched as they are asked for, a page at a time.

        Parameters
        ----------
        state, kind : str or sequence of str
            Only these.
        name, begins : str
            Only jobs whose name holds this; whose id begins so.
        sweep : str
            Only jobs of the sweep with this id.
        page : int
            How many are fetched at once, of at most 1000.
        """
        asked: dict[str, Any] = {"state": state, "kind": kind, "name": name, "begins": begins, "sweep": sweep}
        return self._listed("jobs", {key: value for key, value in asked.items() if value} | {"limit": page})

    def _listed(self, what: str, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
        after: str | None = ""
        while after is not None:
            answer = self._ask("GET", f"/v1/{what}", params=query | ({"after": after} if after else {})).json()
            yield from answer[what]
            after = answer["next"]

    def sweeps(self, *, begins: str = "", page: int = 50) -> Iterator[dict[str, Any]]:
        """The sweeps whose id begins so, the newest first, fetched as they are asked for, a page at a time."""
        return self._listed("sweeps", ({"begins": begins} if begins else {}) | {"limit": page})

    def sweep(self, sweep: str) -> dict[str, Any]:
        """The table of a sweep: what differs between its jobs, how they are, and the numbers that they found."""
        table: dict[str, Any] = self._ask("GET", _sweep_path(sweep)).json()
        return table

    def wait_for_sweep(
        self, sweep: str, *, timeout_seconds: float | None = None, watch: Callable[[dict[str, Any]], None] = lambda table: None
    ) -> dict[str, Any]:
        """Wait until no job of a sweep runs or waits; its table then (TimeoutError if that is not in time)."""
        started = time.monotonic()
        while True:
            asked = time.monotonic()
            table, now = self.sweep(sweep), time.monotonic()
            watch(table)
            if not table["active"]:
                return table
            if timeout_seconds is not None and now - started > timeout_seconds:
                said = told(count(row["state"] for row in table["jobs"]))
                raise TimeoutError(f"Sweep {sweep} has not ended after {timeout_seconds:g} s: {said}.")
            # A table of a thousand jobs is not asked for all the time.
            time.sleep(max(_POLL_SECONDS, 4 * (now - asked)))

    def cancel_sweep(self, sweep: str) -> list[str]:
        """Stop the jobs of a sweep that run or wait, their checkpoints kept; their ids."""
        return list(self._ask("POST", _sweep_path(sweep, "/cancel")).json()["jobs"])

    def resume_sweep(self, sweep: str) -> list[str]:
        """Run what is left of a sweep: what has not succeeded, and would not fail again; the ids of these jobs."""
        return list(self._ask("POST", _sweep_path(sweep, "/resume")).json()["jobs"])

    def delete_sweep(self, sweep: str) -> None:
        """Remove a sweep that runs no more, with all its jobs."""
        self._ask("DELETE", _sweep_path(sweep))

    def status(self, job: str) -> dict[str, Any]:
        """How far a job is, how it ended."""
        return self._record("GET", job)

    def wait(
        self, job: str, *, timeout_seconds: float | None = None, watch: Callable[[dict[str, Any]], None] = lambda status: None
    ) -> dict[str, Any]:
        """Wait for the end of a job; its status then (TimeoutError if it has not ended in time)."""
        started, lost = time.monotonic(), 0.0
        while True:
            status, now = self.status(job), time.monotonic()
            watch(status)
            lost = (lost or now) if status["state"] == "lost" else 0.0
            if status["state"] in ENDED or (lost and now - lost > GRACE_SECONDS):
                return status
            if timeout_seconds is not None and now - started > timeout_seconds:
                raise TimeoutError(f"Job {job} is {status['state']} after {timeout_seconds:g} s.")
            time.sleep(_POLL_SECONDS)

    def cancel(self, job: str) -> dict[str, Any]:
        """Stop a job, its checkpoint kept; its status then."""
        return self._record("POST", job, "/cancel")

    def resume(self, job: str) -> dict[str, Any]:
        """Let a stopped job go on from its checkpoint; its status then."""
        return self._record("POST", job, "/resume")

    def size(self, job: str) -> int:
        """Bytes on the server's disk of all that is in a job's folder."""
        return int(self._record("GET", job, "/size")["bytes"])

    def delete(self, job: str) -> None:
        """Remove a job that has ended, with all in its folder."""
        self._ask("DELETE", _path(job))

    def log(self, job: str, *, follow: bool = False) -> Iterator[str]:
        """The log of a job, in parts as they come; ``follow`` goes on until the job rests."""
        offset, rest = 0, b""
        while True:
            active = follow and self.status(job)["state"] in MOVING
            part = self.log_part(job, offset)
            offset += len(part)
            whole, newline, rest = (rest + part).rpartition(b"\n")
            if newline:
                yield (whole + newline).decode(errors="replace")
            if part:
                continue
            if not active:
                if rest:
                    yield rest.decode(errors="replace")
                return
            time.sleep(_POLL_SECONDS)

    def log_part(self, job: str, offset: int) -> bytes:
        """What stands in the log of a job from a byte on, as much as is sent at once."""
        return self._ask("GET", _path(job, "/log"), params={"offset": offset}).content

    def events(self, job: str) -> Iterator[dict[str, Any]]:
        """The events of a job from its first one, as they happen, each once, until the job rests."""
        last = ""

        def heard() -> Iterator[tuple[str, str, dict[str, Any]]]:
            with self._http.stream("GET", _path(job, "/events"), headers={"Last-Event-ID": last} if last else {}) as stream:
                if stream.status_code != 200:
                    stream.read()
                    raise _refusal(stream)
                yield from _events_of(stream.iter_lines())

        away = time.monotonic()
        while True:
            try:
                for number, name, event in heard():
                    last, away = number, time.monotonic()
                    if name == "end":
                        return
                    yield event
            except httpx.TransportError as error:
                self._give_up_after(away, error)
            time.sleep(_POLL_SECONDS)

    def result(self, job: str) -> dict[str, Any]:
        """What a job's result is: its arrays, what was checked."""
        return self._record("GET", job, "/result")

    def array(self, job: str, name: str, *, rows: str = "", columns: str = "") -> Array:
        """A part of an array of the result, such as ``rows="0:100"``; the first hundred rows and columns where nothing is said."""
        import numpy as np

        query = {"rows": rows, "columns": columns, "format": "npy"}
        content = self._ask("GET", _path(job, f"/result/{quote(name)}"), params=query).content
        return np.load(io.BytesIO(content), allow_pickle=False)  # type: ignore[no-any-return]

    def report(self, job: str) -> str:
        """The report, as one HTML page."""
        return self._ask("GET", _path(job, "/report")).text

    def _record(self, method: str, job: str, below: str = "") -> dict[str, Any]:
        record: dict[str, Any] = self._ask(method, _path(job, below)).json()
        return record

    def _send(
        self, spec: str | Path | Mapping[str, Any], overrides: Iterable[str], query: dict[str, Any], headers: dict[str, str]
    ) -> dict[str, Any]:
        """Send a job file; what is wrong with it is told with the lines that it has here."""
        document = read_document(spec, overrides)
        if overrides or isinstance(spec, Mapping):
            content, kind = json.dumps(document.data).encode(), "application/json"
        else:
            text = (
                spec if isinstance(spec, str) and "\n" in spec else Path(document.source).expanduser().read_text(encoding="utf-8")
            )
            content, kind = text.encode(), "application/yaml"
        try:
            answer = self._ask("POST", "/v1/jobs", params=query, content=content, headers={**headers, "Content-Type": kind})
        except RefusedError as error:
            said = re.sub(r"^spec(?=:)", lambda _: document.source, str(error), flags=re.MULTILINE)
            raise RefusedError(said, error.status, error.exit_code) from error
        record: dict[str, Any] = answer.json()
        return record

    def _ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """A request, again where nobody answers: all that change something may be sent twice."""
        began, away = time.monotonic(), 0.0
        timeout = _TIMEOUT if method == "GET" else _PATIENT
        while True:
            try:
                answer = self._http.request(method, path, timeout=timeout, **request)
                if answer.is_success:
                    return answer
                # The same request, sent before its answer was lost, may still be at work.
                at_work = answer.status_code == 409 and "retry-after" in answer.headers
                limit = _PATIENCE_SECONDS if at_work else _AWAY_SECONDS if answer.status_code == 503 else 0.0
                if time.monotonic() - began >= limit:
                    raise _refusal(answer)
                away = 0.0
            except httpx.TransportError as error:
                away = away or time.monotonic()
                self._give_up_after(away, error)
            time.sleep(_POLL_SECONDS)

    def _give_up_after(self, away: float, error: Exception) -> None:
        if time.monotonic() - away > _AWAY_SECONDS:
            raise DlscaleError(f"The server {self.url} does not answer ({error}); is `dlscale serve` running there?") from error


def _path(job: str, below: str = "") -> str:
    return f"/v1/jobs/{quote(job, safe='')}{below}"


def _sweep_path(sweep: str, below: str = "") -> str:
    return f"/v1/sweeps/{quote(sweep, safe='')}{below}"


def _refusal(answer: httpx.Response) -> RefusedError:
    try:
        problem = answer.json()
        return RefusedError(str(problem["detail"]), answer.status_code, int(problem.get("exit_code", 1)))
    except (ValueError, KeyError, TypeError):
        return RefusedError(f"{answer.url} answers {answer.status_code}; is it `dlscale serve`?", answer.status_code, 1)


def _events_of(lines: Iterable[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Id, name and data of each event of a stream."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        else:
            if "data" in fields:
                yield fields["id"], fields.get("event", ""), json.loads(fields["data"])
            fields = {}
