"""Factorizations applied to columns: planned for where the work is done, told as planned, the same bits on any workers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zarr

from dlscale.arrays import Array
from dlscale.engine.clusters import ClusterFacts, open_cluster
from dlscale.engine.events import Event, StepFinished, WorkDone
from dlscale.engine.run import Cost, Run
from dlscale.linalg.lstsq.kind import LstsqOptions, compute_lstsq, plan_lstsq
from dlscale.linalg.panels.plan import FactorOptions
from dlscale.linalg.qr.kind import WAYS
from dlscale.linalg.qr.panels import compute_panel_qr, plan_panel_qr
from dlscale.linalg.solve.applying import EFFICIENCY, plan_columns
from dlscale.linalg.solve.inverse import InverseOptions, compute_inverse, plan_inverse
from dlscale.linalg.solve.kind import compute_solve, plan_solve
from dlscale.linalg.solve.options import SolveOptions
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix
from dlscale.storage.results import ResultGroup
from tests.helpers import THREADS

RATES = {"matmul_flops_per_second": 1e10, "read_bytes_per_second": 1e12}


@pytest.mark.parametrize(
    ("n_workers", "busy", "n_reads"),
    [(1, 1, 1), (2, 2, 2), (3, 2, 3), (4, 4, 4), (100, 4, 4)],  # of four slabs, one of three workers takes two
)
def test_more_workers_than_slabs_are_no_faster_and_each_reads_once(n_workers, busy, n_reads):
    step = plan_columns("triangular", Cost(1.0, 8), 8192, 2000, 8, ClusterFacts("local", n_workers, 3, 2**33)).step
    assert (step.flops, step.bytes_read) == (2000, n_reads * 8)
    assert step.n_threads == pytest.approx(3 * busy * EFFICIENCY)


def test_a_step_of_one_task_takes_as_long_on_many_workers():
    A = open_matrix(np.eye(600))
    one, many = (
        plan_solve(Inputs({"matrix": A, "rhs": open_matrix(np.ones((600, 1)))}), SolveOptions(), facts)
        for facts in (ClusterFacts("local", 1, 1, 2**33), ClusterFacts("local", 50, 1, 2**33))
    )
    alone, together = (
        replace(
            plan,
            steps=tuple(step for step in plan.steps if step.id == "condition-1"),
            rates={name: rate * plan.cluster.n_threads for name, rate in RATES.items()},
        )
        for plan in (one, many)
    )
    assert alone.flops > 0
    assert together.expected_seconds == pytest.approx(alone.expected_seconds)


def gaussian(m: int, n: int) -> Array:
    return np.random.default_rng(m + n).standard_normal((m, n))


#: How steps are called in which factors are applied.
APPLIED = ("triangular", "solve", "inverse", "condition")
KINDS: dict[str, Any] = {
    "solve": (plan_solve, compute_solve, SolveOptions(), {"matrix": gaussian(300, 300), "rhs": gaussian(300, 600)}),
    "solve, many columns": (plan_solve, compute_solve, SolveOptions(), {"matrix": gaussian(300, 300), "rhs": gaussian(300, 1100)}),
    "inverse": (
        lambda inputs, *more: plan_inverse(inputs["matrix"], *more),
        lambda run, inputs, *more: compute_inverse(run, inputs["matrix"], *more),
        InverseOptions(),
        {"matrix": gaussian(600, 600)},
    ),
    "lstsq": (plan_lstsq, compute_lstsq, LstsqOptions(), {"matrix": gaussian(700, 300), "rhs": gaussian(700, 600)}),
    "qr": (
        lambda inputs, options, facts: plan_panel_qr(inputs["matrix"], options, "raw", facts, WAYS),
        lambda run, inputs, options, plan: compute_panel_qr(run, inputs["matrix"], "raw", plan, WAYS.of(plan.panels)),
        FactorOptions(),
        {"matrix": gaussian(300, 200)},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_workers_apply_factors_with_the_bits_of_one_process(kind, two_workers, tmp_path, monkeypatch):
    monkeypatch.setattr("dlscale.linalg.lstsq.kind.PASS_COLUMNS", 100)
    monkeypatch.setattr("dlscale.linalg.lstsq.kind.CLEARLY_LONG", 100)
    plan_of, compute, options, arrays = KINDS[kind]
    inputs = Inputs({name: open_matrix(array) for name, array in arrays.items()})
    found: list[dict[str, Array]] = []
    for cluster in (open_cluster(THREADS), two_workers):
        told: list[Event] = []
        plan, folder = plan_of(inputs, options, cluster.facts), tmp_path / cluster.facts.kind
        group = ResultGroup(folder / "result.zarr")
        run = Run(cluster, checkpoint=Checkpoint(folder / "checkpoint.zarr"), result=group, emit=told.append)
        outcome = compute(run, inputs, options, plan)
        outcome.certificate.require()
        stored = zarr.open_group(group.publish({}), mode="r")
        group.close()
        found.append(outcome.arrays | {name: np.asarray(stored[name]) for name in outcome.stored})
        blocks = [event for event in told if isinstance(event, WorkDone)]
        finished = [event for event in told if isinstance(event, StepFinished)]
        needed = sum(event.flops for event in finished)
        assert needed == pytest.approx(plan.flops, rel=0.05)
        assert [event.step for event in finished] == [step.id for step in plan.worker_steps]
        assert sum(event.flops for event in blocks) == pytest.approx(needed, rel=0.05)
        applied = [step for step in plan.steps if step.id.startswith(APPLIED)]
        assert sum(event.bytes_read for event in finished if event.step.startswith(APPLIED)) == sum(s.bytes_read for s in applied)
        assert sum(event.bytes for event in blocks if event.step.startswith(APPLIED)) == sum(s.bytes_read for s in applied)
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name])
    # None of it is done by this process.
    assert not [event for event in blocks if event.worker.startswith("pid")]
