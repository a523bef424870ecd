"""Several processes and one job: whoever froze, came too late or lost the folder says so and does no harm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from victims import (
    ENVIRONMENT,
    ask,
    events,
    fingerprint,
    finish,
    held,
    job_folder,
    job_folders,
    killed_at_the_end,
    leftovers,
    let_go,
    make_matrix,
    spawn,
    system,
    write_spec,
)

import dlscale
from dlscale.batch.workspace import HandOver, Heartbeat, Job, Workspace
from dlscale.storage.files.atomic import write_atomically

LONG = {"n_components": 6, "power_iterations": 12, "block_rows": 2000}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A matrix, and its decomposition when nothing happens."""
    folder = tmp_path_factory.mktemp("data")
    spec = write_spec(folder / "job.yaml", "svd", make_matrix(folder / "a.zarr"), params=LONG, cluster="threads")
    return folder / "a.zarr", fingerprint(str(dlscale.run(spec, workspace=folder / "ws").result))


@pytest.fixture
def folder(tmp_path: Path, data: tuple[Path, dict[str, str]]) -> Path:
    write_spec(tmp_path / "job.yaml", "svd", data[0], params=LONG, cluster="threads")
    return tmp_path


def stop_it(folder: Path, number: int = signal.SIGINT) -> str:
    """Run the job of a folder until it has some passes, and stop it; its id."""
    with held("pass_finished .* 2", "run", "job.yaml", cwd=folder) as process:
        os.killpg(process.pid, number)
        let_go(process)
        finish(process)
    return job_folder(folder).name


def test_of_two_resumes_one_wins_and_the_other_says_so(folder: Path, data: tuple[Path, dict[str, str]]) -> None:
    job = stop_it(folder)
    with (
        killed_at_the_end(spawn("resume", job, cwd=folder)) as first,
        killed_at_the_end(spawn("resume", job, cwd=folder)) as second,
    ):
        ends = sorted((finish(first), finish(second)), key=lambda ended: ended.code)
    assert [ended.code for ended in ends] == [0, 2], ends
    assert "running already" in ends[1].err or "has succeeded" in ends[1].err
    assert "Traceback" not in ends[1].err
    assert fingerprint(job_folder(folder) / "result.zarr") == data[1]
    assert leftovers(folder) == set()


def test_a_driver_that_was_frozen_goes_on_alone(folder: Path, data: tuple[Path, dict[str, str]]) -> None:
    """It keeps its job while it does not run: nobody else may take it, and the next of the queue waits."""
    with held("pass_finished .* 2", "run", "job.yaml", cwd=folder) as process:
        job = job_folder(folder)
        assert "running" in ask("status", job.name, cwd=folder).out
        refused = ask("resume", job.name, cwd=folder)
        assert (refused.code, "running already" in refused.err) == (2, True)
        let_go(process)
        assert finish(process).code == 0
    assert fingerprint(job / "result.zarr") == data[1]


@pytest.mark.parametrize("what", ["removed", "moved"])
def test_a_job_whose_folder_goes_while_it_runs_ends_in_words(what: str, folder: Path) -> None:
    with held("pass_finished .* 2", "run", "job.yaml", cwd=folder) as process:
        job = job_folder(folder)
        if what == "moved":
            job.rename(folder / "elsewhere")
        else:
            job.rename(folder / "trash")
            shutil.rmtree(folder / "trash")
        let_go(process)
        ended = finish(process)
    assert ended.code == 1, ended.err
    assert "removed or moved" in ended.err
    assert "Traceback" not in ended.err
    assert job_folders(folder) == []
    if what == "moved":
        moved = folder / "other" / "jobs"
        moved.mkdir(parents=True)
        (folder / "elsewhere").rename(moved / job.name)
        resumed = ask("resume", job.name, "--workspace", "other", cwd=folder)
        assert resumed.code == 0, resumed.err
        assert ask("verify", job.name, "--workspace", "other", cwd=folder).code == 0


