"""Servers on a workspace in a bucket, each on a machine of its own: what one does the others see, and a silent store is told."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gate import PATIENCE_SECONDS
from object_server import SECRET, Faults, environment
from web_server import LONG, SHORT, WebServer, fields_of, wait_until

from dlscale.storage.groups import open_arrays
from dlscale.storage.objects import requests
from dlscale.storage.objects.address import Address

#: Much more than a silent store is waited for; far less than a client waits.
BOUND_SECONDS = 40.0


@pytest.fixture
def serve(bucket: Address, folder: Path, s3_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., WebServer]:
    """A server of a machine, by the machine's name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "tests"))

    def server(machine: str, *arguments: str, port: int = s3_port) -> WebServer:
        variables = environment(port) | {"XDG_CACHE_HOME": str(tmp_path / machine)}
        return WebServer(folder, *arguments, workspace=f"{bucket}/ws", environment=variables)

    return server


def listed(server: WebServer, **query: str) -> list[tuple[str, str]]:
    return [(row["job"], row["state"]) for row in server.http.get("/v1/jobs", params=query).json()["jobs"]]


def told(server: WebServer, job: str, after: int = 0) -> Iterator[tuple[int, str]]:
    """The numbers and the words of a job's events."""
    with server.http.stream("GET", f"/v1/jobs/{job}/events", headers={"Last-Event-ID": str(after)}) as stream:
        number = 0
        for line in stream.iter_lines():
            name, _, value = line.partition(": ")
            number = int(value) if name == "id" else number
            if name == "event":
                yield number, value


def test_what_one_server_does_another_sees(serve: Callable[..., WebServer], bucket: Address, tmp_path: Path) -> None:
    """Also when the one that did it was killed; nothing that opens the bucket is in any file or answer."""
    first = serve("first")
    with serve("second") as second:
        with first, first.gate.closed():
            job = first.submit(LONG)
            first.gate.wait_for_job()
            wait_until(lambda: listed(second) == [(job, "running")])
            heard = []
            watched = threading.Thread(target=lambda: heard.extend(told(second, job)))
            watched.start()
            first.kill()
            assert second.http.delete(f"/v1/jobs/{job}").status_code == 409
            assert second.http.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
            watched.join(PATIENCE_SECONDS)
            assert heard[-1][1] == "end"
            assert "cancelled" in second.http.get(f"/v1/jobs/{job}/log").text
        with serve("first") as first:
            assert listed(first) == [(job, "cancelled")]
            assert second.http.post(f"/v1/jobs/{job}/resume").status_code == 202
            done = first.wait_for(job, "succeeded")
            wait_until(lambda: listed(first) == [(job, "succeeded")])
            after = list(told(first, job, after=heard[-1][0]))
            assert "pass_finished" in {word for _, word in after}
            require_whole(first, done, bucket)
            assert first.http.delete(f"/v1/jobs/{job}").status_code == 204
            wait_until(lambda: not listed(second))
            assert second.http.get(f"/v1/jobs/{job}").status_code == 404
    assert not [key for key in requests.listing(bucket / "ws") if not key.startswith("service/")]
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in data for data in files)


def require_whole(server: WebServer, done: dict[str, Any], bucket: Address) -> None:
    """All that there is of a job, from a server whose machine did not run it."""
    base = f"/v1/jobs/{done['job']}"
    assert done["result"] == f"{bucket}/ws/jobs/{done['job']}/result.zarr"
    theirs = open_arrays(done["result"])["u"]
    part = server.http.get(f"{base}/result/u", params={"rows": "10:14", "columns": "1:3", "format": "npy"})
    assert np.array_equal(np.load(io.BytesIO(part.content)), theirs[10:14, 1:3])
    assert server.http.get(f"{base}/certificate").json()["passed"]
    assert server.http.get(f"{base}/plan").json()["kind"] == "svd"
    assert done["job"] in server.http.get(f"{base}/report").text
    assert server.http.get(f"{base}/size").json()["bytes"] > theirs.nbytes
    key = next(key for key in requests.listing(Address.of(done["result"])) if key.startswith("u/c/"))
    chunk = requests.get(Address.of(done["result"]) / key)
    assert server.http.get(f"{base}/zarr/{key}").content == chunk
    assert server.http.get(f"{base}/zarr/{key}", headers={"Range": "bytes=3-10"}).content == chunk[3:11]
    assert server.http.head(f"{base}/zarr/{key}").headers["content-length"] == str(len(chunk))
    for missing in ("zarr/nothing", "zarr/..%2fstate.json", "zarr/", "result/nothing"):
        assert server.http.get(f"{base}/{missing}").status_code == 404
    assert json.loads(server.http.get(f"{base}/zarr/zarr.json").content)["node_type"] == "group"


