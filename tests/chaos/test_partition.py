"""Two hosts whose connection breaks: for a moment, and for good."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from every_kind import Whole, arrays_of, check_same, write_job
from hosts import ADDRESSES, SCHEDULER, cluster, two_hosts
from victims import ask, at_night, fault, finish, finished, job_folder, kill_tree, killed_at_the_end, spawn, wait_for

pytestmark = at_night


@pytest.mark.parametrize("seconds", [2.0, None], ids=["for a moment", "for good"])
def test_a_broken_connection(seconds: float | None, inputs: Path, whole: Whole, tmp_path: Path) -> None:
    """A moment is not noticed; a job that waits for the other side says so, ends, and goes on elsewhere."""
    expected, folder = whole("svd"), tmp_path / "job"
    folder.mkdir()
    write_job(folder, "svd", inputs, stall="20s")
    with two_hosts() as hosts, cluster(hosts, tmp_path / "dask"):
        with killed_at_the_end(spawn("run", "job.yaml", "--cluster", SCHEDULER, cwd=folder, under=hosts.on(0))) as process:
            wait_for(lambda: finished(folder) >= 2, alive=process)
            kill_tree(process, signal.SIGSTOP)  # so that some of its passes are still to come
            hosts.cable("down")
            kill_tree(process, signal.SIGCONT)
            fault("a broken connection between hosts")
            if seconds is not None:
                time.sleep(seconds)
                hosts.cable("up")
            ended = finish(process, timeout=90)
        if seconds is None:
            assert ended.code == 1, ended.err
            assert "No progress for 20 s" in ended.err
            assert ADDRESSES[1] in ended.err
            ended = ask("resume", job_folder(folder).name, "--cluster", "local", cwd=folder)
        assert ended.code == 0, ended.err
    check_same("svd", arrays_of(job_folder(folder) / "result.zarr"), expected)