def test_waiting_where_nothing_can_be_written(folder: Path, tmp_path: Path) -> None:
    assert ask("run", "job.yaml", "--set", "params.power_iterations=1", cwd=folder).code == 0
    job = job_folder(folder).name
    place = tmp_path / "mounted"
    place.mkdir()
    system("mount", "--bind", folder / "dlscale-workspace", place)
    try:
        system("mount", "-o", "remount,ro,bind", place)
        for command in (("wait", job), ("status", job), ("jobs",), ("logs", job), ("verify", job)):
            ended = ask(*command, "--workspace", place, cwd=folder)
            assert ended.code == 0, (command, ended.err)
        for command in (("report", job), ("cancel", job), ("resume", job), ("run", "job.yaml")):
            ended = ask(*command, "--workspace", place, cwd=folder)
            assert ended.code in (1, 2), (command, ended)
            assert "Traceback" not in ended.err
        assert_said_where_and_what_to_do(place, job, folder)
        np.save(folder / "rows.npy", np.eye(3))
        imported = ask("import", folder / "rows.npy", place / "new.zarr", cwd=folder)
        assert (imported.code, imported.err.count("\n")) == (2, 1)
        assert f"{place / 'new.zarr'} cannot be written (Read-only file system)" in imported.err
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_around_a_workspace(folder: Path, tmp_path: Path) -> None:
    assert ask("run", "job.yaml", "--set", "params.power_iterations=1", cwd=folder).code == 0
    place = tmp_path / "mounted"
    place.mkdir()
    system("mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", place)
    try:
        shutil.copytree(folder / "dlscale-workspace", place / "ws")
        with suppress(OSError), open(place / "fill", "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        assert_said_where_and_what_to_do(place / "ws", job_folder(folder).name, folder)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def assert_said_where_and_what_to_do(workspace: Path, job: str, folder: Path) -> None:
    """Of `report`: which file cannot be written, and that another place can be named, which then works."""
    ended = ask("report", job, "--workspace", workspace, cwd=folder)
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended
    assert f"{workspace / 'jobs' / job / 'report.html'} cannot be written" in ended.err
    assert f"dlscale report {job} --output FILE.html" in ended.err
    assert ask("report", job, "--workspace", workspace, "--output", "elsewhere.html", cwd=folder).code == 0
    assert (folder / "elsewhere.html").read_text().startswith("<!DOCTYPE html>")
    assert "no plain file" in ask("report", job, "--workspace", workspace, "--output", "/dev/null", cwd=folder).err


KILLED = """
import os, signal, sys, dlscale, dlscale.batch.submit as submit
submit._hand_over = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
dlscale.submit("job.yaml", workspace="dlscale-workspace")
"""


def test_a_job_that_was_never_handed_over_is_lost_and_can_be_resumed(
    folder: Path, data: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlscale.batch.jobs.waiting.GRACE_SECONDS", 1.0)
    ended = subprocess.run([sys.executable, "-c", KILLED], cwd=folder, env=ENVIRONMENT, check=False)
    assert ended.returncode == -signal.SIGKILL
    waited = ask("wait", "--json", cwd=folder)
    assert (waited.code, waited.record["state"]) == (1, "lost")
    assert "hand it over" in waited.record["message"]
    job = job_folder(folder)
    assert ask("resume", job.name, "--detach", cwd=folder).code == 0
    assert ask("wait", cwd=folder).code == 0
    assert fingerprint(job / "result.zarr") == data[1]


def test_a_driver_that_dies_before_it_takes_the_job_leaves_it_lost(folder: Path, tmp_path: Path) -> None:
    job = Workspace(tmp_path / "ws").job("x")
    shutil.copytree(Job(Path(dlscale.run(folder / "job.yaml", workspace=tmp_path / "w").folder)).folder, job.folder)
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    gone = Heartbeat.now()._replace(pid=process.pid)
    job.write_state(replace(job.stored_state(), state="submitted", heartbeat=gone))
    assert job.read_state().state == "lost"
    alive, cluster = HandOver(driver=Heartbeat.now()), HandOver("tcp://x:1")
    for handed, state in ((HandOver(driver=gone), "lost"), (alive, "submitted"), (cluster, "submitted")):
        write_atomically(job.handed_over, json.dumps(asdict(handed)).encode())
        assert job.read_state().state == state
    # Handed over again from another machine, of which this one's mirror of a bucket has only the state.
    write_atomically(job.handed_over, json.dumps(asdict(HandOver(driver=gone))).encode())
    job.write_state(replace(job.stored_state(), heartbeat=Heartbeat.now()._replace(machine="another")))
    assert job.read_state().state == "submitted"


def test_many_jobs_in_one_process_leave_nothing_behind(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(60, 6), chunks=(60, 6), dtype="f8")
    array[:] = np.random.default_rng(0).standard_normal((60, 6))
    spec = {"kind": "svd", "input": {"matrix": str(tmp_path / "a.zarr")}, "params": {"n_components": 2}, "cluster": "threads"}

    def kept() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    dlscale.run(spec, workspace=tmp_path / "ws")
    begun = kept()
    for _ in range(8):
        dlscale.run(spec, workspace=tmp_path / "ws")
    # Some end a little later, and what other tests of this process have left running may begin some; not with each job.
    deadline = time.monotonic() + 30
    while max(now - before for now, before in zip(kept(), begun, strict=True)) >= 4:
        assert time.monotonic() < deadline, (begun, kept())
        time.sleep(0.05)


def test_few_descriptors_are_enough(folder: Path) -> None:
    limited = ["bash", "-c", 'ulimit -n 64; exec "$@"', "limited"]
    with killed_at_the_end(spawn("run", "job.yaml", "--set", "params.power_iterations=1", cwd=folder, under=limited)) as process:
        ended = finish(process)
    assert ended.code == 0, ended.err
    assert any(event["event"] == "pass_finished" for event in events(job_folder(folder)))
