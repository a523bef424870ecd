"""Workspaces in a bucket: what any machine sees of them, who runs a job, and what is left when that one is killed."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from gate import PATIENCE_SECONDS, Gate
from object_server import SECRET, Faults, upload

import dlscale
from dlscale.batch.remote import claims
from dlscale.batch.remote.opening import open_workspace
from dlscale.batch.removing import remove
from dlscale.batch.run import JobResult, reopen, resume
from dlscale.batch.submit import cancel
from dlscale.batch.verifying import verify_job
from dlscale.batch.workspace import Workspace
from dlscale.errors import InputError, SpecError, StoreError
from dlscale.storage.files import locks
from dlscale.storage.files.locks import LockLostError
from dlscale.storage.files.processes import Owner
from dlscale.storage.objects import conditions, requests
from dlscale.storage.objects.address import Address

A = np.random.default_rng(0).standard_normal((900, 60))
#: A process that is killed when it has told so many events of one kind.
KILLED = """
import json, os, signal, sys
import dlscale
job, workspace, named, left = json.loads(sys.argv[1])
def kill(event):
    global left
    left -= event["event"] == named
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
dlscale.run(job, workspace=workspace, listener=kill)
"""


@pytest.fixture
def job(bucket: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A job whose matrix is in the bucket, on a machine that never saw it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    zarr.create_array(str(tmp_path / "A.zarr"), data=A, chunks=(200, 60), compressors=None)
    url = upload(tmp_path / "A.zarr", bucket / "A.zarr")
    params = {"n_components": 4, "scores": True, "solver": "randomized"}
    return {"kind": "pca", "input": {"matrix": url}, "params": params, "cluster": "threads"}


def another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: Address) -> Workspace:
    """The workspace as a machine sees it that never saw it before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    return open_workspace(str(place))


def require_same(found: JobResult, job: dict[str, Any], tmp_path: Path) -> None:
    """As the job gives from and on a disk, with no secret in any file of either."""
    here = dlscale.run({**job, "input": {"matrix": str(tmp_path / "A.zarr")}}, workspace=tmp_path / "here")
    ours, theirs = here.open(), found.open()
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(theirs[name][...], array[...])


def written(tmp_path: Path, place: Address) -> list[bytes]:
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    return files + [requests.get(place / key) for key in requests.listing(place)]


def test_a_job_goes_on_elsewhere_after_its_process_was_killed(
    bucket: Address, job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bits of a disk, from the steps that were saved; nothing that opens the bucket is in any file or object."""
    place = bucket / "ws"
    given = json.dumps([job, str(place), "checkpoint", 1])
    process = subprocess.run([sys.executable, "-c", KILLED, given], capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    root = another_machine(monkeypatch, tmp_path, place)
    (row,) = root.list_jobs()[0]
    assert (row.kind, row.state) == ("pca", "lost")
    stopped = root.find("pca")
    assert stopped.stored_state().state == "running"
    resumed = resume(stopped, reopen(stopped, root))
    steps = [event.to_dict() for event in stopped.read_events()]
    assert any(event.get("resumed") for event in steps)
    require_same(resumed, job, tmp_path)
    assert resumed.result == f"{place}/jobs/{stopped.id}/result.zarr"
    names = {key.removeprefix(f"{stopped.id}/").partition("/")[0] for key in requests.listing(place / "jobs")}
    assert names == {"spec.yaml", "plan.json", "state.json", "events.jsonl", "log.txt", "report.html", "result.zarr"}
    assert requests.get(stopped.place / "events.jsonl") == stopped.events.read_bytes()
    assert not any(SECRET.encode() in data for data in written(tmp_path, place))
    with pytest.raises(SpecError, match="has succeeded"):
        reopen(stopped, root)
    remove(stopped, root)
    assert requests.listing(place) == {}
    assert root.list_jobs() == ([], {})


def of_another_machine(beat: int) -> bytes:
    owner = Owner("elsewhere", 1, 1.0, "another boot")
    return json.dumps({"token": "other", "count": beat, **owner._asdict()}).encode()


class Clock:
    """Stands for the clock of those who watch a claim: when they sleep, time goes on at once, and something may happen."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.happens: Callable[[], object] = lambda: None

    def clock_gettime(self, _: int) -> float:
        return self.now

    def time(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.happens()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of claims; those of this process beat only when they are asked for."""
    clock = Clock()
    monkeypatch.setattr(claims, "time", clock)
    monkeypatch.setattr(claims, "BEAT_SECONDS", 3600.0)
    return clock


def test_one_claim_at_a_time(bucket: Address, tmp_path: Path, clock: Clock) -> None:
    """One that beats is left alone, one that is left is taken over, and who had it finds out."""
    place = bucket / "claim"
    first_lock, second_lock = locks.take(tmp_path / "first"), locks.take(tmp_path / "second")
    assert first_lock is not None
    assert second_lock is not None
    with first_lock, second_lock:
        first = claims.take(place, first_lock)
        assert first is not None
        assert claims.is_taken(place)
        assert claims.take(place, second_lock) is None
        first.release()
        assert not requests.exists(place)
        requests.put(place, of_another_machine(1))
        began = clock.now
        second = claims.take(place, second_lock)
        assert second is not None, "nobody has written it for long enough"
        assert clock.now - began >= claims.LEASE_SECONDS
        late = requests.get(place)
        second._renew()
        requests.put(place, late)
        clock.now += claims.LEASE_SECONDS
        second.check()  # what it wrote itself, and a store carried out late, is no other process
        requests.put(place, of_another_machine(2))
        second.check()  # nobody can have seen it unchanged for long enough since
        clock.now += claims.LEASE_SECONDS
        with pytest.raises(LockLostError, match="taken over by another process"):
            second.check()
        second.release()
        assert requests.get(place) == of_another_machine(2), "the claim of another is no one's to remove"


def test_a_claim_beats_by_itself(bucket: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And finds out that it was lost, without being asked."""
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.02)
    place, lock = bucket / "claim", locks.take(tmp_path / "lock")
    assert lock is not None
    claim = claims.take(place, lock)
    assert claim is not None
    for _ in range(2):
        written = requests.get(place)
        until(lambda written=written: requests.get(place) != written)
    requests.put(place, of_another_machine(1))
    until(lambda: claim._lost)
    claim.release()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.02)


