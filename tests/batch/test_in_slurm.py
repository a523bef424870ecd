"""What is told of a job that Slurm has, by what Slurm says: with stand-ins for its commands."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from dlscale.batch.jobs import in_slurm as asking
from dlscale.batch.jobs.in_slurm import begun, in_slurm, slurm_facts
from dlscale.batch.jobs.waiting import wait
from dlscale.batch.submit import cancel
from dlscale.batch.workspace import Heartbeat, Job, JobState, Workspace
from dlscale.cli.main import commands

#: A process of another machine that said so just now.
ELSEWHERE = Heartbeat("node-3", 4, 0.0, time.time(), "another machine")
KILLED, FAILED = 137 << 8, 1 << 8
KEPT = "what was finished is in the checkpoint."
TOO_LITTLE = "Slurm's job 7 ran out of memory; submit the job with more --memory."
FORGOTTEN, DUMB = "Invalid job id specified", "Unable to contact slurm controller"


class Slurm:
    """Stand-ins that say what they are told to say."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = folder, monkeypatch
        folder.mkdir()
        monkeypatch.setenv("PATH", str(folder), prepend=":")
        # What said lately that it works on a job still does, however slow this machine is.
        for module in ("states", "seeing"):
            monkeypatch.setattr(f"dlscale.batch.jobs.{module}.LOST_SECONDS", 3600.0)
        self.says("squeue", "", code=1, error=FORGOTTEN)
        self.says("sacct", "", code=1, error="Slurm accounting storage is disabled")
        self.says("scancel", "")

    def says(self, name: str, text: str, *, code: int = 0, error: str = "") -> None:
        program = self.folder / name
        program.write_text(
            f"#!/bin/sh\necho \"$@\" >> {self.folder}/{name}.asked\necho '{error}' >&2\necho '{text}'\nexit {code}\n"
        )
        program.chmod(0o755)
        self._patch.setattr(asking, "_answers", asking._Answers())

    def asks_once(self) -> None:
        """What was said lately is not asked again, however slow the machine is."""
        self._patch.setattr(asking, "_FRESH_SECONDS", 3600.0)

    def job_is(self, state: str, reason: str = "None", status: int = 0, nodes: str = "") -> None:
        self.says("squeue", f"7;{state};{reason};{status};{nodes};")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(tmp_path / "bin", monkeypatch)


def make_job(root: Path, state: str, *said: str) -> Job:
    job = Workspace(root / "ws").new_job("x")
    job.folder.mkdir(parents=True)
    job.spec.write_text("kind: svd\n")
    job.slurm.write_text('{"job": "7"}')
    (job.folder / "slurm-7.txt").write_text("\n".join(("one", "dlscale: back into the queue, to go on", *said)))
    job.write_state(JobState(job.id, "x", "svd", state, time.time(), ELSEWHERE._replace(time=time.time())))
    return job


def test_a_job_that_slurm_killed_took_as_long_as_it_wrote_events(tmp_path: Path, slurm: Slurm) -> None:
    slurm.job_is("FAILED", "NonZeroExitCode", KILLED)
    for state, seconds in (("running", 4.0), ("submitted", 0.0)):
        job = make_job(tmp_path / state, state)
        job.events.touch()
        os.utime(job.events, (time.time(), job.state.stat().st_mtime + 4.0))
        assert job.read_state().state == "failed"
        assert job.read_state().seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("stored", "in_queue", "seen", "message"),
    [
        ("submitted", ("PENDING", "Priority"), "submitted", "Slurm's job 7, PENDING (Priority)."),
        ("submitted", ("RUNNING", "None", 0, "n3"), "submitted", "Slurm's job 7, RUNNING on n3; dlscale starts there."),
        ("submitted", ("FAILED", "NonZeroExitCode", 127 << 8), "failed", "Slurm's job 7 failed with exit code 127."),
        (
            "submitted",
            ("CANCELLED", "None", 15),
            "cancelled",
            "Slurm's job 7 was cancelled; " + KEPT,
        ),
        (
            "submitted",
            ("BOOT_FAIL",),
            "interrupted",
            "Slurm's job 7 lost its node (BOOT_FAIL); " + KEPT,
        ),
        ("running", ("RUNNING", "None", 0, "n3"), "running", ""),
        ("running", ("COMPLETING",), "running", "Slurm ends its job 7."),
        ("running", ("FAILED", "NonZeroExitCode", KILLED), "failed", "Slurm's job 7 was killed (signal 9)."),
        ("running", ("FAILED", "None", 9), "failed", "Slurm's job 7 was killed (signal 9)."),
        # It ended in order, and said how: that is not seen yet.
        ("running", ("FAILED", "NonZeroExitCode", FAILED), "running", ""),
        ("running", ("COMPLETED",), "running", ""),
        (
            "running",
            ("OUT_OF_MEMORY", "OutOfMemory", 125),
            "failed",
            TOO_LITTLE,
        ),
        (
            "running",
            ("TIMEOUT", "TimeLimit"),
            "interrupted",
            "Slurm's job 7 reached its time limit; " + KEPT,
        ),
        (
            "running",
            ("NODE_FAIL",),
            "interrupted",
            "Slurm's job 7 lost its node (NODE_FAIL); " + KEPT,
        ),
        ("running", ("PENDING", "BeginTime"), "submitted", "Slurm's job 7, PENDING (BeginTime), and goes on from its checkpoint."),
        ("interrupted", ("COMPLETING",), "submitted", "It was interrupted; Slurm's job 7, COMPLETING."),
        ("interrupted", ("CANCELLED",), "cancelled", "Slurm's job 7 was cancelled; " + KEPT),
        ("interrupted", ("FAILED", "NonZeroExitCode", 75 << 8), "interrupted", ""),
        ("succeeded", ("FAILED", "NonZeroExitCode", KILLED), "succeeded", ""),
    ],
)
def test_a_job_is_seen_as_slurm_has_it(slurm: Slurm, tmp_path: Path, stored: str, in_queue: tuple, seen: str, message: str) -> None:
    slurm.job_is(*in_queue)
    job = make_job(tmp_path, stored, "its last words")
    state = job.read_state()
    assert (state.state, state.message) == (seen, message)
    listed = Workspace(tmp_path / "ws").list_jobs()[0][0]
    assert (listed.state, listed.message) == (seen, message)
    if in_queue[0] in ("FAILED", "TIMEOUT", "CANCELLED", "OUT_OF_MEMORY") and stored != "succeeded":
        # Slurm forgets a job a few minutes later; then it may be dumb, or not be installed where somebody looks.
        for forgets in (
            {"code": 1, "error": "Invalid job id specified"},
            {"code": 1, "error": "Unable to contact slurm controller"},
        ):
            slurm.says("squeue", "", **forgets)
            assert (job.read_state().state, job.read_state().message) == (seen, message)
        shown = CliRunner().invoke(commands, ["status", "--workspace", str(tmp_path / "ws")])
        assert f"job 7, {in_queue[0]}" in shown.stdout
        assert "its last words" in shown.stdout
        assert "one" not in slurm_facts(job)["last_lines"]


