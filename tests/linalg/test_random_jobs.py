"""Jobs at random: no shape, rank, scaling, offset, block or option gives an error or an answer that fails its certificate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, Array, compute, departure, eps, gaussian

from dlscale import gallery
from dlscale.linalg.pca import PCAOptions, compute_pca, plan_pca
from dlscale.linalg.qr.tall import TallQROptions, compute_tall_qr, plan_tall_qr
from dlscale.linalg.svd import SVDOptions, compute_svd, plan_svd

N_JOBS = 60


def random_matrix(rng: np.random.Generator, dtype: str) -> Array:
    m, n = (int(size) for size in np.exp(rng.uniform(0, 5, 2)))
    r = min(m, n)
    A = gaussian(m, n, dtype, int(rng.integers(1000)))
    spectrum = gallery.geometric(r, 10 ** rng.uniform(0, 16))
    choices = [
        A,
        gallery.SpectrumMatrix((m, n), spectrum, dtype=np.dtype(dtype)).rows(0, m),
        gallery.rank_deficient(m, n, int(rng.integers(0, r + 1)), dtype=dtype),
        A * 10 ** rng.uniform(-6, 6, n),
        A * 10 ** rng.uniform(-8, 8, m)[:, None],
        A + 10 ** rng.uniform(0, 8),
    ]
    return choices[rng.integers(len(choices))].astype(dtype)


def random_job(rng: np.random.Generator, A: Array) -> tuple[Any, Any, Any, str]:
    (m, n), q = A.shape, int(rng.integers(4))
    k, block_rows = int(rng.integers(1, min(m, n) + 1)), int(rng.integers(1, m + 1))
    kind = rng.choice(["svd", "pca", "qr"] if m >= n and m > 1 else ["svd", "pca"] if m > 1 else ["svd"])
    if kind == "svd":
        method: Any = str(rng.choice(["randomized", "krylov", "streaming", "exact"]))
        extra = int(rng.integers(12))
        svd = SVDOptions(k, method=method, power_iterations=q, oversampling=extra, block_rows=block_rows)
        return plan_svd, compute_svd, svd, "u" if m >= n else "vh"
    if kind == "pca":
        solver: Any = str(rng.choice(["auto", "covariance", "randomized", "full"]))
        whiten = bool(rng.integers(2))
        pca = PCAOptions(k, solver=solver, power_iterations=q, whiten=whiten, scores=True, block_rows=block_rows)
        return plan_pca, compute_pca, pca, "components"
    return plan_tall_qr, compute_tall_qr, TallQROptions(block_rows=block_rows), "q"


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_jobs(dtype: str) -> None:
    for seed in range(N_JOBS):
        rng = np.random.default_rng(seed)
        A = random_matrix(rng, dtype)
        plan_of, run, options, name = random_job(rng, A)
        outcome, arrays, _ = compute(plan_of, run, A, options)
        said = f"seed {seed}: {A.shape} {options} {outcome.certificate}"
        assert outcome.certificate.passed, said
        Q = arrays[name] if name in ("u", "q") else arrays[name].conj().T
        assert departure(Q) < 40 * Q.shape[1] * eps(A), said
        for array in arrays.values():
            assert np.isfinite(array).all(), said
