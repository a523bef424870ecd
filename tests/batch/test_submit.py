"""Jobs that outlive their client, on real schedulers and workers: killed clients, drivers, workers and schedulers."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from victims import (
    ENVIRONMENT,
    call,
    events,
    fingerprint,
    killed_at_the_end,
    make_matrix,
    repeated_passes,
    spawn,
    wait_for,
    write_spec,
)

import dlscale
from dlscale.batch.submit import SubmittedJob, _check_workers_see, cancel, wait
from dlscale.batch.workspace import Job, Workspace
from dlscale.errors import SpecError


class RealCluster:
    """A scheduler and workers as processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{port}"
        self.scheduler = self._spawn("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-show")
        self.workers: list[subprocess.Popen[bytes]] = []

    def two_workers(self) -> RealCluster:
        """Start as many as are missing, and wait for them."""
        from distributed import Client

        self.workers = [worker for worker in self.workers if worker.poll() is None]
        options = ("--nthreads", "1", "--memory-limit", "2GB", "--no-nanny", "--no-dashboard")
        self.workers += [self._spawn("worker", self.address, *options) for _ in range(2 - len(self.workers))]
        with Client(self.address, timeout="30s", set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        return self

    def _spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", *arguments]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, env=ENVIRONMENT, cwd=self.folder, **quiet)

    def close(self) -> None:
        for process in (self.scheduler, *self.workers):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    cluster = RealCluster(tmp_path_factory.mktemp("cluster") / "dask")
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(_shared: RealCluster) -> RealCluster:
    return _shared.two_workers()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A matrix, and what its decomposition is when nothing happens."""
    folder = tmp_path_factory.mktemp("data")
    write_spec(folder / "job.yaml", "svd", make_matrix(folder / "a.zarr"), cluster="threads")
    ended = call("run", "job.yaml", "--json", cwd=folder)
    assert ended.code == 0, ended.err
    return folder, fingerprint(ended.record["result"])


@pytest.fixture
def folder(tmp_path: Path, data: tuple[Path, dict[str, str]]) -> Path:
    write_spec(tmp_path / "job.yaml", "svd", data[0] / "a.zarr")
    return tmp_path


@pytest.fixture
def expected(data: tuple[Path, dict[str, str]]) -> dict[str, str]:
    return data[1]


def submit(folder: Path, *more: str) -> Job:
    ended = call("submit", "job.yaml", *more, cwd=folder)
    assert ended.code == 0, ended.err
    return Job(folder / "dlscale-workspace" / "jobs" / ended.out.strip())


def state_of(job: Job) -> str:
    return job.read_state().state


def wait_until_half(job: Job) -> None:
    """Until the job has finished half of its passes."""
    half = len(job.read_plan()["passes"]) // 2
    wait_for(lambda: sum(event["event"] == "pass_finished" for event in events(job.folder)) >= half)


def driver_of(job: Job) -> psutil.Process:
    return psutil.Process(job.read_state().heartbeat.pid)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_four_jobs_at_once_all_finish_one_after_the_other(cluster: RealCluster, folder: Path) -> None:
    quick = ("--cluster", cluster.address, "--set", "params.power_iterations=1")
    clients = [spawn("submit", "job.yaml", *quick, cwd=folder) for _ in range(4)]
    ids = [client.communicate(timeout=120)[0].strip() for client in clients]
    jobs = [Job(folder / "dlscale-workspace" / "jobs" / job) for job in ids]
    table = call("jobs", "--json", cwd=folder).record
    assert {row["job"] for row in table} == set(ids)
    for job in jobs:
        assert wait(job).state == "succeeded"
    assert len({str(fingerprint(job.result)) for job in jobs}) == 1
    states = [[event["time"] for event in events(job.folder) if event["event"] == "state"] for job in jobs]
    spans = sorted((times[0], times[-1]) for times in states)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    wait_for(lambda: {path.name for path in (folder / "dlscale-workspace" / "queue").iterdir()} == {"lock"})


def test_a_client_that_is_killed_is_not_missed(cluster: RealCluster, folder: Path, expected: dict[str, str]) -> None:
    with killed_at_the_end(spawn("submit", "job.yaml", "--cluster", cluster.address, "--concurrency", "2", cwd=folder)) as client:
        assert client.stdout is not None
        job = Job(folder / "dlscale-workspace" / "jobs" / client.stdout.readline().strip())
        os.killpg(client.pid, signal.SIGKILL)
    followed = call("logs", job.id, "-f", cwd=folder)
    assert followed.out.splitlines()[-1].endswith("succeeded")
    waited = call("wait", job.id, "--json", cwd=folder)
    assert (waited.code, waited.record["state"]) == (0, "succeeded")
    assert fingerprint(job.result) == expected
    assert job.report.exists()


def test_the_driver_starts_elsewhere_when_its_worker_is_killed(
    cluster: RealCluster, folder: Path, expected: dict[str, str]
) -> None:
    job = submit(folder, "--cluster", cluster.address)
    wait_until_half(job)
    driver = driver_of(job)
    driver.parent().kill()
    wait_for(lambda: is_gone(driver.pid))
    assert call("wait", job.id, cwd=folder).code == 0
    assert fingerprint(job.result) == expected
    assert len(repeated_passes(job.folder)) <= 1


def test_a_driver_that_is_killed_starts_again(cluster: RealCluster, folder: Path, expected: dict[str, str]) -> None:
    job = submit(folder, "--cluster", cluster.address)
    wait_until_half(job)
    driver_of(job).kill()
    assert call("wait", job.id, cwd=folder).code == 0
    assert fingerprint(job.result) == expected
    assert len(repeated_passes(job.folder)) <= 1
    assert "ended by signal 9" in call("logs", job.id, cwd=folder).out


def test_a_job_is_cancelled_within_seconds_and_goes_on_from_its_checkpoint(cluster: RealCluster, folder: Path) -> None:
    long = ("--set", "params.power_iterations=60")
    expected = fingerprint(call("run", "job.yaml", "--json", "--cluster", "threads", *long, cwd=folder).record["result"])
    job = submit(folder, "--cluster", cluster.address, *long)
    waiting = submit(folder, "--cluster", cluster.address, "--priority", "-1")
    wait_for(lambda: job.id in waiting.read_state().message)
    assert state_of(waiting) == "queued"
    assert cancel(waiting, Workspace(folder / "dlscale-workspace")).state == "cancelled"
    wait_for(lambda: any(event["event"] == "checkpoint" for event in events(job.folder)))
    started = time.monotonic()
    assert cancel(job, Workspace(folder / "dlscale-workspace")).state == "cancelled"
    assert time.monotonic() - started < 10
    assert job.checkpoint.exists()
    assert call("wait", job.id, cwd=folder).code == 75
    refused = call("cancel", job.id, cwd=folder)
    assert refused.code == 2
    assert "has ended already" in refused.err
    assert call("resume", job.id, "--detach", "--cluster", "threads", cwd=folder).code == 0
    assert call("wait", job.id, cwd=folder).code == 0
    assert fingerprint(job.result) == expected
    assert len(repeated_passes(job.folder)) <= 1


def test_a_scheduler_that_is_killed(folder: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    first = RealCluster(tmp_path / "first")
    try:
        job = submit(folder, "--cluster", first.two_workers().address)
        wait_until_half(job)
        first.scheduler.kill()
        wait_for(lambda: state_of(job) == "lost", seconds=30)
        told = call("status", job.id, cwd=folder).out
        assert f"dlscale resume {job.id}" in told
        assert "pass " in call("logs", job.id, cwd=folder).out
        assert call("wait", job.id, cwd=folder).code == 1
    finally:
        first.close()
    second = RealCluster(tmp_path / "second")
    try:
        resumed = call("resume", job.id, "--cluster", second.two_workers().address, "--json", cwd=folder)
        assert resumed.code == 0, resumed.err
        assert fingerprint(job.result) == expected
    finally:
        second.close()


def test_a_job_of_its_own_process_that_is_killed_is_lost(folder: Path, expected: dict[str, str]) -> None:
    job = submit(folder, "--cluster", "threads")
    wait_until_half(job)
    driver_of(job).kill()
    wait_for(lambda: state_of(job) == "lost", seconds=5)
    assert "pass " in call("logs", job.id, cwd=folder).out
    assert call("resume", job.id, cwd=folder).code == 0
    assert fingerprint(job.result) == expected


def test_a_failure_is_told_by_wait_with_its_exit_code(folder: Path, tmp_path: Path) -> None:
    import zarr

    bad = make_matrix(tmp_path / "bad.zarr", (2000, 8))
    zarr.open_array(bad)[77, 3] = np.nan
    job = submit(folder, "--cluster", "threads", "--set", f"input.matrix={bad}")
    ended = call("wait", job.id, cwd=folder)
    assert ended.code == 2
    assert "row 77, column 3" in ended.out


def test_a_faulty_spec_is_refused_and_leaves_nothing(folder: Path) -> None:
    ended = call("submit", "job.yaml", "--set", "params.n_components=99", "--json", cwd=folder)
    assert (ended.code, ended.record["state"]) == (2, "refused")
    assert not (folder / "dlscale-workspace").exists()


def test_a_workspace_that_workers_do_not_see_is_refused(cluster: RealCluster, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"all workers see, and tcp://.* does not see it"):
        _check_workers_see(cluster.address, Job(tmp_path / "jobs" / "absent"))


def test_submitting_from_python(folder: Path, data: tuple[Path, dict[str, str]], expected: dict[str, str]) -> None:
    spec = {"kind": "svd", "input": {"matrix": str(data[0] / "a.zarr")}, "params": {"n_components": 3}, "cluster": "threads"}
    job: SubmittedJob = dlscale.submit(spec, workspace=folder / "ws")
    with pytest.raises(TimeoutError, match="after 0 s"):
        job.wait(timeout_seconds=0)
    started = time.monotonic()
    assert job.wait(timeout_seconds=60) == "succeeded"
    assert time.monotonic() - started < 60
    assert job.open()["s"].shape == (3,)
    assert json.loads((job.folder / "state.json").read_text())["heartbeat"][1] != os.getpid()
