"""Damaged, lost and many files of jobs: what is damaged is named, and everything else goes on."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from victims import ENVIRONMENT, ask

import dlscale
from dlscale.batch.driver import wait_for_turn
from dlscale.batch.queue import Queue, Ticket
from dlscale.batch.workspace import Heartbeat, Job, JobState, Workspace
from dlscale.errors import DlscaleError, SpecError
from dlscale.service.routes.jobs import facts_of
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.signatures import Signature

pytestmark = pytest.mark.usefixtures("drawn_reports")

Damage = Callable[[bytes], bytes]

#: What disks, editors and power cuts leave in a file.
DAMAGE: dict[str, Damage] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "not text": lambda data: b"\xff\xfe" + data,
    "deep": lambda data: b"[" * 100_000,
    "a list": lambda data: b"[]",
    "a number": lambda data: b"7",
    "null": lambda data: b"null",
    "other types": lambda data: data.replace(b'": "', b'": [1], "x": "'),
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job that succeeded, in a workspace with another one before and behind it."""
    folder = tmp_path_factory.mktemp("damage")
    array = zarr.create_array(folder / "a.zarr", shape=(60, 6), chunks=(60, 6), dtype="f8")
    array[:] = np.random.default_rng(0).standard_normal((60, 6))
    spec = {"kind": "svd", "input": {"matrix": str(folder / "a.zarr")}, "params": {"n_components": 2}, "cluster": "threads"}
    jobs = [dlscale.run(spec | {"name": name}, workspace=folder / "ws") for name in ("one", "two", "three")]
    return Job(jobs[1].folder)


def workspace_of(job: Job) -> Path:
    return job.folder.parents[1]


@pytest.mark.parametrize("name", ["state.json", "plan.json", "events.jsonl", "spec.yaml", "slurm.json", "result.zarr/zarr.json"])
def test_every_command_goes_on_or_names_the_file(name: str, job: Job) -> None:
    for damage in DAMAGE:
        check_commands(name, damage, job)


def check_commands(name: str, damage: str, job: Job) -> None:
    path = job.folder / name
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(DAMAGE[damage](before or b'{"job": "7"}'))
    ws = ("--workspace", workspace_of(job))
    try:
        # To draw a report takes longer than all the others.
        reported = [("report", job.id)] if damage in ("cut", "a list") or name == "state.json" else []
        for command in (("status", job.id), ("logs", job.id), ("verify", job.id), ("resume", job.id), *reported):
            ended = ask(*command, *ws, cwd=workspace_of(job))
            assert ended.code in (0, 1, 2), ended
            assert ended.code != 2 or str(path) in ended.err or "has succeeded" in ended.err, (command, ended.err)
        listed = ask("jobs", *ws, cwd=workspace_of(job))
        assert listed.code == 0
        assert "one-" in listed.out
        assert "three-" in listed.out
        assert (job.id in listed.out) != (job.id in listed.err)
        assert name != "state.json" or damage == "other types" or str(path) in listed.err
        ask("info", job.result, cwd=workspace_of(job))
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)


@pytest.mark.parametrize("name", ["state.json", "plan.json", "events.jsonl", "spec.yaml", "log.txt"])
def test_without_one_of_its_files_a_job_is_still_found_and_listed(name: str, job: Job) -> None:
    path = job.folder / name
    before = path.read_bytes()
    path.unlink()
    try:
        for command in ("status", "logs", "resume", "report"):
            ended = ask(command, job.id, "--workspace", workspace_of(job), cwd=workspace_of(job))
            assert ended.code in (0, 1, 2), ended
            assert ended.code != 2 or str(path) in ended.err or "has succeeded" in ended.err, (command, ended.err)
        listed = ask("jobs", "--workspace", workspace_of(job), cwd=workspace_of(job))
        assert listed.code == 0
        assert job.id in listed.out + listed.err
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    "name",
    ["spec.yaml", "state.json", "plan.json", "events.jsonl", "log.txt", "result.zarr/zarr.json", "result.zarr/s/c/0"],
)
def test_a_pipe_or_a_device_in_place_of_a_file_holds_no_command(name: str, job: Job) -> None:
    path, ws = job.folder / name, workspace_of(job)
    before = path.read_bytes()
    commands = [("jobs",), ("status", job.id), ("logs", job.id), ("verify", job.id), ("resume", job.id), ("info", job.result)]
    for plant, more in ((os.mkfifo, [("report", job.id)]), (lambda place: os.symlink("/dev/zero", place), [])):
        path.unlink()
        plant(path)
        try:
            asked = [command if command[0] == "info" else (*command, "--workspace", ws) for command in (*commands, *more)]
            ended = [ask(*command, cwd=ws) for command in asked]
        finally:
            path.unlink()
            path.write_bytes(before)
        assert {one.code for one in ended} <= {0, 1, 2}
        assert any(str(path) in one.err + one.out for one in ended), ended


