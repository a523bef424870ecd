"""Plans: read back as they were written, their parts the sum, and nothing decided by the words that people are shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import THREADS, gaussian

from dlscale.batch import run as jobs
from dlscale.batch.kinds import KINDS
from dlscale.batch.workspace import Workspace
from dlscale.declaration.kind import Kind
from dlscale.engine import PLAN_VERSION
from dlscale.engine.clusters import ClusterFacts, open_cluster
from dlscale.engine.plan import Plan
from dlscale.engine.run import Run
from dlscale.errors import SpecError
from dlscale.linalg.pca import PCAOptions
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix

#: For each way that a kind may take: its kind, the shape of the matrix, its options.
WAYS: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
    "randomized": ("svd", (400, 30), {"n_components": 3}),
    "exact": ("svd", (30, 400), {"method": "exact"}),
    "covariance": ("pca", (400, 30), {"n_components": 3, "solver": "covariance"}),
    "full": ("pca", (400, 30), {"n_components": 3, "solver": "full"}),
    "randomized pca": ("pca", (400, 30), {"n_components": 3, "solver": "randomized"}),
    "lu": ("lu", (60, 60), {"panel": 16}),
    "passes": ("qr", (400, 30), {}),
    "panels": ("qr", (60, 60), {"panel": 16}),
    "cholesky": ("cholesky", (60, 60), {"panel": 16}),
    "solve": ("solve", (60, 60), {}),
    "tall": ("lstsq", (400, 30), {}),
    "wide": ("lstsq", (30, 400), {}),
    "inverse": ("inverse", (60, 60), {}),
    "slogdet": ("slogdet", (60, 60), {"assume": "pos"}),
    "all eigenpairs": ("eigh", (60, 60), {}),
    "some eigenpairs": ("eigh", (60, 60), {"n_components": 5}),
    "iterations": ("eigh", (60, 60), {"n_components": 5, "method": "iterative", "completeness": "random"}),
}


def planned(kind: str, shape: tuple[int, int], options: dict[str, Any], facts: ClusterFacts = THREADS) -> tuple[Kind, Inputs, Plan]:
    declared, A = KINDS[kind], gaussian(*shape)
    A = A @ A.T + 100 * np.eye(len(A)) if shape[0] == shape[1] else A
    arrays = {"matrix": A, "rhs": np.ones(shape[0])}
    inputs = declared.inputs({role.name: arrays[role.name] for role in declared.roles if not role.optional})
    return declared, inputs, declared.plan(inputs, declared.options(**options), facts)


@pytest.mark.parametrize("way", WAYS)
def test_a_plan_is_read_as_it_was_written(way: str) -> None:
    _, _, plan = planned(*WAYS[way])
    record = json.loads(json.dumps(jobs.plain(plan.to_dict())))
    # What costs nothing has an infinite rate, which JSON does not know.
    rates = {name: rate if rate != float("inf") else None for name, rate in plan.rates.items()}
    assert Plan.from_dict(record) == replace(plan, rates=rates)
    assert Plan.from_dict(record).expected_seconds == plan.expected_seconds


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cluster", ["threads", "local"])
def test_the_parts_of_memory_are_named_and_their_sum_is_the_peak(way: str, cluster: str) -> None:
    _, _, plan = planned(*WAYS[way], facts=ClusterFacts(cluster, 2, 1, 2**31))
    assert plan.peak_bytes_per_worker == sum(need.n_bytes for need in plan.memory) <= plan.memory_limit_bytes
    assert len({need.what for need in plan.memory}) == len(plan.memory)
    assert ("the program and its libraries" in {need.what for need in plan.memory}) == (cluster == "local")


@pytest.mark.parametrize("way", WAYS)
def test_the_words_of_a_plan_decide_nothing(way: str) -> None:
    """The same arrays, to the bit, from a plan that tells something else."""
    kind, inputs, plan = planned(*WAYS[way])
    found = []
    for told in (plan, replace(plan, words="une phrase", notes=())):
        with open_cluster(THREADS) as cluster:
            run = Run(cluster)
            outcome = kind.compute(run, inputs, kind.options(**WAYS[way][2]), told)
        found.append({name: array.tobytes() for name, array in (outcome.arrays | run.outputs).items()})
    assert found[0] == found[1]


def test_a_plan_has_steps_with_ids_of_its_own_and_the_events_tell_them() -> None:
    for way in WAYS.values():
        _, _, plan = planned(*way)
        assert len({step.id for step in plan.steps}) == len(plan.steps)
        assert plan.flops == sum(step.flops for step in plan.worker_steps)


def test_a_small_dense_problem_is_a_step_of_the_driver() -> None:
    A = open_matrix(gaussian(400, 30))
    plan = KINDS["pca"].plan(Inputs({"matrix": A}), PCAOptions(solver="covariance"), THREADS)
    (alone,) = (step for step in plan.steps if step.where == "driver")
    assert (alone.id, alone.flops) == ("eigenvectors", 9.0 * 30**3)
    assert plan.expected_seconds > replace(plan, steps=plan.worker_steps).expected_seconds


@pytest.mark.parametrize("form", [None, PLAN_VERSION + 1])
def test_a_plan_of_another_version_is_refused_in_words(tmp_path: Path, form: int | None) -> None:
    def fail(event: Any) -> None:
        if event["event"] == "pass_finished":
            raise OSError("the disk is gone")

    np.save(tmp_path / "a.npy", gaussian(200, 20))
    spec = {"kind": "qr", "input": {"matrix": {"import": str(tmp_path / "a.npy")}}, "cluster": "threads"}
    with pytest.raises(OSError, match="the disk is gone"):
        jobs.run(spec, workspace=tmp_path / "ws", listener=fail)
    workspace = Workspace(tmp_path / "ws")
    job = workspace.find(None)
    record = json.loads(job.plan.read_text())
    assert record.pop("version") == PLAN_VERSION
    data = json.dumps(record | ({"version": form} if form else {})).encode()
    job.plan.write_bytes(data)
    state = job.read_state()
    job.write_state(replace(state, checksums={**state.checksums, "plan.json": jobs.checksum(data)}))
    with pytest.raises(SpecError, match=rf"is a plan in form {form or 1}, of another version of dlscale; this one reads form 2\."):
        jobs.reopen(job, workspace)
