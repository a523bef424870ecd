"""The planner's promise: what a plan says is what is read, written, computed and held, and the time follows from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import zarr

from dlscale.arrays import Array
from dlscale.batch.assumed import AssumedMatrix
from dlscale.engine import machine
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.clusters.facts import BASELINE_BYTES
from dlscale.engine.costs import lay_out
from dlscale.engine.grids import BLOCK_BYTES
from dlscale.engine.machine import read_rate
from dlscale.engine.plan import (
    LARGE_PRODUCT_EFFICIENCY,
    MUCH_BYTES,
    NOMINAL_FLOPS_PER_SECOND,
    PRODUCT_EFFICIENCY,
    STEP_SECONDS,
    STEP_SECONDS_OF_THREADS,
    Grids,
    Plan,
    Step,
)
from dlscale.errors import DoesNotFitError
from dlscale.linalg.lu.kind import KIND as LU
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import View

GB = 10**9


def facts(workers: int = 1, threads: int = 2, memory: float = 4 * GB, kind: str = "local") -> ClusterFacts:
    return ClusterFacts(kind, workers, threads, int(memory))


#: Rows and columns of a matrix, bytes of a partial result, memory of a worker; why this size.
LAYOUTS = {
    "one row": (1, 5, 8, 4 * GB),
    "one block": (1000, 100, 8 * 100**2, 4 * GB),
    "tall, of many leaves": (10**8, 100, 8 * 100**2, 4 * GB),
    "rows as long as a block": (1000, 2**21, 8, 4 * GB),
    "memory that decides the block": (10**6, 20_000, 8, 1 * GB),
    "partial results that take most of the memory": (10**6, 5000, 8 * 5000**2, 3.5 * GB),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_blocks_and_partial_results_fit_in_the_memory_of_a_worker(name: str) -> None:
    m, n, state_bytes, memory = LAYOUTS[name]
    A = AssumedMatrix((m, n))
    layout = lay_out(A, facts(memory=memory), state_bytes=state_bytes)
    assert sum(need.n_bytes for need in layout.memory) <= memory
    assert layout.grid.block_rows * n * 8 <= max(BLOCK_BYTES, n * 8)
    assert layout.grid.n_rows == m == layout.grid.leaves()[-1][1]
    # The grid fixes the bits, so that the number of workers, and of those only, must not decide it.
    assert lay_out(A, facts(7, memory=memory), state_bytes=state_bytes).grid == layout.grid


@pytest.mark.parametrize(("n", "state_bytes"), [(10**9, 8), (1000, GB)], ids=["a row", "partial results"])
def test_what_does_not_fit_is_refused_with_what_it_takes(n: int, state_bytes: int) -> None:
    with pytest.raises(DoesNotFitError, match=r"One worker needs [\d.]+ GB .* and has 4.00 GB"):
        lay_out(AssumedMatrix((10**6, n)), facts(), state_bytes=state_bytes)


#: Order of a matrix, workers, memory of each; how many groups, why.
GROUPS = {
    "all in one worker": (20_000, 1, 8 * GB, 1),
    "in two workers together": (30_000, 2, 8 * GB, 1),
    "twice the memory": (40_000, 1, 8 * GB, 2),
    "many times the memory": (40_000, 1, 3 * GB, 5),
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_of_panels_fill_the_memory_and_are_read_as_planned(name: str) -> None:
    n, workers, memory, least = GROUPS[name]
    cluster = facts(workers, memory=memory)
    plan = LU.plan(Inputs({"matrix": AssumedMatrix((n, n))}), LU.options(), cluster)
    groups, panels = plan.panels.groups(), plan.panels
    assert plan.peak_bytes_per_worker <= memory
    assert len(groups) >= least
    assert (len(groups) > 1) == (8 * n * n > workers * (memory - BASELINE_BYTES) * 0.95 or least > 1)
    factoring = [step for step in plan.worker_steps if step.id.startswith("lu-") and step.id[3:].isdigit()]
    # Each group reads its own columns of the matrix, and the finished panels from their diagonal on.
    finished = [sum((n - panels.columns(j)[0]) * panels.width(j) for j in range(group.start)) for group in groups]
    assert [step.bytes_read for step in factoring] == [
        8 * (n * sum(map(panels.width, group)) + before) for group, before in zip(groups, finished, strict=True)
    ]
    assert sum(step.flops for step in factoring) == pytest.approx(2 / 3 * n**3, rel=0.05)


def test_expected_seconds_are_those_of_the_slower_of_reading_and_computing() -> None:
    rates: dict[str, float | None] = {"matmul_flops_per_second": 2e10, "read_bytes_per_second": 1e9}
    read, compute = Step("reading", 1.0, bytes_read=5 * GB), Step("computing", 2e10 * PRODUCT_EFFICIENCY * 3, bytes_read=1)
    alone, serial = Step("in part", 2e10 * PRODUCT_EFFICIENCY, n_threads=1), Step("small", 1e10, where="driver")

    def seconds(*steps: Step, **more: Any) -> float:
        plan = Plan("svd", "randomized", "", {}, Grids(), steps, (), 0, facts(1, 2), rates)
        plan = replace(plan, **more)
        return plan.expected_seconds - len(plan.worker_steps) * STEP_SECONDS

    assert seconds(read) == pytest.approx(5.0)
    assert seconds(compute) == pytest.approx(3.0)
    assert seconds(read, compute) == pytest.approx(8.0)
    assert seconds(alone) == pytest.approx(2.0)  # one thread of two
    assert seconds(serial) == pytest.approx(2.0)  # one thread, at half the rate of a product
    large = Step("large product", 2e10 * LARGE_PRODUCT_EFFICIENCY, efficiency=LARGE_PRODUCT_EFFICIENCY)
    assert seconds(large) == pytest.approx(1.0)
    kept = Step("kept", 0.0, bytes_written=GB, where="driver")
    assert seconds(kept, rates=rates | {"write_bytes_per_second": 2e8}) == pytest.approx(5.0)
    assert seconds(read, rates={"matmul_flops_per_second": 2e10, "read_bytes_per_second": None}) < 1e-3
    writing = Step("writing", 2e10 * PRODUCT_EFFICIENCY * 3, bytes_written=GB)
    assert seconds(writing) == pytest.approx(3.0)  # the rate is not known
    assert seconds(writing, rates=rates | {"write_bytes_per_second": 2e8}) == pytest.approx(3.0 + 5.0)  # flushed when it ends
    nominal = Plan("svd", "randomized", "", {}, Grids(), (Step("c", NOMINAL_FLOPS_PER_SECOND),), (), 0, facts(2, 2), rates)
    assert nominal.nominal_seconds == pytest.approx(1 / 4 / PRODUCT_EFFICIENCY)


def test_each_step_takes_its_time_beside_its_work() -> None:
    """Where there is little to do, and often, that is most of it."""
    rates: dict[str, float | None] = {"matmul_flops_per_second": 2e10, "read_bytes_per_second": 1e9}
    steps = tuple(Step(f"product-{i}", 2.0) for i in range(1000))
    plan = Plan("svd", "randomized", "", {}, Grids(), (*steps, Step("small", 2.0, where="driver")), (), 0, facts(1, 2), rates)
    assert plan.expected_seconds == pytest.approx(1000 * STEP_SECONDS, rel=1e-3)
    within = replace(plan, cluster=ClusterFacts("threads", 1, 2, 2**33))
    assert within.expected_seconds == pytest.approx(1000 * STEP_SECONDS_OF_THREADS, rel=1e-3)
    assert plan.nominal_seconds < 1e-3


def test_the_rate_of_writing_is_measured_where_much_is_written(tmp_path: Path) -> None:
    def rates(n_bytes: int, folder: Path = tmp_path) -> dict[str, float | None]:
        plan = Plan("svd", "randomized", "", {}, Grids(), (Step("a", 1.0, bytes_written=n_bytes),), (), 0, facts(1, 2), {})
        return plan.writing_in(folder).rates

    assert rates(MUCH_BYTES - 1) == {}
    assert rates(MUCH_BYTES)["write_bytes_per_second"] > 0  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []
    assert rates(MUCH_BYTES, tmp_path / "none") == {"write_bytes_per_second": None}


M, N, SQUARE, COLUMNS = 20_000, 200, 1000, 500
PANEL = 250
#: A job, why it is here, and the least part of the planned bytes and flops that it needs; a method that stops by itself needs less,
#: and a product reads a strip once that tiles beside each other share, where one task has both.
MEASURED: dict[str, tuple[dict[str, Any], float]] = {
    "power iterations, a read each": ({"kind": "svd", "input": {"matrix": "tall"}, "params": {"n_components": 10}}, 1.0),
    "the same over columns": ({"kind": "svd", "input": {"matrix": "wide"}, "params": {"n_components": 10}}, 1.0),
    "integers, converted as they are read": ({"kind": "svd", "input": {"matrix": "ints"}, "params": {"n_components": 10}}, 1.0),
    "one read": ({"kind": "pca", "input": {"matrix": "tall"}, "params": {"n_components": 10, "solver": "covariance"}}, 1.0),
    "two means": ({"kind": "pca", "input": {"matrix": "wide"}, "params": {"n_components": 10, "solver": "covariance"}}, 1.0),
    "rounds that a good condition spares": ({"kind": "qr", "input": {"matrix": "tall"}}, 0.6),
    "panels, and their certificate": ({"kind": "lu", "input": {"matrix": "square"}, "params": {"panel": PANEL}}, 1.0),
    "a triangle, and a check": ({"kind": "lstsq", "input": {"matrix": "tall", "rhs": "targets"}}, 1.0),
    "a norm of the entries": ({"kind": "norm", "input": {"matrix": "tall"}}, 1.0),
    "a norm of the singular values": ({"kind": "norm", "input": {"matrix": "tall"}, "params": {"ord": 2}}, 0.5),
    "tiles of a product": ({"kind": "matmul", "input": {"a": "square", "b": "square"}, "params": {"tile": 512}}, 0.9),
    "a tall matrix and its adjoint": ({"kind": "matmul", "input": {"a": "tall"}, "params": {"adjoint_a": True}}, 1.0),
    "a symmetric product in tiles": (
        {"kind": "matmul", "input": {"a": "square"}, "params": {"adjoint_b": True, "tile": 512}},
        1.0,
    ),
    "systems that need no refinement": (
        {"kind": "solve", "input": {"matrix": "square", "rhs": "columns"}, "params": {"panel": PANEL}},
        1.0,
    ),
    "a triangle that is not factored": (
        {"kind": "solve", "input": {"matrix": "square", "rhs": "columns"}, "params": {"assume": "lower", "only_triangle": True}},
        1.0,
    ),
    "systems with the transpose": (
        {"kind": "solve", "input": {"matrix": "square", "rhs": "columns"}, "params": {"panel": PANEL, "transposed": True}},
        1.0,
    ),
    "a symmetric matrix in the memory of one worker": (
        {"kind": "solve", "input": {"matrix": "square", "rhs": "columns"}, "params": {"panel": PANEL, "assume": "sym"}},
        1.0,
    ),
    "its inverse, with zeros where pivots left the rows in their places": (
        {"kind": "inverse", "input": {"matrix": "square"}, "params": {"panel": PANEL, "assume": "sym"}},
        0.75,
    ),
    "rows of an inverse, zeros left out": ({"kind": "inverse", "input": {"matrix": "square"}, "params": {"panel": PANEL}}, 1.0),
    "and of a positive definite matrix": (
        {"kind": "inverse", "input": {"matrix": "square"}, "params": {"panel": PANEL, "assume": "pos"}},
        1.0,
    ),
    "a matrix that is read once, and its eigenvalues": ({"kind": "eigh", "input": {"matrix": "square"}}, 1.0),
    "a subspace, and random vectors that show that it is complete": (
        {"kind": "eigh", "input": {"matrix": "square"}, "params": {"n_components": 5, "completeness": "random", "max_reads": 90}},
        0.2,
    ),
    "an iteration that is sooner at its end for a good condition": (
        {"kind": "polar", "input": {"matrix": "square"}, "params": {"panel": PANEL}},
        0.5,
    ),
    "rows that are kept in memory": (
        {"kind": "train", "input": {"features": "tall", "targets": "targets"}, "model": "linear", "params": {"epochs": 3}},
        1.0,
    ),
}
HELD = (
    "power iterations, a read each",
    "panels, and their certificate",
    "tiles of a product",
    "systems that need no refinement",
    "a symmetric matrix in the memory of one worker",
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("stored"), np.random.default_rng(0)
    tall, square = rng.standard_normal((M, N)), rng.standard_normal((SQUARE, SQUARE))
    arrays = {
        "tall": (tall, (5000, N)),
        "wide": (tall.T, (N, 5000)),
        "ints": ((100 * tall).astype("i4"), (5000, N)),
        "targets": (rng.standard_normal((M, 3)), (5000, 3)),
        "columns": (rng.standard_normal((SQUARE, COLUMNS)), (SQUARE, PANEL)),
        "square": (square + square.T + 4 * SQUARE**0.5 * np.eye(SQUARE), (SQUARE, PANEL)),
    }
    for name, (array, chunks) in arrays.items():
        zarr.create_array(folder / f"{name}.zarr", shape=array.shape, chunks=chunks, dtype=array.dtype, compressors=None)[:] = array
    return folder


def measure(jobs: list[dict[str, Any]], stored: Path, folder: Path, cluster: dict[str, Any]) -> list[dict[str, Any]]:
    complete = [
        {**job, "input": {role: str(stored / f"{name}.zarr") for role, name in job["input"].items()}, "cluster": cluster}
        for job in jobs
    ]
    command = [sys.executable, "-W", "ignore", str(Path(__file__).parent / "plan_meter.py"), json.dumps(complete), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    results: list[dict[str, Any]] = json.loads(ended.stdout.splitlines()[-1])
    return results


@pytest.fixture(scope="module")
def measured(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    jobs = [job for job, _ in MEASURED.values()]
    found = measure(jobs, stored, tmp_path_factory.mktemp("jobs"), {"type": "threads", "threads": 2})
    return dict(zip(MEASURED, found, strict=True))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel counts no bytes of a process here")
@pytest.mark.parametrize("name", MEASURED)
def test_a_plan_is_what_is_read_written_and_computed(name: str, measured: dict[str, dict[str, Any]]) -> None:
    found, least = measured[name], MEASURED[name][1]
    plan = found["plan"]
    written = sum(step["bytes_written"] for step in plan["steps"])
    # Beside the matrices there are what steps keep, and the job's own files, which do not grow. What was written is read again.
    own = 2 * 2**20 + found["kept"]
    assert least * 0.97 * plan["bytes_read"] <= found["read"] <= 1.05 * plan["bytes_read"] + 1.05 * written + own, found
    assert least * 0.97 * plan["bytes_read"] <= found["told_read"] <= 1.03 * plan["bytes_read"]
    assert 0.6 * written <= found["written"] <= 1.05 * written + own, (written, found["written"])
    assert least * 0.9 * plan["flops"] <= found["told_flops"] <= 1.1 * plan["flops"], (plan["flops"], found["told_flops"])


def test_a_worker_holds_no_more_than_its_plan_says(stored: Path, tmp_path: Path) -> None:
    jobs = [MEASURED[name][0] for name in HELD]
    cluster = {"type": "local", "workers": 1, "threads": 2, "memory": "2GB"}
    for found in measure(jobs, stored, tmp_path, cluster):
        planned = found["plan"]["peak_bytes_per_worker"]
        assert 0.25 * planned <= found["worker_bytes"] <= planned


class Clocked(View):
    """A matrix whose stored rows are files, which take a millisecond each by a clock that nothing else moves."""

    read: ClassVar[list[int]] = []

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        self.read.append(rows[1] - rows[0])
        return self.base.region(rows, columns, out)


def test_the_rate_of_reading_is_that_of_the_pieces_that_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A strip of columns of one-row chunks takes a file for each row, which a whole row does not tell."""
    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=lambda: 1e-3 * sum(Clocked.read)))
    shape = (1500, 8000)
    zarr.create_array(tmp_path / "A", data=np.ones(shape), chunks=(1, shape[1]), compressors=None)
    A = Clocked(open_matrix(tmp_path / "A"))
    assert read_rate(A) == pytest.approx(8000 * 8 / 1e-3)
    assert read_rate(A.T, block_rows=16) == pytest.approx(16 * 8 / 1e-3)
    assert read_rate(A.T, n_threads=2, block_rows=1024) == pytest.approx(1024 * 8 / 1e-3)
    assert read_rate(open_matrix(np.ones(shape)).T, block_rows=16) == float("inf")
