"""Trainings and predictions of sparse features: those of the same numbers in a dense matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import zarr
from sparse_matrices import anndata_group

import dlscale
from dlscale.errors import NonFiniteError

LABELS = np.arange(300) % 3
MODELS: dict[str, dict[str, Any]] = {
    "softmax": {"model": {"type": "softmax"}},
    "mlp": {"model": {"type": "mlp", "hidden": [8]}, "loss": {"type": "squared"}},
}
STEPS = [{"map": "log1p"}, {"select_columns": {"most_variable": 20}}, {"scale_columns": "std"}]


def run(folder: Path, **spec: Any) -> Any:
    return dlscale.run({**spec, "cluster": "threads"}, workspace=folder / "ws")


def counts(m: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    A = scipy.sparse.random_array((m, 40), density=0.07, rng=rng, format="csr")
    A.data = rng.poisson(3, A.nnz) + 1.0
    return A


def test_those_of_dense_features(tmp_path: Path) -> None:
    sources = {}
    for role, A in (("train", counts(300, 0)), ("new", counts(50, 1))):
        sources[role, "sparse"] = anndata_group(tmp_path / f"{role}-sparse.zarr", A, chunks=999)
        zarr.create_array(tmp_path / f"{role}-dense.zarr", data=A.toarray())
        sources[role, "dense"] = tmp_path / f"{role}-dense.zarr"
    zarr.create_array(tmp_path / "y.zarr", data=LABELS)
    found = {}
    for kind in ("sparse", "dense"):
        given = {"features": str(sources["train", kind]), "targets": str(tmp_path / "y.zarr"), "transforms": STEPS}
        model = run(tmp_path, kind="train", input=given, params={"epochs": 3, "batch_size": 32}, **MODELS["softmax"])
        new = {"features": str(sources["new", kind]), "model": str(model.result)}
        answer = run(tmp_path, kind="predict", input=new).open()
        found[kind] = [model.open()["parameters/layer-0/weight"][...], answer["predictions"][...]]
    for ours, dense in zip(found["sparse"], found["dense"], strict=True):
        np.testing.assert_allclose(ours, dense, rtol=1e-10, atol=1e-10)
    assert len(found["sparse"][0]) == 20


def test_a_number_that_is_none_is_named(tmp_path: Path) -> None:
    A = counts(300, 0)
    path = anndata_group(tmp_path / "A.zarr", A, chunks=999)
    zarr.create_array(tmp_path / "y.zarr", data=LABELS * 0.5)
    given = {"features": str(path), "targets": str(tmp_path / "y.zarr")}
    model = run(tmp_path, kind="train", input=given, params={"epochs": 1}, **MODELS["mlp"])
    A = A.tolil()
    A[17, 4] = np.nan
    bad = anndata_group(tmp_path / "bad.zarr", A.tocsr(), chunks=999)
    with pytest.raises(NonFiniteError, match="row 17, column 4"):
        run(tmp_path, kind="predict", input={"features": str(bad), "model": str(model.result)})
