"""The estimator: scikit-learn's contract, by scikit-learn's own checks, and what it takes beyond arrays."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import zarr
from helpers import HARD, gaussian, store
from sklearn.base import clone
from sklearn.decomposition import PCA as SklearnPCA
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import dlscale
from dlscale.errors import NonFiniteError, SpecError


@parametrize_with_checks(
    [
        dlscale.PCA(),
        dlscale.PCA(n_components=2),
        dlscale.PCA(n_components=1, solver="randomized"),
        dlscale.PCA(solver="full"),
        dlscale.PCA(n_components=0.9, solver="covariance", whiten=True),
    ]
)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_transform_and_back(dtype: str, whiten: bool) -> None:
    A = gaussian(300, 8, dtype) + np.dtype(dtype).type(5)
    ours = dlscale.PCA(whiten=whiten).fit(A)
    T = ours.transform(A)
    assert T.dtype == A.dtype
    np.testing.assert_allclose(ours.inverse_transform(T), A, atol=1e2 * float(np.finfo(dtype).eps) * 10)
    np.testing.assert_array_equal(ours.fit_transform(A), T)
    np.testing.assert_allclose(
        T, SklearnPCA(whiten=whiten, svd_solver="full").fit(A).transform(A), atol=1e4 * float(np.finfo(dtype).eps)
    )


def test_dask_zarr_and_paths(tmp_path: Path) -> None:
    """The same answer from wherever the matrix is."""
    A = gaussian(300, 8)
    expected = dlscale.PCA(3).fit(A)
    path = store(tmp_path / "A.zarr", A, chunks=(100, 5))
    for source in (dask.array.from_array(A, chunks=(70, 3)), zarr.open_array(path, mode="r"), str(path), path):
        ours = dlscale.PCA(3).fit(source)
        np.testing.assert_allclose(ours.components_, expected.components_, atol=1e-12)
        np.testing.assert_allclose(ours.transform(source), expected.transform(A), atol=1e-12)


def test_columns_of_another_number_are_refused(tmp_path: Path) -> None:
    fitted = dlscale.PCA(3).fit(gaussian(300, 8))
    path = store(tmp_path / "A.zarr", gaussian(30, 9), chunks=(10, 9))
    for source in (gaussian(30, 9), str(path)):
        with pytest.raises(ValueError, match="8"):
            fitted.transform(source)


def test_not_fitted() -> None:
    with pytest.raises(NotFittedError):
        dlscale.PCA(2).transform(np.ones((3, 3)))


def test_clone_pickle_pipeline_and_names() -> None:
    A = gaussian(200, 6)
    estimator = clone(dlscale.PCA(2, solver="randomized", seed=4))
    assert estimator.get_params()["seed"] == 4
    fitted = pickle.loads(pickle.dumps(estimator.fit(A)))
    np.testing.assert_array_equal(fitted.transform(A), estimator.transform(A))
    assert list(fitted.get_feature_names_out()) == ["pca0", "pca1"]
    assert make_pipeline(StandardScaler(), dlscale.PCA(2)).fit_transform(A).shape == (200, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(value: float) -> None:
    A = gaussian(300, 8)
    A[217, 5] = value
    with pytest.raises(NonFiniteError, match="row 217, column 5"):
        dlscale.PCA(2).fit(A)
    with pytest.raises(NonFiniteError, match="row 217, column 5"):
        dlscale.PCA(2).fit(gaussian(300, 8)).transform(A)


def test_parameters_are_refused_at_fit() -> None:
    with pytest.raises(SpecError, match="n_components"):
        dlscale.PCA(9).fit(gaussian(300, 8))
    with pytest.raises(SpecError, match="solver"):
        dlscale.PCA(2, solver="arpack").fit(gaussian(300, 8))  # type: ignore[arg-type]


def test_rank_deficient_data_can_be_whitened() -> None:
    T = dlscale.PCA(whiten=True).fit_transform(HARD["rank 11"]("f8"))
    assert np.isfinite(T).all()
