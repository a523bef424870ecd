"""`dlscale.Client` and `dlscale --server`: the words and exit codes of the command line, over HTTP."""

from __future__ import annotations

import json
import re
import socket
from contextlib import chdir, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from meanwhile import meanwhile, until_said
from web_server import LONG, WebServer, wait_until

import dlscale
from dlscale.batch.sweeps import store
from dlscale.batch.workspace import Workspace
from dlscale.cli import choosing
from dlscale.cli.main import commands
from dlscale.errors import DlscaleError, SpecError


def command(server: WebServer, *arguments: str, remote: bool = True) -> Result:
    with chdir(server.folder):
        return CliRunner().invoke(commands, [*(("--server", server.url) if remote else ()), *arguments])


def test_the_same_words_and_exit_codes_over_http(server: WebServer, folder: Path) -> None:
    (folder / "job.yaml").write_text(yaml.safe_dump(server.spec()))
    submitted = command(server, "submit", "job.yaml", "--set", "params.n_components=3")
    assert submitted.exit_code == 0, submitted.stderr
    job = submitted.stdout.strip()
    waited = command(server, "wait", "--json")
    assert (waited.exit_code, json.loads(waited.stdout)["job"]) == (0, job)
    here = json.loads(command(server, "status", job, "--workspace", "ws", "--json", remote=False).stdout)
    assert json.loads(waited.stdout) == here
    assert command(server, "logs", job, "-f").stdout == (folder / "ws" / "jobs" / job / "log.txt").read_text()
    assert command(server, "result", job, "s", "--output", "s.npy").exit_code == 0
    assert np.load(folder / "s.npy").shape == (3,)

    (folder / "wrong.yaml").write_text("kind: svd\ninput: {matrix: a.zarr}\nparams:\n  n_components: none\n")
    there, here_ = command(server, "submit", "wrong.yaml"), command(server, "submit", "wrong.yaml", remote=False)
    assert (there.exit_code, there.stderr) == (here_.exit_code, here_.stderr)
    assert "wrong.yaml:4" in there.stderr
    ended = command(server, "cancel", job)
    assert (ended.exit_code, ended.stderr) == (2, f"error: Job {job} has ended already; it is succeeded.\n")
    assert "--server goes with submit" in command(server, "bench").stderr


