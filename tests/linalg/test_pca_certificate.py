"""What a PCA's certificate sees: a mean that is not that of the rows, wherever it went wrong; and right means pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import Array, compute, each_of, gaussian, two_dtypes

from dlscale.engine.passes import Passes
from dlscale.linalg.folds import centering, products
from dlscale.linalg.pca import PCAOptions, compute_pca, plan_pca
from dlscale.linalg.pca import kind as pca

SHAPES = {"tall": (600, 20), "wide": (20, 600)}


def run(A: Array, **options: Any) -> Any:
    return compute(plan_pca, compute_pca, A, PCAOptions(block_rows=100, **options))[0]


def mean_check(outcome: Any) -> Any:
    [check] = [check for check in outcome.certificate.checks if check.name.startswith("|mean")]
    return check


SOLVERS: list[dict[str, Any]] = [
    {"solver": "covariance"},
    {"solver": "full"},
    {"solver": "randomized", "n_components": 3},
    {"solver": "randomized", "n_components": 3, "power_iterations": 0},
]


@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("mean", [0.0, 1e-3, 5.0, 1e4])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("options", SOLVERS, ids=lambda options: f"{options['solver']}-{options.get('power_iterations', 4)}")
def test_right_means_are_met_to_a_few_roundings(options: dict[str, Any], shape: tuple[int, int], mean: float, dtype: str) -> None:
    A = gaussian(*shape, dtype) + np.dtype(dtype).type(mean)
    assert mean_check(run(A, **options)).value < 5
    assert mean_check(run(np.repeat(A[:1], shape[0], axis=0), **options)).value < 5


def shifted(state: dict[str, Array]) -> dict[str, Array]:
    """One entry of the mean wrong by a thousandth of a standard deviation."""
    if "mean" in state:
        mean = state["mean"].copy()
        mean[3] += 1e-3
        state = state | {"mean": mean}
    return state


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("options", SOLVERS, ids=lambda options: f"{options['solver']}-{options.get('power_iterations', 4)}")
def test_a_wrong_result_of_a_pass(options: dict[str, Any], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a checkpoint or a worker gave another mean than the rows have."""
    real = Passes.sweep
    monkeypatch.setattr(Passes, "sweep", lambda *given, **named: shifted(real(*given, **named)))
    check = mean_check(run(gaussian(*shape) + 5, **options))
    assert not check.passed


def a_merge_that_forgets(left: dict[str, Array], right: dict[str, Array]) -> tuple[Array, float]:
    """The mean of the left part for the mean of both."""
    kept = left["mean"].copy()
    found = COMBINE(left, right)
    left["mean"] = kept
    return found


def a_shift_that_is_not_subtracted(state: dict[str, Array], A: Array) -> Array | None:
    shift = SHIFT(state, A)
    return None if shift is None else shift + 1e-3


COMBINE, SHIFT = products.combine_means, products.shift_rows


@pytest.mark.parametrize(
    ("name", "fault"), [("combine_means", a_merge_that_forgets), ("shift_rows", a_shift_that_is_not_subtracted)]
)
@pytest.mark.parametrize("options", SOLVERS, ids=lambda options: f"{options['solver']}-{options.get('power_iterations', 4)}")
def test_a_fault_in_the_sums(
    options: dict[str, Any], name: str, fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (products, centering):
        monkeypatch.setattr(module, name, fault)
    assert not mean_check(run(gaussian(600, 20) + 5, **options)).passed


def test_a_wrong_mean_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    real = centering.row_means
    monkeypatch.setattr(centering, "row_means", lambda A: real(A) * (1 + 1e-9))
    for options in SOLVERS:
        assert not mean_check(run(gaussian(20, 600) + 5, **options)).passed


def test_the_mean_that_is_published_is_the_one_that_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the mean of double precision, which single precision rounds: a thousand times that is too much."""
    A = gaussian(600, 20, "f4") + np.float32(1e4)
    assert mean_check(run(A, solver="covariance")).passed
    real = pca.mean_check
    monkeypatch.setattr(
        pca, "mean_check", lambda measured, weights, mean, *more: real(measured, weights, mean * np.float32(1.0001), *more)
    )
    assert not mean_check(run(A, solver="covariance")).passed
