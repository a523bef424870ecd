"""`dlscale serve` as a process of its own, on a free port, and jobs for it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from drawing import with_pages
from gate import PATIENCE_SECONDS, Gate

from dlscale.batch.remote.opening import open_workspace
from dlscale.batch.workspace import ENDED

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

#: Of some passes, most of them behind a closed gate.
LONG_PARAMS = {"n_components": 5, "power_iterations": 8, "block_rows": 200}
LONG = {"kind": "svd", "name": "long", "cluster": "threads", "params": LONG_PARAMS}
SHORT = {"kind": "svd", "name": "short", "cluster": "threads", "params": {"n_components": 5, "power_iterations": 1}}


class WebServer:
    """A server as a context manager.

    Parameters
    ----------
    folder : Path
        Its current folder, where its workspace is.
    arguments : str
        More of the command line.
    workspace : str
    environment : mapping
        Beside that of all servers.

    Attributes
    ----------
    gate : Gate
        On the way of its jobs.
    """

    def __init__(
        self, folder: Path, *arguments: str, port: int = 0, workspace: str = "ws", environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.arguments, self.port = folder, ("--workspace", workspace, *arguments), port
        self.workspace, self.environment = folder / workspace if "://" not in workspace else workspace, environment or {}
        self.gate = Gate(folder / "gate")

    def __enter__(self) -> WebServer:
        command = [sys.executable, "-m", "dlscale", "serve", "--port", str(self.port), *self.arguments]
        environment = with_pages(ENVIRONMENT | self.gate.environment | self.environment)
        self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.url = next(word for word in line.split() if word.startswith("http")).rstrip("/")
        self.port = int(self.url.rpartition(":")[2])
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_SECONDS)
        wait_until(lambda: self.http.get("/ready").status_code == 200)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=PATIENCE_SECONDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def spec(self, kind: dict[str, Any] = SHORT, **more: Any) -> dict[str, Any]:
        return {**kind, "input": {"matrix": str(self.folder / "a.zarr")}, **more}

    def submit(self, kind: dict[str, Any] = SHORT, **more: Any) -> str:
        answer = self.http.post("/v1/jobs", json=self.spec(kind, **more))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["job"])

    def job(self, job: str) -> dict[str, Any]:
        return dict(self.http.get(f"/v1/jobs/{job}").json())

    def wait_for(self, job: str, *states: str) -> dict[str, Any]:
        """Until it is in one of these states; if it has ended, until its process has said all of it."""
        wait_until(lambda: self.job(job)["state"] in states)
        if (found := self.job(job))["state"] in ENDED:
            wait_until(lambda: not open_workspace(self.workspace).job(job).is_taken())
        return found


def fields_of(page: str) -> dict[str, str]:
    """The hidden fields of a form."""
    return dict(re.findall(r'name="(forgery|key)" value="([^"]+)"', page))


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)