@pytest.mark.parametrize("plant", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_lock_in_its_place_is_told_at_once(
    plant: Callable[[Path], None], job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `cancel`, which leaves nothing that would cancel the job later, and by the process that was to take the job."""
    monkeypatch.setattr("dlscale.batch.submit._POLL_SECONDS", float("nan"))  # nobody waits
    monkeypatch.setattr("dlscale.batch.driver._POLL_SECONDS", float("nan"))
    waiting = waiting_job(tmp_path / "ws")
    plant(waiting.lock)
    refused = ask("cancel", waiting.id, "--workspace", tmp_path / "ws", cwd=tmp_path)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert str(waiting.lock) in refused.err
    assert not waiting.cancel.exists()
    assert not wait_for_turn(waiting, Queue(Workspace(tmp_path / "ws")), Ticket(waiting.id, 1.0))
    state = waiting.read_state()
    assert state.state == "failed"
    assert str(waiting.lock) in state.message


def waiting_job(workspace: Path) -> Job:
    """A submitted job that nobody has taken, for ever on its way."""
    job = Workspace(workspace).job("waiting")
    job.folder.mkdir(parents=True)
    job.spec.touch()
    job.write_state(JobState(job.id, job.id, "svd", "submitted", time.time(), Heartbeat.now()))
    return job


@pytest.mark.parametrize("plant", [os.mkfifo, lambda place: os.symlink("/dev/zero", place)], ids=["pipe", "device"])
@pytest.mark.parametrize("name", ["manifests/pass.json", "steps/pass/a/c/0", "steps/pass/a/zarr.json", "scratch/b/c/0"])
def test_a_pipe_in_a_checkpoint_is_damage_and_holds_nobody(name: str, plant: Callable[[Path], None], tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c")
    scratch = checkpoint.scratch("b", (4,), "f8", chunks=(4,))
    scratch.write(0, np.ones(4))
    checkpoint.save("pass", {"a": np.ones(3)}, writers=[scratch])
    (tmp_path / "c" / name).unlink()
    plant(tmp_path / "c" / name)
    assert checkpoint.load("pass") is None
    assert str(tmp_path / "c" / name) in checkpoint.problems[0]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_json_in_place_of_a_part_of_the_state(job: Job, data: st.DataObject) -> None:
    """Whatever stands there is refused by name or shown; nothing else is raised."""
    before = job.state.read_bytes()
    record = json.loads(before)
    section = data.draw(st.sampled_from([record, record["summary"], record["summary"]["certificate"]]))
    key = data.draw(st.sampled_from(sorted(section)))
    anything = st.recursive(
        st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    )
    section[key] = data.draw(anything)
    job.state.write_text(json.dumps(record), encoding="utf-8", errors="surrogatepass")
    try:
        commands = [("jobs",), ("jobs", "--json"), ("status", job.id), ("wait", job.id), ("verify", job.id)]
        for command in commands + ([("report", job.id)] if data.draw(st.booleans()) else []):
            ask(*command, "--workspace", workspace_of(job), cwd=workspace_of(job))
    finally:
        job.state.write_bytes(before)


def test_a_damaged_plan_or_spec_is_not_gone_on_with(job: Job) -> None:
    """A digit that changed would change the answer and nothing would tell."""
    state = job.state.read_bytes()
    job.state.write_bytes(state.replace(b'"succeeded"', b'"interrupted"'))
    try:
        for path, digits in ((job.plan, (b'"seed": 0', b'"seed": 1')), (job.spec, (b"n_components: 2", b"n_components: 3"))):
            before = path.read_bytes()
            assert digits[0] in before or path == job.plan
            path.write_bytes(before.replace(*digits) if digits[0] in before else before.replace(b"60", b"61", 1))
            refused = ask("resume", job.id, "--workspace", workspace_of(job), cwd=workspace_of(job))
            shown = ask("status", job.id, "--workspace", workspace_of(job), cwd=workspace_of(job))
            assert not facts_of(job)["resumable"]
            path.write_bytes(before)
            assert refused.code == 2
            assert f"{path} is damaged" in refused.err
            assert "is damaged" in " ".join(shown.out.split())
            assert "dlscale resume" not in shown.out
        assert facts_of(job)["resumable"]
        assert "dlscale resume" in ask("status", job.id, "--workspace", workspace_of(job), cwd=workspace_of(job)).out
    finally:
        job.state.write_bytes(state)


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_a_damaged_ticket_holds_nobody_and_hides_no_running_job(damage: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    queue = Queue(workspace)

    def enter(name: str, state: str) -> Path:
        job = workspace.job(name)
        job.folder.mkdir(parents=True)
        job.write_state(JobState(name, name, "svd", state, time.time(), Heartbeat.now()))
        queue.join(Ticket(name, 1.0, running=state == "running"))
        return workspace.queue_folder / f"{name}.ticket.json"

    mine = Ticket("mine", 2.0)
    enter("mine", "queued")
    runs, waits = enter("runs", "running"), enter("waits", "queued")
    for path in (runs, waits):
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert queue.take_turn(mine) == ["runs"]
    job = workspace.job("runs")
    with job.claim():
        job.state.write_bytes(b"{")
        assert queue.take_turn(mine) == ["runs"]
    assert queue.take_turn(mine) == []


def test_ten_thousand_jobs_are_listed_at_once(tmp_path: Path) -> None:
    """And 50 damaged ones among them are named; the time of the processor counts, of which other processes take nothing."""
    n_jobs, text = 10_000, json.dumps({"certificate": {"passed": True, "checks": []}, "notes": ["x" * 200] * 6})
    for i in range(n_jobs):
        folder = tmp_path / "ws" / "jobs" / f"job-{i:05d}"
        folder.mkdir(parents=True)
        (folder / "spec.yaml").touch()
        state = f'{{"job": "job-{i:05d}", "name": "job", "kind": "svd", "state": "succeeded", "created": {1e9 + i}, '
        state += f'"heartbeat": ["h", 1, 1.0, 1.0, "m"], "seconds": 1.5, "message": "", "summary": {text}}}'
        (folder / "state.json").write_text(state if i % 200 else state[:90])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "dlscale", "jobs", "--workspace", "ws"]
    ended = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5.0  # 0.4 s on an idle core
    rows = ended.stdout.splitlines()[1:]
    assert len(rows) == n_jobs - 50
    assert [row.split()[0] for row in rows] == sorted((row.split()[0] for row in rows), reverse=True)
    assert {line.split()[1].rstrip(":") for line in ended.stderr.splitlines()} == {f"job-{i:05d}" for i in range(0, n_jobs, 200)}
    few = subprocess.run([*command, "--limit", "3", "--json"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=True)
    assert len(json.loads(few.stdout)) == 3


def test_folders_of_jobs_are_private_unless_sharing_was_asked_for(job: Job, tmp_path: Path) -> None:
    spec = dlscale_spec(job)
    before = os.umask(0o022)
    try:
        own = dlscale.run(spec, workspace=tmp_path / "own").folder
        assert {stat.S_IMODE(path.stat().st_mode) for path in (own, own.parent, own.parent.parent)} == {0o700}
        os.umask(0o007)
        shared = tmp_path / "shared"
        shared.mkdir()
        shared.chmod(0o2770)
        folder = dlscale.run(spec, workspace=shared / "ws").folder
        assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)} == {0o2770}
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.is_file()} == {0o660}
    finally:
        os.umask(before)


def dlscale_spec(job: Job) -> dict[str, Any]:
    from dlscale.batch.document import read_document

    return dict(read_document(job.spec).data)


def test_a_job_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DlscaleError, match="removed or moved"):
        Job(tmp_path / "gone").read_state()


def test_any_flipped_bit_of_what_the_inputs_were_is_damage_and_no_change_of_an_input(tmp_path: Path) -> None:
    job = waiting_job(tmp_path)
    signatures = {"matrix": Signature("0a1b" * 16, 12, 10**9, "c/0/0", 1_795_690_016_000_000_001, "ff00")}
    job.record_inputs(signatures)
    before = job.inputs.read_bytes()
    assert job.read_inputs() == signatures
    for bit in range(8 * len(before)):
        data = bytearray(before)
        data[bit // 8] ^= 1 << bit % 8
        job.inputs.write_bytes(data)
        with pytest.raises(SpecError, match=r"inputs\.json is damaged"):
            job.read_inputs()
