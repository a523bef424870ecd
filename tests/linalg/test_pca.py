"""PCA by every solver against scikit-learn's full one and against spectra that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import (
    DTYPES,
    HARD,
    THREADS,
    Array,
    M,
    N,
    compute,
    departure,
    each_of,
    eps,
    gaussian,
    norm,
    spectrum,
    two_dtypes,
    wide_precision,
)
from sklearn.decomposition import PCA as SklearnPCA

import dlscale
from dlscale import gallery
from dlscale.errors import DoesNotFitError, SpecError
from dlscale.linalg.pca import PCAOptions, compute_pca, plan_pca
from dlscale.linalg.pca.kind import Solver
from dlscale.storage.matrix import ArrayMatrix

SOLVERS: tuple[Solver, ...] = ("covariance", "randomized", "krylov", "full")
EXACT: tuple[Solver, ...] = ("auto", "covariance", "full")


def run(A: Any, **options: Any) -> tuple[Any, dict[str, Array]]:
    outcome, arrays, _ = compute(plan_pca, compute_pca, A, PCAOptions(**options))
    return outcome, arrays


def correlated(m: int, n: int, dtype: str = "f8", offset: float = 0.0) -> Array:
    """Data with distinct variances, a mean in every column, and rounding only of what is stored."""
    rng = np.random.default_rng(7)
    A = rng.standard_normal((m, n)) @ (np.geomspace(3, 0.3, n)[:, None] * rng.standard_normal((n, n))) / np.sqrt(n)
    return (A + rng.standard_normal(n) + offset).astype(dtype)


@pytest.mark.parametrize("n_components", [None, 1, 5, 0.5, 0.95])
@pytest.mark.parametrize("shape", [(700, 40), (30, 200), (64, 64)], ids=["tall", "wide", "square"])
@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("whiten", [False, True])
def test_every_attribute_is_that_of_scikit_learn(
    whiten: bool, solver: Solver, shape: tuple[int, int], n_components: float | None
) -> None:
    A = correlated(*shape)
    ours = dlscale.PCA(n_components, solver=solver, whiten=whiten).fit(A)
    theirs = SklearnPCA(n_components, svd_solver="full", whiten=whiten).fit(A)
    assert ours.n_components_ == theirs.n_components_
    assert (ours.n_samples_, ours.n_features_in_) == (theirs.n_samples_, theirs.n_features_in_)
    top = theirs.singular_values_[0]
    np.testing.assert_allclose(ours.mean_, theirs.mean_, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(ours.singular_values_, theirs.singular_values_, rtol=1e-10, atol=1e-7 * top)
    np.testing.assert_allclose(ours.explained_variance_, theirs.explained_variance_, rtol=1e-10, atol=1e-13 * top**2)
    np.testing.assert_allclose(ours.explained_variance_ratio_, theirs.explained_variance_ratio_, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(ours.noise_variance_, theirs.noise_variance_, rtol=1e-9, atol=1e-13 * top**2)
    # The component of a centred matrix's zero singular value is not determined.
    k = min(ours.n_components_, min(shape) - 1)
    np.testing.assert_allclose(ours.components_[:k], theirs.components_[:k], atol=1e-9)
    np.testing.assert_allclose(ours.transform(A)[:, :k], theirs.transform(A)[:, :k], atol=1e-8 * top)
    if not whiten:  # a zero variance cannot be whitened and undone
        np.testing.assert_allclose(
            ours.inverse_transform(ours.transform(A)), theirs.inverse_transform(theirs.transform(A)), atol=1e-8
        )


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("shape", [(700, 40), (30, 200)], ids=["tall", "wide"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_known_components(solver: Solver, shape: tuple[int, int], dtype: str) -> None:
    """A matrix whose columns sum to zero, plus 10: variances s^2 / (m - 1), components V^H up to a phase."""
    m, n = shape
    s = np.geomspace(1, 0.1, 12) * 100
    made = gallery.SpectrumMatrix(shape, s, dtype=np.dtype(dtype), offset=10.0)
    outcome, arrays = run(made.rows(0, m), n_components=5, solver=solver, scores=True, block_rows=64)
    small = float(np.finfo(dtype).eps)
    assert outcome.certificate.passed, outcome.certificate
    np.testing.assert_allclose(arrays["explained_variance"], s[:5] ** 2 / (m - 1), rtol=1e3 * small)
    np.testing.assert_allclose(arrays["singular_values"], s[:5], rtol=1e3 * small)
    np.testing.assert_allclose(arrays["explained_variance_ratio"], s[:5] ** 2 / (s**2).sum(), rtol=1e3 * small)
    np.testing.assert_allclose(arrays["mean"], np.full(n, 10.0), rtol=1e2 * small)
    noise = (s[5:] ** 2).sum() / (m - 1) / (min(m, n) - 5)
    np.testing.assert_allclose(arrays["noise_variance"], noise, rtol=1e4 * small)
    V = wide_precision(arrays["components"])
    np.testing.assert_allclose(np.abs((V @ made.vh()[:5].conj().T).diagonal()), 1, rtol=1e3 * small)
    assert departure(V.conj().T) < 1e2 * small
    scores = wide_precision(arrays["scores"])
    np.testing.assert_allclose(scores, (wide_precision(made.rows(0, m)) - 10) @ V.conj().T, atol=1e4 * small * s[0] / np.sqrt(m))
    assert arrays["components"].dtype == arrays["scores"].dtype == arrays["mean"].dtype == np.dtype(dtype)


@pytest.mark.parametrize("shape", [(700, 40), (30, 200)], ids=["tall", "wide"])
@pytest.mark.parametrize("solver", ["auto", *SOLVERS])
def test_offset_of_1e8(solver: Solver, shape: tuple[int, int]) -> None:
    """The mean is 1e8 standard deviations away: variances within 1e-6 of those of the stored numbers."""
    A = correlated(*shape, offset=1e8)
    # The stored numbers differ from what was added up by the rounding of the sum; the truth is of the stored ones.
    exact = (A - 1e8) - (A - 1e8).mean(axis=0)
    variance = np.linalg.svd(exact, compute_uv=False)[:3] ** 2 / (shape[0] - 1)
    outcome, arrays = run(A, n_components=3, solver=solver, block_rows=50, power_iterations=12)
    assert outcome.certificate.passed
    np.testing.assert_allclose(arrays["explained_variance"], variance, rtol=1e-6)
    np.testing.assert_allclose(arrays["mean"], A.mean(axis=0), rtol=1e-15 * 10)


@pytest.mark.parametrize("shape", [(700, 40), (30, 200)], ids=["tall", "wide"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", ["f4", "c8"])
def test_single_precision_with_an_offset(dtype: str, solver: Solver, shape: tuple[int, int]) -> None:
    """The mean is 1e3 standard deviations away; centring the stored numbers in double precision is the truth."""
    A = correlated(*shape, offset=1e3).astype(dtype)
    if dtype == "c8":
        A = A * np.complex64(0.6 + 0.8j)
    exact = wide_precision(A) - wide_precision(A).mean(axis=0)
    variance = np.linalg.svd(exact, compute_uv=False)[:3] ** 2 / (shape[0] - 1)
    _, arrays = run(A, n_components=3, solver=solver, block_rows=50, power_iterations=12)
    np.testing.assert_allclose(arrays["explained_variance"], variance, rtol=1e-5)


@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("name", sorted(HARD.keys() - {"1 x 1", "1 row"}))
@pytest.mark.parametrize("solver", ["auto", *SOLVERS])
def test_hard_matrices(solver: Solver, name: str, dtype: str) -> None:
    """Total variance, orthonormal components and a certificate, whatever the rank."""
    A = HARD[name](dtype)
    k = min(5, *A.shape)
    outcome, arrays = run(A, n_components=k, solver=solver, scores=True, block_rows=64)
    assert outcome.certificate.passed, outcome.certificate
    V = arrays["components"].conj().T
    assert departure(V) < 60 * k * eps(A)
    centred = wide_precision(A) - wide_precision(A).mean(axis=0)
    truth = np.linalg.svd(centred, compute_uv=False)[:k]
    # Variances are what is computed: singular values have half of their digits, and centring costs those of the mean.
    room = 100 * N * eps(A) * max(norm(centred), eps(A) * norm(A)) ** 2 + (10 * eps(A) * norm(A)) ** 2
    assert (wide_precision(arrays["singular_values"]) ** 2 <= truth**2 * (1 + 100 * N * eps(A)) + room).all()
    if solver not in ("randomized", "krylov"):
        assert (wide_precision(arrays["singular_values"]) ** 2 >= truth**2 * (1 - 100 * N * eps(A)) - room).all()
    for name, array in arrays.items():
        assert np.isfinite(array).all(), name


@pytest.mark.parametrize("shape", [(700, 40), (30, 200)], ids=["tall", "wide"])
@pytest.mark.parametrize("solver", ["auto", *SOLVERS])
def test_whitened_scores_have_unit_variance(solver: Solver, shape: tuple[int, int]) -> None:
    """T'T = (m - 1) I."""
    _, arrays = run(correlated(*shape), n_components=4, solver=solver, whiten=True, scores=True, block_rows=64)
    T = arrays["scores"]
    np.testing.assert_allclose(T.T @ T / (shape[0] - 1), np.eye(4), atol=1e-11)
    np.testing.assert_allclose(T.mean(axis=0), 0, atol=1e-11)


