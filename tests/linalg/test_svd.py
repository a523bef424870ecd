"""Singular value decompositions of hard matrices, judged by backward error and orthogonality in units of n and eps."""

from __future__ import annotations

from typing import Any

import dask
import dask.array
import numpy as np
import pytest
from helpers import (
    HARD,
    Array,
    M,
    N,
    backward_error,
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
from sklearn.utils.extmath import randomized_svd as sklearn_randomized_svd
from sklearn.utils.extmath import svd_flip

import dlscale
from dlscale import gallery
from dlscale.errors import SpecError
from dlscale.linalg.svd import SVDOptions, compute_svd, plan_svd, subspace
from dlscale.linalg.svd.kind import Method

METHODS: tuple[Method, ...] = ("randomized", "krylov", "streaming", "exact")


def run(A: Array, **options: Any) -> tuple[Any, Array, Array, Array]:
    outcome, arrays, _ = compute(plan_svd, compute_svd, A, SVDOptions(**options))
    return outcome, arrays["u"], arrays["s"], arrays["vh"]


def true_values(A: Array) -> Array:
    return np.asarray(np.linalg.svd(wide_precision(A), compute_uv=False))


@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("name", HARD)
def test_exact(name: str, dtype: str) -> None:
    """||A - U S V^H|| <= c n eps ||A||, and orthonormal factors, on every matrix; many small blocks."""
    A = HARD[name](dtype)
    n = min(A.shape)
    outcome, u, s, vh = run(A, method="exact", block_rows=64)
    assert u.dtype == vh.dtype == A.dtype
    assert s.dtype == np.zeros(1, dtype).real.dtype
    assert outcome.certificate.passed, outcome.certificate
    assert backward_error(A, u * s, vh) < 5 * n * eps(A)
    assert departure(u) < 20 * n * eps(A)
    assert departure(vh.conj().T) < 20 * n * eps(A)
    assert np.abs(s - true_values(A)).max() <= 5 * n * eps(A) * norm(A)
    assert (np.diff(s) <= 0).all()


@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("method", ["randomized", "krylov", "streaming"])
def test_factors_are_orthonormal_whatever_the_matrix(method: Method, name: str, dtype: str) -> None:
    A = HARD[name](dtype)
    k = min(5, *A.shape)
    outcome, u, s, vh = run(A, n_components=k, method=method, block_rows=64)
    assert outcome.certificate.passed, outcome.certificate
    assert departure(u) < 40 * k * eps(A)
    assert departure(vh.conj().T) < 40 * k * eps(A)
    assert u.dtype == vh.dtype == A.dtype
    # A projection never exceeds the matrix; one read resolves half of the digits.
    room = eps(A) ** 0.5 if method == "streaming" else 50 * eps(A)
    assert (s <= true_values(A)[:k] + room * norm(A)).all()


@pytest.mark.parametrize("name", ["condition 1e8", "condition 1e15", "rank 11", "all zeros", "equal and zero columns"])
@pytest.mark.parametrize("method", METHODS)
def test_orthogonality_in_double_precision(method: Method, name: str) -> None:
    """||I - U'U|| and ||I - V'V|| under 1e-12, with every singular vector that there is."""
    A = HARD[name]("f8")
    _, u, _, vh = run(A, n_components=N, method=method, block_rows=100)
    assert max(departure(u), departure(vh.T)) < 1e-12


@pytest.mark.parametrize("shape", [(2000, 200), (200, 2000)], ids=["tall", "wide"])
def test_slow_decay_with_defaults(shape: tuple[int, int]) -> None:
    """sigma_i = i^-1/2, on which methods without power iterations are wrong by 30%."""
    A = gallery.SpectrumMatrix(shape, gallery.power(200)).rows(0, shape[0])
    s = dlscale.randomized_svd(A, 10).s
    assert np.abs(s / gallery.power(10) - 1).max() < 1e-3


@pytest.mark.parametrize("q", [0, 1, 2, 4])
@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_no_less_accurate_than_scikit_learn_and_dask(q: int, decay: float) -> None:
    """With equal power iterations and oversampling; the mean over seeds, as all are random."""
    truth = gallery.power(200, decay)
    A = spectrum(truth, 1000, 200)
    ours, theirs, dasks = [], [], []
    for seed in range(4):
        u, s, vh = dlscale.randomized_svd(A, 10, power_iterations=q, seed=seed)
        ours.append((np.abs(s - truth[:10]).max(), norm(A - (u * s) @ vh)))
        u, s, vh = sklearn_randomized_svd(A, 10, n_oversamples=10, n_iter=q, random_state=seed)
        theirs.append((np.abs(s - truth[:10]).max(), norm(A - (u * s) @ vh)))
        lazy = dask.array.linalg.svd_compressed(
            dask.array.from_array(A, chunks=(500, 200)), 10, n_power_iter=q, n_oversamples=10, seed=seed
        )
        u, s, vh = dask.compute(*lazy, scheduler="synchronous")
        dasks.append((np.abs(s - truth[:10]).max(), norm(A - (u * s) @ vh)))
    assert (np.mean(ours, axis=0) <= np.mean(theirs, axis=0) * 1.02).all()
    assert (np.mean(ours, axis=0) <= np.mean(dasks, axis=0) * 1.02).all()


def test_krylov_is_more_accurate_for_the_same_reads() -> None:
    truth = gallery.power(300)
    A = spectrum(truth, 3000, 300)
    plain = dlscale.randomized_svd(A, 10, power_iterations=2).s
    krylov = dlscale.randomized_svd(A, 10, power_iterations=2, method="krylov").s
    assert np.abs(krylov - truth[:10]).max() < np.abs(plain - truth[:10]).max() / 3


@pytest.mark.parametrize("tolerance", [0.3, 1e-2, 1e-4])
@pytest.mark.parametrize("method", ["randomized", "exact"])
def test_tolerance(method: Method, tolerance: float) -> None:
    """||A - U S V^H|| <= tolerance ||A||, and no more components than an exact SVD needs, or nearly."""
    truth = np.geomspace(5.0, 5e-6, 150)
    A = spectrum(truth, 900, 150)
    outcome, u, s, vh = run(A, tolerance=tolerance, method=method, block_rows=100)
    needed = int((truth > tolerance * truth[0]).sum())
    assert norm(A - (u * s) @ vh) <= tolerance * truth[0] * (1 + 1e-6)
    assert needed <= len(s) <= needed + 1
    assert outcome.certificate.passed


def test_tolerance_without_a_gap_ends_with_everything() -> None:
    A = spectrum(gallery.flat(100), 300, 100)
    _, u, s, vh = run(A, tolerance=1e-3, power_iterations=1)
    assert len(s) == 100
    assert backward_error(A, u * s, vh) < 1e-12


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (64, 64)], ids=["tall", "wide", "square"])
@pytest.mark.parametrize("method", METHODS)
def test_signs_are_those_of_scikit_learn(method: Method, shape: tuple[int, int], dtype: str) -> None:
    """svd_flip decides by the columns of U: their largest entry is positive."""
    A = gaussian(*shape, dtype)
    _, u, _, vh = run(A, n_components=5, method=method, block_rows=37)
    flipped_u, flipped_vh = svd_flip(u.copy(), vh.copy())
    np.testing.assert_array_equal(u, flipped_u)
    np.testing.assert_array_equal(vh, flipped_vh)


