"""Who is let in, and what a job file that came over the network may name."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from gate import PATIENCE_SECONDS
from web_server import ENVIRONMENT, WebServer

from dlscale.batch.document import Document
from dlscale.batch.workspace import Workspace
from dlscale.errors import SpecError
from dlscale.service.allowed import Allowed, NotAllowedError
from dlscale.service.settings import Settings
from dlscale.service.tokens import Tokens, add_token

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "evil.example@127.0.0.1"},
        {"Host": "10.1.2.3"},
        {"Host": "127.0.0.1/x"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_pages_of_strangers_are_refused_whatever_they_ask(server: WebServer, headers: dict[str, str]) -> None:
    for method in METHODS:
        for path in ("/v1/jobs/x", "/"):
            assert server.http.request(method, path, headers=headers).status_code == 403


def test_the_server_knows_its_own_names(server: WebServer) -> None:
    for host in (f"localhost:{server.port}", f"127.0.0.1:{server.port}", "LOCALHOST", "[::1]"):
        own = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        assert server.http.get("/v1/jobs", headers=own).status_code == 200


def test_each_token_does_what_its_scopes_say(guarded: tuple[WebServer, dict[str, str]], folder: Path) -> None:
    server, made = guarded
    tokens = {scope: {"Authorization": f"Bearer {token}"} for scope, token in made.items()}
    wrong = tokens["read"]["Authorization"][:-1] + "!"
    for headers in ({}, {"Authorization": wrong}, {"Authorization": "Basic eDp5"}, {"Cookie": "dlscale-token=guess"}):
        for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("DELETE", "/v1/jobs/x"), ("GET", "/schema"), ("GET", "/")):
            answer = server.http.request(method, path, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert "DLSCALE_TOKEN" in answer.json()["detail"]
    assert server.http.get("/health").status_code == 200
    post: Any = {"url": "/v1/jobs?validate_only", "json": server.spec()}
    assert [server.http.get("/v1/jobs", headers=tokens[scope]).status_code for scope in tokens] == [200, 200, 200]
    assert [server.http.post(**post, headers=tokens[scope]).status_code for scope in tokens] == [403, 200, 200]
    assert [server.http.delete("/v1/jobs/x", headers=tokens[scope]).status_code for scope in tokens] == [403, 403, 404]
    # A browser sends cookies on its own, so the API starts and removes nothing by them.
    cookie = {"Cookie": f"dlscale-token={made['admin']}"}
    assert server.http.get("/v1/jobs", headers=cookie).status_code == 200
    assert server.http.delete("/v1/jobs/x", headers=cookie).status_code == 401
    for host, status in (("jobs.example", 200), (socket.gethostname(), 200), ("10.1.2.3:80", 200), ("evil.example", 403)):
        assert server.http.get("/v1/jobs", headers={**tokens["read"], "Host": host}).status_code == status
    path = folder.parent / "tokens"
    revoked = {"Authorization": f"Bearer {add_token(path, 'gone:admin')}"}
    assert server.http.post(**post, headers=revoked).status_code == 200
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("gone")) + "\n")
    assert server.http.post(**post, headers=revoked).status_code == 401
    assert server.http.get("/v1/jobs", headers=tokens["read"]).status_code == 200


def test_without_a_token_nobody_but_this_machine_is_served(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "some.host"):
        with pytest.raises(SpecError, match="give --token-file"):
            Settings.checked(Workspace(tmp_path), host=host)
    assert Settings.checked(Workspace(tmp_path), host="::1").tokens is None


def test_a_file_of_tokens_that_others_can_change_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    add_token(path, "a:read")
    assert path.stat().st_mode & 0o777 == 0o600
    tokens = Tokens(path)
    path.chmod(0o666)
    os.utime(path, ns=(1, 1))
    with pytest.raises(SpecError, match="can be changed by others"):
        tokens.grant("x")
    path.chmod(0o600)
    for text in ("a read", "a everything " + 64 * "0", "a read xyz", ""):
        path.write_text(text)
        with pytest.raises(SpecError):
            Tokens(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as another user")
def test_another_user_of_the_machine_is_not_heard(server: WebServer) -> None:
    ask = f"import os, urllib.request as u; os.setuid(65534); print(u.urlopen('{server.url}/health', timeout=10).status)"
    asked = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert asked.returncode != 0
    assert "refused" not in asked.stderr
    assert server.http.get("/health").status_code == 200


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2f..%2fetc", "%2fetc%2fpasswd", "a%00b", ".hidden", "x" * 150, "a b"])
def test_no_name_leads_out_of_the_workspace(server: WebServer, name: str) -> None:
    for below in ("", "/plan", "/spec", "/log", "/report", "/events", "/result", "/result/..%2f..%2fstate.json", "/certificate"):
        answer = server.http.get(f"/v1/jobs/{name}{below}")
        assert answer.status_code in (404, 422) or answer.json().keys() == {"jobs", "next"}, answer.text
    for request in (server.http.post(f"/v1/jobs/{name}/cancel"), server.http.delete(f"/v1/jobs/{name}")):
        assert request.status_code in (404, 405, 422)


def test_job_files_name_nothing_outside_of_the_allowed_folders(server: WebServer, folder: Path) -> None:
    outside = folder.parent / "outside.zarr"
    (folder / "link.zarr").symlink_to(outside)
    (folder / "out").symlink_to(folder.parent)
    inside = str(folder / "a.zarr")
    refused = [
        *({"input": {"matrix": place}} for place in (
            str(outside), "../outside.zarr", str(folder / "link.zarr"), str(folder / "x" / ".." / ".." / "outside.zarr"),
            f"file://{outside}", "~/secret.zarr", "https://169.254.169.254/latest/meta-data", "s3://bucket/x", "memory://x",
            "simplecache::file:///etc/x", "file:/etc/x", "/proc/self/environ",
        )),
        *({"input": {"matrix": {"import": place}}} for place in ("/etc/passwd", "../x.csv", "https://evil.example/x.csv")),
        *({"input": {"matrix": inside}, "output": place} for place in (
            str(folder.parent / "r.zarr"), str(folder / "out" / "r.zarr"), str(folder / "ws" / "jobs" / "x" / "result.zarr"),
            "../r.zarr", "~/r.zarr", "s3://bucket/r.zarr",
        )),
        {"input": {"matrix": inside}, "checkpoint": {"at": "s3://bucket/x"}},
    ]  # fmt: skip
    for part in refused:
        for query in ("?plan_only", ""):
            answer = server.http.post(f"/v1/jobs{query}", json={"kind": "svd", "params": {"n_components": 2}, **part})
            assert answer.status_code == 403, (part, answer.text)
            assert "allowed on this server" in answer.json()["detail"]
    assert not (folder.parent / "r.zarr").exists()
    stranger = server.spec(cluster="tcp://192.0.2.1:8786")
    for content in (yaml.safe_dump(stranger), None):
        sent: dict[str, Any] = {"json": stranger} if content is None else {"content": content}
        answer = server.http.post("/v1/jobs", **sent)
        assert answer.status_code == 409
        assert "is named by the job file alone" in answer.json()["detail"]


def test_urls_are_allowed_by_how_they_begin(tmp_path: Path) -> None:
    allowed = Allowed([str(tmp_path), "s3://bucket/data", "https://example.org"], Workspace(tmp_path / "ws"))

    def passes(url: str) -> bool:
        try:
            allowed.check({"input": {"matrix": url}}, Document({}, {}, "spec"))
        except NotAllowedError:
            return False
        return True

    for url in ("s3://bucket/data/x.zarr", "s3://bucket/data", "https://example.org/a/b?c=d", "sample:digits", str(tmp_path / "x")):
        assert passes(url), url
    for url in ("s3://bucket/other", "s3://bucket/data/../x", "s3://bucket/data2", "s3://user@bucket/data/x", "http://example.org/x",
                "https://example.org.evil/x", "https://example.org@evil/x", "https://example.org:8443/x", "s3://bucket/data/%2e%2e/x",
                "https://evil/\\@example.org/", "zip::s3://bucket/data/x", "https://[", f"{tmp_path}/../x"):  # fmt: skip
        assert not passes(url), url


def test_bodies_are_bounded(server: WebServer) -> None:
    big = b"#" * (2**20 + 1)
    assert server.http.post("/v1/jobs", content=big).status_code == 413
    assert server.http.post("/v1/jobs", content=(big[: 2**16] for _ in range(100))).status_code == 413
    assert server.http.post("/v1/jobs", content=b"#" * 2**20).status_code == 422


def test_readers_that_read_nothing_do_not_keep_others_out(server: WebServer) -> None:
    job = server.submit()
    server.wait_for(job, "succeeded")
    request = f"GET /v1/jobs/{job}/report HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
    try:
        for connection in slow:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(request.encode())
        with ThreadPoolExecutor(4) as readers:
            answers = list(
                readers.map(lambda _: httpx.get(f"{server.url}/v1/jobs/{job}", timeout=PATIENCE_SECONDS).status_code, range(40))
            )
        assert answers == [200] * 40
    finally:
        for connection in slow:
            connection.close()


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    """Without the extra, one sentence."""
    blocked = "import sys; sys.modules['uvicorn'] = None; from dlscale.cli.main import main; main()"
    command = [sys.executable, "-c", blocked, "serve", "--workspace", str(tmp_path)]
    said = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    assert "pip install 'dlscale[serve]'" in said.stderr
