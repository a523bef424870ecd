"""Job folders: names, states, who may take a job."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from dlscale.batch.workspace import Heartbeat, Job, JobState, Workspace
from dlscale.engine.events import StateChanged
from dlscale.errors import SpecError
from dlscale.storage.files.locks import held
from dlscale.storage.files.processes import start_of


def make_job(workspace: Workspace, name: str = "try", state: str = "running", heartbeat: Heartbeat | None = None) -> Job:
    job = workspace.new_job(name)
    job.folder.mkdir(parents=True)
    job.spec.write_text("kind: svd\n")
    job.write_state(JobState(job.id, name, "svd", state, time.time(), heartbeat or Heartbeat.now()))
    return job


def test_ids_say_name_and_time(tmp_path: Path) -> None:
    assert re.fullmatch(r"photo-\d{8}-\d{6}-[0-9a-f]{4}", Workspace(tmp_path).new_job("photo").id)


def test_the_environment_names_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLSCALE_WORKSPACE", str(tmp_path / "w"))
    assert Workspace().root == tmp_path / "w"


def test_a_job_whose_process_vanished_is_lost(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    heartbeat = replace_heartbeat(pid=process.pid, started=start_of(process.pid))
    job = make_job(Workspace(tmp_path), heartbeat=heartbeat)
    assert job.read_state().state == "running"
    process.kill()
    process.wait()
    state = job.read_state()
    assert state.state == "lost"
    assert state.resumable
    assert str(process.pid) in state.message


def test_a_lost_job_took_as_long_as_it_wrote_events(tmp_path: Path) -> None:
    """Its state is written now and then, and says less."""
    workspace = Workspace(tmp_path)
    job = make_job(workspace, heartbeat=replace_heartbeat(started=1.0))
    job.write_state(replace(job.stored_state(), seconds=2.0))
    written = job.state.stat().st_mtime

    def seen() -> tuple[float, float]:
        (row,) = workspace.list_jobs()[0]
        return job.read_state().seconds, row.seconds

    assert seen() == (2.0, 2.0)
    for age, seconds in ((3.0, 5.0), (-3.0, 2.0)):
        job.events.touch()
        os.utime(job.events, (written + age, written + age))
        assert seen() == pytest.approx((seconds, seconds))


@pytest.mark.parametrize("state", ["running", "submitted"])
def test_a_job_is_not_lost_before_its_lock_is_free(state: str, tmp_path: Path) -> None:
    """Threads of a killed process end one after the other; nobody can go on with its job before the last of them."""
    job = make_job(Workspace(tmp_path), state=state, heartbeat=replace_heartbeat(started=1.0))
    with held(job.lock):
        assert job.read_state().state == state
    assert job.read_state().state == "lost"


def replace_heartbeat(**changes: object) -> Heartbeat:
    return Heartbeat.now()._replace(**changes)


def test_a_process_id_that_came_round_is_not_the_job(tmp_path: Path) -> None:
    job = make_job(Workspace(tmp_path), heartbeat=replace_heartbeat(started=1.0))
    assert job.read_state().state == "lost"


def test_another_machine_counts_as_alive_while_it_beats(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    beat = replace_heartbeat(host="elsewhere", machine="another")
    assert make_job(workspace, heartbeat=beat).read_state().state == "running"
    silent = make_job(workspace, heartbeat=beat._replace(time=time.time() - 120))
    os.utime(silent.state, (time.time() - 120,) * 2)
    assert silent.read_state().state == "lost"


@pytest.mark.parametrize("step_seconds", [-3600.0, 3600.0])
def test_a_step_of_a_clock_loses_no_job(step_seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of this machine, whose boot seems to have moved, nor of another one, which beats by a clock of its own."""
    workspace = Workspace(tmp_path)
    here = make_job(workspace)
    there = make_job(workspace, heartbeat=replace_heartbeat(machine="another"))
    boot, now = psutil.boot_time(), time.time
    monkeypatch.setattr(psutil, "boot_time", lambda: boot + step_seconds)
    monkeypatch.setattr(time, "time", lambda: now() + step_seconds)
    assert here.read_state().state == "running"
    assert there.read_state().state == "running"


def test_a_state_that_ended_is_not_lost(tmp_path: Path) -> None:
    job = make_job(Workspace(tmp_path), state="succeeded", heartbeat=replace_heartbeat(started=1.0))
    assert job.read_state().state == "succeeded"
    job.write_state(replace(job.read_state(), state="failed", final=True))
    assert not job.read_state().resumable


def test_a_job_is_found_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    one, two = make_job(workspace, "one"), make_job(workspace, "two")
    assert workspace.find("one").id == one.id
    assert workspace.find(two.id).id == two.id
    make_job(workspace, "one")
    with pytest.raises(SpecError, match="2 jobs"):
        workspace.find("one")
    with pytest.raises(SpecError, match="no job three"):
        workspace.find("three")


def test_a_torn_event_is_left_out(tmp_path: Path) -> None:
    job = make_job(Workspace(tmp_path))
    job.events.write_text('{"event": "state", "state": "running", "time": 1}\n{"event": "blo')
    assert job.read_events() == [StateChanged("running", time=1.0)]


def test_only_one_process_has_a_job(tmp_path: Path) -> None:
    job = make_job(Workspace(tmp_path))
    job.claim()
    with pytest.raises(SpecError, match="running already"):
        job.claim()


def test_a_folder_without_a_job_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="not the folder of a job"):
        Job(tmp_path).read_state()
