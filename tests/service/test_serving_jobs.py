"""The life of a job over HTTP, by a real server, and what a killed one leaves."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import socket
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
import zarr
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator
from web_server import LONG, SHORT, WebServer, wait_until

from dlscale.cli.main import commands
from dlscale.service.server import _listen


def command(folder: Path, *arguments: str) -> Result:
    with chdir(folder):
        return CliRunner().invoke(commands, arguments)


@pytest.fixture(scope="module")
def done(server: WebServer) -> dict[str, Any]:
    return server.wait_for(server.submit(), "succeeded")


def events_of(response: httpx.Response) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(id, event, data) of each event of a stream."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield fields["id"], fields["event"], json.loads(fields["data"])
            fields = {}
        else:
            fields = {}


def test_a_job_is_submitted_and_read(server: WebServer, done: dict[str, Any]) -> None:
    base = f"/v1/jobs/{done['job']}"
    assert (done["kind"], done["exit_code"], done["certificate"]["passed"]) == ("svd", 0, True)
    assert server.http.get(f"{base}/plan").json()["kind"] == "svd"
    assert server.http.get(f"{base}/certificate").json() == done["certificate"]
    assert yaml.safe_load(server.http.get(f"{base}/spec").text)["input"]["matrix"].endswith("/a.zarr")
    report = server.http.get(f"{base}/report")
    assert report.text.startswith("<!DOCTYPE html>")
    assert report.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    listed = server.http.get("/v1/jobs").json()["jobs"]
    assert [job["certificate"] for job in listed if job["job"] == done["job"]] == [True]
    metrics = server.http.get("/metrics").text
    assert 'dlscale_jobs{state="succeeded"}' in metrics
    assert server.http.get("/schema").json()["title"] == "dlscale job"
    assert "/v1/jobs/{job_id}/events" in server.http.get("/openapi.json").json()["paths"]


def test_a_stream_ends_with_its_job_and_goes_on_behind_any_event(server: WebServer, folder: Path, done: dict[str, Any]) -> None:
    path = f"/v1/jobs/{done['job']}/events"
    with server.http.stream("GET", path) as stream:
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        whole = list(events_of(stream))
    written = [json.loads(line) for line in (folder / "ws" / "jobs" / done["job"] / "events.jsonl").read_text().splitlines()]
    assert [data for _, _, data in whole] == [*written, {"state": "succeeded"}]
    for n, (number, _, _) in enumerate(whole[:5], 1):
        with server.http.stream("GET", path, headers={"Last-Event-ID": number}) as stream:
            assert list(events_of(stream)) == whole[n:]
    for number in ("9" * 15, str(int(whole[0][0]) - 3)):  # behind the end, within a line
        with server.http.stream("GET", path, headers={"Last-Event-ID": number}) as stream:
            assert list(events_of(stream))[-1] == whole[-1]
    assert server.http.get(path, headers={"Last-Event-ID": "x"}).status_code == 422


def test_a_log_is_read_in_parts(server: WebServer, done: dict[str, Any]) -> None:
    path = f"/v1/jobs/{done['job']}/log"
    whole = server.http.get(path).text
    assert whole.splitlines()[-1].endswith("succeeded")
    first = server.http.get(path, params={"limit": 10})
    rest = server.http.get(path, params={"offset": first.headers["x-next-offset"]})
    assert first.text + rest.text == whole
    part = server.http.get(path, headers={"Range": "bytes=-5"})
    assert (part.status_code, part.text) == (206, whole[-5:])
    assert server.http.get(path, headers={"Range": f"bytes={len(whole)}-"}).status_code == 416
    behind = server.http.get(path, params={"offset": 2**53})
    assert (behind.status_code, behind.text, behind.headers["x-size"]) == (200, "", str(len(whole)))
    assert server.http.get(path, params={"limit": 2**21}).status_code == 422
    assert server.http.get(path, params={"limit": [1, 2]}).json()["detail"] == "limit: got 2 values; it is given once."


def test_parts_of_a_result(server: WebServer, done: dict[str, Any]) -> None:
    base = f"/v1/jobs/{done['job']}/result"
    facts = server.http.get(base).json()
    assert facts["arrays"]["u"]["shape"] == [4000, 5]
    part = {"rows": "10:14", "columns": "1:3"}
    npy = np.load(io.BytesIO(server.http.get(f"{base}/u", params={**part, "format": "npy"}).content))
    assert npy.shape == (4, 2)
    assert np.array_equal(server.http.get(f"{base}/u", params=part).json()["values"], npy)
    text = server.http.get(f"{base}/u", params={**part, "format": "csv"}).text
    assert np.array_equal(np.loadtxt(io.StringIO(text), delimiter=","), npy)
    s = server.http.get(f"{base}/s").json()
    assert (s["rows"], len(s["values"])) == ([[0, 5]], 5)
    wrong = [("nothing", {}, 404), ("s", {"columns": "0:1"}, 409)]
    wrong += [("u", {"rows": rows}, status) for rows, status in (("9:3", 409), ("5000:", 409), ("::2", 422), ("-1", 422))]
    for name, query, status in wrong:
        answer = server.http.get(f"{base}/{name}", params=query)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_result_is_read_as_the_zarr_group_that_it_is(server: WebServer, done: dict[str, Any], folder: Path) -> None:
    base, place = f"/v1/jobs/{done['job']}/zarr", Path(done["result"])
    files = {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    fetched = {key: server.http.get(f"{base}/{key}") for key in files}
    assert {key: answer.content for key, answer in fetched.items()} == files
    copy = folder.parent / "copy.zarr"
    for key, answer in fetched.items():
        (copy / key).parent.mkdir(parents=True, exist_ok=True)
        (copy / key).write_bytes(answer.content)
    assert np.array_equal(zarr.open_group(copy, mode="r")["s"][:], zarr.open_group(place, mode="r")["s"][:])
    chunk = next(key for key in files if key.startswith("u/c/"))
    part = server.http.get(f"{base}/{chunk}", headers={"Range": "bytes=3-10"})
    assert (part.status_code, part.content) == (206, files[chunk][3:11])
    assert server.http.head(f"{base}/{chunk}").headers["content-length"] == str(len(files[chunk]))
    (place / "link").symlink_to(folder)
    (place / ".hidden").write_text("x")
    for key in (
        "",
        "s",
        "nothing",
        "../state.json",
        "..%2fstate.json",
        "link/a.zarr/zarr.json",
        ".hidden",
        "s//zarr.json",
        "x" * 1000,
        "/etc/passwd",
    ):
        assert server.http.get(f"{base}/{key}").status_code == 404
    (place / "link").unlink()
    (place / ".hidden").unlink()


def test_faults_are_told_in_the_words_of_the_command_line(server: WebServer, folder: Path) -> None:
    text = "kind: svd\ninput: {matrix: a.zarr}\nparams: {n_components: 0, colour: red}\n"
    (folder / "bad.yaml").write_text(text)
    said = command(folder, "validate", "bad.yaml")
    for query in ("?validate_only", "?plan_only=true", ""):
        answer = server.http.post(f"/v1/jobs{query}", content=text, headers={"Content-Type": "application/yaml"})
        assert (answer.status_code, answer.json()["exit_code"]) == (422, said.exit_code)
        assert answer.json()["detail"].replace("spec:", "bad.yaml:") == said.stderr.removeprefix("error: ").rstrip()
    valid = server.http.post("/v1/jobs?validate_only", json=server.spec())
    assert (valid.status_code, valid.json()["message"]) == (200, "spec is a valid job of kind svd.")
    plan = server.http.post("/v1/jobs?plan_only", json=server.spec())
    assert (plan.status_code, plan.json()["kind"]) == (200, "svd")
    for content, kind in ((b"[1]", "application/json"), (b'{"a":1,"a":2}', "application/json"), (b"[" * 50_000, "application/json"),
                          (b"\xff", "text/yaml"), (b"&a [*a]", "text/yaml"), (b"{", "application/json")):  # fmt: skip
        assert server.http.post("/v1/jobs", content=content, headers={"Content-Type": kind}).status_code == 422
    assert server.http.post("/v1/jobs", data={"kind": "svd"}).status_code == 415


def test_what_fits_the_schema_is_told_from_what_does_not(server: WebServer) -> None:
    """A client can check its job files by the description of the API: only what fails there is a 422."""
    described = server.http.get("/openapi.json").json()
    body = described["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/yaml"]["schema"]
    schema = Draft202012Validator({**body, "components": described["components"]})
    good = server.spec()
    refused: list[tuple[dict[str, Any], int]] = [
        ({"kind": "svd"}, 422),
        ({**good, "kind": "unknown"}, 422),
        ({**good, "colour": "red"}, 422),
        ({**good, "params": {"n_components": 0}}, 422),
        ({**good, "stall": "soon"}, 422),
        ({**good, "input": {"matrix": ""}}, 422),
        ({**good, "input": {"matrix": "nothing.zarr"}}, 409),
        ({**good, "params": {"n_components": 10**6}}, 409),
        ({**good, "stall": "0s"}, 409),
        ({**good, "input": {"matrix": "a\0.zarr"}}, 409),
        ({**good, "output": "/elsewhere/r.zarr"}, 403),
    ]
    for spec, status in refused:
        for sent in ({"json": spec}, {"content": yaml.safe_dump(spec), "headers": {"Content-Type": "application/yaml"}}):
            answer = server.http.post("/v1/jobs", **sent)
            assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), (spec, answer.text)
            assert (answer.json()["exit_code"], schema.is_valid(spec)) == (2, status != 422), spec
    assert schema.is_valid(good)


def test_a_key_makes_one_job(server: WebServer, folder: Path) -> None:
    """Also where a server was killed when it had written down which job it was going to make."""
    body, key = json.dumps(server.spec()).encode(), "one/../two"
    meant = "short-20260101-000000-abcd"
    keys = folder / "ws" / "service" / "keys"
    keys.mkdir(parents=True, exist_ok=True)
    kept = {"digest": hashlib.sha256(body).hexdigest(), "job": meant}
    (keys / hashlib.sha256(f"\n{key}".encode()).hexdigest()).write_text(json.dumps(kept))
    sent: dict[str, Any] = {"headers": {"Idempotency-Key": key, "Content-Type": "application/json"}}
    first, again = (server.http.post("/v1/jobs", content=body, **sent) for _ in range(2))
    assert (first.status_code, first.json()["job"]) == (201, meant)
    assert (again.status_code, again.json()["job"], again.headers["idempotency-replayed"]) == (201, meant, "true")
    other = server.http.post("/v1/jobs", content=body + b" ", **sent)
    assert (other.status_code, "with another job file" in other.json()["detail"]) == (409, True)
    server.wait_for(meant, "succeeded")


def test_a_job_is_cancelled_resumed_and_removed(server: WebServer, folder: Path) -> None:
    with server.gate.closed():
        job = server.submit(LONG)
        server.gate.wait_for_job()
        assert server.http.post(f"/v1/jobs/{job}/resume").status_code == 409
        assert server.http.delete(f"/v1/jobs/{job}").status_code == 409
        assert server.http.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    assert command(folder, "status", job, "--workspace", "ws", "--json").stdout.count('"cancelled"') == 1
    assert server.http.post(f"/v1/jobs/{job}/cancel").status_code == 409
    assert server.http.get("/v1/jobs", params={"state": "cancelled"}).json()["jobs"][0]["job"] == job
    assert server.http.post(f"/v1/jobs/{job}/resume").status_code == 202
    server.wait_for(job, "succeeded")
    wait_until(lambda: server.http.delete(f"/v1/jobs/{job}").status_code == 204)
    assert not (folder / "ws" / "jobs" / job).exists()
    assert server.http.get(f"/v1/jobs/{job}").status_code == 404
    assert job not in server.http.get("/v1/jobs").text


def test_an_answer_leaves_at_once() -> None:
    """And does not wait for an acknowledgement, which comes after 40 ms."""

    async def has_no_delay() -> bool:
        loop = asyncio.get_running_loop()
        told = loop.create_future()

        class Accepted(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                option = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                told.set_result(bool(option))
                transport.abort()

        listener = _listen("127.0.0.1", 0)
        async with await loop.create_server(Accepted, sock=listener):
            with socket.create_connection(listener.getsockname()):
                return bool(await told)

    assert asyncio.run(has_no_delay())


def test_pages_of_a_list_hold_every_job_once(server: WebServer, done: dict[str, Any], folder: Path) -> None:
    assert command(folder, "run", "--workspace", "ws", *spec_file(folder)).exit_code == 0
    wait_until(lambda: "from-a-terminal" in server.http.get("/v1/jobs").text)
    whole = [job["job"] for job in server.http.get("/v1/jobs").json()["jobs"]]
    assert whole[0].startswith("from-a-terminal")
    paged, after = [], None
    while True:
        page = server.http.get("/v1/jobs", params={"limit": 2} | ({"after": after} if after else {})).json()
        paged += [job["job"] for job in page["jobs"]]
        if (after := page["next"]) is None:
            break
    assert paged == whole
    named = server.http.get("/v1/jobs", params={"name": "terminal", "kind": "svd"}).json()["jobs"]
    assert [job["job"] for job in named] == whole[:1]


def spec_file(folder: Path) -> list[str]:
    spec = {**SHORT, "name": "from-a-terminal", "input": {"matrix": str(folder / "a.zarr")}}
    (folder / "terminal.yaml").write_text(yaml.safe_dump(spec))
    return ["terminal.yaml"]
