"""Every kind on sparse matrices: the answer of the same numbers in a dense one, certified, with the same bits on any workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from sparse_matrices import anndata_group

import dlscale
from dlscale import sparse_rows
from dlscale.arrays import Array
from dlscale.declaration.kind import run_here
from dlscale.engine.clusters import describe_cluster, open_cluster
from dlscale.engine.grids import plan_sparse_grid
from dlscale.engine.run import Run
from dlscale.errors import DoesNotFitError, NonFiniteError, NumericalError, SpecError
from dlscale.linalg.lstsq.kind import KIND as LSTSQ
from dlscale.linalg.lstsq.kind import LstsqOptions
from dlscale.linalg.multiply.kind import KIND as MATMUL
from dlscale.linalg.multiply.kind import MatmulOptions
from dlscale.linalg.statistics.kind import NormOptions, plan_norm
from dlscale.linalg.svd import SVDOptions, plan_svd, subspace
from dlscale.linalg.svd.kind import KIND
from dlscale.sparse_rows import SparseRows
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.matrices import open_matrix


def sparse_matrix(m: int = 600, n: int = 40, *, density: float = 0.05, dtype: str = "f8") -> Any:
    rng = np.random.default_rng(0)
    A = scipy.sparse.random_array((m, n), density=density, rng=rng, format="csr", data_sampler=rng.standard_normal)
    return (A @ scipy.sparse.diags_array(0.8 ** np.arange(n))).astype(dtype)


FUNCTIONS = {
    "randomized_svd": lambda A: dlscale.randomized_svd(A, 5).s,
    "svd": lambda A: dlscale.svd(A).s,
    "covariance": lambda A: dlscale.PCA(4, solver="covariance").fit(A).explained_variance_,
    "randomized pca": lambda A: dlscale.PCA(4, solver="randomized").fit(A).explained_variance_,
    "krylov": lambda A: dlscale.randomized_svd(A, 3, method="krylov").s,
    "scores": lambda A: dlscale.PCA(4).fit_transform(A),
    "randomized scores": lambda A: np.abs(dlscale.PCA(2, solver="randomized", power_iterations=20).fit_transform(A)),
    "norms": lambda A: np.array([dlscale.norm(A, ord) for ord in ("fro", 1, -1, np.inf, -np.inf, 2)]),
}


@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_answer_of_the_dense_matrix(name: str, wide: bool, form: str) -> None:
    A = sparse_matrix().T if wide else sparse_matrix()
    expected = FUNCTIONS[name](A.toarray())
    np.testing.assert_allclose(FUNCTIONS[name](A.asformat(form)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("shape", [(900, 300), (300, 900), (400, 400)])
@pytest.mark.parametrize("dtype", ["f4", "f8", "c16"])
def test_triplets_of_compressed_rows(shape: tuple[int, int], form: str, dtype: str) -> None:
    A = sparse_matrix(*shape, density=0.03, dtype=dtype)
    if dtype == "c16":
        A = A * (1 + 2j)
    u, s, vh = dlscale.randomized_svd(A.asformat(form), 5, power_iterations=8)
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(s, np.linalg.svd(A.toarray(), compute_uv=False)[:5], rtol=100 * eps + 1e-9)
    np.testing.assert_allclose(u.conj().T @ u, np.eye(5), atol=100 * eps)
    np.testing.assert_allclose(A @ vh.conj().T, u * s, atol=100 * eps * s[0] + 1e-6 * s[0])


def always_on(m: int, n: int, dtype: str) -> Any:
    """Three columns in which all rows have an entry, with a mean far above their spread, beside sparse and empty ones."""
    always = (8 + 0.3 * np.random.default_rng(0).standard_normal((m, 3))).astype(dtype)
    return scipy.sparse.hstack([scipy.sparse.csr_array(always), sparse_matrix(m, n, density=0.005, dtype=dtype)], format="csr")


@pytest.mark.parametrize("solver", ["covariance", "randomized", "full"])
def test_centring_never_subtracts_from_zeros_and_loses_no_digits(solver: Any) -> None:
    """Components of columns that are always on, and of others with a thousandth of their variance."""
    A = always_on(20_000, 100, "f4")
    assert open_matrix(A).is_sparse
    dense = A.toarray().astype(float)
    found = dlscale.PCA(12, solver=solver).fit(A)
    expected = np.linalg.eigvalsh(np.cov(dense, rowvar=False))[::-1][:12]
    np.testing.assert_allclose(found.explained_variance_, expected, rtol=4e-7)
    np.testing.assert_allclose(found.mean_, dense.mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("solver", ["covariance", "randomized"])
def test_centring_beside_a_mean_of_a_hundred_million(solver: Any) -> None:
    A = always_on(20_000, 150, "f8")
    shift = scipy.sparse.csr_array(np.outer(np.ones(20_000), np.where(np.arange(153) < 3, 1e8, 0)))
    far = A + shift
    expected = np.linalg.eigvalsh(np.cov(far.toarray() - far.toarray()[0], rowvar=False))[::-1]
    found = dlscale.PCA(3, solver=solver).fit(far)
    np.testing.assert_allclose(found.explained_variance_, expected[:3], rtol=1e-7)


@pytest.mark.parametrize("dtype", ["f8", "c16"])
def test_single_precision_iterations_cost_no_accuracy(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of centred rows with columns that are always on, far from zero."""
    A = scipy.sparse.hstack([always_on(3000, 1, "f8"), sparse_matrix(3000, 60, density=0.03)], format="csr").astype(dtype)
    assert open_matrix(A).is_sparse
    dense, precisions = A.toarray(), []
    exact = np.linalg.svd(dense - dense.mean(axis=0), full_matrices=False)
    times = SparseRows.times

    def watched(self: SparseRows, W: Array, *, halved: bool = False) -> Array:
        Y = times(self, W, halved=halved)
        precisions.append(Y.real.itemsize)
        return Y

    def distances() -> Array:
        model = dlscale.PCA(4, solver="randomized", power_iterations=3, seed=0).fit(A)
        turns = np.sum(model.components_ * exact.Vh[:4].conj(), axis=1)[:, None]
        return np.asarray(np.linalg.norm(model.components_ - turns * exact.Vh[:4], axis=1))

    monkeypatch.setattr(SparseRows, "times", watched)
    single = distances()
    assert {4, 8} == set(precisions)
    monkeypatch.setattr(subspace, "half_precision", lambda dtype: dtype)
    assert (single <= 1.1 * distances() + 1e-10).all()


