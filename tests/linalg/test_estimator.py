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
from dlscale.errors import InputError, NonFiniteError, NumericalError, OutOfRange, SpecError


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
    np.testing.assert_allclose(ours.fit_transform(A), T, atol=1e2 * float(np.finfo(dtype).eps))
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


def spread(m: int = 300, n: int = 8, dtype: str = "f8") -> Any:
    """Data with a mean and distinct variances."""
    return gaussian(m, n, dtype) * np.geomspace(3, 0.2, n).astype(dtype) + np.dtype(dtype).type(4)


@pytest.mark.parametrize("k", [3, None, 0.9, "mle"])
@pytest.mark.parametrize("solver", ["auto", "covariance", "full"])
def test_likelihood_covariance_and_precision_are_those_of_scikit_learn(solver: Any, k: Any) -> None:
    A, other = spread(), spread(50) + 0.1
    ours, theirs = dlscale.PCA(k, solver=solver).fit(A), SklearnPCA(k, svd_solver="full").fit(A)
    assert ours.n_components_ == theirs.n_components_
    np.testing.assert_allclose(ours.get_covariance(), theirs.get_covariance(), atol=1e-12)
    np.testing.assert_allclose(ours.get_precision(), theirs.get_precision(), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(ours.score_samples(other), theirs.score_samples(other), rtol=1e-10)
    assert ours.score(other) == pytest.approx(theirs.score(other), rel=1e-12)


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
def test_the_model_is_the_normal_distribution_of_its_covariance(dtype: str) -> None:
    """log p = -x^H C^-1 x / 2 - log det(2 pi C) / 2; of circular complex numbers twice that with pi for 2 pi."""
    A = spread(500, 6, dtype)
    model = dlscale.PCA(4, whiten=True).fit(A)
    assert model.components_.dtype == np.dtype(dtype)
    C, mean = model.get_covariance(), A.mean(axis=0, dtype=np.result_type(dtype, np.float64))
    full = np.cov(A, rowvar=False)
    np.testing.assert_allclose(dlscale.PCA().fit(A).get_covariance(), full, atol=1e-4 if dtype in ("f4", "c8") else 1e-12)
    np.testing.assert_allclose(C @ model.get_precision(), np.eye(6), atol=1e-4 if dtype in ("f4", "c8") else 1e-12)
    # For the row vector x the form is x* C^-1 x', C being E x' x*.
    x, half = A - mean, 1.0 if np.dtype(dtype).kind == "c" else 0.5
    forms = np.einsum("ij,ij->i", x.conj(), np.linalg.solve(C.astype(x.dtype), x.T).T).real
    expected = -half * (forms + np.linalg.slogdet(C / half * np.pi).logabsdet)
    np.testing.assert_allclose(model.score_samples(A), expected, rtol=1e-3 if dtype in ("f4", "c8") else 1e-10)


def test_a_singular_covariance_has_no_likelihood() -> None:
    """A wide matrix whose components are all kept, and a component without variance."""
    for A, k in ((gaussian(20, 50), None), (np.hstack([spread(), np.ones((300, 1))]), None)):
        model = dlscale.PCA(k).fit(A)
        assert np.isfinite(model.get_covariance()).all()
        for ask in (model.get_precision, lambda model=model, A=A: model.score(A)):
            with pytest.raises(NumericalError, match="singular"):
                ask()


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("solver", ["covariance", "full", "randomized"])
@pytest.mark.parametrize("shape", [(400, 12), (12, 400)], ids=["tall", "wide"])
def test_fit_transform_is_u_s(shape: tuple[int, int], solver: Any, whiten: bool) -> None:
    """And not the projection of the rows, from which the randomized solver's differs by what it has not converged."""
    A = gaussian(*shape) + 3
    model = dlscale.PCA(3, solver=solver, power_iterations=0, oversampling=0, whiten=whiten)
    T = model.fit_transform(A)
    lengths = np.full(3, np.sqrt(shape[0] - 1)) if whiten else model.singular_values_
    np.testing.assert_allclose(T.conj().T @ T, np.diag(lengths**2), atol=1e-10 * lengths[0] ** 2)
    if solver != "randomized":
        U, s, _ = np.linalg.svd(A - A.mean(axis=0), full_matrices=False)
        np.testing.assert_allclose(np.abs(T), np.abs(U[:, :3] * (lengths if whiten else s[:3])), atol=1e-9)
        np.testing.assert_allclose(T, model.transform(A), atol=1e-9)


@pytest.mark.parametrize("dtype", ["c8", "c16"])
def test_complex_arrays_are_those_of_dask(dtype: str) -> None:
    A = gaussian(300, 6, dtype) + np.dtype(dtype).type(2 + 1j)
    expected = dlscale.PCA(2).fit(dask.array.from_array(A, chunks=(300, 6)))
    ours = dlscale.PCA(2).fit(A)
    np.testing.assert_allclose(ours.explained_variance_, expected.explained_variance_, rtol=1e-5)
    np.testing.assert_allclose(ours.transform(A), expected.transform(A), atol=1e-4)
    np.testing.assert_allclose(dlscale.PCA().fit(A).inverse_transform(dlscale.PCA().fit_transform(A)), A, atol=1e-4)
    with pytest.raises(ValueError, match="6 features"):
        ours.transform(A[:, :5])


def test_inputs_that_are_not_arrays(tmp_path: Path) -> None:
    A = gaussian(60, 4)
    expected = dlscale.PCA(2).fit(A).components_
    for source in (A.tolist(), np.ma.masked_array(A), np.ma.masked_array(A, mask=False)):
        np.testing.assert_array_equal(dlscale.PCA(2).fit(source).components_, expected)
    for source in (np.ma.masked_greater(A, 1), dask.array.ma.masked_greater(dask.array.from_array(A), 1)):
        with pytest.raises(InputError, match="masked"):
            dlscale.PCA(2).fit(source)


@pytest.mark.parametrize("dtype", ["f4", "c8"])
@pytest.mark.parametrize("shape", [(3000, 6), (6, 900)], ids=["tall", "wide"])
def test_transform_does_not_round_the_mean(shape: tuple[int, int], dtype: str) -> None:
    """Beside an offset of 1e7 what single precision rounds away of the mean is as large as the data."""
    A = (gaussian(*shape, "c16" if dtype == "c8" else "f8") * 10 + 1e7).astype(dtype)
    wide = A.astype(np.result_type(dtype, np.float64))
    model = dlscale.PCA(3).fit(A)
    T = (wide - wide.mean(axis=0)) @ model.components_.astype(wide.dtype).conj().T
    np.testing.assert_allclose(model.transform(A), T, atol=1e-4 * T.std())
    np.testing.assert_allclose(model.fit_transform(A), T, atol=1e-4 * T.std())


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_fraction_that_was_reported_is_exceeded(dtype: str, k: int) -> None:
    for A in (spread(dtype=dtype), gaussian(40, 40, dtype), gaussian(20, 60, dtype)):
        reached = float(dlscale.PCA().fit(A).explained_variance_ratio_.cumsum()[k - 1])
        for solver in ("auto", "covariance", "full"):
            assert dlscale.PCA(reached, solver=solver).fit(A).n_components_ == k + 1  # type: ignore[arg-type]


SCALES = {"f8": (-490, -300, 300, 500), "f4": (-95, -75, -30, 30, 60, 120)}


@pytest.mark.parametrize("solver", ["auto", "covariance", "full", "randomized"])
@pytest.mark.parametrize("shape", [(300, 8), (8, 300), (12, 12)], ids=["tall", "wide", "square"])
@pytest.mark.parametrize("dtype", SCALES)
def test_powers_of_two_change_no_bit(dtype: str, shape: tuple[int, int], solver: Any) -> None:
    """Singular values, means and scores times 2^e, all else as it was, wherever the numbers themselves are in range."""
    A = (gaussian(*shape) * np.geomspace(1, 0.1, shape[1]) + 2).astype(dtype)
    base, T = dlscale.PCA(3, solver=solver), None
    T = base.fit_transform(A)
    for e in SCALES[dtype]:
        model = dlscale.PCA(3, solver=solver)
        scores = model.fit_transform(np.ldexp(A, e))
        for name in ("components_", "explained_variance_ratio_"):
            np.testing.assert_array_equal(getattr(model, name), getattr(base, name), err_msg=f"{name} at 2^{e}")
        for name in ("singular_values_", "mean_"):
            np.testing.assert_array_equal(getattr(model, name), np.ldexp(getattr(base, name), e), err_msg=f"{name} at 2^{e}")
        np.testing.assert_array_equal(scores, np.ldexp(T, e))
        if dtype == "f8":
            np.testing.assert_array_equal(model.explained_variance_, np.ldexp(base.explained_variance_, 2 * e))
        else:  # in double precision where single has no room for squares
            expected = np.ldexp(base.explained_variance_.astype(np.float64), 2 * e)
            np.testing.assert_allclose(model.explained_variance_, expected, rtol=1e-6)


@pytest.mark.parametrize(("e", "words"), [(700, "overflow"), (-535, "too small"), (-700, "too small"), (-1000, "too small")])
def test_variances_out_of_range_are_refused_by_name(e: int, words: str) -> None:
    with pytest.raises(OutOfRange, match=f"The variances .*{words}.* power of two"):
        dlscale.PCA(2).fit(np.ldexp(gaussian(100, 5), e))
