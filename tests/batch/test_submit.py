"""Jobs that outlive their client, on real schedulers and workers: killed clients, drivers, workers and schedulers."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr
from gate import Gate
from real_cluster import RealCluster
from victims import (
    ask,
    events,
    fault,
    fingerprint,
    kill_tree,
    killed_at_the_end,
    make_matrix,
    repeated_passes,
    spawn,
    wait_for,
    write_spec,
)

import dlscale
from dlscale.batch.jobs.waiting import wait
from dlscale.batch.submit import SubmittedJob, cancel, check_workers_see
from dlscale.batch.workspace import Heartbeat, Job, JobState, Workspace
from dlscale.errors import SpecError

#: Passes that are many and short.
PARAMS = {"n_components": 6, "power_iterations": 12, "block_rows": 2000}


@pytest.fixture(scope="module")
def _gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return Gate(tmp_path_factory.mktemp("gate"))


@pytest.fixture
def gate(_gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """On the way of all that is submitted, to a cluster or to a process of its own."""
    for name, value in _gate.environment.items():
        monkeypatch.setenv(name, value)
    return _gate


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory, _gate: Gate) -> Iterator[RealCluster]:
    cluster = RealCluster(tmp_path_factory.mktemp("cluster") / "dask", **_gate.environment)
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(_shared: RealCluster) -> RealCluster:
    return _shared.with_workers()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A matrix, and what its decomposition is when nothing happens."""
    folder = tmp_path_factory.mktemp("data")
    spec = write_spec(folder / "job.yaml", "svd", make_matrix(folder / "a.zarr"), params=PARAMS, cluster="threads")
    return folder, fingerprint(str(dlscale.run(spec, workspace=folder / "workspace").result))


@pytest.fixture
def folder(tmp_path: Path, data: tuple[Path, dict[str, str]]) -> Path:
    write_spec(tmp_path / "job.yaml", "svd", data[0] / "a.zarr", params=PARAMS)
    return tmp_path


@pytest.fixture
def expected(data: tuple[Path, dict[str, str]]) -> dict[str, str]:
    return data[1]


def submit(folder: Path, cluster: str, *overrides: str, priority: int = 0) -> Job:
    workspace = folder / "dlscale-workspace"
    submitted = dlscale.submit(folder / "job.yaml", [f"cluster={cluster}", *overrides], workspace=workspace, priority=priority)
    return Job(submitted.folder)


def state_of(job: Job) -> str:
    return job.read_state().state


def driver_of(job: Job) -> psutil.Process:
    return psutil.Process(job.read_state().heartbeat.pid)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_three_trainings_at_once_all_finish(cluster: RealCluster, tmp_path: Path) -> None:
    """A training needs all workers at the same time, so that one goes after the other however many may run."""
    for name, n_columns in (("features", 10), ("targets", 1)):
        make_matrix(tmp_path / name, (2000, n_columns), seed=n_columns)
    inputs = {name: str(tmp_path / name) for name in ("features", "targets")}
    job = {"kind": "train", "input": inputs, "model": {"type": "linear"}, "params": {"epochs": 3}}
    workspace = tmp_path / "dlscale-workspace"
    with ThreadPoolExecutor(3) as clients:
        submitted = [
            clients.submit(dlscale.submit, job | {"cluster": cluster.address}, workspace=workspace, concurrency=3) for _ in range(3)
        ]
    jobs = [Job(each.result().folder) for each in submitted]
    table = ask("jobs", "--json", cwd=tmp_path).record
    assert {row["job"] for row in table} == {job.id for job in jobs}
    assert [wait(job).state for job in jobs] == ["succeeded"] * 3
    results = [zarr.open_group(job.result, mode="r")["parameters"] for job in jobs]
    assert len({str(sorted((name, np.asarray(a).tobytes()) for name, a in result.arrays())) for result in results}) == 1
    began = [next(event["time"] for event in events(job.folder) if event["event"] == "state") for job in jobs]
    # The state that lets the next one begin says when it was written; the event is told after it.
    spans = sorted(zip(began, (job.stored_state().heartbeat.time for job in jobs), strict=True))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    wait_for(lambda: {path.name for path in (workspace / "queue").iterdir()} == {"lock", "limit.json"})


