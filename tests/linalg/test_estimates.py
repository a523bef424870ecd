"""Error estimates against the true errors: within a factor 3, whatever the spectrum, the method and the luck of the seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.ndimage
from helpers import N, compute, each_of, gaussian, norm, spectrum, wide_precision

from dlscale import gallery
from dlscale.linalg.svd import SVDOptions, compute_svd, plan_svd
from dlscale.linalg.svd.estimates import largest_ritz
from dlscale.linalg.svd.lifts import running_median

SPECTRA = {
    "slow decay": gallery.power(N),
    "faster decay": gallery.power(N, 1.0),
    "fast decay": gallery.geometric(N, 1e6),
    "down to rounding": gallery.geometric(N, 1e15),
    "a step": gallery.step(N, 8, small=1e-3),
    "no gap": gallery.flat(N),
    "low rank": gallery.power(12),
}


def estimated_and_true(A: Any, **options: Any) -> tuple[dict[str, Any], float, float, Any]:
    outcome, arrays, _ = compute(plan_svd, compute_svd, A, SVDOptions(**options))
    E = wide_precision(A) - (arrays["u"].astype(complex) * arrays["s"]) @ arrays["vh"]
    truth = np.linalg.svd(wide_precision(A), compute_uv=False)[: len(arrays["s"])]
    return outcome.estimates, norm(E), float(np.linalg.norm(E)), np.abs(arrays["s"] - truth)


@each_of(seed=range(2))
@pytest.mark.parametrize("k", [1, 5, 30])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(
    "options",
    [
        {"power_iterations": 0},
        {"power_iterations": 1},
        {},
        {"method": "krylov", "power_iterations": 1},
        {"method": "streaming"},
        {"method": "exact"},
    ],
    ids=["no iteration", "1 iteration", "defaults", "krylov", "streaming", "exact"],
)
def test_errors_of_the_approximation(options: dict[str, Any], name: str, k: int, seed: int) -> None:
    A = spectrum(SPECTRA[name], 500, N)
    estimates, spectral, frobenius, _ = estimated_and_true(A, n_components=k, seed=seed, block_rows=100, **options)
    # Below this, the true error is rounding, of which only the size can be foreseen.
    floor = (
        100 * N * np.finfo(float).eps * (1e6 if options.get("method") == "streaming" or options.get("power_iterations") == 0 else 1)
    )
    assert spectral / 3 <= estimates["spectral_error"] + floor
    assert estimates["spectral_error"] <= 3 * spectral + floor
    assert frobenius / 3 <= estimates["frobenius_error"] + floor
    assert estimates["frobenius_error"] <= 3 * frobenius + floor


@each_of(dtype=["f4", "c8", "c16"])
@pytest.mark.parametrize("name", SPECTRA)
def test_errors_in_other_dtypes(name: str, dtype: str) -> None:
    A = spectrum(SPECTRA[name], 500, N, dtype=dtype)
    estimates, spectral, frobenius, _ = estimated_and_true(A, n_components=5, block_rows=100)
    floor = 100 * N * float(np.finfo(dtype).eps)
    assert spectral / 3 <= estimates["spectral_error"] + floor
    assert estimates["spectral_error"] <= 3 * spectral + floor
    assert frobenius / 3 <= estimates["frobenius_error"] + floor
    assert estimates["frobenius_error"] <= 3 * frobenius + floor


@each_of(seed=range(3))
@pytest.mark.parametrize(
    "options", [{"power_iterations": 1}, {}, {"method": "krylov", "power_iterations": 2}], ids=["1 iteration", "defaults", "krylov"]
)
@pytest.mark.parametrize("name", ["slow decay", "faster decay", "a step", "fast decay"])
@pytest.mark.parametrize("n", [N, 300])
def test_errors_of_singular_values(n: int, name: str, options: dict[str, Any], seed: int) -> None:
    """Never more than 3 times below the truth; above, what rounding allows; most are given."""
    s = {"slow decay": gallery.power(n), "faster decay": gallery.power(n, 1.0), "a step": gallery.step(n, 8, small=0.3)}
    A = spectrum(s.get(name, gallery.geometric(n, 1e6)), 1000, n)
    estimates, _, _, true = estimated_and_true(A, n_components=10, seed=seed, **options)
    estimated = np.array(estimates["singular_value_errors"], float)
    given = ~np.isnan(estimated)
    assert given.mean() >= 0.7
    assert (true <= 3 * estimated)[given].all(), true / estimated
    # On the whole they are no alarm either.
    assert np.median(estimated[given]) <= 10 * np.median(true[given]) + 1e-12


@pytest.mark.parametrize("options", [{"method": "streaming"}, {"power_iterations": 0}, {"power_iterations": 1}], ids=str)
@pytest.mark.parametrize("n", [N, 130])
def test_errors_of_singular_values_on_three_levels(n: int, options: dict[str, Any]) -> None:
    """Small singular values of the sketch are cut off or divided by: of what is given, nearly all is within 3 and 10 times."""
    judged: list[bool] = []
    for seed in range(6):
        A = spectrum(np.repeat([1.0, 1e-3, 1e-7], [3, 12, n - 15]), 300, n)
        estimates, _, _, true = estimated_and_true(A, n_components=20, seed=seed, **options)
        estimated, floor = np.array(estimates["singular_value_errors"], float), 10 * np.sqrt(300) * np.finfo(float).eps
        given = ~np.isnan(estimated)
        judged += list(((true <= 3 * estimated + floor) & (estimated <= 10 * true + floor))[given])
    assert np.mean(judged) > 0.95


def test_errors_that_are_not_determined_are_absent_and_said_so() -> None:
    """A random basis tells little of values seven decades below the first; a note names those without an error."""
    A = spectrum(np.repeat([1.0, 1e-3, 1e-7], [3, 12, N - 15]), 300, N)
    outcome, _, _ = compute(plan_svd, compute_svd, A, SVDOptions(n_components=20, power_iterations=0))
    missing = [i + 1 for i, error in enumerate(outcome.estimates["singular_value_errors"]) if error is None]
    notes = [note for note in outcome.notes if "not determined by what was read" in note]
    assert missing
    assert len(notes) == 1
    assert f" {missing[0]}" in notes[0]


def test_running_medians_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for k in range(1, 30):
        for values in (rng.standard_normal(k), rng.integers(0, 3, k).astype(float)):
            for width in (3, 5, 7):
                np.testing.assert_array_equal(running_median(values, width), scipy.ndimage.median_filter(values, width))


def test_estimates_go_with_the_matrix() -> None:
    A = spectrum(SPECTRA["slow decay"], 500, N)
    one, thousand = (estimated_and_true(A * factor, n_components=5)[0] for factor in (1.0, 1024.0))
    assert thousand["spectral_error"] == pytest.approx(1024 * one["spectral_error"], rel=1e-12)
    assert thousand["frobenius_error"] == pytest.approx(1024 * one["frobenius_error"], rel=1e-12)


def test_largest_ritz_is_a_lower_estimate_within_a_factor() -> None:
    for seed in range(5):
        E = gaussian(80, 60, seed=seed)
        probes = gaussian(60, 8, seed=seed + 100)
        estimate = largest_ritz(E.T @ (E @ probes), probes)
        assert norm(E) / 2 <= estimate <= norm(E) * (1 + 1e-12)
    assert largest_ritz(np.zeros((60, 8)), probes) == 0.0
