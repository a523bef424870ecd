"""Rows transformed as they are read: the same of compressed rows, dense ones and columns, and named where they cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import zarr
from helpers import each_of
from sparse_matrices import anndata_group, random_sparse

import dlscale
from dlscale.declaration.transforms import steps_of
from dlscale.engine.clusters import describe_cluster, open_cluster
from dlscale.engine.passes import Passes
from dlscale.engine.run import Run
from dlscale.errors import InputError, NonFiniteError, SpecError
from dlscale.linalg.fitting import fitted, plan_with_fits
from dlscale.linalg.statistics.kind import KIND as NORM
from dlscale.linalg.statistics.kind import NormOptions
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix
from dlscale.storage.sparse.steps import fits
from dlscale.storage.sparse.transforms import transformed

Steps = list[dict[str, Any]]
ROWS: Steps = [{"scale_rows": {"to": 100.0}}, {"map": "log1p"}]
CELLS: Steps = [*ROWS, {"select_columns": {"most_variable": 5}}, {"scale_columns": "std"}, {"center": True}]


def expected(dense: np.ndarray, steps: Steps, train: np.ndarray | None = None) -> np.ndarray:
    """The steps in plain words of NumPy, their parameters from the rows of ``train``."""
    X = dense.astype(float)
    T = X if train is None else train.astype(float)
    for step in steps:
        ((name, value),) = step.items()
        if name == "center":
            centre = np.median(T, axis=0) if value == "median" else T.mean(axis=0)
            X, T = X - centre, T - centre
        elif value == "robust":
            scale = np.subtract(*np.percentile(T, [75, 25], axis=0))
            scale = np.where(scale > 0, scale, 1)
            X, T = X / scale, T / scale
        elif name == "select_columns":
            kept = np.sort(np.argsort(-T.var(axis=0, ddof=1), kind="stable")[: value["most_variable"]])
            X, T = X[:, kept], T[:, kept]
        elif name == "scale_columns":
            deviation = np.where(np.ptp(T, axis=0) > 0, T.std(axis=0, ddof=1), 1)
            to = np.where(np.ptp(T, axis=0) > 0, 1 if value == "std" else value["to"], 1)
            X, T = X * to / deviation, T * to / deviation
        elif value == "tfidf":
            idf = np.log((1 + len(T)) / (1 + np.count_nonzero(T, axis=0))) + 1
            X, T = X * idf, T * idf
        else:
            sums = T.sum(axis=0)
            X, T = rowwise(X, name, value, sums), rowwise(T, name, value, sums)
    return X


def rowwise(X: np.ndarray, name: str, value: Any, column_sums: np.ndarray) -> np.ndarray:
    sums = X.sum(axis=1, keepdims=True)
    if name == "scale_rows":
        return np.where(sums > 0, X * value["to"] / np.where(sums > 0, sums, 1), 0)
    if value == "ppmi":
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.maximum(np.nan_to_num(np.log(X * column_sums.sum() / (sums * column_sums)), neginf=0, posinf=0), 0)
    return {"log1p": np.log1p, "sqrt": np.sqrt, "binary": lambda x: (x != 0) * 1.0}[value](X)


def read_as(source: Any, steps: Steps) -> Any:
    """A matrix whose transforms are fitted, by the passes of a plan."""
    matrix, facts = transformed(open_matrix(source), steps_of(steps)), describe_cluster("threads")
    plan = plan_with_fits(NORM, Inputs({"matrix": matrix}), NormOptions(), facts)
    with open_cluster(facts) as cluster:
        return fitted(Passes(Run(cluster)), matrix, plan)


def counts(m: int = 800, n: int = 200) -> Any:
    rng = np.random.default_rng(0)
    A = scipy.sparse.random_array((m, n), density=0.05, rng=rng, format="csr")
    A.data = rng.poisson(3, A.nnz) + 1.0
    return A


@each_of(seed=range(0, 200, 5))
@pytest.mark.parametrize("steps", [ROWS, [{"map": "sqrt"}], [{"map": "binary"}, {"scale_rows": {"to": 1}}]])
def test_any_matrix_by_rows_and_columns(seed: int, steps: Steps) -> None:
    A, dense = random_sparse(seed)
    if dense.dtype.kind == "c":
        A, dense = A.real.copy(), dense.real.copy()
    A.data = np.abs(A.data)
    dense = np.zeros(A.shape)
    rows = np.repeat(np.arange(A.shape[0]), np.diff(A.indptr.astype(int)))
    np.add.at(dense, (rows, A.indices.astype(int)), A.data)
    (m, n), want = A.shape, expected(dense, steps)
    for source in (A, dense):
        matrix = transformed(open_matrix(source), steps_of(steps))
        np.testing.assert_allclose(matrix.read(0, m), want, rtol=1e-5)
        np.testing.assert_allclose(matrix.region((m // 3, m), (n // 3, n)), want[m // 3 :, n // 3 :], rtol=1e-5)
        np.testing.assert_allclose(matrix.T.read(0, n), want.T, rtol=1e-5)
    block = transformed(open_matrix(A), steps_of(steps)).sparse_rows(m // 2, m)
    np.testing.assert_allclose(block.rows.toarray(), want[m // 2 :], rtol=1e-5)


@pytest.mark.parametrize(
    ("steps", "n_reads"),
    [
        ([{"scale_columns": "std"}], 1),
        ([{"scale_columns": {"to": 3.0}}, {"center": True}], 1),
        ([{"map": "tfidf"}, {"map": "log1p"}, {"select_columns": {"most_variable": 7}}], 2),
        ([{"map": "ppmi"}, {"center": True}], 2),
        ([{"select_columns": {"most_variable": 3}}, {"map": "ppmi"}, {"scale_rows": {"to": 1}}], 1),
        (CELLS, 1),
        ([{"scale_columns": "robust"}, {"center": "median"}], 1),
        ([{"scale_columns": "robust"}, {"select_columns": {"most_variable": 3}}, {"center": "median"}], 2),
        ([{"select_columns": {"most_variable": 30}}, {"scale_columns": "robust"}, {"map": "binary"}, {"center": "median"}], 3),
        ([*CELLS[:3], {"map": "sqrt"}, *CELLS[3:]], 2),
    ],
)
@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_what_is_fitted_to_columns(steps: Steps, n_reads: int, offset: float) -> None:
    A = counts(300, 40).tolil()
    A[:, 3], A[:, 4], A[:, 5] = 2, 0, offset + np.arange(300).reshape(-1, 1) % 5
    A = A.tocsr()
    want, atol = expected(A.toarray(), steps), 1e-7 + 1e-13 * offset
    assert len(list(fits(steps_of(steps), 40))) == n_reads
    for source in (A, A.tocsc(), A.toarray()):
        matrix = read_as(source, steps)
        assert matrix.shape == want.shape
        assert matrix.is_sparse == (not isinstance(source, np.ndarray))
        np.testing.assert_allclose(matrix.read(0, 300), want, rtol=1e-6, atol=atol)
    block = read_as(A, steps).sparse_rows(100, 300)
    np.testing.assert_allclose(block.toarray(), want[100:], rtol=1e-6, atol=atol)
    assert block.rows.nnz <= A[100:].nnz  # centred too
    np.testing.assert_allclose(dlscale.norm(read_as(A, steps)), np.linalg.norm(want), rtol=1e-6)
    np.testing.assert_allclose(dlscale.norm(read_as(A, steps), 1), np.abs(want).sum(axis=0).max(), rtol=1e-6)
    np.testing.assert_allclose(dlscale.norm(read_as(A, steps), -np.inf), np.abs(want).sum(axis=1).min(), rtol=1e-6)


def run(source: Any, folder: Path, *, steps: Steps = ROWS, **more: Any) -> Any:
    params = {"n_components": 3, "solver": "randomized", "power_iterations": 20}
    spec = {"kind": "pca", "input": {"matrix": str(source), "transforms": steps}, "params": params, "cluster": "threads", **more}
    return dlscale.run(spec, workspace=folder / "workspace")


@pytest.mark.usefixtures("jobs_on_shared_clusters", "drawn_reports")
def test_a_job_on_transformed_rows_is_one_on_the_transformed_matrix(tmp_path: Path) -> None:
    A = counts()
    steps = [*CELLS[:2], {"select_columns": {"most_variable": 60}}, *CELLS[3:]]
    want = dlscale.PCA(3, solver="full").fit(expected(A.toarray(), steps)).explained_variance_
    by_columns = anndata_group(tmp_path / "B.zarr", A.tocsc(), encoding="csc_matrix", chunks=999)
    for source in (anndata_group(tmp_path / "A.zarr", A, chunks=999), by_columns):
        found = run(source, tmp_path, steps=steps).open()
        np.testing.assert_allclose(found["explained_variance"][...], want, rtol=1e-4)
    one, two = (
        run(tmp_path / "A.zarr", tmp_path, steps=steps, cluster=place) for place in ("threads", {"workers": 2, "threads": 1})
    )
    np.testing.assert_array_equal(one.open()["components"][...], two.open()["components"][...])
    told = zarr.open_group(two.result, mode="r").attrs["dlscale"]
    assert told["spec"]["input"]["transforms"] == steps
    assert any("rows scaled to the sum 100, then log1p" in note for note in two.plan["notes"])
    assert any("the certificate too, is about the matrix as it is transformed" in note for note in told["notes"])
    assert two.plan["steps"][0]["id"] == "transforms-1"
    np.testing.assert_array_equal(two.open()["transforms/3-columns"].shape, (60,))
    page = (two.folder / "report.html").read_text()
    assert (
        "measured against the matrix as it is transformed (rows scaled to the sum 100, then log1p of each entry, then the" in page
    )


def test_new_rows_are_transformed_as_those_of_the_model_were(tmp_path: Path) -> None:
    A, rng = counts(300, 40), np.random.default_rng(0)
    new, y = counts(50, 40) * 2, rng.standard_normal((300, 1))
    for name, array in (("A", A), ("new", scipy.sparse.csr_array(new))):
        anndata_group(tmp_path / f"{name}.zarr", array, chunks=999)
    zarr.create_array(tmp_path / "y.zarr", data=y)
    spec = {"kind": "ridge", "input": {"matrix": "A.zarr", "rhs": "y.zarr", "transforms": CELLS}, "params": {"penalties": [1.0]}}
    spec["input"] |= {role: str(tmp_path / spec["input"][role]) for role in ("matrix", "rhs")}
    model = dlscale.run({**spec, "cluster": "threads"}, workspace=tmp_path / "ws")
    W, c = (model.open()[name][...] for name in ("coefficients", "intercept"))
    want = expected(new.toarray(), CELLS, A.toarray()) @ W.reshape(5, 1) + c
    predict = {
        "kind": "predict",
        "input": {"features": str(tmp_path / "new.zarr"), "model": str(model.result)},
        "cluster": "threads",
    }
    found = dlscale.run(predict, workspace=tmp_path / "ws").open()["predictions"][...]
    np.testing.assert_allclose(found, want, rtol=1e-8)
    predict["input"]["transforms"] = CELLS
    np.testing.assert_array_equal(dlscale.run(predict, workspace=tmp_path / "ws").open()["predictions"][...], found)
    predict["input"]["transforms"] = ROWS
    with pytest.raises(SpecError, match="are those that the model was made with, and applied by themselves; leave them out"):
        dlscale.run(predict, workspace=tmp_path / "ws")
    del predict["input"]["transforms"]
    columns = zarr.open_array(Path(model.result) / "transforms" / "3-columns")
    columns[0] = 40
    with pytest.raises(InputError, match="transforms/3-columns is not what its job wrote"):
        dlscale.run(predict, workspace=tmp_path / "ws")
    anndata_group(tmp_path / "narrow.zarr", counts(50, 39), chunks=999)
    predict["input"] = {"features": str(tmp_path / "narrow.zarr"), "model": str(model.result)}
    with pytest.raises(InputError, match=r"must have 40 columns, like the rows that .* was made of; got 39"):
        dlscale.run(predict, workspace=tmp_path / "ws")


@pytest.mark.parametrize("solver", ["covariance", "randomized", "full"])
def test_an_estimator_transforms_new_rows_by_what_it_was_fitted_to(solver: Any) -> None:
    A = counts(300, 120)
    steps = [*CELLS[:2], {"select_columns": {"most_variable": 60}}, {"scale_columns": "std"}]
    found = dlscale.PCA(4, solver=solver, power_iterations=30, transforms=steps).fit(A)
    dense = dlscale.PCA(4, solver="full").fit(expected(A.toarray(), steps))
    assert found.n_features_in_ == 120
    np.testing.assert_allclose(found.explained_variance_, dense.explained_variance_, rtol=1e-9)
    new = counts(50, 120)[10:] * 3
    want = dense.transform(expected(new.toarray(), steps, A.toarray()))
    np.testing.assert_allclose(found.transform(new), want, atol=1e-6)
    np.testing.assert_allclose(found.score(new), dense.score(expected(new.toarray(), steps, A.toarray())), rtol=1e-6)


@pytest.mark.parametrize("powers", [(-700, -700, -700), (600, 600, 600), (0, -700, 600), (-900, 0, 1000)], ids=str)
def test_columns_of_any_scale(powers: tuple[int, ...]) -> None:
    A = np.round(100 * np.random.default_rng(0).standard_normal((60, 3))) * (np.arange(60) % 3 > 0)[:, None]
    here = np.ldexp(A, powers)
    for source in (here, scipy.sparse.csr_array(here)):
        for steps in ([{"scale_columns": "std"}], [{"scale_columns": "robust"}]):
            np.testing.assert_array_equal(read_as(source, steps).read(0, 60), read_as(A, steps).read(0, 60))
        chosen = read_as(source, [{"select_columns": {"most_variable": 1}}]).read(0, 60)
        np.testing.assert_array_equal(chosen[:, 0], here[:, np.argmax(np.log2(A.std(axis=0)) + powers)])
    positive = np.abs(A) + 1
    scaled_rows = transformed(open_matrix(np.ldexp(positive, powers[2])), steps_of([{"scale_rows": {"to": 100}}])).read(0, 60)
    np.testing.assert_array_equal(
        scaled_rows, transformed(open_matrix(positive), steps_of([{"scale_rows": {"to": 100}}])).read(0, 60)
    )
    with pytest.raises(InputError, match=r"column 0 cannot be scaled from a .* out of range"):
        read_as(np.ldexp(A, -1074), [{"scale_columns": "std"}])


def test_what_cannot_be_transformed_is_named(tmp_path: Path) -> None:
    A = counts().tolil()
    A[7, 3] = -2.0
    for source in (A.tocsr(), A.tocsc(), A.toarray()):
        for name, said in (
            ("log1p", "row 7, column 3 holds -2, of which log1p"),
            ("sqrt", "row 7, column 3"),
            ("ppmi", "row 7, col"),
        ):
            with pytest.raises(InputError, match=said):
                read_as(source, [{"map": name}]).read(0, 800)
        with pytest.raises(InputError, match="row 7, column 3 holds -2"):
            read_as(source, [{"select_columns": {"most_variable": 199}}, {"map": "sqrt"}]).read(0, 800)
    A[9, :] = 0
    A[9, 1] = -5
    with pytest.raises(InputError, match="row 9 sums to -5, and cannot be scaled to 100"):
        transformed(open_matrix(A.tocsr()), steps_of(ROWS)).read(8, 800)
    A = counts().tolil()
    A[11, 6] = np.nan
    for steps in (ROWS, [{"scale_columns": "std"}], [{"select_columns": {"most_variable": 5}}]):
        with pytest.raises(NonFiniteError, match="row 11, column 6"):
            run(anndata_group(tmp_path / "A.zarr", A.tocsr(), chunks=999), tmp_path, steps=steps)
    model = dlscale.PCA(2, transforms=[{"select_columns": {"most_variable": 3}}]).fit(counts())
    with pytest.raises(NonFiniteError, match="row 11, column 6"):
        model.transform(A.tocsr())


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([{"map": "log"}], "transforms.0.map"),
        ([{}], "one of the keys scale_rows, scale_columns, center, select_columns, map"),
        ([{"map": "sqrt", "scale_rows": {"to": 1}}], "one of the keys scale_rows"),
        ([{"scale_rows": {"to": 0}}], "scale_rows.to"),
        ([{"scale_columns": "var"}], "scale_columns"),
        ([{"center": False}], "center"),
        ([{"center": "mean"}], "center"),
        ([{"center": "median"}, {"scale_columns": "robust"}], "center comes last"),
        ([{"center": True}, {"scale_columns": "std"}], "center comes last"),
        ([{"select_columns": {"most_variable": 201}}], "got 201, and there are 200 columns"),
        ([{"scale": 1}], "scale"),
        ("log1p", "transforms"),
    ],
)
def test_steps_that_are_none(tmp_path: Path, steps: Any, said: str) -> None:
    path = anndata_group(tmp_path / "A.zarr", counts(), chunks=999)
    with pytest.raises(SpecError, match=said):
        run(path, tmp_path, steps=steps)


def test_matrices_without_transforms() -> None:
    with pytest.raises(SpecError, match="are of real matrices"):
        transformed(open_matrix(np.ones((3, 3), complex)), steps_of(ROWS))
    with pytest.raises(SpecError, match="a matrix of 1 row has nothing to fit this to"):
        transformed(open_matrix(np.ones((1, 3))), steps_of([{"scale_columns": "std"}]))
