"""Jobs of kind predict with the results of regressions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from helpers import Array, gaussian, store
from sklearn.metrics import mean_squared_error, r2_score

import dlscale
from dlscale.batch import run as jobs
from dlscale.errors import InputError, SpecError


def saved(folder: Path, name: str, array: Array) -> str:
    return str(store(folder / name, array, chunks=(50, *array.shape[1:]), compressors=None))


@pytest.fixture(params=["ridge", "kernel_ridge"])
def fitted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Any]:
    """The result of a job, and what predicts in Python."""
    X, Y = gaussian(200, 4), gaussian(200, 2, seed=1) + gaussian(200, 1)
    first, second = ("matrix", "rhs") if request.param == "ridge" else ("features", "targets")
    inputs = {first: saved(tmp_path, "x.zarr", X), second: saved(tmp_path, "y.zarr", Y)}
    job = {"kind": request.param, "input": inputs, "params": {"penalties": 0.5}, "cluster": "threads"}
    jobs.run({**job, "output": str(tmp_path / "model.zarr")}, workspace=tmp_path / "ws")
    if request.param == "ridge":
        model = dlscale.ridge(X, Y, penalties=0.5)
        return str(tmp_path / "model.zarr"), lambda new: new @ model.coefficients + model.intercept
    return str(tmp_path / "model.zarr"), dlscale.kernel_ridge(X, Y, penalties=0.5).predict


def predict(folder: Path, model: str, **more: Array) -> Any:
    inputs = {role: saved(folder, f"{role}.zarr", array) for role, array in more.items()}
    job = {"kind": "predict", "input": {**inputs, "model": model}, "params": {"block_rows": 40}, "cluster": "threads"}
    return jobs.run(job, workspace=folder / "ws")


def test_predictions_are_those_of_python_and_are_judged(fitted: tuple[str, Any], tmp_path: Path) -> None:
    uri, function = fitted
    new, known = gaussian(130, 4, seed=2), gaussian(130, 2, seed=3) + 1e6
    result = predict(tmp_path, uri, features=new, targets=known)
    found = np.asarray(result.open()["predictions"])
    np.testing.assert_allclose(found, function(new), atol=1e-8)
    assert result.certificate is not None
    assert result.certificate["passed"]
    told = zarr.open_group(result.folder / "result.zarr", mode="r").attrs["dlscale"]["estimates"]
    # Of both targets together.
    assert told["mean_squared_error"] == pytest.approx(2 * mean_squared_error(known, found))
    assert told["r2"] == pytest.approx(r2_score(known, found, multioutput="variance_weighted"), rel=1e-8)


def test_rows_and_targets_that_do_not_fit(fitted: tuple[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="must have 4 columns, like what was fitted; got 3"):
        predict(tmp_path, fitted[0], features=gaussian(20, 3))
    with pytest.raises(SpecError, match="must have 21 rows and 2 columns; got 21 x 1"):
        predict(tmp_path / "other", fitted[0], features=gaussian(21, 4), targets=gaussian(21, 1))


def test_a_result_that_lost_its_coefficients(tmp_path: Path) -> None:
    inputs = {"matrix": saved(tmp_path, "x.zarr", gaussian(50, 2)), "rhs": saved(tmp_path, "y.zarr", gaussian(50, 1))}
    output = tmp_path / "model.zarr"
    jobs.run({"kind": "ridge", "input": inputs, "cluster": "threads", "output": str(output)}, workspace=tmp_path / "ws")
    zarr.open_array(output / "intercept", mode="r+")[:] = np.nan
    with pytest.raises(InputError, match="finite coefficients"):
        predict(tmp_path / "new", str(output), features=gaussian(20, 2))
