"""Sweeps over HTTP: what the command line does with them on a workspace, a server does too, in the same words."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import chdir
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from click.testing import CliRunner, Result
from gate import PATIENCE_SECONDS
from jsonschema import Draft202012Validator
from web_server import LONG, SHORT, WebServer, fields_of

import dlscale
from dlscale.cli.main import commands
from dlscale.errors import DlscaleError

AXES = {"params.n_components": [2, 3], "params.seed": [1]}


def sweep_of(server: WebServer, axes: Any = AXES, kind: dict[str, Any] = SHORT, **more: Any) -> dict[str, Any]:
    # Nothing in it is one object twice, which YAML would tell.
    return dict(json.loads(json.dumps({**server.spec(kind, **more), "matrix": axes})))


def command(server: WebServer, *arguments: str, remote: bool = True) -> Result:
    given = ["--server", server.url, *arguments] if remote else list(arguments)
    with chdir(server.folder):
        return CliRunner().invoke(commands, given)


def both(server: WebServer, *arguments: str) -> tuple[Result, Result]:
    return command(server, *arguments), command(server, *arguments, "--workspace", "ws", remote=False)


def said(result: Result) -> tuple[int, str, str]:
    return result.exit_code, result.stdout, result.stderr


def test_a_sweep_by_the_same_words_as_on_the_workspace(server: WebServer, folder: Path) -> None:
    (folder / "s.yaml").write_text(yaml.safe_dump(sweep_of(server, name="swept")))
    there, here = (command(server, "validate", "s.yaml", remote=remote) for remote in (True, False))
    assert said(there) == said(here) == (0, "s.yaml is a valid sweep of 2 jobs of kind svd.\n", "")
    planned, here = (json.loads(each.stdout) for each in both(server, "plan", "s.yaml", "--json"))
    assert [(job["name"], job["values"]) for job in planned["jobs"]] == [
        ("swept-1", {"params.n_components": 2, "params.seed": 1}),
        ("swept-2", {"params.n_components": 3, "params.seed": 1}),
    ]
    assert (planned["n_jobs"], planned["flops"]) == (2, sum(job["flops"] for job in planned["jobs"]))
    assert {key: planned[key] for key in ("kind", "keys", "flops", "bytes_read", "peak_bytes_per_worker")} == {
        key: here[key] for key in ("kind", "keys", "flops", "bytes_read", "peak_bytes_per_worker")
    }
    shown = command(server, "plan", "s.yaml").stdout
    assert all(word in shown for word in ("a sweep of 2 jobs of kind svd", "n_components", "swept-2", "randomized SVD", "2 jobs"))

    submitted = json.loads(command(server, "submit", "s.yaml", "--json").stdout)
    sweep, jobs = submitted["sweep"], submitted["jobs"]
    assert [job.rpartition("-")[0][:7] for job in jobs] == ["swept-1", "swept-2"]
    waited = command(server, "wait", "swept-sweep", "--quiet")
    assert said(waited) == said(both(server, "wait", sweep)[1]) == (0, f"{sweep}: 2 succeeded\n", "")
    assert both(server, "wait", sweep, "--json")[0].stdout == both(server, "wait", sweep, "--json")[1].stdout
    looks = [("status", "swept-s"), ("status", sweep, "--json"), ("status", sweep, "--watch", "--quiet"), ("logs", sweep)]
    for arguments in (*looks, ("logs", "-f", sweep), ("jobs", "--sweep", "swept-s"), ("cancel", sweep), ("resume", sweep)):
        there, here = both(server, *arguments)
        assert said(there) == said(here), arguments
    assert "Nothing is left to run" in command(server, "resume", sweep).stderr
    refused = command(server, "wait", sweep[:-1] + "x")
    assert (refused.exit_code, "There is no job" in refused.stderr) == (2, True)

    assert all(sweep in shown.stdout for shown in both(server, "status", jobs[0]))

    listed = server.http.get("/v1/jobs", params={"sweep": sweep}).json()["jobs"]
    assert sorted(row["job"] for row in listed) == jobs
    assert {row["sweep"] for row in listed} == {server.job(jobs[0])["sweep"]} == {sweep}
    assert server.http.get("/v1/jobs", params={"sweep": sweep[:-1]}).json()["jobs"] == []
    (described,) = server.http.get("/v1/sweeps", params={"begins": "swept-sweep"}).json()["sweeps"]
    assert (described["sweep"], described["n_jobs"], described["states"]) == (sweep, 2, {"succeeded": 2})
    table = server.http.get(f"/v1/sweeps/{sweep}").json()
    assert (table["active"], [row["certificate"] for row in table["jobs"]]) == (False, [True, True])

    removed = command(server, "rm", "swept-sweep").stdout.splitlines()
    assert [line.split()[0] for line in removed] == [*jobs, "2"]
    assert not list((folder / "ws" / "sweeps").glob("swept*"))
    assert server.http.get(f"/v1/sweeps/{sweep}").status_code == 404
    assert server.http.get("/v1/jobs", params={"sweep": sweep}).json()["jobs"] == []


def test_a_sweep_from_python_is_stopped_and_goes_on(server: WebServer) -> None:
    with dlscale.Client(server.url) as client:
        spec = sweep_of(server, {"params.n_components": [4, 5]}, LONG)
        assert client.validate(spec) == "svd"
        with server.gate.closed():
            sweep = client.submit(spec)
            server.gate.wait_for_job()
            with pytest.raises(TimeoutError, match="has not ended after 0 s: "):
                client.wait_for_sweep(sweep, timeout_seconds=0)
            with pytest.raises(DlscaleError, match="is running already"):
                client.resume_sweep(sweep)
            with pytest.raises(DlscaleError, match="cancel it first"):
                client.delete_sweep(sweep)
            jobs = [row["job"] for row in client.sweep(sweep)["jobs"]]
            assert sorted(client.cancel_sweep(sweep)) == jobs
            stopped = command(server, "wait", sweep)
        assert said(stopped) == (75, f"{sweep}: 2 cancelled\n", "")
        assert [row["state"] for row in client.jobs(sweep=sweep, state="cancelled")] == ["cancelled"] * 2
        resumed = command(server, "resume", sweep)
        assert said(resumed) == (0, f"{sweep}: 2 of 2 jobs are left; they run.\n", "")
        ended = client.wait_for_sweep(sweep)
        assert [row["state"] for row in ended["jobs"]] == ["succeeded"] * 2
        assert sweep in [each["sweep"] for each in client.sweeps(begins="long-sweep", page=1)]
        client.delete_sweep(sweep)
        assert not list(client.sweeps(begins=sweep))


def test_what_is_no_sweep_leaves_nothing(server: WebServer, folder: Path) -> None:
    """Of every job of it, form and places are checked as of a job of its own; the schema says which faults are of form."""
    described = server.http.get("/openapi.json").json()
    body = described["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/yaml"]["schema"]
    schema = Draft202012Validator({**body, "components": described["components"]})
    outside, inside = str(folder.parent / "outside.zarr"), str(folder / "a.zarr")
    good = sweep_of(server, name="refused")
    refused: list[tuple[dict[str, Any], int]] = [
        ({"matrix": 3}, 422),
        ({"matrix": {"params.seed": []}}, 422),
        ({"matrix": {f"k{i}": [1] for i in range(51)}}, 422),
        ({"colour": "red"}, 422),
        ({"name": "a" * 50 + "/../../b"}, 422),
        ({"matrix": {"params.seed": [1, 1]}}, 409),
        ({"matrix": {"params.seed": ["x"]}}, 409),
        ({"matrix": {"params.seed": list(range(1001))}}, 409),
        ({"matrix": {"params.n_components": [2, 10**6]}}, 409),
        ({"matrix": {"cluster": ["threads", "tcp://192.0.2.1:8786"]}}, 409),
        ({"matrix": {"output": [f"{folder}/r.zarr", f"{folder}/./r.zarr"]}}, 409),
        ({"matrix": {"output": [f"{folder}/r.zarr", "/elsewhere/r.zarr"]}}, 403),
        ({"matrix": {"input.matrix": [inside, outside]}}, 403),
        ({"matrix": {"checkpoint.at": ["s3://bucket/x"]}}, 403),
    ]
    before = server.http.get("/v1/jobs").json(), server.http.get("/v1/sweeps").json()
    for part, status in refused:
        answer = server.http.post("/v1/jobs", json={**good, **part})
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), (part, answer.text)
        assert (answer.json()["exit_code"], schema.is_valid({**good, **part})) == (2, status != 422), part
    assert (server.http.get("/v1/jobs").json(), server.http.get("/v1/sweeps").json()) == before
    without = {key: value for key, value in good.items() if key != "input"}
    for spec, valid in (
        (good, True),
        ({**without, "matrix": {"input.matrix": [inside]}}, True),
        ({**without, "matrix": AXES}, None),
    ):
        answer = server.http.post("/v1/jobs?validate_only", json=spec)
        assert (answer.status_code == 200, schema.is_valid(spec)) == (bool(valid), True), answer.text
    for below, method in (("", "GET"), ("/csv", "GET"), ("/cancel", "POST"), ("/resume", "POST"), ("", "DELETE")):
        for name in ("nothing", "..%2fx", ".hidden"):
            assert server.http.request(method, f"/v1/sweeps/{name}{below}").status_code in (404, 405)
    assert server.http.get("/v1/sweeps", params={"after": "nothing"}).status_code == 404


def test_a_key_makes_one_sweep(server: WebServer, folder: Path) -> None:
    """Also where a server was killed in the middle of making its jobs."""
    body, meant, half = json.dumps(sweep_of(server, name="keyed")).encode(), "keyed-sweep-20260101-000000-abcd", "keyed-1-x"
    keys, jobs = folder / "ws" / "service" / "keys", folder / "ws" / "jobs"
    keys.mkdir(parents=True, exist_ok=True)
    (jobs / half).mkdir(parents=True)
    kept = {"digest": hashlib.sha256(body).hexdigest(), "job": meant, "jobs": [half, "keyed-2-x"]}
    (keys / hashlib.sha256(b"\nsweep-key").hexdigest()).write_text(json.dumps(kept))
    sent: dict[str, Any] = {"headers": {"Idempotency-Key": "sweep-key", "Content-Type": "application/json"}}
    with server.gate.closed():
        first, again = (server.http.post("/v1/jobs", content=body, **sent) for _ in range(2))
        assert (first.status_code, first.json()["sweep"], first.headers["location"]) == (201, meant, f"/v1/sweeps/{meant}")
        assert (again.status_code, again.json(), again.headers["idempotency-replayed"]) == (201, first.json(), "true")
        assert not (jobs / half).exists()
        assert server.http.post("/v1/jobs", content=body + b" ", **sent).status_code == 409
        with dlscale.Client(server.url) as client:
            client.cancel_sweep(meant)
            client.wait_for_sweep(meant)
            client.delete_sweep(meant)


def test_a_sweep_by_forms_alone(server: WebServer, browser: httpx.Client) -> None:
    spec = sweep_of(server, {"params.n_components": [4, 5], "input.transforms": [[], [{"center": True}]]}, LONG, name="formed")
    new = browser.get("/new").text
    checked = browser.post("/new", data={**fields_of(new), "spec": json.dumps(spec), "do": "validate"}).text
    assert "spec is a valid sweep of 4 jobs of kind svd." in checked, checked
    planned = browser.post("/new", data={**fields_of(new), "spec": json.dumps(spec), "do": "plan"}).text
    assert all(word in planned for word in ("Plan of a sweep", "formed-4", "[{&#34;center&#34;: true}]"))
    with server.gate.closed():
        sent = browser.post("/new", data={**fields_of(new), "spec": json.dumps(spec), "do": "submit"})
        place = sent.headers["location"]
        sweep = place.removeprefix("/sweeps/")
        shown = browser.get(place).text
        assert (sent.status_code, 'http-equiv="refresh"' in shown) == (303, True)
        job = re.findall(r'href="/jobs/(formed-2-[^"]+)"', shown)[0]
        assert f'<a href="/sweeps/{sweep}">Sweep {sweep}</a>' in browser.get(f"/jobs/{job}").text
        listed = browser.get("/", params={"sweep": sweep}).text
        assert (listed.count(f'href="/sweeps/{sweep}"'), f'value="{sweep}"' in listed) == (4, True)
        assert "No job passes the filter" in browser.get("/", params={"sweep": "<b>"}).text
        assert sweep in browser.get("/sweeps").text
        forgery = {"forgery": fields_of(shown)["forgery"]}
        assert httpx.post(f"{server.url}{place}/cancel", data=forgery, timeout=PATIENCE_SECONDS).status_code == 403
        assert browser.post(f"{place}/delete", data=forgery).status_code == 409
        assert browser.post(f"{place}/cancel", data=forgery).headers["location"] == place
    rested = browser.get(place).text
    assert ('action="' + place + '/resume"' in rested, 'http-equiv="refresh"' in rested) == (True, False)
    assert browser.post(f"{place}/nothing", data=forgery).status_code == 404
    assert browser.post(f"{place}/delete", data=forgery).headers["location"] == "/sweeps"
    assert browser.get(place).status_code == 404
