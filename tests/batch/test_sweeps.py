"""Parameter sweeps: a job file with a matrix of values as an array of jobs, and their table."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from gate import PATIENCE_SECONDS, Gate
from helpers import gaussian
from hypothesis import given
from hypothesis import strategies as st

import dlscale
from dlscale.batch.document import parse_yaml
from dlscale.batch.prepare import prepare
from dlscale.batch.spec import json_schema, parse_spec
from dlscale.batch.spec.consent import TRUSTED
from dlscale.batch.spec.expanding import MAX_JOBS, MAX_KEYS, expand
from dlscale.batch.sweeps import running, store
from dlscale.batch.sweeps.planning import members_of, new_sweep, plan_all
from dlscale.batch.workspace import RUNNING, Heartbeat, Job, Workspace
from dlscale.cli.main import commands
from dlscale.errors import SpecError

SPEC = {"kind": "svd", "name": "ranks", "input": {"matrix": "a.zarr"}, "params": {"n_components": 3}, "cluster": "threads"}
AXES = {"params.n_components": [2, 4], "params.seed": [0, 1], "params.power_iterations": [1]}


def document(axes: Any = AXES, **more: Any) -> Any:
    data = json.loads(json.dumps({**SPEC, **more, "matrix": axes}))  # nothing in it is one object twice, which YAML would tell
    return parse_yaml(yaml.safe_dump(data, sort_keys=False), "s.yaml")


values = st.lists(st.integers(-5, 5) | st.sampled_from(["a", "b", None, [1, 2], {"x": 1}]), min_size=1, max_size=4, unique_by=repr)
keys = st.sampled_from(["params.n_components", "params.seed", "input.matrix", "checkpoint.every", "output", "cluster"])


@given(st.dictionaries(keys, values, min_size=1, max_size=4))
def test_a_sweep_is_every_combination_once(axes: dict[str, list[Any]]) -> None:
    made = list(expand(document(axes)))
    assert [list(chosen.values()) for chosen, _ in made] == [list(each) for each in itertools.product(*axes.values())]
    names = [each.data["name"] for _, each in made]
    assert (len(set(names)), sorted(names)) == (len(made), names)
    for chosen, each in made:
        assert "matrix" not in each.data
        for key, value in chosen.items():
            found: Any = each.data
            for part in key.split("."):
                found = found[part]
            assert found == value
        # What stands in a file was given by nobody who runs it, such as the address of a cluster.
        assert not each.given


@pytest.mark.parametrize(
    ("axes", "more", "said"),
    [
        ([], {}, "s.yaml:8: matrix: must be a mapping of keys to lists"),
        ({}, {}, "must be a mapping of keys to lists"),
        ({"params.seed": 3}, {}, "s.yaml:9: matrix.params.seed: must be a list of values; got 3"),
        ({"params.seed": []}, {}, "must be a list of values"),
        ({"params.seed": [1, 2, 1]}, {}, "has 1 twice"),
        ({"kind": ["svd", "pca"]}, {}, "kind and name are the same for all jobs"),
        ({"params..seed": [1]}, {}, "must be a key such as"),
        ({"params": [{"seed": 1}], "params.seed": [1]}, {}, "lies in another key"),
        ({"params.seed": list(range(MAX_JOBS + 1))}, {}, "has 1,001 combinations; a sweep has at most 1,000 jobs"),
        ({f"k{i}": [1] for i in range(MAX_KEYS + 1)}, {}, "has 51 keys; a sweep varies at most 50"),
        ({"params.seed": [1, 2]}, {"output": "r.zarr"}, "output: would be the same place for all jobs"),
        ({"params.seed": [1, 2], "output": ["a.zarr", "b.zarr"]}, {}, "a.zarr would be the place of 2 jobs"),
        ({"params.seed": [1, 2]}, {"name": f"{50 * 'a'}/../b"}, "s.yaml:2: name: got 'aaa"),
        ({"params.seed": [1, -2]}, {}, "s.yaml:9: params.seed: got -2"),
    ],
)
def test_what_is_no_sweep_is_told(axes: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as raised:
        members_of(document(axes, **more))
    assert said in str(raised.value)


def test_one_job_is_not_made_of_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="matrix: makes a sweep of many jobs, which takes `dlscale submit`"):
        parse_spec(document())
    with pytest.raises(SpecError, match="sweep"):
        dlscale.run({**SPEC, "matrix": AXES}, workspace=tmp_path)
    assert all("matrix" in json_schema()["$defs"][name]["properties"] for name in ("SVDSpec", "RidgeSpec"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DLSCALE_WORKSPACE", str(tmp_path / "ws"))
    np.save("a.npy", gaussian(300, 20))
    write_sweep({"params.n_components": [2, 4, 6]})
    return tmp_path


def write_sweep(axes: dict[str, list[Any]]) -> None:
    Path("s.yaml").write_text(yaml.safe_dump({**SPEC, "input": {"matrix": {"import": "a.npy"}}, "matrix": axes}, sort_keys=False))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(commands, arguments)


def run_here(job: Job) -> None:
    """Run a job of a sweep in this process, as any other, if its own process, which may only start now, does not run it."""
    ended = time.monotonic() + PATIENCE_SECONDS
    while (state := job.read_state().state) != "succeeded":
        assert time.monotonic() < ended, state
        if state in (*RUNNING, "submitted"):
            time.sleep(0.1)
        elif (resumed := call("resume", job.id)).exit_code:
            assert "is running already" in resumed.stderr


def test_a_sweep_is_stopped_goes_on_and_is_one_table(folder: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = call("plan", "s.yaml")
    assert planned.stdout.splitlines()[0] == "s.yaml: a sweep of 3 jobs of kind svd; memory is per worker.", planned.stderr
    assert [line.split()[:2] for line in planned.stdout.splitlines()[2:5]] == [[f"ranks-{i}", str(2 * i)] for i in (1, 2, 3)]
    assert not (folder / "ws" / "jobs").exists()
    assert call("validate", "s.yaml").stdout == "s.yaml is a valid sweep of 3 jobs of kind svd.\n"
    for name, value in gate.environment.items():
        monkeypatch.setenv(name, value)
    with gate.closed():
        submitted = call("submit", "s.yaml")
        assert submitted.exit_code == 0, submitted.stderr
        sweep_id, root = submitted.stdout.strip(), Workspace()
        jobs = [root.job(each["job"]) for each in store.read(root, sweep_id).jobs]
        gate.wait_for_job()
        assert [job.read_state().state for job in jobs] == ["running", "submitted", "submitted"]

        # The process that runs them dies: those that waited for it are lost, the one that runs goes on.
        driver = json.loads(jobs[2].handed_over.read_text())["driver"][1]
        os.kill(driver, signal.SIGKILL)
        os.waitpid(driver, 0)
        assert [job.read_state().state for job in jobs] == ["running", "lost", "lost"]
    run_here(jobs[0])
    first = jobs[0].state.read_bytes()
    waited = call("wait", sweep_id)
    assert (waited.exit_code, waited.stdout) == (1, f"{sweep_id}: 2 lost, 1 succeeded\n")
    with gate.closed():
        resumed = call("resume", sweep_id)
        assert resumed.stdout == f"{sweep_id}: 2 of 3 jobs are left; they run.\n", resumed.stderr
        gate.wait_for_job()
        refused = call("resume", "ranks-sweep")
        assert (refused.exit_code, "is running already" in refused.stderr) == (2, True)

        # Cancelled, what is left is run again, and only that.
        assert call("cancel", sweep_id).exit_code == 0
        assert call("wait", sweep_id).exit_code == 75
    run_here(jobs[1])
    assert json.loads(call("resume", sweep_id, "--json").stdout)["jobs"] == [jobs[2].id]
    waited = call("wait", sweep_id)
    assert (waited.exit_code, waited.stdout) == (0, f"{sweep_id}: 3 succeeded\n"), call("jobs", "--sweep", sweep_id).stdout
    assert jobs[0].state.read_bytes() == first
    assert "Nothing is left to run" in call("resume", sweep_id).stderr

    # The numbers are those of the same job alone.
    alone = dlscale.run({**SPEC, "input": {"matrix": {"import": "a.npy"}}}, ["params.n_components=6"])
    estimates = root.job(alone.job).read_state().summary["estimates"]
    table = json.loads(call("jobs", "--sweep", sweep_id, "--json").stdout)["jobs"]
    assert table[2]["values"] == {"params.n_components": 6}
    assert table[2]["numbers"] == {key: value for key, value in estimates.items() if isinstance(value, float)}
    assert call("jobs", "--sweep", "ranks-s", "--csv", "t.csv").stdout == "t.csv\n"
    rows = list(csv.DictReader(io.StringIO(Path("t.csv").read_text())))
    assert [row["params.n_components"] for row in rows] == ["2", "4", "6"]
    assert {(row["state"], row["certificate"]) for row in rows} == {("succeeded", "passed")}
    status = call("status", "ranks-sweep").stdout.splitlines()
    assert status[0] == f"{sweep_id}: {store.told(store.counts_of(root, store.read(root, sweep_id)))}"
    assert [line.split()[:3] for line in status[1:]] == [
        ["job", "state", "n_components"],
        *([job.id, job.read_state().state, str(2 * i)] for i, job in enumerate(jobs, 1)),
    ]
    assert json.loads(call("status", sweep_id, "--json").stdout) == json.loads(call("jobs", "--sweep", sweep_id, "--json").stdout)
    wrote = [f"{job.read_state().name}: {line}" for job in jobs for line in job.log.read_text().splitlines()]
    assert call("logs", sweep_id).stdout.splitlines() == call("logs", "-f", sweep_id).stdout.splitlines() == wrote
    shown = call("jobs", "--sweep", sweep_id).stdout
    assert all(word in shown for word in ("n_components", "frobenius error", jobs[2].id))
    call("rm", jobs[1].id)
    assert json.loads(call("jobs", "--sweep", sweep_id, "--json").stdout)["jobs"][1]["state"] == "removed"
    assert jobs[0].read_state().sweep == sweep_id
    assert call("rm", sweep_id).stdout.splitlines()[0].startswith(jobs[0].id)
    assert not store.sweep_ids(root)


def test_a_sweep_is_made_whole_or_not_at_all(folder: Path) -> None:
    write_sweep({"params.n_components": [2, 40]})
    refused = call("submit", "s.yaml")
    assert (refused.exit_code, ": params.n_components: must be between 1 and 20" in refused.stderr) == (2, True), refused.stderr
    assert refused.stderr.startswith("error: s.yaml:")
    assert not list((folder / "ws").glob("jobs/*"))
    assert not list((folder / "ws").glob("sweeps/*.json"))
    for arguments in (
        ("jobs", "--csv", "t.csv"),
        ("jobs", "--sweep", "x", "--state", "failed"),
        ("submit", "s.yaml", "--slurm", "--priority", "2"),
    ):
        assert call(*arguments).exit_code == 2
    assert "There is no sweep x" in call("jobs", "--sweep", "x").stderr


def test_a_cluster_that_was_named_at_submission_is_one_for_its_jobs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their process reads the job files alone, which decide nothing on whose code runs."""
    environments: list[dict[str, str]] = []

    def started(command: list[str], log: Path, environment: dict[str, str]) -> Heartbeat:
        environments.append(environment)
        return Heartbeat("elsewhere", 0, 0.0, 0.0)

    monkeypatch.setattr(running, "start_detached", started)
    monkeypatch.setattr(running, "check_workers_see", lambda address, job: None)
    monkeypatch.setenv(TRUSTED, "tcp://b:1")
    root, made = Workspace(), document({"params.seed": [0, 1]}, input={"matrix": {"import": "a.npy"}})
    planned = plan_all(members_of(made), lambda member: prepare(member.spec, member.document, root))
    there = [
        each._replace(prepared=replace(each.prepared, facts=replace(each.prepared.facts, kind="tcp", address="tcp://a:1")))
        for each in planned
    ]
    running.submit(root, new_sweep(root, made, there), there)
    assert environments == [{TRUSTED: "tcp://b:1,tcp://a:1"}]


def test_a_formula_stays_text_in_a_spreadsheet() -> None:
    row = {"job": "a", "values": {"input.matrix": "=1+1"}, "state": "failed", "seconds": None, "certificate": None}
    text = store.to_csv([{**row, "numbers": {"x": -1.5}, "message": "-no", "result": None}], ["input.matrix"])
    assert text.splitlines()[1] == "a,'=1+1,failed,,,-1.5,'-no,"