@pytest.mark.parametrize(
    "word",
    [
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.",
        "srun: error: n3: task 0: Out Of Memory",
        "slurmstepd: error: StepId=7.0 exceeded memory limit (9 > 1), being killed",
    ],
)
def test_out_of_memory_stands_in_what_slurm_wrote(slurm: Slurm, tmp_path: Path, word: str) -> None:
    slurm.job_is("FAILED", "NonZeroExitCode", KILLED)
    job = make_job(tmp_path, "running", word, "srun: error: n3: task 0: Killed")
    ended = wait(job)
    assert (ended.state, "ran out of memory" in ended.message, ended.exit_code) == ("failed", True, 1)


@pytest.mark.parametrize(
    ("account", "state"),
    [("7|CANCELLED by 0|0:15", "cancelled"), ("7|TIMEOUT|0:0", "interrupted"), ("7|FAILED|137:0", "failed")],
)
def test_the_accounts_know_what_the_queue_forgot(slurm: Slurm, tmp_path: Path, account: str, state: str) -> None:
    slurm.says("sacct", account)
    assert make_job(tmp_path, "submitted").read_state().state == state


def test_many_jobs_are_one_question(slurm: Slurm, tmp_path: Path) -> None:
    slurm.job_is("PENDING", "Priority")
    slurm.asks_once()
    for _ in range(5):
        make_job(tmp_path, "submitted")
    root = Workspace(tmp_path / "ws")
    assert {row.message for row in root.list_jobs()[0]} == {"Slurm's job 7, PENDING (Priority)."}
    assert len((slurm.folder / "squeue.asked").read_text().splitlines()) == 1


def test_a_dumb_slurm_ends_no_job(slurm: Slurm, tmp_path: Path) -> None:
    slurm.says("squeue", "", code=1, error=DUMB)
    assert make_job(tmp_path, "submitted").read_state().state == "submitted"
    assert make_job(tmp_path, "running").read_state().state == "running"


def test_a_job_that_goes_on_elsewhere_has_left_slurm(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm.job_is("TIMEOUT")
    job = make_job(tmp_path, "running")
    assert job.read_state().state == "interrupted"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    begun(job)
    assert (job.slurm.exists(), job.slurm_end.exists()) == (True, False)
    monkeypatch.delenv("SLURM_JOB_ID")
    begun(job)
    assert (in_slurm(job), job.read_state().state) == (None, "running")


def test_a_job_that_is_cancelled_in_the_queue_leaves_it(slurm: Slurm, tmp_path: Path) -> None:
    slurm.job_is("PENDING", "Resources")
    job = make_job(tmp_path, "submitted")
    job.write_state(replace(job.stored_state(), heartbeat=Heartbeat.now()))
    assert cancel(job, Workspace(tmp_path / "ws")).state == "cancelled"
    assert (slurm.folder / "scancel.asked").read_text() == "--state=PENDING 7\n"
