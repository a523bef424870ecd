"""Errors of nearly equal singular values: a rank that cuts through them, and values that come to stand among others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import Array, compute, each_of, spectrum, wide_precision
from hypothesis import given
from hypothesis import strategies as st

from dlscale.linalg.svd import SVDOptions, compute_svd, plan_svd
from dlscale.linalg.svd.crowds import in_reach, ordered, raised_by_others

#: Spectra by the ways in which a basis meets a crowd, each with the rank that is asked for. Whatever was met exactly lies in the
#: span of the crowd; what was not met comes back among it.
CROWDS: dict[str, tuple[Array, int]] = {
    "cut far above the rest": (np.r_[1 - 4e-8 * np.linspace(0, 1, 17) ** 2, np.full(19, 0.4)], 7),
    "cut near the rest": (np.r_[1 - 1e-8 * np.linspace(0, 1, 54) ** 2, np.full(300, 0.18)], 23),
    "two crowds": (np.r_[1 - 1e-9 * np.arange(9), 0.19 * (1 - 1e-9 * np.arange(24)), np.full(15, 2e-3)], 14),
}
JOBS: tuple[dict[str, Any], ...] = (
    {"power_iterations": 0},
    {"power_iterations": 1},
    {"power_iterations": 2},
    {"method": "krylov", "power_iterations": 1},
    {"method": "streaming"},
)


@each_of(seed=range(3), job=JOBS)
@pytest.mark.parametrize("name", CROWDS)
def test_errors_in_a_crowd_are_right_or_absent(name: str, seed: int, job: dict[str, Any]) -> None:
    """Lifts go with the square of what is missed, and say nothing of values that crowd within 1e-8."""
    s, k = CROWDS[name]
    A = spectrum(s, len(s) + 20, len(s))
    outcome, arrays, _ = compute(plan_svd, compute_svd, A, SVDOptions(n_components=k, seed=seed, **job))
    true = np.abs(arrays["s"] - np.linalg.svd(wide_precision(A), compute_uv=False)[:k])
    told = np.array(outcome.estimates["singular_value_errors"], float)
    known = ~np.isnan(told)
    assert (true <= 10 * told + 10 * np.sqrt(len(A)) * np.finfo(float).eps)[known].all(), true / told


@each_of(seed=range(4), job=JOBS[1:4])
def test_errors_of_equal_values_are_given(seed: int, job: dict[str, Any]) -> None:
    """Those that were met agree to the last digits, and so do the others."""
    A = spectrum(np.repeat([1.0, 1e-3], [20, 80]), 120, 100)
    outcome, _, _ = compute(plan_svd, compute_svd, A, SVDOptions(n_components=10, seed=seed, **job))
    assert None not in outcome.estimates["singular_value_errors"]


@given(gap=st.floats(1e-12, 1e-2), first=st.floats(1e-12, 1e-3), second=st.floats(1e-12, 1e-1))
def test_what_another_value_adds_is_bounded(gap: float, first: float, second: float) -> None:
    """``diag(s^2) + g g^H`` for two values: its eigenvalues are lifted by little more than twice the bound, by both at once."""
    s, g = np.array([1.0, 1.0 - gap]), np.sqrt([first, second])
    lifts = np.hypot(s, g) - s
    true = np.sqrt(np.linalg.eigvalsh(np.diag(s**2) + np.outer(g, g))[::-1]) - s
    assert (true <= 2.1 * (lifts + raised_by_others(s, lifts, lifts, 0.0, 0.0)) + 1e-14).all()


def test_a_crowd_that_agrees_adds_no_more_than_it_spans() -> None:
    s, lifts = np.array([1.0, 1.0, 1.0, 1 - 1e-5]), np.array([1e-12, 1e-12, 1e-12, 1e-5])
    assert raised_by_others(s, lifts, lifts, 0.0, 0.0)[:3].max() == 0
    assert raised_by_others(s[2:], lifts[2:], lifts[2:], 0.0, 0.0)[0] > 1e-9


def test_a_value_that_was_missed_moves_a_crowd_by_no_more_than_it_spans() -> None:
    s, lifts = np.array([1.0, 1 - 1e-6, 0.5]), np.full(3, 1e-15)
    np.testing.assert_allclose(raised_by_others(s, lifts, lifts, 0.0, 1.2), [1e-6, 1e-6, 0], rtol=1e-6, atol=1e-12)
    assert raised_by_others(s, lifts, lifts, 0.0, 0.9).max() < 1e-12


def test_values_beyond_the_rank_are_in_reach() -> None:
    s = np.array([1.0, 0.9, 0.8, 0.1])
    assert [in_reach(s, 2, outside) for outside in (0.0, 0.3, 0.5, 1.0)] == [2, 2, 3, 4]
    np.testing.assert_allclose(s + ordered(s, np.array([0, 0, 0.15, 0])), [1.0, 0.95, 0.9, 0.1])