def test_all_that_is_asked_of_jobs_here_is_asked_of_a_server(server: WebServer, folder: Path) -> None:
    (folder / "many.yaml").write_text(yaml.safe_dump(server.spec(name="many")))

    def both(*arguments: str) -> tuple[Result, Result]:
        return command(server, *arguments), command(server, *arguments, "--workspace", "ws", remote=False)

    there, here = (command(server, "validate", "many.yaml", remote=remote) for remote in (True, False))
    assert (there.exit_code, there.stdout) == (0, here.stdout)
    planned, here = both("plan", "many.yaml", "--json")
    assert {**json.loads(planned.stdout), "rates": 0, "expected_seconds": 0} == {
        **json.loads(here.stdout), "rates": 0, "expected_seconds": 0,
    }  # fmt: skip
    assert "randomized SVD" in command(server, "plan", "many.yaml").stdout
    with server.gate.closed():
        ids = [command(server, "submit", "many.yaml").stdout.strip() for _ in range(3)]
        watched = meanwhile(
            lambda: command(server, "jobs", "--watch", "--name", "many"), lambda: (until_said(ids[2]), server.gate.open())
        )
    assert (watched.exit_code, f"{ids[2]} succeeded" in watched.stdout) == (0, True)
    assert [row["state"] for row in json.loads(command(server, "jobs", "--name", "many", "--json").stdout)] == ["succeeded"] * 3
    assert command(server, "status", "--watch", ids[0]).stdout == f"{ids[0]} succeeded\n"
    for options in (
        ("--name", "many", "--limit", "2"),
        ("--name", "many", "--state", "failed", "--state", "succeeded"),
        ("--name", "any"),
    ):
        there, here = both("jobs", *options)
        assert there.stdout == here.stdout
        assert json.loads(both("jobs", *options, "--json")[0].stdout) == json.loads(both("jobs", *options, "--json")[1].stdout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "MOST_SHOWN", 2)
        patch.setattr(choosing, "N_SHOWN_OF_MORE", 1)
        there, here = both("jobs")
        assert there.stdout == here.stdout
        assert "the newest 1 of more than 2 jobs" in there.stderr
    # An id may be shortened to what is unique.
    there, here = both("status", "many")
    assert (there.exit_code, there.stderr) == (here.exit_code, here.stderr) == (2, there.stderr)
    assert "is the beginning of 3 jobs" in there.stderr
    assert command(server, "status", ids[0][:-1], "--json").exit_code == 0
    assert "There is no job" in command(server, "status", "nothing").stderr
    fetched = command(server, "report", ids[0][:-1], "--output", "r.html")
    assert (fetched.stdout, "<html" in (folder / "r.html").read_text()) == ("r.html\n", True)
    swept: list[Any] = [{"job": job, "values": [n]} for n, job in enumerate(ids[:2])]
    store.keep(
        Workspace(folder / "ws"),
        store.Sweep("many-sweep-1", "many", "svd", 1e9, ["params.seed"], [*swept, {"job": "gone", "values": ["<b>"]}]),
    )
    there, here = both("jobs", "--sweep", "many-sweep-1", "--json")
    assert json.loads(there.stdout) == json.loads(here.stdout)
    assert both("jobs", "--sweep", "many-s")[0].stdout == both("jobs", "--sweep", "many-s")[1].stdout
    assert command(server, "jobs", "--sweep", "nothing").exit_code == 2
    with chdir(folder):
        both("jobs", "--sweep", "many-s", "--csv", "t.csv")
        assert server.http.get("/v1/sweeps/many-sweep-1/csv").text == (folder / "t.csv").read_text()
    shown = server.http.get("/sweeps/many-sweep-1").text
    assert all(word in shown for word in (ids[0], "params.seed", "frobenius error", "&lt;b&gt;", "removed"))
    assert "many-sweep-1" in server.http.get("/sweeps").text
    assert server.http.get("/sweeps/..%2fx").status_code == 404
    there, here = both("prune", "--name", "many")
    assert there.stdout == here.stdout
    assert re.fullmatch(r"(many\S+  [\d.]+ [kM]B\n){3}3 jobs, [\d.]+ [kM]B: not removed yet; add --yes\.\n", there.stdout)
    assert re.fullmatch(rf"{ids[0]}  [\d.]+ [kM]B\n1 job, [\d.]+ [kM]B: removed\.\n", command(server, "rm", ids[0]).stdout)
    missing = command(server, "rm", ids[0])
    assert (missing.exit_code, missing.stdout, "There is no job" in missing.stderr) == (1, "0 jobs, 0 B: removed.\n", True)
    size = Workspace(folder / "ws").job(ids[1]).size()
    removed = json.loads(command(server, "prune", "--name", "many", "--keep", "1", "--yes", "--json").stdout)
    assert removed == {"removed": {ids[1]: size}, "would_remove": {}, "refused": {}}


def test_a_client_follows_a_job_while_its_server_is_started_anew(folder: Path) -> None:
    heard: list[dict[str, Any]] = []
    with WebServer(folder, port=port_of_nobody()) as first, dlscale.Client(first.url) as client, first.gate.closed():
        job = client.submit(first.spec(LONG, cluster="threads"))
        for event in client.events(job):
            heard.append(event)
            if len(heard) == 4:
                first.kill()
                second = WebServer(folder, port=first.port)
                second.__enter__()
                second.gate.open()
        try:
            assert client.wait(job)["exit_code"] == 0
            assert heard == [json.loads(line) for line in (folder / "ws" / "jobs" / job / "events.jsonl").read_text().splitlines()]
            assert next(client.jobs(state="succeeded"))["job"] == job
            assert client.array(job, "u", rows="5:9").shape == (4, 5)
            assert client.result(job)["arrays"]["s"]["shape"] == [5]
            with pytest.raises(DlscaleError, match="has succeeded"):
                client.resume(job)
            wait_until(lambda: client.status(job)["state"] == "succeeded")
            client.delete(job)
            with pytest.raises(DlscaleError, match="There is no job") as raised:
                client.status(job)
            assert raised.value.exit_code == 2
        finally:
            second.__exit__(None, None, None)


def port_of_nobody() -> int:
    """A free port that the system gives to nobody who asks for any, so that it is still free when a server comes again."""
    first_of_any = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in range(first_of_any - 1, 1024, -1):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def test_an_address_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DLSCALE_SERVER", raising=False)
    for url in ("", "localhost:8787", "ftp://x", "http:///x"):
        with pytest.raises(SpecError, match="must be the address of a server"):
            dlscale.Client(url)