@pytest.mark.parametrize("shape", [(700, 40), (30, 200)], ids=["tall", "wide"])
@pytest.mark.parametrize("solver", ["auto", *SOLVERS])
def test_signs_are_those_of_scikit_learn(solver: Solver, shape: tuple[int, int]) -> None:
    """The largest entry of each component is positive."""
    _, arrays = run(correlated(*shape), n_components=6, solver=solver, block_rows=37)
    V = arrays["components"]
    assert (V[np.arange(6), np.abs(V).argmax(axis=1)] > 0).all()


def test_smallest_variances_need_and_get_the_full_solver() -> None:
    """Condition 1e8: the covariance matrix holds variances to 1e-16 of the largest only; ``auto`` sees it and goes on."""
    truth = gallery.geometric(20, 1e8)
    A = spectrum(truth, 500, 20)
    outcome, arrays = run(A, solver="auto")
    np.testing.assert_allclose(arrays["singular_values"], truth, rtol=1e-6)
    assert any("exact SVD" in note for note in outcome.notes)
    outcome, _ = run(A, solver="covariance")
    assert any("resolution" in note for note in outcome.notes)


def test_a_covariance_matrix_that_does_not_fit_is_refused_with_what_would() -> None:
    A = ArrayMatrix(np.broadcast_to(np.zeros(1), (100_000, 100_000)))
    with pytest.raises(DoesNotFitError, match=r"^covariance: One worker needs .* needs a whole number of n_components"):
        plan_pca(A, PCAOptions(n_components=0.95), THREADS)
    assert plan_pca(A, PCAOptions(n_components=50), THREADS).method == "randomized"


