"""LU of panels in row blocks: the pivots of a tournament, for every matrix that LAPACK factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from dlscale.engine.clusters import ClusterFacts, describe_cluster, open_cluster
from dlscale.engine.panel_grids import PanelGrid
from dlscale.engine.passes import Passes
from dlscale.errors import DoesNotFitError, SpecError
from dlscale.linalg.lu import LUOptions, compute_lu, plan_lu, row_move
from dlscale.linalg.tiled_lu import factor_tiles
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.matrices import Array, Matrix, open_matrix
from dlscale.storage.results import ResultGroup


def matrices(m: int, n: int) -> Iterator[tuple[str, Array]]:
    rng = np.random.default_rng(0)
    yield "random", rng.standard_normal((m, n))
    yield "rank one", np.ones((m, n))
    yield "rows of zeros", np.concatenate([np.zeros((m // 2, n)), rng.standard_normal((m - m // 2, n))])
    singular = rng.standard_normal((m, n))
    singular[:, n // 2] = 0
    yield "column of zeros", singular
    if m == n:
        yield "exchange", np.fliplr(np.eye(n))


@pytest.mark.parametrize("row_blocks", [2, 5])
@pytest.mark.parametrize("group", [2, 100])
@pytest.mark.parametrize("shape", [(1, 1), (129, 129), (200, 70), (70, 200)])
def test_factors_multiply_to_the_matrix(shape: tuple[int, int], group: int, row_blocks: int) -> None:
    m, n = shape
    grid = PanelGrid(shape, min(16, n), group, row_blocks, 2)
    for name, A in matrices(m, n):
        with open_cluster(describe_cluster("threads")) as cluster:
            lu, pivots, _, seen = factor_tiles(Passes(cluster), open_matrix(A), grid, probes=np.eye(n)[:, :4].copy())
        packed, k = lu.region((0, m), (0, n)), min(m, n)
        L, U = np.tril(packed[:, :k], -1) + np.eye(m, k), np.triu(packed[:k])
        move = row_move(0, pivots)
        PA = A.copy()
        PA[move.targets] = A[move.sources]
        residual = np.linalg.norm(PA - L @ U) / (max(np.linalg.norm(A), 1e-300) * max(m, n) * np.finfo(float).eps)
        assert residual < 30, name
        np.testing.assert_array_equal(seen.products, A[:, :4] if n >= 4 else A @ np.eye(n)[:, :4])


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
def test_stored_result_solves(dtype: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    A = (rng.standard_normal((150, 150)) + 1j * rng.standard_normal((150, 150))).astype(dtype if dtype[0] == "c" else "c16")
    A = A if dtype[0] == "c" else A.real.astype(dtype)
    arrays = [run(A, tmp_path / str(n), workers=n) for n in (1, 2)]
    for name in arrays[0]:
        np.testing.assert_array_equal(arrays[0][name], arrays[1][name])
    b = np.ones(150, dtype)
    x = scipy.linalg.lu_solve((arrays[0]["lu"], arrays[0]["piv"]), b)
    assert np.linalg.norm(A @ x - b) / (np.linalg.norm(A) * np.linalg.norm(x) * np.finfo(dtype).eps) < 150


def run(A: Array, folder: Path, *, workers: int) -> dict[str, Array]:
    """The result of a job with 3 row blocks and several groups, on worker processes."""
    matrix = open_matrix(A)
    facts = describe_cluster({"type": "local", "workers": workers, "threads": 1})
    options = LUOptions(panel=16, row_blocks=3)
    plan = plan_lu(matrix, options, facts)
    plan = dataclasses.replace(plan, panels=dataclasses.replace(plan.factored, group=4))
    group = ResultGroup(folder / "result.zarr")
    with open_cluster(facts) as cluster:
        passes = Passes(cluster, checkpoint=Checkpoint(folder / "checkpoint.zarr"), result=group)
        outcome = compute_lu(passes, matrix, options, plan)
    outcome.certificate.require()
    lu = group.create("lu", A.shape, A.dtype, chunks=plan_chunks(group)).matrix()
    return {"lu": lu.region((0, 150), (0, 150)), "piv": outcome.arrays["piv"]}


def plan_chunks(group: ResultGroup) -> tuple[int, ...]:
    return group._writers["lu"].chunks


class Imagined(Matrix):
    """A matrix that is only planned for."""

    any_range = True

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape, self.stored_dtype, self.uri = shape, np.dtype("f8"), "imagined"

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        return np.zeros((rows[1] - rows[0], columns[1] - columns[0]))


def test_plan_of_a_million_unknowns_fits_a_cluster() -> None:
    n, workers, memory = 1_000_000, 256, 64 * 10**9
    plan = plan_lu(Imagined((n, n)), LUOptions(), ClusterFacts("tcp", workers, 16, memory, "tcp://scheduler:8786"))
    assert plan.factored.row_blocks > 1
    assert plan.factored.block_rows * plan.factored.panel * 8 < memory / 16
    assert plan.peak_bytes_per_worker <= memory
    assert plan.n_tasks <= 20_000
    assert plan.bytes_moved < 40 * 8 * n**2
    record = plan.to_dict()["panels"]
    assert (record["n_tasks"], record["bytes_moved"]) == (plan.n_tasks, plan.bytes_moved)
    with pytest.raises(DoesNotFitError, match="raise cluster"):
        plan_lu(Imagined((n, n)), LUOptions(row_blocks=1), ClusterFacts("tcp", 2, 16, 8 * 10**9))


def test_too_many_row_blocks_are_refused() -> None:
    with pytest.raises(SpecError, match="row_blocks must be at most 4"):
        plan_lu(open_matrix(np.eye(64)), LUOptions(panel=16, row_blocks=5), describe_cluster("threads"))
