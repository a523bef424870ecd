"""Jobs from start to end in this process."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from dask.utils import key_split

from dlscale.batch import run as jobs
from dlscale.batch.jobs.pacing import PacedCheckpoint
from dlscale.batch.reporting import write_report
from dlscale.batch.workspace import Heartbeat, Job, JobState, Workspace
from dlscale.engine.clusters.cluster import ThreadCluster
from dlscale.engine.events import StateChanged
from dlscale.errors import CertificateError, DoesNotFitError, InputError, NonFiniteError, SpecError

Spec = dict[str, Any]


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    """300 x 20 with singular values that fall."""
    path = tmp_path / "a.zarr"
    array = zarr.create_array(path, shape=(300, 20), chunks=(100, 20), dtype="f8")
    array[:] = np.random.default_rng(0).standard_normal((300, 20)) * np.arange(1, 21) ** -0.5
    return path


@pytest.fixture
def spec(matrix: Path) -> Spec:
    return {"kind": "svd", "name": "try", "input": {"matrix": str(matrix)}, "params": {"n_components": 4}, "cluster": "threads"}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., jobs.JobResult]:
    return lambda spec, *overrides: jobs.run(spec, overrides, workspace=tmp_path / "ws")


@pytest.mark.usefixtures("drawn_reports")
def test_a_job_leaves_a_certified_result_and_a_report(spec: Spec, run: Callable[..., jobs.JobResult], matrix: Path) -> None:
    result = run(spec)
    assert result.state == "succeeded"
    assert result.certificate is not None
    assert result.certificate["passed"]
    u, s, vh = (np.asarray(result.open()[name]) for name in ("u", "s", "vh"))
    exact = np.linalg.svd(np.asarray(zarr.open_array(matrix)), compute_uv=False)
    np.testing.assert_allclose(s, exact[:4], rtol=1e-3)
    assert (u.shape, vh.shape) == ((300, 4), (4, 20))
    assert {path.name for path in result.folder.iterdir()} == {
        "spec.yaml", "state.json", "plan.json", "events.jsonl", "log.txt", "result.zarr", "report.html", "lock",
    }  # fmt: skip
    attributes = zarr.open_group(result.result, mode="r").attrs["dlscale"]
    assert set(attributes) == {"kind", "version", "job", "spec", "plan", "certificate", "estimates", "notes", "seconds"}
    assert result.job in (result.folder / "report.html").read_text()


def test_events_tell_the_course_of_the_job(spec: Spec, run: Callable[..., jobs.JobResult]) -> None:
    result = run(spec)
    events = [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]
    states = [event["state"] for event in events if event["event"] == "state"]
    assert states == ["running", "certifying", "succeeded"]
    assert {"pass_started", "blocks", "pass_finished", "checkpoint"} <= {event["event"] for event in events}
    # Each thread tells in its order; what two of them tell at once may stand either way.
    told = [event["time"] for event in events if event["event"] not in ("blocks", "memory")]
    assert told == sorted(told)


def test_whoever_sees_a_state_finds_the_last_words(
    spec: Spec, run: Callable[..., jobs.JobResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, str] = {}
    write = Job.write_state

    def looked_at(job: Job, state: JobState, **how: bool) -> None:
        if job.log.exists():
            states = [event.state for event in job.read_events() if isinstance(event, StateChanged)]
            seen.setdefault(state.state, f"{job.log.read_text().split()[-1]}, {states[-1]}")
        write(job, state, **how)

    monkeypatch.setattr(Job, "write_state", looked_at)
    run(spec)
    assert seen == {state: f"{state}, {state}" for state in ("running", "certifying", "succeeded")}


def test_an_output_is_kept_unless_it_may_be_replaced(spec: Spec, run: Callable[..., jobs.JobResult], tmp_path: Path) -> None:
    output = tmp_path / "out" / "r.zarr"
    first = run(spec, f"output={output}")
    assert first.result == str(output)
    assert list(output.parent.iterdir()) == [output]
    with pytest.raises(SpecError, match=r"output: .*exists already"):
        run(spec, f"output={output}")
    second = run(spec, f"output={output}", "overwrite=true", "params.n_components=3")
    assert second.open()["s"].shape == (3,)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("!")
    with pytest.raises(SpecError, match="not a result of dlscale"):
        run(spec, f"output={precious}", "overwrite=true")
    assert (precious / "thesis.tex").exists()


def test_a_matrix_is_imported_once(run: Callable[..., jobs.JobResult], tmp_path: Path) -> None:
    source = tmp_path / "a.npy"
    np.save(source, np.random.default_rng(0).standard_normal((50, 6)))
    spec = {"kind": "qr", "input": {"matrix": {"import": str(source)}}, "cluster": "threads"}
    run(spec)
    stored = list((tmp_path / "ws" / "imports").glob("*.zarr"))
    before = [path.stat().st_mtime_ns for path in stored]
    run(spec, "params.mode=r")
    assert [path.stat().st_mtime_ns for path in (tmp_path / "ws" / "imports").glob("*.zarr")] == before


def test_tasks_bear_kind_step_and_job_and_a_lost_worker_is_told_at_once(
    spec: Spec, run: Callable[..., jobs.JobResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, keys = ThreadCluster.compute, []

    def losing(self: ThreadCluster, graph: dict[Any, Any], key: Any, watch: Any) -> Any:
        if not keys:
            self.losses.append("Worker 1 was killed by SIGKILL.")
        keys.extend(graph)
        return compute(self, graph, key, watch)

    monkeypatch.setattr(ThreadCluster, "compute", losing)
    result = run(spec)
    assert all(re.fullmatch(rf"svd-[a-z]+(-\d+)?-{result.job}-[0-9a-f]{{12}}-[a-z]+.*", key_of(key)) for key in keys), keys
    assert key_split(next(key for key in keys if "iteration-1-" in key_of(key))) == "svd-iteration"
    log = (result.folder / "log.txt").read_text()
    assert log.count("WARNING Worker 1 was killed by SIGKILL.") == 1
    assert log.index("Worker 1 was killed") < log.index("checkpoint iteration-1")


def key_of(key: Any) -> str:
    return str(key[0] if isinstance(key, tuple) else key)


@pytest.mark.usefixtures("drawn_reports")
def test_a_bad_entry_fails_the_job_for_good(spec: Spec, run: Callable[..., jobs.JobResult], matrix: Path, tmp_path: Path) -> None:
    zarr.open_array(matrix)[123, 4] = np.nan
    with pytest.raises(NonFiniteError, match="row 123, column 4"):
        run(spec)
    job = Workspace(tmp_path / "ws").find(None)
    state = job.read_state()
    assert (state.state, state.resumable) == ("failed", False)
    assert "row 123" in state.message
    assert "Traceback" in job.log.read_text()
    assert "row 123" in job.report.read_text()
    assert not job.checkpoint.exists()
    assert not list(job.folder.glob(".*"))
    with pytest.raises(SpecError, match="fail again"):
        jobs.reopen(job, Workspace(tmp_path / "ws"))


def test_an_answer_that_fails_its_check_is_not_published(
    spec: Spec, run: Callable[..., jobs.JobResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlscale import certificates

    monkeypatch.setattr(certificates.Check, "passed", property(lambda check: False))
    with pytest.raises(CertificateError) as caught:
        run(spec, f"output={tmp_path / 'r.zarr'}")
    state = Workspace(tmp_path / "ws").find(None).read_state()
    assert state.state == "failed"
    assert state.job in "".join(caught.value.__notes__)
    assert state.certificate is not None
    assert not state.certificate["passed"]
    assert not list(tmp_path.glob("*r.zarr*"))


def test_what_does_not_fit_is_refused_before_anything_is_made(
    spec: Spec, run: Callable[..., jobs.JobResult], tmp_path: Path
) -> None:
    with pytest.raises(DoesNotFitError, match="cluster"):
        run(spec, "cluster.memory=1KB")
    assert not (tmp_path / "ws").exists()


def test_a_damaged_input_is_named_before_anything_is_made(
    spec: Spec, run: Callable[..., jobs.JobResult], matrix: Path, tmp_path: Path
) -> None:
    (matrix / "c" / "1" / "0").unlink()
    with pytest.raises(InputError, match=r"input\.matrix: .*c.1.0"):
        run(spec)
    assert not (tmp_path / "ws").exists()


@pytest.mark.usefixtures("drawn_reports")
def test_a_finished_job_is_not_resumed_and_its_report_can_be_drawn_anew(
    spec: Spec, run: Callable[..., jobs.JobResult], tmp_path: Path
) -> None:
    result = run(spec)
    job = Workspace(tmp_path / "ws").find(result.job)
    with pytest.raises(SpecError, match="has succeeded"):
        jobs.reopen(job, Workspace(tmp_path / "ws"))
    job.report.unlink()
    assert "<html" in write_report(job).read_text()


def test_a_job_killed_after_publishing_has_succeeded(spec: Spec, run: Callable[..., jobs.JobResult], tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    published = run(spec, f"output={tmp_path / 'r.zarr'}")
    job = workspace.find(published.job)
    vanished = Heartbeat.now()._replace(started=1.0)
    job.write_state(replace(job.read_state(), state="certifying", result=None, heartbeat=vanished))
    assert job.read_state().state == "lost"
    result = jobs.resume(job, jobs.reopen(job, workspace))
    assert (result.state, result.result) == ("succeeded", published.result)


def test_a_job_runs_outside_the_main_thread(spec: Spec, run: Callable[..., jobs.JobResult]) -> None:
    results: list[jobs.JobResult] = []
    thread = threading.Thread(target=lambda: results.append(run(spec)))
    thread.start()
    thread.join()
    assert results[0].state == "succeeded"


def test_a_paced_checkpoint_saves_what_waits_with_the_next(tmp_path: Path) -> None:
    checkpoint = PacedCheckpoint(tmp_path / "c.zarr", every_seconds=3600.0)
    state = {"Z": np.zeros(3)}
    assert checkpoint.save("one", state) == 0
    state["Z"] += 1
    checkpoint.every_seconds = 1e-9
    assert checkpoint.save("two", state) > 0
    checkpoint.every_seconds = 3600.0
    assert checkpoint.steps() == ["one", "two"]
    loaded = checkpoint.load("one")
    assert loaded is not None
    np.testing.assert_array_equal(loaded["Z"], np.zeros(3))
    checkpoint.save("three", state)
    assert checkpoint.steps() == ["one", "two"]
    checkpoint.flush()
    assert checkpoint.steps() == ["one", "two", "three"]
