"""Rows transformed as they are read: the same of compressed rows, dense ones and columns, and named where they cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import zarr
from sparse_matrices import anndata_group, random_sparse

import dlscale
from dlscale.errors import InputError, NonFiniteError, SpecError
from dlscale.storage.matrices import open_matrix
from dlscale.storage.sparse.transforms import Step, transformed

STEPS = [Step(scale_rows_to=100.0), Step(map="log1p")]


def expected(dense: np.ndarray, steps: list[Step]) -> np.ndarray:
    dense = dense.astype(float)
    for step in steps:
        if step.map is None:
            sums = dense.sum(axis=1, keepdims=True)
            dense = np.where(sums > 0, dense * step.scale_rows_to / np.where(sums > 0, sums, 1), 0)
        else:
            dense = {"log1p": np.log1p, "sqrt": np.sqrt, "binary": lambda x: (x != 0) * 1.0}[step.map](dense)
    return dense


@pytest.mark.parametrize("seed", range(0, 200, 4))
@pytest.mark.parametrize("steps", [STEPS, [Step(map="sqrt")], [Step(map="binary"), Step(scale_rows_to=1.0)]])
def test_any_matrix_by_rows_and_columns(seed: int, steps: list[Step]) -> None:
    A, dense = random_sparse(seed)
    if dense.dtype.kind == "c":
        A, dense = A.real.copy(), dense.real.copy()
    A.data, dense = np.abs(A.data), None
    dense = np.zeros(A.shape)
    rows = np.repeat(np.arange(A.shape[0]), np.diff(A.indptr.astype(int)))
    np.add.at(dense, (rows, A.indices.astype(int)), A.data)
    (m, n), want = A.shape, expected(dense, steps)
    for source in (A, dense):
        matrix = transformed(open_matrix(source), steps)
        np.testing.assert_allclose(matrix.read(0, m), want, rtol=1e-5)
        np.testing.assert_allclose(matrix.region((m // 3, m), (n // 3, n)), want[m // 3 :, n // 3 :], rtol=1e-5)
        np.testing.assert_allclose(matrix.T.read(0, n), want.T, rtol=1e-5)
    block = transformed(open_matrix(A), steps).sparse_rows(m // 2, m)
    np.testing.assert_allclose(block.rows.toarray(), want[m // 2 :], rtol=1e-5)


def counts() -> Any:
    rng = np.random.default_rng(0)
    A = scipy.sparse.random_array((800, 200), density=0.05, rng=rng, format="csr")
    A.data = rng.poisson(3, A.nnz) + 1.0
    return A


def run(source: Any, folder: Path, **more: Any) -> Any:
    steps = [{"scale_rows": {"to": 100}}, {"map": "log1p"}]
    params = {"n_components": 3, "solver": "randomized", "power_iterations": 20}
    spec = {"kind": "pca", "input": {"matrix": str(source), "transforms": steps}, "params": params, "cluster": "threads", **more}
    return dlscale.run(spec, workspace=folder / "workspace")


def test_a_job_on_transformed_rows_is_one_on_the_transformed_matrix(tmp_path: Path) -> None:
    A = counts()
    want = dlscale.PCA(3, solver="full").fit(expected(A.toarray(), STEPS)).explained_variance_
    by_columns = anndata_group(tmp_path / "B.zarr", A.tocsc(), encoding="csc_matrix", chunks=999)
    for source in (anndata_group(tmp_path / "A.zarr", A, chunks=999), by_columns):
        found = run(source, tmp_path).open()
        np.testing.assert_allclose(found["explained_variance"][...], want, rtol=1e-4)
    one, two = (run(tmp_path / "A.zarr", tmp_path, cluster={"workers": n, "threads": 1}) for n in (1, 2))
    np.testing.assert_array_equal(one.open()["components"][...], two.open()["components"][...])
    told = zarr.open_group(two.result, mode="r").attrs["dlscale"]
    assert told["spec"]["input"]["transforms"] == [{"scale_rows": {"to": 100.0}}, {"map": "log1p"}]
    assert any("rows scaled to the sum 100, then log1p" in note for note in two.plan["notes"])


def test_what_cannot_be_transformed_is_named(tmp_path: Path) -> None:
    A = counts().tolil()
    A[7, 3] = -2.0
    for source in (A.tocsr(), A.tocsc(), A.toarray()):
        for step, said in ((Step(map="log1p"), "row 7, column 3 holds -2, of which log1p"), (Step(map="sqrt"), "row 7, column 3")):
            with pytest.raises(InputError, match=said):
                transformed(open_matrix(source), [step]).read(0, 800)
    A[9, :] = 0
    A[9, 1] = -5
    with pytest.raises(InputError, match="row 9 sums to -5, and cannot be scaled to 100"):
        transformed(open_matrix(A.tocsr()), STEPS).read(8, 800)
    A = counts().tolil()
    A[11, 6] = np.nan
    with pytest.raises(NonFiniteError, match="row 11, column 6"):
        run(anndata_group(tmp_path / "A.zarr", A.tocsr(), chunks=999), tmp_path)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([{"map": "log"}], "transforms.0.map"),
        ([{}], "one of the keys scale_rows and map"),
        ([{"map": "sqrt", "scale_rows": {"to": 1}}], "one of the keys scale_rows and map"),
        ([{"scale_rows": {"to": 0}}], "scale_rows.to"),
        ([{"scale": 1}], "scale"),
        ("log1p", "transforms"),
    ],
)
def test_steps_that_are_none(tmp_path: Path, steps: Any, said: str) -> None:
    path = anndata_group(tmp_path / "A.zarr", counts(), chunks=999)
    spec = {"kind": "pca", "input": {"matrix": str(path), "transforms": steps}, "cluster": "threads"}
    with pytest.raises(SpecError, match=said):
        dlscale.run(spec, workspace=tmp_path / "workspace")


def test_complex_matrices_have_no_transforms() -> None:
    with pytest.raises(SpecError, match="are of real matrices"):
        transformed(open_matrix(np.ones((3, 3), complex)), STEPS)
