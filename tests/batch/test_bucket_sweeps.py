"""Sweeps in a workspace in a bucket: what another machine sees of them, and goes on with."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from click.testing import CliRunner, Result
from gate import PATIENCE_SECONDS, Gate
from object_server import upload

import dlscale
from dlscale.batch.jobs import records
from dlscale.batch.remote.opening import open_workspace
from dlscale.batch.sweeps import running, store
from dlscale.batch.workspace import HandOver, Heartbeat, Job, JobState, Workspace
from dlscale.cli.main import commands
from dlscale.storage.files.locks import LockLostError
from dlscale.storage.groups import open_arrays
from dlscale.storage.objects import requests
from dlscale.storage.objects.address import Address

A = np.random.default_rng(0).standard_normal((900, 60))


@pytest.fixture
def place(bucket: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Address:
    """A workspace in a bucket, beside a matrix."""
    on_machine(monkeypatch, tmp_path, "first")
    zarr.create_array(str(tmp_path / "A.zarr"), data=A, chunks=(200, 60), compressors=None)
    upload(tmp_path / "A.zarr", bucket / "A.zarr")
    return bucket / "ws"


def on_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """From now on, be a machine with a mirror of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))


def call(place: Address, *arguments: str) -> Result:
    return CliRunner().invoke(commands, [*arguments, "--workspace", str(place)])


def submit(place: Address, tmp_path: Path, params: dict[str, Any], seeds: list[int]) -> str:
    spec = {"kind": "pca", "name": "swept", "input": {"matrix": str(place.parent / "A.zarr")}, "cluster": "threads"}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**spec, "params": params, "matrix": {"params.seed": seeds}}))
    submitted = call(place, "submit", str(tmp_path / "sweep.yaml"))
    assert submitted.exit_code == 0, submitted.output
    return submitted.stdout.strip()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


def test_a_sweep_is_seen_goes_on_and_is_removed_from_another_machine(
    place: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    """Also where the process that ran it was killed; one of all machines runs it, and any can cancel it."""
    params = {"n_components": 3, "solver": "randomized", "power_iterations": 6}
    for name, value in gate.environment.items():
        monkeypatch.setenv(name, value)
    with gate.closed():
        sweep_id = submit(place, tmp_path, params, [0, 1])
        here = open_workspace(str(place))
        first, second = [each["job"] for each in store.read(here, sweep_id).jobs]
        gate.wait_for_job()
        assert state_of(here, first) == "running"
        on_machine(monkeypatch, tmp_path, "second")
        there = open_workspace(str(place))
        assert running.is_driven(there, sweep_id)
        assert "is running already" in call(place, "resume", sweep_id).stderr
        driver = records.read(here.job(first).handed_over, HandOver).driver
        assert driver is not None
        os.kill(driver.pid, signal.SIGKILL)
    until(lambda: state_of(here, first) == "succeeded")
    assert state_of(here, second) == "lost"
    with gate.closed():
        resumed = call(place, "resume", sweep_id)
        assert resumed.stdout == f"{sweep_id}: 1 of 2 jobs are left; they run.\n", resumed.output
        gate.wait_for_job()
        until(lambda: state_of(there, second) == "running")
        on_machine(monkeypatch, tmp_path, "first")
        assert call(place, "cancel", sweep_id).exit_code == 0
        assert not running.is_driven(here, sweep_id)
    assert call(place, "wait", sweep_id).exit_code == 75
    assert call(place, "resume", sweep_id).exit_code == 0
    on_machine(monkeypatch, tmp_path, "second")
    waited = call(place, "wait", "swept-sweep")
    assert (waited.exit_code, waited.stdout) == (0, f"{sweep_id}: 2 succeeded\n")
    assert "Nothing is left to run" in call(place, "resume", sweep_id).stderr

    alone = {"kind": "pca", "input": {"matrix": str(tmp_path / "A.zarr")}, "cluster": "threads", "params": {**params, "seed": 1}}
    theirs = dlscale.run(alone, workspace=tmp_path / "here").open()
    ours = open_arrays(f"{place}/jobs/{second}/result.zarr")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name][...], array[...])

    looks = ("status",), ("jobs", "--json", "--sweep"), ("logs",)
    seen_there = [call(place, *look, sweep_id).stdout for look in looks]
    on_machine(monkeypatch, tmp_path, "first")
    assert [call(place, *look, sweep_id).stdout for look in looks] == seen_there
    assert [line for line in seen_there[2].splitlines() if line.endswith("succeeded")][1].startswith("swept-2: ")
    assert call(place, "rm", first).exit_code == 0
    assert call(place, "rm", sweep_id).stdout.startswith(f"{second}  ")
    assert requests.listing(place) == {}
    assert "There is no job yet in s3:" in call(place, "status", sweep_id).stderr


def state_of(root: Workspace, job: str) -> str:
    state = root.read_states([job])[job]
    return "removed" if state is None else state.state


def test_a_job_that_waits_for_long_is_said_to_others(place: Address) -> None:
    """Unless it was cancelled meanwhile, which is not written over."""
    root = open_workspace(str(place))
    root.require_writable()
    job = root.new_job("waits")
    job.folder.mkdir()
    job.spec.write_text("kind: svd\n")
    before = JobState(job.id, "waits", "svd", "submitted", time.time(), Heartbeat.now()._replace(time=1.0))
    Job.write_state(job, before, fsync=False)
    job.publish()

    def beat() -> float:
        return json.loads(requests.get(place / f"jobs/{job.id}/state.json"))["heartbeat"][-2]

    assert beat() == 1.0
    waiting, began = root.job(job.id), time.time()
    waiting.say_that_it_waits()
    assert beat() >= began
    cancelled = replace(before, state="cancelled")
    requests.put(place / f"jobs/{job.id}/state.json", json.dumps(asdict(cancelled)).encode())  # by another machine
    with suppress(LockLostError):
        waiting.say_that_it_waits()
    assert beat() == 1.0