def test_a_client_that_is_killed_is_not_missed(cluster: RealCluster, folder: Path, expected: dict[str, str]) -> None:
    with killed_at_the_end(spawn("submit", "job.yaml", "--cluster", cluster.address, "--concurrency", "2", cwd=folder)) as client:
        assert client.stdout is not None
        job = Job(folder / "dlscale-workspace" / "jobs" / client.stdout.readline().strip())
        kill_tree(client)
        fault("client of svd")
    followed = ask("logs", job.id, "-f", cwd=folder)
    assert followed.out.splitlines()[-1].endswith("succeeded")
    waited = ask("wait", job.id, "--json", cwd=folder)
    assert (waited.code, waited.record["state"]) == (0, "succeeded")
    assert fingerprint(job.result) == expected
    assert job.report.exists()


def test_a_driver_that_is_killed_starts_again_and_elsewhere_when_its_worker_is(
    cluster: RealCluster, folder: Path, expected: dict[str, str], gate: Gate
) -> None:
    with gate.closed(steps=4):
        job = submit(folder, cluster.address)
        gate.wait_for_job()
        first = driver_of(job)
        first.kill()
        fault("submitted driver of svd")
        with gate.closed(steps=8):
            gate.wait_for_job()
            second = driver_of(job)
            second.parent().kill()
            fault("worker of the driver of svd")
            wait_for(lambda: is_gone(second.pid))
    assert wait(job).state == "succeeded"
    assert fingerprint(job.result) == expected
    assert len(repeated_passes(job.folder)) <= 2
    assert "ended by signal 9" in ask("logs", job.id, cwd=folder).out


def test_a_job_is_cancelled_within_seconds_and_goes_on_from_its_checkpoint(
    cluster: RealCluster, folder: Path, expected: dict[str, str], gate: Gate
) -> None:
    root = Workspace(folder / "dlscale-workspace")
    with gate.closed():
        job = submit(folder, cluster.address)
        waiting = submit(folder, cluster.address, priority=-1)
        wait_for(lambda: job.id in waiting.read_state().message)
        assert state_of(waiting) == "queued"
        assert cancel(waiting, root).state == "cancelled"
        gate.wait_for_job()
        assert ask("cancel", job.id, cwd=folder).code == 0
    assert state_of(job) == "cancelled"
    assert job.checkpoint.exists()
    assert wait(job).exit_code == 75
    with pytest.raises(SpecError, match="has ended already"):
        cancel(job, root)
    assert ask("resume", job.id, "--detach", "--cluster", "threads", cwd=folder).code == 0
    assert wait(job).state == "succeeded"
    assert fingerprint(job.result) == expected
    assert len(repeated_passes(job.folder)) <= 1


