"""A real S3 server in a process of its own, and a proxy before it that fails as networks and servers do."""

from __future__ import annotations

import http.client
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dlscale.storage.objects import requests
from dlscale.storage.objects.address import Address, forget_clients

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYplanted"
#: Much more than any request takes; it only ends a test that would wait for ever.
_PATIENCE_SECONDS = 300.0

#: A server that says on which port, which the system chose, it listens, until its input ends.
_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of a server on this machine, which holds its objects in memory."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", _SERVER], **pipes) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline()
            assert port, "the server ended"
            yield int(port)
        finally:
            server.kill()


@contextmanager
def reached(port: int) -> Iterator[Address]:
    """An empty bucket of a server, which the environment of this process and of those that it starts leads to."""
    before, wanted = dict(os.environ), environment(port)
    os.environ.update(wanted)
    forget_clients()
    try:
        yield Address("s3", new_bucket(port))
    finally:
        forget_clients()
        for name in wanted:
            os.environ.pop(name) if name not in before else os.environ.update({name: before[name]})


def upload(folder: Path, to: Address) -> str:
    """Put a folder into a bucket as it is."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    list(requests.helpers().map(lambda path: requests.put(to / path.relative_to(folder).as_posix(), path.read_bytes()), files))
    return str(to)


def make_bucket(port: int, name: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_SECONDS)
    connection.request("PUT", f"/{name}")
    assert connection.getresponse().status == 200
    connection.close()


def environment(port: int) -> dict[str, str]:
    """What reaches a server on this machine."""
    return {
        "AWS_ACCESS_KEY_ID": "AKIAPLANTED",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }


class Faults:
    """What goes wrong between a client and the server; nothing until it is asked for.

    Attributes
    ----------
    failing : float
        The fraction of requests that are answered by 503.
    torn : float
        The fraction of answers to GET that break off in the middle.
    frozen_until : float
        Of `time.monotonic`: nothing is answered before.
    freezing : float
        For so many seconds nothing is answered from the next request on.
    port : int
        Where it is asked.
    counts : dict
        How often each happened, and how many requests there were.
    """

    def __init__(self) -> None:
        self.port = 0
        self.failing = self.torn = self.frozen_until = self.freezing = 0.0
        self.counts = {"requests": 0, "failing": 0, "torn": 0, "frozen": 0}
        self.log: list[str] = []
        self._due = {"failing": 0.5, "torn": 0.5}
        self._lock = threading.Lock()

    def draw(self, name: str) -> bool:
        with self._lock:
            self._due[name] += getattr(self, name)
            drawn = self._due[name] >= 1.0
            self._due[name] -= drawn
            self.counts[name] += drawn
        return drawn

    def wait(self) -> None:
        with self._lock:
            if self.freezing:
                self.frozen_until, self.freezing = time.monotonic() + self.freezing, 0.0
            self.counts["frozen"] += time.monotonic() < self.frozen_until
        while time.monotonic() < self.frozen_until:
            time.sleep(0.02)


@contextmanager
def faulty_proxy(port: int) -> Iterator[tuple[int, Faults]]:
    """The port of a proxy before a server, and what it does to requests."""
    faults = Faults()

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            faults.counts["requests"] += 1
            faults.log.append(f"{self.command} {self.path}")
            faults.wait()
            if faults.draw("failing"):
                self._answer(503, [], b"<Error><Code>SlowDown</Code></Error>")
                return
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_SECONDS)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            left_out = ("transfer-encoding", "connection", "content-length")
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in left_out]
            length = int(answer.getheader("Content-Length") or len(data))
            if self.command == "GET" and len(data) > 1 and faults.draw("torn"):
                self._answer(answer.status, headers, data[: len(data) // 2], length=length)
                self.close_connection = True
                return
            self._answer(answer.status, headers, data, length=length)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

        def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, *, length: int | None = None) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data) if length is None else length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

        def handle(self) -> None:
            with suppress(OSError):  # of a client that waited no longer
                super().handle()

    class Server(ThreadingHTTPServer):
        daemon_threads, request_queue_size = True, 128

    server = Server(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        faults.port = int(server.server_address[1])
        yield faults.port, faults
    finally:
        server.shutdown()
        server.server_close()


_numbers = itertools.count()


def new_bucket(port: int) -> str:
    """The name of an empty bucket."""
    name = f"bucket-{os.getpid()}-{next(_numbers)}"
    make_bucket(port, name)
    return name


@pytest.fixture(scope="module")
def s3_port() -> Iterator[int]:
    """Of a server for the tests of a module."""
    with s3_server() as port:
        yield port


@pytest.fixture
def bucket(s3_port: int) -> Iterator[Address]:
    """An empty bucket."""
    with reached(s3_port) as bucket:
        yield bucket


@pytest.fixture
def faults(s3_port: int, bucket: Address, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """What lies between this process and the server."""
    with faulty_proxy(s3_port) as (port, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        forget_clients()
        yield faults
