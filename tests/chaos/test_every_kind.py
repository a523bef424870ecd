"""Every kind of job, and every process that works for one: it is killed at a random moment, and the answer is the same."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from every_kind import JOBS, Arrays, Whole, arrays_of, check_same, write_job
from real_cluster import RealCluster
from victims import (
    GOES_ON,
    MPIRUN,
    RUNS,
    SEED,
    ask,
    events,
    fault,
    finish,
    held,
    job_folder,
    job_folders,
    kill_tree,
    killed_at_the_end,
    leftovers,
    let_go,
    ranks,
    ranks_of,
    spawn,
    wait_for,
    workers_of,
)

from dlscale.batch.kinds import KINDS
from dlscale.batch.workspace import Job

#: Who dies; a training on the local cluster has no workers. Without a long night, one of them at random.
VICTIMS = ("tree", "driver", "worker", "scheduler", "worker of a cluster", "client", "submitted driver", "rank")
CASES = [(victim, kind) for victim in VICTIMS for kind in JOBS if victim != "worker" or not KINDS[kind].collective]
CHOSEN = CASES if RUNS >= 10 else random.Random(SEED).sample(CASES, 1)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RealCluster]:
    cluster = RealCluster(tmp_path / "dask").with_workers()
    yield cluster
    cluster.close()


def wait_for_work(kind: str, folder: Path) -> None:
    """Until the workers have begun; of a training, which says only what each epoch did, until its start."""
    wanted = "pass_started" if KINDS[kind].collective else "blocks"
    wait_for(lambda: any(e["event"] == wanted for job in job_folders(folder) for e in events(job)))


def check_resumed(kind: str, folder: Path, expected: Arrays) -> None:
    """Whether or not the job had ended when its victim died, `resume` ends with the right answer."""
    job = job_folder(folder)
    ended = ask("resume", job.name, *(GOES_ON or ("--cluster", "local")), "--json", cwd=folder)
    assert ended.code == 0 or "has succeeded" in ended.err, ended.err
    check_same(kind, arrays_of(job / "result.zarr"), expected)
    assert ended.code or leftovers(folder) == set()


@pytest.mark.parametrize(("victim", "kind"), CHOSEN)
def test_a_kill_at_a_random_moment(victim: str, kind: str, inputs: Path, whole: Whole, tmp_path: Path, request: Any) -> None:
    expected = whole(kind)
    moment = random.Random(f"{SEED} {victim} {kind}").uniform(0.0, 1.2)
    print(f"DLSCALE_CHAOS_SEED={SEED}, {victim} killed {moment:.2f} s after the start of {kind}")
    folder = tmp_path / "job"
    folder.mkdir()
    write_job(folder, kind, inputs)
    if victim in ("tree", "driver", "worker"):
        kill_local(victim, kind, folder, moment, expected)
    elif victim == "rank":
        kill_rank(kind, folder, moment, expected)
    elif victim == "client":
        kill_client(kind, folder, expected)
    else:
        kill_on(request.getfixturevalue("cluster"), victim, kind, folder, moment, expected)


def kill_local(victim: str, kind: str, folder: Path, moment: float, expected: Arrays) -> None:
    """A job on the local cluster of two workers: both workers and driver, the driver alone, or a worker alone die."""
    write = ("--set", "cluster.workers=2", "--set", "cluster.threads=1")
    with held("pass_started .*", "run", "job.yaml", *write, "--json", cwd=folder) as process:
        workers = workers_of(process)
        let_go(process)
        time.sleep(moment)
        if victim == "worker":
            with suppress(psutil.NoSuchProcess):  # where the job had no more need of it
                workers[-1].kill()
                fault(f"worker of {kind}")
            ended = finish(process)
            assert ended.code == 0, ended.err
            check_same(kind, arrays_of(job_folder(folder) / "result.zarr"), expected)
            return
        if process.poll() is None:
            fault(f"{victim} of {kind}")
        if victim == "driver":
            process.kill()
            process.wait(60)
            wait_for(lambda: not any(worker.is_running() for worker in workers))
        else:
            kill_tree(process)
    check_resumed(kind, folder, expected)


def kill_rank(kind: str, folder: Path, moment: float, expected: Arrays) -> None:
    """One of two ranks dies, and with it the run."""
    if MPIRUN is None:
        pytest.skip("there is no mpirun on this machine")
    with killed_at_the_end(spawn("run", "job.yaml", cwd=folder, under=ranks(2))) as process:
        wait_for_work(kind, folder)
        found = ranks_of(process)
        time.sleep(moment)
        for rank in found[int(moment * 1000) % 2 :][:1]:
            with suppress(psutil.NoSuchProcess):
                rank.kill()
                fault(f"rank of {kind}")
        finish(process)
    wait_for(lambda: not any(rank.is_running() for rank in found))
    check_resumed(kind, folder, expected)


def kill_client(kind: str, folder: Path, expected: Arrays) -> None:
    """Whoever submitted the job dies when it has said the job's name."""
    with killed_at_the_end(spawn("submit", "job.yaml", "--cluster", "local", cwd=folder)) as client:
        assert client.stdout is not None
        job = client.stdout.readline().strip()
        kill_tree(client)
        fault(f"client of {kind}")
    assert ask("wait", job, cwd=folder).code == 0
    check_same(kind, arrays_of(job_folder(folder) / "result.zarr"), expected)


def kill_on(cluster: RealCluster, victim: str, kind: str, folder: Path, moment: float, expected: Arrays) -> None:
    """A job that was submitted to a running cluster goes on by itself, unless the cluster is gone."""
    submitted = ask("submit", "job.yaml", "--cluster", cluster.address, cwd=folder)
    assert submitted.code == 0, submitted.err
    wait_for_work(kind, folder)
    driver = Job(job_folder(folder)).read_state().heartbeat.pid
    time.sleep(moment)
    if victim == "scheduler":
        cluster.scheduler.kill()
    elif victim == "worker of a cluster":
        cluster.workers[int(moment * 1000) % 2].kill()
    else:
        with suppress(ProcessLookupError):
            os.kill(driver, signal.SIGKILL)
    fault(f"{victim} of {kind}")
    waited = ask("wait", cwd=folder)
    if victim == "scheduler":
        check_resumed(kind, folder, expected)
        return
    assert waited.code == 0, waited.err
    check_same(kind, arrays_of(job_folder(folder) / "result.zarr"), expected)