def test_a_scheduler_that_is_killed(
    cluster: RealCluster, folder: Path, tmp_path: Path, expected: dict[str, str], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlscale.batch.jobs.waiting.GRACE_SECONDS", 1.0)  # no scheduler starts it elsewhere
    other = RealCluster(tmp_path / "other", **gate.environment).with_workers(1)
    try:
        with gate.closed(steps=6):
            job = submit(folder, other.address)
            gate.wait_for_job()
            other.scheduler.kill()
            fault("scheduler of svd")
        wait_for(lambda: state_of(job) == "lost")
        assert f"dlscale resume {job.id}" in ask("status", job.id, cwd=folder).out
        assert "pass " in ask("logs", job.id, cwd=folder).out
        assert wait(job).exit_code == 1
    finally:
        other.close()
    resumed = ask("resume", job.id, "--cluster", cluster.address, "--json", cwd=folder)
    assert resumed.code == 0, resumed.err
    assert fingerprint(job.result) == expected


def test_a_job_of_its_own_process_that_is_killed_is_lost(folder: Path, expected: dict[str, str], gate: Gate) -> None:
    with gate.closed():
        job = submit(folder, "threads")
        gate.wait_for_job()
        driver_of(job).kill()
        fault("driver of svd")
        wait_for(lambda: state_of(job) == "lost")
    assert "pass " in job.log.read_text()
    assert ask("resume", job.id, cwd=folder).code == 0
    assert fingerprint(job.result) == expected


def test_a_failure_is_told_by_wait_with_its_exit_code(folder: Path, tmp_path: Path) -> None:
    bad = make_matrix(tmp_path / "bad.zarr", (2000, 8))
    zarr.open_array(bad)[77, 3] = np.nan
    job = submit(folder, "threads", f"input.matrix={bad}")
    ended = ask("wait", job.id, cwd=folder)
    assert ended.code == 2
    assert "row 77, column 3" in ended.out


def test_a_faulty_spec_is_refused_and_leaves_nothing(folder: Path) -> None:
    ended = ask("submit", "job.yaml", "--set", "params.n_components=99", "--json", cwd=folder)
    assert (ended.code, ended.record["state"]) == (2, "refused")
    assert not (folder / "dlscale-workspace").exists()


def test_a_workspace_that_workers_do_not_see_is_refused(cluster: RealCluster, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"all workers see, and tcp://.* does not see it"):
        check_workers_see(cluster.address, Job(tmp_path / "jobs" / "absent"))


def test_a_frozen_worker_is_told_and_not_waited_for(
    cluster: RealCluster, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dlscale.batch.submit._ANSWER_SECONDS", 1.0)
    job = Job(tmp_path / "jobs" / "any")
    os.kill(cluster.workers[0].pid, signal.SIGSTOP)
    try:
        with pytest.raises(SpecError, match=r"not all workers of .* answered within 1 s"):
            check_workers_see(cluster.address, job)
    finally:
        os.kill(cluster.workers[0].pid, signal.SIGCONT)


def test_waiting_ends_when_the_cluster_that_was_to_take_the_job_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlscale.batch.jobs.waiting._ASK_SECONDS", 0.1)
    monkeypatch.setattr("dlscale.batch.jobs.waiting.GRACE_SECONDS", 0.5)
    job = Workspace(tmp_path).new_job("x")
    job.folder.mkdir(parents=True)
    job.write_state(JobState(job.id, "x", "svd", "submitted", time.time(), Heartbeat.now()))
    job.handed_over.write_text(json.dumps({"scheduler": "tcp://127.0.0.1:1"}))
    assert job.read_state().state == "submitted"
    ended = wait(job, timeout_seconds=240)
    assert (ended.state, ended.exit_code) == ("lost", 1)
    assert "does not answer" in ended.message


def test_submitting_from_python(folder: Path, data: tuple[Path, dict[str, str]], gate: Gate) -> None:
    spec = {"kind": "svd", "input": {"matrix": str(data[0] / "a.zarr")}, "params": {"n_components": 3}, "cluster": "threads"}
    with gate.closed(steps=0):
        job: SubmittedJob = dlscale.submit(spec, workspace=folder / "ws")
        with pytest.raises(TimeoutError, match="after 0 s"):
            job.wait(timeout_seconds=0)
    assert job.wait(timeout_seconds=240) == "succeeded"
    assert job.open()["s"].shape == (3,)
    assert json.loads((job.folder / "state.json").read_text())["heartbeat"][1] != os.getpid()


def test_a_submitted_job_that_cannot_join_the_queue_says_why(folder: Path) -> None:
    queue = folder / "ws" / "queue"
    queue.mkdir(parents=True)
    (folder / "somebodys").write_text("precious")
    (queue / "lock").symlink_to(folder / "somebodys")
    job = dlscale.submit(folder / "job.yaml", ["cluster=threads"], workspace=folder / "ws")
    assert job.wait(timeout_seconds=240) == "failed"
    assert f"{queue / 'lock'} must be a lock file" in Job(job.folder).read_state().message
    assert (folder / "somebodys").read_text() == "precious"