def test_a_claim_that_is_written_anew_is_nobody_elses(bucket: Address, tmp_path: Path, clock: Clock) -> None:
    place, lock, beats = bucket / "claim", locks.take(tmp_path / "lock"), itertools.count()
    assert lock is not None

    def beat() -> None:
        if clock.now - began > claims.LEASE_SECONDS / 2:
            requests.put(place, of_another_machine(next(beats)))

    began, clock.happens = clock.now, beat
    requests.put(place, of_another_machine(next(beats)))
    with lock:
        assert claims.take(place, lock) is None
    assert clock.now - began < claims.LEASE_SECONDS


def test_who_lost_its_claim_stops(bucket: Address, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """And says so; the state, which another process has written meanwhile, stays as that one wrote it."""
    monkeypatch.setattr(claims, "LEASE_SECONDS", 0.0)  # a claim is asked for before anything is written
    root = open_workspace(f"{bucket}/ws")
    theirs = b""

    def take_over(event: dict[str, Any]) -> None:
        nonlocal theirs
        if event["event"] == "checkpoint" and not theirs:
            place = root.find(None).place
            assert isinstance(place, Address)
            theirs = requests.get(place / "state.json") + b" "
            requests.put(place / "claim", of_another_machine(1))
            requests.put(place / "state.json", theirs)

    with pytest.raises(LockLostError, match="another process"):
        dlscale.run(job, workspace=f"{bucket}/ws", listener=take_over)
    (key,) = (key for key in requests.listing(bucket / "ws") if key.endswith("state.json"))
    assert requests.get(bucket / "ws" / key) == theirs


def test_a_job_asks_for_each_object_once(bucket: Address, job: dict[str, Any], faults: Faults) -> None:
    """Of what it reads no metadata twice, and of what is not there nothing."""
    dlscale.run(job, workspace=f"{bucket}/ws")
    asked = [re.sub(r"/ws/jobs/pca-[^/]*|%2Fpca-[^%]*", "/job", request) for request in faults.log]
    metadata = Counter(request for request in asked if request.startswith("GET") and request.endswith("zarr.json"))
    bucket_name = f"/{bucket.bucket}"
    assert metadata[f"GET {bucket_name}/A.zarr/zarr.json"] == 1
    of_arrays = {key: n for key, n in metadata.items() if re.search("/job/result.zarr/[a-z_]+/", key)}
    assert len(of_arrays) == 7
    assert set(of_arrays.values()) == {1}, "for the report"
    assert not [request for request in asked if "labels/" in request]
    of_steps = [request for request in asked if "checkpoint.zarr%2Fsteps" in request]
    assert len(of_steps) == 1, "what a stop has left of steps is looked up once"
    by_clocks = ("/cancel", "/claim", "/state.json", "/log.txt", "/events.jsonl")
    assert len([request for request in asked if not request.endswith(by_clocks)]) <= 180


def test_same_bits_when_the_store_freezes_and_fails(
    bucket: Address, job: dict[str, Any], faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer than a claim is trusted unasked; a request in twenty fails, and an answer in twenty breaks off."""
    monkeypatch.setattr(claims, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.1)
    faults.failing = faults.torn = 0.05

    def freeze(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint" and not faults.counts["frozen"]:
            faults.freezing = 1.0

    found = dlscale.run(job, workspace=f"{bucket}/ws", listener=freeze)
    assert faults.counts["frozen"]
    require_same(found, job, tmp_path)
    faults.failing = faults.torn = 0.0
    assert not any(SECRET.encode() in data for data in written(tmp_path, bucket))


def test_a_submitted_job_from_another_machine(
    bucket: Address, job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    """It is watched, refused, cancelled, verified, gone on with and removed from where nothing of it was ever."""
    job["params"] = {"n_components": 4, "solver": "randomized", "power_iterations": 5, "block_rows": 200}
    for name, value in gate.environment.items():
        monkeypatch.setenv(name, value)
    with gate.closed():
        submitted = dlscale.submit(job, workspace=f"{bucket}/ws")
        root = another_machine(monkeypatch, tmp_path, bucket / "ws")
        there = root.find(None)
        assert there.id == submitted.id
        assert there.folder != submitted.folder
        command = [sys.executable, "-m", "dlscale", "logs", "-f", "--workspace", str(root.place)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as logs:
            gate.wait_for_job()
            assert requests.names(bucket / f"ws/jobs/{there.id}/checkpoint.zarr/manifests")
            assert [row.job for row in root.list_jobs()[0]] == [there.id]
            with pytest.raises(SpecError, match="is running already"):
                reopen(there, root)
            with pytest.raises(SpecError, match="is running already"):
                there.claim()
            assert cancel(there, root).state == "cancelled"
            assert "cancelled" in logs.communicate(timeout=PATIENCE_SECONDS)[0].splitlines()[-1]
    findings = verify_job(root.find(None))
    assert not findings.damage
    assert findings.n_chunks > 0
    again = resume(there, reopen(there, root), listener=lambda _: signal.raise_signal(signal.SIGINT))
    assert again.state == submitted.state == "interrupted"
    remove(there, root)
    assert requests.listing(bucket / "ws") == {}
    assert dlscale.jobs(f"{bucket}/ws") == []


def test_a_job_that_cannot_be_handed_over_leaves_nothing(
    bucket: Address, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one whose place in the bucket is taken, and what is there stays."""

    def refused(*_: object) -> None:
        raise SpecError("no process can be started")

    monkeypatch.setattr("dlscale.batch.submit.detach", refused)
    with pytest.raises(SpecError, match="no process"):
        dlscale.submit(job, workspace=f"{bucket}/ws")
    assert requests.listing(bucket / "ws") == {}
    monkeypatch.setattr("dlscale.batch.workspace.time.strftime", lambda _: "20260101-000000")
    monkeypatch.setattr("dlscale.batch.workspace.secrets.token_hex", lambda _: "abcd")
    requests.put(bucket / "ws/jobs/pca-20260101-000000-abcd/spec.yaml", b"another's")
    with pytest.raises(StoreError, match="is the place of another job"):
        dlscale.run(job, workspace=f"{bucket}/ws")
    assert requests.get(bucket / "ws/jobs/pca-20260101-000000-abcd/spec.yaml") == b"another's"
    assert dlscale.jobs(f"{bucket}/ws") == []


@pytest.mark.parametrize(
    ("workspace", "told"),
    [
        ("s3://nowhere/ws", "there is no bucket 'nowhere'"),
        ("s3://user:word@bucket/ws", "credentials and endpoints come from the environment only"),
        ("ftp://host/ws", "The workspace, if it is no URL of s3:, gs: or az:, must be a path"),
    ],
)
def test_a_place_that_cannot_be_used_is_refused(job: dict[str, Any], workspace: str, told: str) -> None:
    with pytest.raises((SpecError, InputError), match=told):
        dlscale.run(job, workspace=workspace)
    with pytest.raises((SpecError, StoreError), match=told):
        dlscale.jobs(workspace)


def test_what_needs_a_folder_is_refused(
    bucket: Address, job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is created; so is a store that can be reached but obeys no condition, and a machine without the driver."""
    with pytest.raises(SpecError, match="An array of this program as an input needs a workspace on a file system; got s3://"):
        dlscale.run({**job, "input": {"matrix": A}}, workspace=f"{bucket}/ws")
    monkeypatch.setattr(conditions, "replace", lambda *_, **__: {"e_tag": "whatever"})
    with pytest.raises(SpecError, match="writes objects whatever the condition"):
        dlscale.run(job, workspace=f"{bucket}/ws")
    monkeypatch.setattr("dlscale.storage.objects.address.has_driver", lambda: False)
    with pytest.raises(SpecError, match="needs the package obstore"):
        dlscale.jobs(f"{bucket}/ws")
    monkeypatch.setattr("dlscale.storage.objects.address.has_driver", lambda: True)
    assert requests.listing(bucket / "ws") == {}