@pytest.mark.parametrize("k", [2, 19])
@pytest.mark.parametrize("solver", SOLVERS)
def test_error_estimates(solver: Solver, k: int) -> None:
    """||A - mean - T V|| within a factor 3, whether a few eigenvectors of a covariance matrix were computed or all."""
    A = spectrum(gallery.power(30), 500, 30, offset=4.0)
    outcome, arrays = run(A, n_components=k, solver=solver, scores=True)
    E = A - 4.0 - arrays["scores"] @ arrays["components"]
    assert norm(E) / 3 <= outcome.estimates["spectral_error"] <= 3 * norm(E)
    assert np.linalg.norm(E) / 3 <= outcome.estimates["frobenius_error"] <= 3 * np.linalg.norm(E)


def test_constant_data_explain_nothing() -> None:
    A = HARD["constant columns"]("f8")
    for options in ({"n_components": 2}, {"n_components": 0.9}, {}):
        outcome, arrays = run(A, **options)
        assert outcome.certificate.passed
        assert (arrays["explained_variance_ratio"] == 0).all()


def test_blocks_do_not_change_the_answer() -> None:
    """One row a block is an extreme that centring block by block must survive."""
    A = correlated(150, 10, offset=100.0)
    whole, rows = (run(A, n_components=4, block_rows=b, solver="covariance")[1] for b in (150, 1))
    np.testing.assert_allclose(rows["explained_variance"], whole["explained_variance"], rtol=1e-12)
    np.testing.assert_allclose(rows["components"], whole["components"], atol=1e-11)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_components": 41}, "between 1 and 40"),
        ({"n_components": 0}, "n_components: got 0 .*an integer of at least 1"),
        ({"n_components": 1.5}, "got 1.5 .*a fraction of the variance between 0 and 1"),
        ({"n_components": 1.0}, "got 1.0 .*a fraction of the variance between 0 and 1"),
        ({"n_components": 0.0}, "got 0.0 .*a fraction of the variance between 0 and 1"),
        ({"solver": "magic"}, "solver: got 'magic' .*auto, covariance, randomized, krylov or full"),
        ({"solver": "randomized"}, "whole number"),
        ({"solver": "randomized", "n_components": 0.5}, "whole number"),
        ({"solver": "krylov"}, "params.solver krylov needs a whole number"),
        ({"n_components": 2, "tolerance": 0.1}, "not hold both"),
    ],
)
def test_options_are_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        run(np.ones((M, N)), **options)


