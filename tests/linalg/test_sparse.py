"""Every kind on sparse matrices: the answer of the same numbers in a dense one, certified, with the same bits on any workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from sparse_matrices import anndata_group

import dlscale
from dlscale.errors import NonFiniteError


def sparse_matrix(m: int = 600, n: int = 40, *, density: float = 0.1, dtype: str = "f8") -> Any:
    rng = np.random.default_rng(0)
    A = scipy.sparse.random_array((m, n), density=density, rng=rng, format="csr", data_sampler=rng.standard_normal)
    return (A @ scipy.sparse.diags_array(0.8 ** np.arange(n))).astype(dtype)


FUNCTIONS = {
    "randomized_svd": lambda A: dlscale.randomized_svd(A, 5).s,
    "svd": lambda A: dlscale.svd(A).s,
    "covariance": lambda A: dlscale.PCA(4, solver="covariance").fit(A).explained_variance_,
    "randomized pca": lambda A: dlscale.PCA(4, solver="randomized").fit(A).explained_variance_,
    "scores": lambda A: dlscale.PCA(4).fit_transform(A),
}


@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_answer_of_the_dense_matrix(name: str, wide: bool, form: str) -> None:
    A = sparse_matrix().T if wide else sparse_matrix()
    expected = FUNCTIONS[name](A.toarray())
    np.testing.assert_allclose(FUNCTIONS[name](A.asformat(form)), expected, rtol=1e-10, atol=1e-12)


def test_nan_is_named(tmp_path: Path) -> None:
    A = sparse_matrix().tolil()
    A[417, 3] = np.nan
    A = A.tocsr()
    for source in (A, A.tocsc(), anndata_group(tmp_path / "A.zarr", A, chunks=500)):
        with pytest.raises(NonFiniteError, match="row 417, column 3"):
            dlscale.randomized_svd(source, 3)


def run(source: Path, folder: Path, params: str, cluster: str = "threads") -> dict[str, np.ndarray]:
    (folder / "job.yaml").write_text(f"kind: pca\ninput: {{matrix: {source}}}\nparams: {params}\ncluster: {cluster}\n")
    job = dlscale.run(folder / "job.yaml", workspace=folder / "workspace")
    return {name: job.open()[name][...] for name in ("components", "mean", "singular_values")}


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_same_bits_on_any_number_of_workers(tmp_path: Path, dtype: str) -> None:
    path = anndata_group(tmp_path / "A.zarr", sparse_matrix(3000, dtype=dtype), chunks=999)
    params = "{n_components: 3, solver: randomized, block_rows: 100}"
    first = run(path, tmp_path, params)
    for n_workers in (1, 2):
        again = run(path, tmp_path, params, f"{{workers: {n_workers}, threads: 1}}")
        for name, array in first.items():
            np.testing.assert_array_equal(again[name], array)
