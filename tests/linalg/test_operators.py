"""Operators: every way gives the same products, a held matrix is read once, views are the algebra that they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, Array, gaussian, store
from hypothesis import given, settings
from hypothesis import strategies as st

from dlscale.engine.clusters import Cluster, ClusterFacts, open_cluster
from dlscale.engine.events import StepFinished, WorkDone
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Passes
from dlscale.engine.run import Run
from dlscale.errors import DoesNotFitError, NonFiniteError, SpecError
from dlscale.linalg import operators
from dlscale.linalg.operator_views import Centered, Deflated, Gram, Scaled, Shifted, require
from dlscale.linalg.operators import MatrixOperator, Operator, OperatorPlan, Way, plan_operator
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import Matrix, View

M, N, K = 300, 170, 5
THREADS = ClusterFacts("threads", 1, 2, 2**31)


class Counting(View):
    """Counts the entries that are read."""

    def __init__(self, base: Matrix) -> None:
        super().__init__(base)
        self.n_read = 0

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        self.n_read += (rows[1] - rows[0]) * (columns[1] - columns[0])
        return self.base.region(rows, columns, out)


def plan(way: Way, m: int, rows: int = 64) -> OperatorPlan:
    return OperatorPlan(way, RowGrid(m, rows, rows), m, way, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", ["memory", "strips", "resident"])
def test_every_way_gives_the_products(tmp_path: Path, way: Way, dtype: str) -> None:
    A, X, Y = gaussian(M, N, dtype), gaussian(N, K, dtype, seed=1), gaussian(M, K, dtype, seed=2)
    source = open_matrix(A if way == "memory" else store(tmp_path / "A.zarr", A, chunks=(50, N)))
    tolerance = 100 * M * np.finfo(A.dtype).eps
    with open_cluster(THREADS) as cluster, MatrixOperator(Passes(Run(cluster)), source, plan(way, M)) as operator:
        np.testing.assert_allclose(operator.apply(X), A @ X, atol=tolerance)
        np.testing.assert_allclose(operator.adjoint(Y), A.conj().T @ Y, atol=tolerance)
        np.testing.assert_allclose(operator.normal(X), A.conj().T @ (A @ X), atol=M * tolerance)


def test_a_held_matrix_is_read_once_and_gives_the_bits_of_one_that_is_read(tmp_path: Path, two_workers: Cluster) -> None:
    """On threads, and on two workers that hold a half each."""
    path = store(tmp_path / "A.zarr", gaussian(M, N), chunks=(50, N))
    X, Y = gaussian(N, K, seed=1), gaussian(M, K, seed=2)
    found, reads = [], []
    for cluster in (open_cluster(THREADS), two_workers):
        for way in ("strips", "resident"):
            counting, events = Counting(open_matrix(path)), []
            source = counting if cluster.shares_memory else open_matrix(path)
            with MatrixOperator(Passes(Run(cluster, emit=events.append)), source, plan(way, M)) as operator:  # type: ignore[arg-type]
                products = [operator.apply(X), operator.adjoint(Y), operator.normal(X), operator.apply(X)]
            found.append(b"".join(product.tobytes() for product in products))
            told = [event.bytes_read for event in events if isinstance(event, StepFinished)]
            reads.append((counting.n_read / (M * N), told))
            done = sum(event.bytes for event in events if isinstance(event, WorkDone))
            assert done == (0 if way == "resident" else 4 * M * N * 8)
    assert found == found[:1] * 4
    n_bytes = M * N * 8
    assert [times for times, _ in reads] == [4, 1, 0, 0]
    assert [told for _, told in reads] == [[n_bytes] * 4, [n_bytes, 0, 0, 0, 0]] * 2


def test_an_entry_that_is_not_finite_is_named_by_a_held_matrix_too() -> None:
    A = gaussian(M, N)
    A[117, 3] = np.nan
    with (
        open_cluster(THREADS) as cluster,
        MatrixOperator(Passes(Run(cluster)), open_matrix(A), plan("resident", M)) as operator,
        pytest.raises(NonFiniteError, match="row 117, column 3"),
    ):
        operator.apply(gaussian(N, K))


@pytest.mark.parametrize("dtype", ["f4", "f8", "c16"])
@pytest.mark.parametrize(("m", "n"), [(300, 170), (40, 1000), (1000, 40), (1, 50)])
@pytest.mark.parametrize("panel_rows", [1000, 64])
def test_operands_and_products_at_rest(tmp_path: Path, m: int, n: int, panel_rows: int, dtype: str) -> None:
    A, X, Y = gaussian(m, n, dtype), gaussian(n, K, dtype, seed=1), gaussian(m, K, dtype, seed=2)
    source, X_stored, Y_stored = (
        open_matrix(store(tmp_path / name, B, chunks=(33, B.shape[1]))) for name, B in (("A", A), ("X", X), ("Y", Y))
    )
    blocks = OperatorPlan("blocks", RowGrid(n, 16, 48), min(m, panel_rows), "blocks", 0)
    tolerance = 100 * max(m, n) * np.finfo(A.dtype).eps
    with open_cluster(THREADS) as cluster:
        run = Run(cluster, checkpoint=Checkpoint(tmp_path / "checkpoint"))
        operator = MatrixOperator(Passes(run), source, blocks)
        AX = operator.apply_at_rest(X_stored, "AX")
        np.testing.assert_allclose(AX.read(0, m), A @ X, atol=tolerance)
        Z = operator.adjoint_at_rest(Y_stored, "Z")
        np.testing.assert_allclose(Z.read(0, n), A.conj().T @ Y, atol=tolerance)
        counting = Counting(source)
        again = MatrixOperator(Passes(run), counting, blocks).apply_at_rest(X_stored, "AX")
        assert counting.n_read == 0
        assert again.read(0, m).tobytes() == AX.read(0, m).tobytes()
        with pytest.raises(SpecError, match="apply_at_rest"):
            operator.apply(X)


def test_products_at_rest_have_the_same_bits_on_two_workers(tmp_path: Path, two_workers: Cluster) -> None:
    source, X, Y = (
        open_matrix(store(tmp_path / name, gaussian(*shape), chunks=(40, shape[1])))
        for name, shape in (("A", (M, N)), ("X", (N, K)), ("Y", (M, K)))
    )
    blocks = OperatorPlan("blocks", RowGrid(N, 16, 32), 64, "blocks", 0)
    found = []
    for name, cluster in (("threads", open_cluster(THREADS)), ("workers", two_workers)):
        run = Run(cluster, checkpoint=Checkpoint(tmp_path / name))
        operator = MatrixOperator(Passes(run), source, blocks)
        found.append([operator.apply_at_rest(X, "AX").read(0, M).tobytes(), operator.adjoint_at_rest(Y, "Z").read(0, N).tobytes()])
    assert found[0] == found[1]


def test_neither_operand_nor_product_goes_through_the_driver(tmp_path: Path) -> None:
    """Its memory, and that of the scheduler in it, grows by little beside 150 MB of each (2 GB where they are asked for)."""
    n = 4_000_000 if os.environ.get("DLSCALE_LARGE_OPERAND") else 300_000
    script = Path(__file__).with_name("large_operand.py")
    done = subprocess.run([sys.executable, script, tmp_path, str(n)], capture_output=True, text=True, check=True, timeout=1800)
    way, grown = done.stdout.split()
    assert way == "blocks"
    assert int(grown) < 60 * 2**20


class OfShape(Matrix):
    """A stored matrix of which only the shape is asked."""

    def __init__(self, m: int, n: int) -> None:
        self.shape, self.stored_dtype, self.uri, self.any_range = (m, n), np.dtype("f8"), "shape", True

    def region(self, rows: Any, columns: Any, out: Any = None) -> Any:
        raise AssertionError("a plan reads nothing")


@pytest.mark.parametrize(
    ("m", "n", "n_products", "memory", "way", "reason"),
    [
        (20_000, 20_000, 200, 4e9, "resident", "3.2 GB on two workers of 4 GB"),
        (20_000, 20_000, 1, 4e9, "strips", "one product is not worth holding it"),
        (20_000, 20_000, 200, 1.5e9, "strips", "half of it does not fit a worker"),
        (2_000_000, 2_000, 200, 4e9, "strips", "tall, and too large to hold"),
        (1_000, 4_000_000, 200, 2e9, "blocks", "the operand is 2 GB"),
        (4_000_000, 4_000_000, 1, 2e9, "blocks", "operand and product are 2 GB each"),
    ],
)
def test_the_planner_picks_the_way_and_fits(m: int, n: int, n_products: int, memory: float, way: Way, reason: str) -> None:
    facts = ClusterFacts("local", 2, 1, int(memory))
    found = plan_operator(OfShape(m, n), 8 if n < 10**6 else 64, facts, n_products=n_products)
    assert found.way == way, reason
    assert found.words.startswith(way)
    assert found.peak_bytes <= memory
    assert found.grid.n_rows == (n if way == "blocks" else m)


def test_what_fits_no_way_is_refused() -> None:
    with pytest.raises(DoesNotFitError):
        plan_operator(OfShape(10**6, 10**6), 10**8, ClusterFacts("local", 1, 1, 2**30))


class Dense(Operator):
    def __init__(self, A: Array) -> None:
        self.A, self.shape, self.dtype = A, A.shape, A.dtype  # type: ignore[assignment]

    def apply(self, X: Array) -> Array:
        return np.asarray(self.A @ X)

    def adjoint(self, Y: Array) -> Array:
        return np.asarray(self.A.conj().T @ Y)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 12),
    dtype=st.sampled_from(DTYPES),
    views=st.lists(st.sampled_from(["scaled", "centred", "shifted", "gram", "deflated"]), max_size=4),
)
def test_views_compose_as_their_algebra_says(n: int, dtype: str, views: list[str]) -> None:
    A = gaussian(n, n, dtype)
    operator: Operator = Dense(A)
    u, v, w = (gaussian(n, 1, dtype, seed=seed) for seed in (3, 4, 5))
    for view in views:
        if view == "scaled":
            operator, A = Scaled(operator, u[:, 0], v[:, 0]), u * A * v[:, 0]
        elif view == "centred":
            operator, A = Centered(operator, w[:, 0]), A - w.T
        elif view == "shifted":
            operator, A = Shifted(operator, 1.5), A + 1.5 * np.eye(n)
        elif view == "gram":
            operator, A = Gram(operator), A.conj().T @ A
        else:
            operator, A = Deflated(operator, u, np.array([2.0]), v), A - 2 * u @ v.conj().T
    X = gaussian(n, 2, dtype, seed=6)
    size = max(1.0, float(np.linalg.norm(A)) ** 2) * 1e4 * float(np.finfo(np.dtype(dtype)).eps)
    scale = max(1.0, float(np.abs(A).max()))
    np.testing.assert_allclose(operator.apply(X), A @ X, atol=size * scale)
    np.testing.assert_allclose(operator.adjoint(X), A.conj().T @ X, atol=size * scale)


def test_what_methods_require_is_tested_on_products() -> None:
    A = gaussian(50, 50)
    said = Dense(A)
    with pytest.raises(SpecError, match="not said to be"):
        require(said, "symmetric")
    said.tags = frozenset({"symmetric"})
    with pytest.raises(SpecError, match="differ by"):
        require(said, "symmetric")
    symmetric = Dense(A + A.T)
    symmetric.tags = frozenset({"symmetric", "positive definite"})
    require(symmetric, "symmetric")
    with pytest.raises(SpecError, match="on a random vector"):
        require(symmetric, "positive definite")
    definite = Dense(A @ A.T + np.eye(50))
    definite.tags = frozenset({"positive definite"})
    require(definite, "positive definite")
    require(definite, "symmetric")
    require(Shifted(definite, 1.0), "positive definite")
    require(Gram(Dense(A)), "symmetric")


def test_a_symmetric_matrix_needs_no_adjoint_of_its_own() -> None:
    A = gaussian(M, M)
    A += A.T
    X = gaussian(M, K, seed=1)
    with open_cluster(THREADS) as cluster:
        operator = MatrixOperator(Passes(Run(cluster)), open_matrix(A), plan("memory", M), tags=frozenset({"symmetric"}))
        assert operator.adjoint(X).tobytes() == operator.apply(X).tobytes()


def test_panels_of_rows_are_bounded() -> None:
    found = plan_operator(OfShape(4_000_000, 4_000_000), 64, ClusterFacts("local", 2, 1, 4 * 10**9))
    assert found.panel_rows * 64 * 8 <= operators._PANEL_BYTES
