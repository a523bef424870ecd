"""PCA of data that are hard to centre or to resolve, against singular values in more than double precision, within stated errors.

The reference is a one-sided Jacobi SVD in NumPy's long double (64 bits of mantissa on x86) of rows less one of them, less their
mean: LAPACK's own would be off by more than some of the errors that are stated.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse
from helpers import DTYPES, Array, compute, each_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlscale.linalg.pca import PCAOptions, compute_pca, plan_pca

RUNS = int(os.environ.get("DLSCALE_CHAOS_RUNS", "1"))
SHAPES = [(300, 12), (24, 24), (9, 40), (900, 5), (2, 2), (3, 2), (257, 17), (2000, 3), (40, 1)]


class Case(NamedTuple):
    dtype: str
    shape: tuple[int, int]
    mean: float  # in standard deviations of its column
    ratio: float  # of the smallest variance to the largest
    spread: float  # of the columns' weights
    columns: str
    seed: int


CASES = st.builds(
    Case,
    st.sampled_from(DTYPES),
    st.sampled_from(SHAPES),
    st.sampled_from([0.0, 0.5, 1.0, 3.0, 9.0, 30.0, 1e3, 1e5, 1e8]),
    st.sampled_from([1.0, 1e-3, 1e-6, 1e-8, 1e-11, 1e-15]),
    st.sampled_from([1.0, 1e5, 1e10]),
    st.sampled_from(["all vary", "all vary", "half constant", "one varies", "equal rows"]),
    st.integers(0, 2**20),
)


def made(case: Case) -> Array:
    rng, (m, n) = np.random.default_rng(case.seed), case.shape
    k = min(m, n)

    def gaussian(*shape: int) -> Array:
        real = rng.standard_normal(shape)
        return real + 1j * rng.standard_normal(shape) if case.dtype.startswith("c") else real

    U, V = np.linalg.qr(gaussian(m, k))[0], np.linalg.qr(gaussian(n, k))[0]
    A = (U * np.geomspace(1, np.sqrt(case.ratio), k)) @ V.conj().T * np.sqrt(m)
    A = A * rng.permutation(np.geomspace(1, 1 / case.spread, n))
    A = A + case.mean * A.std(axis=0) * rng.choice([-1, 1], n)
    if case.columns == "half constant":
        A[:, ::2] = 0.1 * case.mean
    elif case.columns == "one varies":
        A[:, 1:] = 0
    elif case.columns == "equal rows":
        A[:] = A[0]
    return A.astype(case.dtype)


def long(A: Array) -> Array:
    return A.astype(np.clongdouble if A.dtype.kind == "c" else np.longdouble)


def reference(A: Array) -> tuple[Array, Array, Array]:
    """Mean, A - 1 mean and its singular values, (n,), (m, n) and (min(m, n),), by long double."""
    rest = long(A) - long(A[0])
    mean = rest.mean(axis=0)
    centred = rest - mean
    C = centred.T.copy() if A.shape[0] < A.shape[1] else centred.copy()
    for _ in range(30):
        rotated = False
        for i in range(C.shape[1] - 1):
            for j in range(i + 1, C.shape[1]):
                rotated |= rotate(C, i, j)
        if not rotated:
            break
    s = np.sort(np.sqrt((np.abs(C) ** 2).sum(axis=0)))[::-1].astype(float)
    return long(A[0]) + mean, centred.astype(np.result_type(A.dtype, np.float64)), s


def rotate(C: Array, i: int, j: int) -> bool:
    """Make two columns orthogonal (one-sided Jacobi: Golub and Van Loan 2013, section 8.6.3); whether they were not."""
    a, b, g = np.vdot(C[:, i], C[:, i]).real, np.vdot(C[:, j], C[:, j]).real, np.vdot(C[:, i], C[:, j])
    size = np.abs(g)
    if size <= 1e-17 * np.sqrt(a) * np.sqrt(b):
        return False
    tau, phase = (b - a) / (2 * size), g / size
    t = (1 if tau >= 0 else -1) / (np.abs(tau) + np.sqrt(1 + tau * tau))
    c = 1 / np.sqrt(1 + t * t)
    x, y = C[:, i].copy(), C[:, j] * np.conj(phase)
    C[:, i], C[:, j] = c * (x - t * y), c * (t * x + y)
    return True


@settings(max_examples=60 * RUNS, deadline=None)
@given(CASES)
@example(Case("c16", (24, 24), 0.0, 1.0, 1.0, "all vary", 0))
def test_singular_values_within_the_errors_that_are_stated(case: Case) -> None:
    A = made(case)
    eps = float(np.finfo(A.dtype).eps)
    mean, centred, truth = reference(A)
    for solver in ("auto", "covariance", "full", "randomized"):
        k = None if solver != "randomized" else min(3, *A.shape)
        options = PCAOptions(n_components=k, solver=solver, scores=True, power_iterations=8, block_rows=64)  # type: ignore[arg-type]
        outcome, arrays, _ = compute(plan_pca, compute_pca, A, options)
        assert outcome.certificate.passed, (solver, outcome.certificate)
        s = arrays["singular_values"].astype(float)
        stated = np.nan_to_num(np.array(outcome.estimates["singular_value_errors"], float), nan=np.inf)
        if solver == "randomized":  # which states what iterations leave within a factor 3, and of rounding only its own
            stated = 3 * stated + 64 * eps * truth[0]
        wrong = np.abs(s - truth[: len(s)]) > stated + eps * truth[: len(s)]
        assert not wrong.any(), (solver, s[wrong], truth[: len(s)][wrong], stated[wrong])
        assert (np.abs(arrays["mean"] - mean) <= eps * (np.abs(mean) + truth[0])).all(), solver
        total = (truth**2).sum()
        if total > 0:
            ratios = truth[: len(s)] ** 2 / total
            assert (
                np.abs(arrays["explained_variance_ratio"] - ratios) <= 3 * ratios[0] ** 0.5 * stated / truth[0] + 50 * eps
            ).all()
        if solver != "randomized":
            T = centred @ arrays["components"].astype(centred.dtype).conj().T
            assert np.linalg.norm(arrays["scores"] - T, 2) <= 30 * max(A.shape) * eps * truth[0]


def flat(m: int, n: int, mean: float, dtype: str, seed: int) -> tuple[Array, Array]:
    """A matrix whose singular values, centred, are nearly alike, and these to more digits than LAPACK finds."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((m, n)) + (1j * rng.standard_normal((m, n)) if dtype.startswith("c") else 0)
    A = (np.linalg.qr(X - X.mean(axis=0))[0] * np.sqrt(m) + mean).astype(dtype)
    C = long(A) - long(A[0])
    C -= C.mean(axis=0)
    excess = C.conj().T @ C / m - np.eye(n)
    return A, np.sqrt(m * (1 + np.linalg.eigvalsh(excess.astype(np.result_type(A, np.float64)))))[::-1]


