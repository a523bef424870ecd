"""A running Dask cluster of real processes: the same bits as on one machine, and a scheduler that dies."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_cluster import RealCluster
from victims import (
    RUNS,
    ask,
    at_night,
    call,
    fault,
    fingerprint,
    finish,
    finished,
    job_folder,
    killed_at_the_end,
    make_matrix,
    spawn,
    wait_for,
    workers_of,
    write_spec,
)

KINDS = ("svd", "pca", "qr") if RUNS >= 10 else ("svd",)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RealCluster]:
    cluster = RealCluster(tmp_path / "dask").with_workers()
    yield cluster
    cluster.close()


def whole(kind: str, folder: Path) -> dict[str, str]:
    """The arrays of a run in one process."""
    write_spec(folder / f"{kind}.yaml", kind, folder / "a.zarr", cluster="threads")
    ended = ask("run", f"{kind}.yaml", "--json", "--workspace", "local", cwd=folder)
    assert ended.code == 0, ended.err
    return fingerprint(ended.record["result"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_remote_cluster_gives_the_same_bits(kind: str, cluster: RealCluster, tmp_path: Path) -> None:
    make_matrix(tmp_path / "a.zarr")
    expected = whole(kind, tmp_path)
    ended = call("run", f"{kind}.yaml", "--json", "--cluster", cluster.address, cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert fingerprint(ended.record["result"]) == expected
    assert "Traceback" not in ended.err


@at_night
def test_a_cluster_that_dies(cluster: RealCluster, tmp_path: Path) -> None:
    """The job fails within a bounded time, says why, and goes on elsewhere."""
    make_matrix(tmp_path / "a.zarr")
    expected = whole("svd", tmp_path)
    with killed_at_the_end(spawn("run", "svd.yaml", "--json", "--cluster", cluster.address, cwd=tmp_path)) as process:
        wait_for(lambda: finished(tmp_path) >= 1, alive=process)
        cluster.close()
        fault("a whole cluster")
        ended = finish(process, timeout=60)
    assert ended.code == 1, ended.err
    assert "Traceback" not in ended.err
    assert ended.record["state"] == "lost"
    assert "scheduler" in ended.err
    job = job_folder(tmp_path).name
    refused = ask("resume", job, cwd=tmp_path)
    assert refused.code == 2
    assert "nothing answers" in refused.err
    resumed = ask("resume", job, "--cluster", "threads", "--json", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    assert fingerprint(resumed.record["result"]) == expected


@at_night
def test_a_job_that_stands_still_is_ended(tmp_path: Path) -> None:
    write_spec(tmp_path / "job.yaml", "svd", make_matrix(tmp_path / "a.zarr"), stall="2s")
    with killed_at_the_end(spawn("run", "job.yaml", "--json", cwd=tmp_path)) as process:
        wait_for(lambda: finished(tmp_path) >= 1, alive=process)
        workers = workers_of(process)
        for worker in workers:
            worker.send_signal(signal.SIGSTOP)
        fault("workers that stand still")
        ended = finish(process, timeout=60)
    assert ended.code == 1, ended.err
    assert "No progress for 2 s" in ended.err
    assert "Traceback" not in ended.err
    wait_for(lambda: not any(worker.is_running() for worker in workers), seconds=30)
    assert ask("resume", job_folder(tmp_path).name, cwd=tmp_path).code == 0