def test_one_key_is_one_job_of_all_servers(serve: Callable[..., WebServer]) -> None:
    """A sweep too, which any of them shows, and removes with its jobs; one that keeps no jobs removes them for all."""
    with serve("first") as first, serve("second") as second:
        body = first.spec(SHORT, matrix={"params.n_components": [2, 3]})
        made, again = (each.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"}) for each in (first, second))
        assert (made.status_code, again.headers["idempotency-replayed"]) == (201, "true")
        sweep = made.json()["sweep"]
        assert again.json()["sweep"] == sweep

        def ended() -> bool:
            table = second.http.get(f"/v1/sweeps/{sweep}").json()
            return not table["active"] and {row["state"] for row in table["jobs"]} == {"succeeded"}

        wait_until(ended)
        assert [each["sweep"] for each in second.http.get("/v1/sweeps").json()["sweeps"]] == [sweep]
        with httpx.Client(base_url=second.url, headers={"Accept": "text/html", "Origin": second.url}) as browser:
            page = browser.get("/new").text
            assert second.workspace in browser.get("/").text
            form = fields_of(page) | {"spec": json.dumps(second.spec(SHORT, name="formed")), "do": "submit"}
            formed = browser.post("/new", data=form).headers["location"].rpartition("/")[2]
        first.wait_for(formed, "succeeded")
        wait_until(lambda: "succeeded" in {state for job, state in listed(first) if job == formed})
        wait_until(lambda: second.http.delete(f"/v1/sweeps/{sweep}").status_code == 204)
        wait_until(lambda: [job for job, _ in listed(first)] == [formed])
        assert first.http.get(f"/v1/sweeps/{sweep}").status_code == 404
        with serve("third", "--keep-jobs", "0"):
            wait_until(lambda: not listed(first))


def test_a_store_that_is_silent_is_told_and_not_asked_for_each_request(serve: Callable[..., WebServer], faults: Faults) -> None:
    with serve("first", port=faults.port) as server:
        job = server.submit()
        server.wait_for(job, "succeeded")
        wait_until(lambda: listed(server, state="succeeded") == [(job, "succeeded")])
        server.http.get(f"/v1/jobs/{job}/log")
        before, began = faults.counts["requests"], time.monotonic()
        for _ in range(40):
            for path in ("", f"/{job}", f"/{job}/log", f"/{job}/plan"):
                assert server.http.get(f"/v1/jobs{path}").status_code == 200
        asked = faults.counts["requests"] - before
        assert asked <= 4 * (time.monotonic() - began + 1)
        faults.frozen_until = time.monotonic() + 600
        began = time.monotonic()
        for path in (f"/v1/jobs/{job}", "/v1/jobs", "/ready"):
            wait_until(lambda path=path: server.http.get(path).status_code == 503, BOUND_SECONDS)
            refused = server.http.get(path)
            assert refused.headers["content-type"] == "application/problem+json"
            assert "answer" in refused.json()["detail"]
        assert server.http.post("/v1/jobs", json=server.spec()).status_code == 503
        assert time.monotonic() - began < BOUND_SECONDS
        assert server.http.get("/health").status_code == 200
        faults.frozen_until = 0.0
        wait_until(lambda: server.http.get("/ready").status_code == 200)
        assert listed(server) == [(job, "succeeded")]