@pytest.mark.parametrize(
    ("m", "n", "mean"), [(2, 1, 0.5), (401, 2, 3.0), (401, 12, 3.0), (301, 200, 3.0), (1_000_001, 1, 0.5), (100_001, 4, 0.5)]
)
@each_of(dtype=DTYPES)
def test_errors_of_large_sums_and_of_many_columns_are_stated(m: int, n: int, mean: float, dtype: str) -> None:
    """Where all columns are equally long rounding adds up the most, and a column has as many summands as rows."""
    for seed, solver in ((0, "covariance"), (1, "covariance"), (1, "full")):
        A, truth = flat(m, n, mean, dtype, seed)
        outcome, arrays, _ = compute(plan_pca, compute_pca, A, PCAOptions(solver=solver))  # type: ignore[arg-type]
        stated = np.array(outcome.estimates["singular_value_errors"], float)
        assert (np.abs(arrays["singular_values"] - truth) <= stated).all(), (seed, solver)
        assert (stated <= 300 * np.finfo(A.dtype).eps * truth).all(), (seed, solver)


@each_of(dtype=DTYPES)
def test_errors_of_sparse_matrices_are_stated_of_what_is_published(dtype: str) -> None:
    """Their products are made in double precision; the singular values of single precision are rounded to it."""
    rng = np.random.default_rng(3)
    dense = np.where(rng.random((600, 30)) < 0.04, rng.standard_normal((600, 30)), 0).astype(dtype)
    _, _, truth = reference(dense)
    outcome, arrays, _ = compute(plan_pca, compute_pca, scipy.sparse.csr_array(dense), PCAOptions(solver="covariance"))
    stated = np.array(outcome.estimates["singular_value_errors"], float)
    assert (np.abs(arrays["singular_values"] - truth) <= stated).all()
    assert (stated <= 300 * np.finfo(dtype).eps * truth).all()