def test_a_product_that_is_made_by_columns_has_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = SparseRows(scipy.sparse.csr_array(sparse_matrix(500, 300)), np.linspace(0, 1, 300))
    Y, parts = np.random.default_rng(0).standard_normal((500, 50)), sparse_rows._scattered
    whole = rows.adjoint_times(Y)
    monkeypatch.setattr(sparse_rows, "_SCATTERED_BYTES", 20 * 300 * 8)
    assert parts(300, 50, 8) == [slice(0, 16), slice(16, 32), slice(32, 48), slice(48, 50)]
    np.testing.assert_array_equal(rows.adjoint_times(Y), whole)
    assert rows.adjoint_times(Y[:, :0]).shape == (0, 300)


@pytest.mark.parametrize("exponent", [-300, 300])
def test_any_scale(exponent: int) -> None:
    A = sparse_matrix(900, 300, density=0.03)
    s = dlscale.randomized_svd(A, 3).s
    np.testing.assert_array_equal(dlscale.randomized_svd(A * 2.0**exponent, 3).s, s * 2.0**exponent)


def grid_laplacian(k: int) -> Any:
    """Of the graph of a k x k grid, plus the identity."""
    path = scipy.sparse.diags_array([-np.ones(k - 1), np.full(k, 2.0), -np.ones(k - 1)], offsets=[-1, 0, 1])
    path = path.tolil()
    path[0, 0] = path[-1, -1] = 1
    one = scipy.sparse.eye_array(k)
    return scipy.sparse.csr_array(scipy.sparse.kron(path, one) + scipy.sparse.kron(one, path) + scipy.sparse.eye_array(k * k))


