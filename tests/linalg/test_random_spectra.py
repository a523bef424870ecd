"""Random spectra, every method and number of iterations: error estimates near the truth, and tolerances that are met.

DLSCALE_SPECTRA sets how many matrices are tried (default 6); 199 take about three minutes. Of the first 300 spectra
two, 199 and 205, have an error that is outside of the factors, by 1.1 times.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, Array, compute, norm, wide_precision

from dlscale.errors import SpecError
from dlscale.linalg.svd import SVDOptions, compute_svd, plan_svd

N_SPECTRA = int(os.environ.get("DLSCALE_SPECTRA", "6"))
#: Of values that stand out by a factor of 2 from what the sketch leaves, of jobs with an iteration and the default
#: oversampling, on each matrix. Few errors of others are determined.
_GIVEN = 0.8
_OVERSAMPLING = 10


def values(kind: str, n: int, rng: np.random.Generator) -> Array:
    i = np.arange(n)
    r = int(rng.integers(1, min(n, 40) + 1))
    if kind == "power":
        return np.asarray((i + 1.0) ** -rng.uniform(0.1, 3))
    if kind == "exponential":
        return np.exp(-rng.uniform(0.02, 2) * i)
    if kind == "step":
        return np.where(i < rng.integers(1, n + 1), 1.0, 10.0 ** -rng.uniform(0.5, 13)) * (i + 1.0) ** -rng.choice([0, 0.3])
    if kind == "low rank and noise":
        noise = 10.0 ** -rng.uniform(1, 12) * rng.uniform(0.5, 1, n - r)
        return np.sort(np.concatenate([(i[:r] + 1.0) ** -rng.uniform(0, 1), noise]))[::-1]
    if kind == "rank one behind":
        s = np.where(i < r, rng.uniform(0.5, 1, n), 0.0)
        s[min(r, n - 1)] = 10.0 ** -rng.uniform(0, 10)
        return np.sort(s)[::-1]
    if kind == "clusters":
        return np.repeat(10.0 ** -(rng.uniform(0.05, 2) * i), rng.integers(2, 12))[:n]
    if kind == "flat":
        return 1 - rng.uniform(0, 0.3) * i / n
    return np.where(i < r, np.linspace(1, rng.uniform(0.1, 1), n), 0.0)


KINDS = ("power", "exponential", "step", "low rank and noise", "rank one behind", "clusters", "flat", "low rank")


def orthonormal(m: int, n: int, dtype: str, rng: np.random.Generator) -> Array:
    X = rng.standard_normal((m, n))
    return np.asarray(np.linalg.qr(X + 1j * rng.standard_normal((m, n)) if np.dtype(dtype).kind == "c" else X)[0])


def draw(rng: np.random.Generator) -> tuple[str, Array]:
    dtype, kind = DTYPES[rng.integers(4)], KINDS[rng.integers(len(KINDS))]
    n = int(rng.integers(4, 200))
    m = n + int(rng.integers(0, 300))
    A = (orthonormal(m, n, dtype, rng) * values(kind, n, rng)) @ orthonormal(n, n, dtype, rng).conj().T
    A = np.asarray(A * 2.0 ** int(rng.integers(-5, 6))).astype(dtype)
    return kind, np.ascontiguousarray(A.T) if rng.random() < 0.2 else A


def jobs(rng: np.random.Generator, most: int) -> Iterator[dict[str, Any]]:
    k, oversampling = int(rng.integers(1, min(most, 40) + 1)), int(rng.choice([0, 2, 10]))
    for q in range(4):
        yield {"n_components": k, "power_iterations": q, "oversampling": oversampling}
        if q:
            yield {"n_components": k, "power_iterations": q, "oversampling": oversampling, "method": "krylov"}
    yield {"n_components": k, "method": "streaming"}
    yield {"n_components": k, "method": "exact"}
    for q in (0, 1, 2, 4):
        yield {"tolerance": 10.0 ** -rng.uniform(0.3, 13), "power_iterations": q, "oversampling": oversampling}
    yield {"tolerance": 10.0 ** -rng.uniform(0.3, 13), "method": "exact"}


@pytest.mark.parametrize("seed", range(N_SPECTRA))
def test_estimates_and_tolerances(seed: int) -> None:
    """Norms of the error, and errors of values where they are given, within a factor 3 below and 10 above the truth."""
    rng = np.random.default_rng(seed)
    _, A = draw(rng)
    exact = np.linalg.svd(wide_precision(A), compute_uv=False)
    n_values = n_given = 0
    for job in jobs(rng, min(A.shape)):
        of_job = judge(A, exact, seed, job)
        if job.get("power_iterations") and job["oversampling"] == _OVERSAMPLING:
            n_values, n_given = n_values + of_job[0], n_given + of_job[1]
    assert n_given >= _GIVEN * n_values


def judge(A: Array, exact: Array, seed: int, job: dict[str, Any]) -> tuple[int, int]:
    """Values of a job that stand out, and those of them whose errors are given; those that are given are all right."""
    resolution = float(np.finfo(A.dtype).eps)
    tolerance = job.get("tolerance", 1.0)
    if tolerance < resolution:
        with pytest.raises(SpecError, match="tolerance must be at least"):
            compute(plan_svd, compute_svd, A, SVDOptions(seed=seed, **job))
        return 0, 0
    outcome, arrays, _ = compute(plan_svd, compute_svd, A, SVDOptions(seed=seed, **job))
    if not outcome.certificate.passed:
        # The job fails: rounding alone is more than the tolerance, or nearly; it is more where a random basis is divided by.
        assert [check.threshold for check in outcome.certificate.checks if not check.passed] == [1.0]
        assert tolerance < (10 if job.get("power_iterations") else 40) * np.sqrt(max(A.shape)) * resolution
        return 0, 0
    s = arrays["s"].astype(float)
    E = wide_precision(A) - (wide_precision(arrays["u"]) * s) @ wide_precision(arrays["vh"])
    assert "tolerance" not in job or norm(E) <= tolerance * exact[0] * (1 + 1e-9)
    rounding = 10 * np.sqrt(max(A.shape)) * resolution * exact[0]
    for told, true in (
        (outcome.estimates["spectral_error"], norm(E)),
        (outcome.estimates["frobenius_error"], float(np.linalg.norm(E))),
    ):
        assert true <= 3 * told + rounding, (job, true, told)
        assert told <= 10 * true + rounding, (job, true, told)
    told_each, true_each = np.array(outcome.estimates["singular_value_errors"], float), np.abs(s - exact[: len(s)])
    given = ~np.isnan(told_each)
    told_each, true_each = told_each[given], true_each[given]
    assert (true_each <= 3 * told_each + rounding).all(), job
    assert (told_each <= 10 * true_each + rounding).all(), job
    assert given.all() == (not [note for note in outcome.notes if "not determined by what was read" in note])
    behind = exact[len(s) + _OVERSAMPLING] if len(s) + _OVERSAMPLING < len(exact) else 0.0
    outstanding = exact[: len(s)] > 2 * behind
    return int(outstanding.sum()), int((given & outstanding).sum())


@pytest.mark.parametrize("exponent", [-120, -40, 0, 40, 80])
@pytest.mark.parametrize("job", [{"power_iterations": 0}, {"power_iterations": 2}, {"method": "streaming"}], ids=str)
@pytest.mark.parametrize("dtype", ["f4", "c8"])
def test_estimates_of_rank_one_are_numbers(dtype: str, job: dict[str, Any], exponent: int) -> None:
    """Where nothing is left of the matrix, moments and distances vanish."""
    A = np.ones((30, 20), dtype) * np.float32(2.0**exponent)
    outcome, arrays, _ = compute(plan_svd, compute_svd, A, SVDOptions(n_components=5, **job))
    told = np.array(outcome.estimates["singular_value_errors"], float)
    assert np.isfinite(told).all()
    assert told.max() <= 1e-2 * arrays["s"][0]
