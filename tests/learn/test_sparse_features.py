"""Trainings and predictions of sparse features: those of the same numbers in a dense matrix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import zarr
from sparse_matrices import anndata_group

import dlscale
from dlscale.engine.programs import run_here
from dlscale.errors import InputError, NonFiniteError
from dlscale.learn.training import data
from dlscale.learn.training.loop import train
from dlscale.storage.matrix import ArrayMatrix, Dense
from tests.learn import training_programs as programs

LABELS = np.arange(300) % 3
MODELS: dict[str, dict[str, Any]] = {
    "softmax": {"model": {"type": "softmax"}},
    "mlp": {"model": {"type": "mlp", "hidden": [8]}, "loss": {"type": "squared"}},
}
STEPS = [{"map": "log1p"}, {"select_columns": {"most_variable": 20}}, {"scale_columns": "std"}]


@pytest.fixture(params=["kept in memory with its zeros", "compressed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a training has its rows: small matrices are kept as dense ones."""
    if request.param == "compressed":
        monkeypatch.setattr(data, "SMALL_BYTES", 0)
    return str(request.param)


def run(folder: Path, **spec: Any) -> Any:
    return dlscale.run({**spec, "cluster": "threads"}, workspace=folder / "ws")


def counts(m: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    A = scipy.sparse.random_array((m, 40), density=0.07, rng=rng, format="csr")
    A.data = rng.poisson(3, A.nnz) + 1.0
    return A


@pytest.mark.parametrize("steps", [[], STEPS, [{"map": "sqrt"}, {"center": True}]])
def test_those_of_dense_features(tmp_path: Path, way: str, steps: list[dict[str, Any]]) -> None:
    sources = {}
    for role, A in (("train", counts(300, 0)), ("new", counts(50, 1))):
        sources[role, "sparse"] = anndata_group(tmp_path / f"{role}-sparse.zarr", A, chunks=999)
        zarr.create_array(tmp_path / f"{role}-dense.zarr", data=A.toarray())
        sources[role, "dense"] = tmp_path / f"{role}-dense.zarr"
    zarr.create_array(tmp_path / "y.zarr", data=LABELS)
    found = {}
    for kind in ("sparse", "dense"):
        given = {"features": str(sources["train", kind]), "targets": str(tmp_path / "y.zarr"), "transforms": steps}
        model = run(tmp_path, kind="train", input=given, params={"epochs": 3, "batch_size": 32}, **MODELS["softmax"])
        new = {"features": str(sources["new", kind]), "model": str(model.result)}
        answer = run(tmp_path, kind="predict", input=new).open()
        found[kind] = [model.open()["parameters/layer-0/weight"][...], answer["predictions"][...]]
    for ours, dense in zip(found["sparse"], found["dense"], strict=True):
        np.testing.assert_allclose(ours, dense, rtol=1e-10, atol=1e-10)
    assert len(found["sparse"][0]) == (20 if steps == STEPS else 40)


TASKS: dict[str, dict[str, Any]] = {
    "adam": {"model": {"type": "softmax"}, "optimizer": {"type": "adam"}, "epochs": 3},
    "lbfgs": {"model": {"type": "softmax"}, "optimizer": {"type": "lbfgs"}, "batch_size": None},
    "proximal": {"model": {"type": "softmax"}, "optimizer": {"type": "proximal"}, "batch_size": None},
    "kfac": {"model": {"type": "softmax"}, "optimizer": {"type": "kfac"}, "epochs": 2},
    "decorrelation": {"regularization": {"decorrelation": 0.1}, "epochs": 2},
}


@pytest.mark.parametrize("name", TASKS)
def test_compressed_rows_are_learned_from_as_dense_ones(tmp_path: Path, name: str) -> None:
    """Rows with weights, one column of which is in all rows, far from zero."""
    sparse, weights = programs.sparse_rows(), np.random.default_rng(1).gamma(0.5, 3.0, (programs.N_ROWS, 1))
    given = replace(programs.task(tmp_path, log_rows=False, **TASKS[name]), weights=ArrayMatrix(weights))
    found = {}
    for kind, features in (("sparse", sparse), ("dense", Dense(sparse))):
        run_here(train, (replace(given, features=features, directory=str(tmp_path / kind / "checkpoint")),), token="t")
        found[kind] = programs.learned(tmp_path / kind)
    for key, dense in found["dense"].items():
        if key.startswith(("parameters/", "history/loss")):
            np.testing.assert_allclose(found["sparse"][key], dense, rtol=1e-10, atol=1e-10, err_msg=key)


def test_weights_for_rows_are_those_of_dense_ones(tmp_path: Path, way: str) -> None:
    found = []
    for kind in ("sparse", "dense"):
        given = {}
        for role, A in (("features", counts(300, 0)), ("target_features", counts(200, 1) * 1.2)):
            path = tmp_path / f"{role}-{kind}.zarr"
            if kind == "sparse":
                anndata_group(path, scipy.sparse.csr_array(A), chunks=999)
            else:
                zarr.create_array(path, data=A.toarray())
            given[role] = str(path)
        found.append(run(tmp_path, kind="covariate_weights", input=given).open()["weights"][...])
    np.testing.assert_allclose(*found, rtol=1e-8)


def test_what_spoils_a_training_of_compressed_rows_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SMALL_BYTES", 0)
    zarr.create_array(tmp_path / "y.zarr", data=LABELS)
    cases: dict[str, tuple[float, type[Exception], str]] = {
        "features": (np.nan, NonFiniteError, "input.features .*: nan at row 17, column 4"),
        "validation_features": (-np.inf, NonFiniteError, "input.validation_features .*: -inf at row 17, column 4"),
        "large": (1e300, InputError, r"1e\+300 at row 17, column 4 is larger than float32 holds"),
    }
    for name, (value, error, words) in cases.items():
        A = counts(300, 0).tolil()
        A[17, 4] = value
        bad, good = (anndata_group(tmp_path / f"{name}-{i}.zarr", B, chunks=999) for i, B in enumerate([A.tocsr(), counts(300, 0)]))
        given = {"features": str(good if name == "validation_features" else bad), "targets": str(tmp_path / "y.zarr")}
        if name == "validation_features":
            given |= {"validation_features": str(bad), "validation_targets": str(tmp_path / "y.zarr")}
        params = {"epochs": 1, "dtype": "float32" if name == "large" else None}
        with pytest.raises(error, match=words):
            run(tmp_path, kind="train", input=given, params=params, **MODELS["softmax"])


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