@pytest.mark.parametrize("method", ["cg", "minres", "gmres"])
@pytest.mark.parametrize("preconditioner", ["none", "jacobi", "block_jacobi"])
@pytest.mark.parametrize("stored", [False, True])
def test_systems_by_iterations(tmp_path: Path, method: str, preconditioner: str, stored: bool) -> None:
    A, rng = grid_laplacian(20), np.random.default_rng(0)
    if method == "gmres":
        A = A + scipy.sparse.diags_array(rng.uniform(0, 1, 399), offsets=1)
    b = rng.standard_normal(400)
    source = anndata_group(tmp_path / "A.zarr", scipy.sparse.csr_array(A), chunks=500) if stored else A
    assert open_matrix(source).is_sparse
    x = getattr(dlscale, method)(source, b, rtol=1e-10, M=preconditioner).x
    np.testing.assert_allclose(A @ x, b, atol=1e-8)


@pytest.mark.parametrize("method", ["cgls", "sketch"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "c16"])
def test_least_squares_by_iterations(tmp_path: Path, method: Any, dtype: str) -> None:
    """What is stored is multiplied; blocks are those of a sparse matrix, and are never made dense."""
    A, rng = sparse_matrix(2000, 40, density=0.08, dtype="f8"), np.random.default_rng(0)
    A = (A @ scipy.sparse.diags_array(0.8 ** -np.arange(40.0))).astype(dtype)
    if dtype == "c16":
        A = A * (1 + 2j)
    B = rng.standard_normal((2000, 2)).astype(dtype)
    path = anndata_group(tmp_path / "A.zarr", scipy.sparse.csr_array(A), chunks=500)
    assert open_matrix(path).is_sparse
    expected = np.linalg.lstsq(A.toarray().astype(complex), B, rcond=None)[0]
    tolerance = None if method == "sketch" else 1e-5 if dtype == "f4" else 1e-12
    for source in (path, A):
        found = run_here(
            LSTSQ, LSTSQ.inputs({"matrix": source, "rhs": B}), LstsqOptions(method=method, tolerance=tolerance)
        ).arrays["x"]
        np.testing.assert_allclose(found, expected, atol=1e-4 if dtype == "f4" else 1e-9)


@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("f8", "f8"), ("c16", "f8"), ("f4", "c16")])
@pytest.mark.parametrize("exponent", [0, -600])
def test_products(tmp_path: Path, dtypes: tuple[str, str], exponent: int) -> None:
    rng, (first, second) = np.random.default_rng(0), dtypes
    exponent = exponent if "f4" not in dtypes else exponent // 10
    A = sparse_matrix(900, 300, density=0.03).astype(first) * np.dtype(first).type(
        2.0**exponent * (1 + 2j if first == "c16" else 1)
    )
    B = (rng.standard_normal((300, 20)) * (1 + (1j if second == "c16" else 0))).astype(second)
    Y = (rng.standard_normal((900, 20)) * (1 + (1j if second == "c16" else 0))).astype(second)
    path = anndata_group(tmp_path / "A.zarr", scipy.sparse.csr_array(A), chunks=999)
    dense, eps = A.toarray(), float(np.finfo(np.result_type(first, second)).eps)
    assert MATMUL.plan(MATMUL.inputs({"a": path, "b": B}), MatmulOptions(), describe_cluster("threads")).method == "rows"
    for source in (path, A, A.tocsc()):
        for found, want in (
            (dlscale.matmul(source, B), dense @ B),
            (dlscale.matmul(source, B.conj().T.copy(), adjoint_b=True), dense @ B),
            (dlscale.matmul(source, Y, adjoint_a=True), dense.conj().T @ Y),
        ):
            np.testing.assert_allclose(found, want, rtol=1e3 * eps, atol=1e3 * eps * np.abs(want).max())