def test_one_row_has_no_variance() -> None:
    with pytest.raises(SpecError, match="at least 2 rows"):
        run(gaussian(1, 7), n_components=1)


@pytest.mark.parametrize("mean", [1.0, 3.0, 9.0, 30.0])
@pytest.mark.parametrize("solver", EXACT)
def test_means_in_many_columns_cost_no_digits(solver: Solver, mean: float) -> None:
    """In n columns with means of a few deviations, products of what is not centred lose the digits of n such squares."""
    A = np.random.default_rng(0).standard_normal((1000, 50)) + mean
    C = A - A.mean(axis=0)
    truth = np.sqrt(np.linalg.eigvalsh(C.T @ C)[::-1])[:3]
    outcome, arrays = run(A, n_components=3, solver=solver)
    assert outcome.certificate.passed
    np.testing.assert_allclose(arrays["singular_values"], truth, rtol=100 * float(np.finfo(float).eps))


@pytest.mark.parametrize(("dtype", "ratio"), [("f4", 1e-6), ("c8", 1e-6), ("f8", 1e-13), ("c16", 1e-13)])
def test_what_a_covariance_matrix_resolves_depends_on_the_precision(dtype: str, ratio: float) -> None:
    """Below it ``auto`` goes on to the exact SVD and says so, and ``covariance`` says so."""
    truth = np.geomspace(1, np.sqrt(ratio), 12)
    A = spectrum(truth, 600, 12, dtype=dtype)
    outcome, arrays = run(A, solver="auto")
    assert any("exact SVD" in note for note in outcome.notes)
    np.testing.assert_allclose(arrays["singular_values"], truth, rtol=1e-2)
    assert any("resolution" in note for note in run(A, solver="covariance")[0].notes)
    coarse = spectrum(np.geomspace(1, 0.1, 12), 600, 12, dtype=dtype)
    assert not any("resolution" in note for note in run(coarse, solver="auto")[0].notes)


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_equal_rows_have_no_variance_at_all(solver: Solver, dtype: str) -> None:
    for row in (np.full(8, 0.1), np.linspace(-1, 1, 8) * 1e6 / 3):
        outcome, arrays = run(np.tile(row, (500, 1)).astype(dtype), n_components=2, solver=solver, block_rows=64)
        assert outcome.certificate.passed
        assert not arrays["explained_variance"].any()