@pytest.mark.parametrize("method", METHODS)
def test_phases_of_complex_vectors(method: Method) -> None:
    """The entry of largest modulus of each column of U is real and positive."""
    _, u, _, _ = run(gaussian(300, 40, "c16"), n_components=5, method=method, block_rows=37)
    peaks = u[np.abs(u).argmax(axis=0), np.arange(5)]
    assert (peaks.real > 0).all()
    assert np.abs(peaks.imag).max() < 1e-15


@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 2), (64, 64), (65, 64), (129, 40), (40, 129), (128, 1), (1, 300)], ids=str)
def test_shapes(shape: tuple[int, int], dtype: str) -> None:
    """One block, one row over a block, one row and one column, at a block of 64 rows."""
    A = gaussian(*shape, dtype)
    k = min(shape)
    for method in METHODS:
        _, u, s, vh = run(A, n_components=k, method=method, block_rows=64)
        assert u.shape == (shape[0], k)
        assert vh.shape == (k, shape[1])
        # One read has half of the digits.
        assert backward_error(A, u * s, vh) < (10 * eps(A) ** 0.5 if method == "streaming" else 100 * k * eps(A))


@pytest.mark.parametrize("dtype", ["f8", "c16"])
@pytest.mark.parametrize(
    ("values", "n_single"),
    [(gallery.power(60), 4), (0.9 ** np.arange(60), 3), (0.5 ** np.arange(60), 1)],
    ids=["slow", "fast", "very fast"],
)
def test_single_precision_iterations_cost_no_accuracy(
    values: Array, n_single: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and vectors are as near to the exact ones as those of iterations in double precision."""
    A, k, products = spectrum(values, 300, 60, dtype=dtype), 8, []
    product = subspace.NormalProduct.update

    def counted(self: Any, state: Any, block: Array, first_row: int) -> Any:
        products.append(self.W.dtype)
        return product(self, state, block, first_row)

    monkeypatch.setattr(subspace.NormalProduct, "update", counted)
    exact = np.linalg.svd(A, full_matrices=False)

    def distances() -> tuple[Array, Array, Array]:
        outcome, u, s, vh = run(A, n_components=k)
        assert outcome.certificate.passed
        assert departure(u) < 1e-13
        # sin of the angle between each vector and the exact one
        return (
            np.abs(s / exact.S[:k] - 1),
            norm_of_rows(u.conj().T - np.sum(u.conj() * exact.U[:, :k], axis=0)[:, None] * exact.U[:, :k].conj().T),
            norm_of_rows(vh - np.sum(vh * exact.Vh[:k].conj(), axis=1)[:, None] * exact.Vh[:k]),
        )

    single = distances()
    assert products.count(np.dtype(dtype.replace("16", "8") if dtype == "c16" else "f4")) == n_single
    monkeypatch.setattr(subspace, "half_precision", lambda dtype: dtype)
    double = distances()
    for with_single, with_double in zip(single, double, strict=True):
        assert (with_single <= 1.1 * with_double + 1e-10).all()


def norm_of_rows(A: Array) -> Array:
    return np.asarray(np.linalg.norm(A, axis=1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_components": 41}, "between 1 and 40"),
        ({"n_components": 0}, "n_components: got 0 .*an integer of at least 1"),
        ({}, "exactly one of n_components and tolerance"),
        ({"n_components": 3, "tolerance": 0.1}, "exactly one"),
        ({"tolerance": 1.5}, "between 0 and 1"),
        ({"tolerance": 0.1, "method": "streaming"}, "tolerance"),
        ({"n_components": 3, "method": "magic"}, "method: got 'magic' .*randomized, krylov, streaming or exact"),
        ({"n_components": 3, "oversampling": -1}, "oversampling"),
        ({"n_components": 3, "power_iterations": -1}, "power_iterations"),
    ],
)
def test_options_are_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        run(np.ones((M, N)), **options)


def test_same_seed_same_bits_another_seed_other_bits() -> None:
    A = HARD["slow decay"]("f8")
    one, again, other = (run(A, n_components=5, seed=seed, power_iterations=0)[1] for seed in (3, 3, 4))
    assert one.tobytes() == again.tobytes()
    assert one.tobytes() != other.tobytes()


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("rows", ["zeros", "one row", "unit vectors"])
def test_many_equal_rows(rows: str, k: int) -> None:
    """Equal rows round every sum to the same side; few components of them are certified all the same."""
    rng = np.random.default_rng(3)
    A = rng.standard_normal((3000, 20))
    if rows == "unit vectors":
        A = np.eye(20)[np.minimum(rng.geometric(0.5, len(A)) - 1, 19)]
    else:
        A[rng.random(len(A)) < 0.9] = 0 if rows == "zeros" else rng.standard_normal(20)
    for method in METHODS:
        outcome, u, _, _ = run(A, n_components=k, method=method)
        assert outcome.certificate.passed, outcome.certificate
        assert departure(u) < 1e-12


def test_a_tolerance_behind_a_plateau_is_met() -> None:
    """More equal values than the first width, and then far smaller ones."""
    s = np.concatenate([np.full(90, 1.0), np.full(60, 1e-9)])
    A = spectrum(s, 400, 150)
    outcome, u, found, vh = run(A, tolerance=1e-6, power_iterations=1)
    assert outcome.certificate.passed
    assert norm(A - (u * found) @ vh) <= 1e-6
    assert len(found) == 90


@pytest.mark.parametrize("seed", range(8, 16))
def test_a_tolerance_of_a_few_roundings_is_met(seed: int) -> None:
    """Columns are added as long as what the factors leave and their rounding are together more than it."""
    A = spectrum(np.repeat(10.0 ** -np.arange(40), 3), 300, 120).astype("f4")
    outcome, u, found, vh = run(A, tolerance=1.25e-6, power_iterations=1, seed=seed)
    assert outcome.certificate.passed, outcome.certificate
    assert norm(A - (u * found) @ vh) <= 1.25e-6


def test_a_tolerance_below_the_rounding_of_the_factors_fails_the_job() -> None:
    A = gaussian(300, 100, "f4")
    outcome, *_ = run(A, tolerance=1.5e-7, method="exact")
    failed = [check for check in outcome.certificate.checks if not check.passed]
    assert [check.name for check in failed] == ["||A - U S V'|| / (tolerance s_1)"]
    with pytest.raises(SpecError, match=r"tolerance must be at least 1.2e-07, the precision of float32"):
        run(A, tolerance=1e-8)
