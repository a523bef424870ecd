"""A Dask cluster of real processes, any of which a test may kill."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from victims import ENVIRONMENT, wait_for

#: What deploy/dask.yaml sets, too, so that processes that wait take no time from others.
_QUIET = {"DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s", "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "5s"}


class RealCluster:
    """A scheduler and workers of one thread each, as processes.

    Parameters
    ----------
    folder : Path
        Where they run.
    environment : str
        More of what the workers, and what they start, find in theirs.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self._environment = folder, ENVIRONMENT | _QUIET | environment
        folder.mkdir(exist_ok=True)
        # A port that the scheduler chooses: one that was found free may be taken when it comes up.
        told = folder / "scheduler.json"
        options = ("--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(told), "--no-dashboard", "--no-show")
        self.scheduler = self._spawn("scheduler", *options)
        self.address = str(wait_for(lambda: _address_in(told)))
        self.workers: list[subprocess.Popen[bytes]] = []

    def with_workers(self, n: int = 2) -> RealCluster:
        """Start as many as are missing, and wait for them."""
        from distributed import Client

        self.workers = [worker for worker in self.workers if worker.poll() is None]
        options = ("--nthreads", "1", "--memory-limit", "2GB", "--no-nanny", "--no-dashboard")
        self.workers += [self._spawn("worker", self.address, *options) for _ in range(n - len(self.workers))]
        with Client(self.address, timeout="120s", set_as_default=False) as client:
            client.wait_for_workers(n, timeout=120)
        return self

    def _spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", *arguments]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, env=self._environment, cwd=self.folder, **quiet)

    def close(self) -> None:
        for process in (self.scheduler, *self.workers):
            process.kill()
            process.wait()


def _address_in(told: Path) -> str | None:
    """What a scheduler has written of itself, once it is whole."""
    try:
        return str(json.loads(told.read_text())["address"])
    except (FileNotFoundError, ValueError):
        return None