@pytest.mark.parametrize("dtype", ["f4", "f8", "c16"])
def test_a_gram_matrix(dtype: str) -> None:
    A = sparse_matrix(3000, 200, density=0.02).astype(dtype) * np.dtype(dtype).type(1 + 2j if dtype == "c16" else 1)
    G, dense = dlscale.matmul(A, adjoint_a=True), A.toarray().astype(np.result_type(dtype, "f8"))
    np.testing.assert_array_equal(G, G.conj().T)
    np.testing.assert_allclose(G, dense.conj().T @ dense, atol=10 * float(np.finfo(dtype).eps) * np.abs(G).max())


def test_a_product_that_overflows_is_refused() -> None:
    A = sparse_matrix(900, 300, density=0.03) * 1e300
    with pytest.raises(NumericalError, match="The product overflows float64"):
        dlscale.matmul(A, np.full((300, 2), 1e30))


@pytest.mark.usefixtures("jobs_on_shared_clusters")
def test_eigenpairs_by_iterations(tmp_path: Path) -> None:
    A = grid_laplacian(20)
    expected = np.linalg.eigvalsh(A.toarray())
    values, vectors = dlscale.eigsh(A, 4, which="LA")
    np.testing.assert_allclose(np.sort(values), expected[-4:], rtol=1e-10)
    np.testing.assert_allclose(A @ vectors, vectors * values, atol=1e-7)
    path = anndata_group(tmp_path / "A.zarr", A, chunks=500)
    params = {"n_components": 3, "method": "iterative", "completeness": "random"}
    bits = []
    for cluster in ("threads", {"workers": 1, "threads": 1}, {"workers": 2, "threads": 1}):
        spec = {"kind": "eigh", "input": {"matrix": str(path)}, "params": params, "cluster": cluster}
        bits.append(dlscale.run(spec, workspace=tmp_path / "ws").open()["eigenvalues"][...].tobytes())
    np.testing.assert_allclose(np.sort(np.frombuffer(bits[0])), expected[-3:], rtol=1e-10)
    assert bits[1:] == bits[:1] * 2


@pytest.mark.parametrize(("name", "said"), [("lu", "method cg, minres or gmres"), ("cholesky", "method cg"), ("qr", "kind svd")])
def test_factors_that_would_fill_are_refused_with_what_to_use(name: str, said: str) -> None:
    with pytest.raises(SpecError, match=f"is sparse, and the .* would fill with nonzeros; .*{said}"):
        getattr(dlscale, name)(grid_laplacian(5))


def factors(path: Path, checkpoint: Checkpoint | None, stop_at: str = "") -> tuple[bytes, list[str]]:
    """The bits of an SVD and the passes that were made for it; of one that fails when a pass has ended, none."""
    told: list[str] = []

    def listen(event: Any) -> None:
        if type(event).__name__ == "StepFinished" and not event.resumed:
            told.append(event.step)
            if event.step == stop_at:
                raise OSError("the disk is gone")

    inputs, options, facts = KIND.inputs({"matrix": str(path)}), SVDOptions(n_components=4), describe_cluster("threads")
    with open_cluster(facts) as cluster:
        outcome = KIND.compute(Run(cluster, checkpoint=checkpoint, emit=listen), inputs, options, KIND.plan(inputs, options, facts))
    return outcome.arrays["s"].tobytes() + outcome.arrays["vh"].tobytes(), told


def test_an_svd_goes_on_where_it_was_stopped_to_the_same_bits(tmp_path: Path) -> None:
    path = anndata_group(tmp_path / "A.zarr", sparse_matrix(3000, 100), chunks=999)
    whole, every = factors(path, None)
    for i, stop_at in enumerate(("iteration-1", "iteration-4")):
        with pytest.raises(OSError, match="the disk is gone"):
            factors(path, Checkpoint(tmp_path / f"{i}"), stop_at)
        again, rest = factors(path, Checkpoint(tmp_path / f"{i}"))
        assert again == whole
        assert len(rest) < len(every)


def test_a_sparse_array_of_a_program_is_the_input_of_a_job(tmp_path: Path) -> None:
    A = sparse_matrix(density=0.05)
    spec = {"kind": "norm", "input": {"matrix": A}, "cluster": "threads"}
    found = dlscale.run(spec, workspace=tmp_path / "ws")
    np.testing.assert_allclose(found.open()["norm"][0], scipy.sparse.linalg.norm(A))
    (copy,) = (tmp_path / "ws" / "imports").glob("array-*.zarr")
    assert open_matrix(copy).describe()["nonzeros"] == A.nnz


def test_the_plan_counts_what_is_stored() -> None:
    A = sparse_matrix(20_000, 1000, density=0.01)
    matrix, facts = open_matrix(A), describe_cluster("threads")
    plan = plan_svd(matrix, SVDOptions(n_components=5), facts)
    width = SVDOptions(n_components=5).width(1000)
    step = next(step for step in plan.steps if step.id == "iteration-1")
    assert (step.flops, step.bytes_read) == (4.0 * A.nnz * width, A.nnz * 12 + 4 * 20_001)
    assert plan_svd(open_matrix(A.toarray()), SVDOptions(n_components=5), facts).steps[0].flops == 4.0 * 20_000 * 1000 * width
    norm = plan_norm(matrix, NormOptions(), facts)
    assert norm.steps[0].flops == 6.0 * A.nnz


def test_blocks_are_cut_by_entries() -> None:
    """Where a few rows hold most entries, blocks are as low as memory for the fullest asks."""
    counts = np.where(np.arange(4096) < 64, 4000, 4)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    indices = np.concatenate([np.arange(count) for count in counts])
    A = open_matrix(scipy.sparse.csr_array((np.ones(indices.size), indices, indptr), shape=(4096, 4000)))
    assert A.most_entries(64) == 64 * 4000
    assert A.most_entries(128) == 64 * 4004
    grid = plan_sparse_grid(A, entry_bytes=16, row_bytes=8, max_block_bytes=2**21)
    assert A.most_entries(grid.block_rows) * 16 + grid.block_rows * 8 <= 2**21
    assert plan_sparse_grid(A, entry_bytes=16, row_bytes=8, max_block_bytes=2**30).block_rows == 4096


def test_a_block_that_does_not_fit_is_refused() -> None:
    A = open_matrix(sparse_matrix(20_000, 1000, density=0.01))
    facts = replace(describe_cluster("threads"), memory_bytes=2**20)
    with pytest.raises(DoesNotFitError, match="ask for fewer components"):
        plan_svd(A, SVDOptions(n_components=50), facts)


def test_nan_is_named(tmp_path: Path) -> None:
    A = sparse_matrix().tolil()
    A[417, 3] = np.nan
    A = A.tocsr()
    for source in (A, A.tocsc(), anndata_group(tmp_path / "A.zarr", A, chunks=500)):
        for take in (lambda A: dlscale.randomized_svd(A, 3), lambda A: dlscale.PCA(2).fit(A), dlscale.norm):
            with pytest.raises(NonFiniteError, match="row 417, column 3"):
                take(source)


def run(source: Path, folder: Path, params: str, cluster: str = "threads") -> dict[str, np.ndarray]:
    (folder / "job.yaml").write_text(f"kind: pca\ninput: {{matrix: {source}}}\nparams: {params}\ncluster: {cluster}\n")
    job = dlscale.run(folder / "job.yaml", workspace=folder / "workspace")
    return {name: job.open()[name][...] for name in ("components", "mean", "scores", "singular_values")}


@pytest.mark.usefixtures("jobs_on_shared_clusters")
@pytest.mark.parametrize(("dtype", "solver"), [("f4", "randomized"), ("f8", "covariance")])
def test_same_bits_on_any_number_of_workers(tmp_path: Path, dtype: str, solver: str) -> None:
    path = anndata_group(tmp_path / "A.zarr", sparse_matrix(3000, dtype=dtype), chunks=999)
    assert open_matrix(path).is_sparse
    params = f"{{n_components: 3, solver: {solver}, block_rows: 100, scores: true}}"
    first = run(path, tmp_path, params)
    for n_workers in (1, 2):
        again = run(path, tmp_path, params, f"{{workers: {n_workers}, threads: 1}}")
        for name, array in first.items():
            np.testing.assert_array_equal(again[name], array)
