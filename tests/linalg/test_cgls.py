"""Least squares by iterations: the gradient of the true residual vanishes as asked, or the job fails and says how it ended."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, THREADS, Array, eps, gaussian, spectrum, store, wide_precision

from dlscale import gallery
from dlscale.batch.assumed import AssumedMatrix
from dlscale.declaration.kind import run_here
from dlscale.engine.clusters import ClusterFacts, open_cluster
from dlscale.engine.run import Run
from dlscale.errors import NumericalError, SpecError
from dlscale.linalg.iterative import stored
from dlscale.linalg.lstsq.kind import KIND, LstsqOptions
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.inputs import Inputs

M, N = 300, 40


def computed(A: Any, B: Any, **options: Any) -> Any:
    return run_here(KIND, KIND.inputs({"matrix": A, "rhs": B}), LstsqOptions(method="cgls", **options))


def reached(A: Array, X: Array, B: Array) -> float:
    """The largest ``||A^H r|| / (||A|| ||r||)``, or ``||r|| / ||b||`` where that is less."""
    A, X, B = (wide_precision(array) for array in (A, X, B))
    R = B - A @ X
    lengths = np.linalg.norm(R, axis=0)
    slopes = np.linalg.norm(A.conj().T @ R, axis=0) / np.linalg.norm(A) / lengths
    return float(np.minimum(slopes, lengths / np.linalg.norm(B, axis=0)).max())


@pytest.mark.parametrize("consistent", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tall_matrices_in_every_precision(dtype: str, consistent: bool) -> None:
    A, B = spectrum(gallery.geometric(N, 20), M, N, dtype=dtype), gaussian(M, 2, dtype)
    B = (A @ gaussian(N, 2, dtype)) if consistent else B
    here = computed(A, B)
    X, estimates = here.arrays["x"], here.outcome.estimates
    assert X.dtype == A.dtype
    assert reached(A, X, B) <= 1.1 * eps(A) ** 0.5
    assert estimates["true_residual"] <= eps(A) ** 0.5
    residuals = np.linalg.norm(wide_precision(B) - wide_precision(A) @ wide_precision(X), axis=0) ** 2
    np.testing.assert_allclose(estimates["residuals"], residuals, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_of_a_wide_matrix_the_shortest_solution_is_found(seed: int) -> None:
    """However far the residual of a column falls beside those of others, x does not leave the range of A^H."""
    A = spectrum(gallery.geometric(30, 50), M, 30).T
    B = A @ gaussian(M, 2, seed=seed)
    here = computed(A, B, tolerance=1e-10)
    np.testing.assert_allclose(here.arrays["x"], np.linalg.pinv(A) @ B, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-200, 1e180])
def test_any_scale(scale: float) -> None:
    A, b = spectrum(gallery.geometric(N, 10), M, N), gaussian(M, 1)[:, 0]
    X = [computed(A * s, b * t, tolerance=1e-9).arrays["x"] * s / t for s, t in ((1.0, 1.0), (scale, 1e-30))]
    np.testing.assert_allclose(X[1], X[0], rtol=1e-6, atol=1e-6)


def test_a_preconditioner_for_badly_scaled_columns() -> None:
    A, B = spectrum(gallery.geometric(N, 3), M, N) * np.geomspace(1, 1e6, N), gaussian(M, 1)
    here = computed(A, B, preconditioner="jacobi", tolerance=1e-9)
    np.testing.assert_allclose(A @ here.arrays["x"], A @ np.linalg.lstsq(A, B)[0], atol=1e-4)
    assert "of minimum norm where the columns of the matrix are independent" in here.outcome.notes[0]
    with pytest.raises(NumericalError, match="CGLS ended at the limit of 50 iterations"):
        computed(A, B, tolerance=1e-9, max_iterations=50)
    with pytest.raises(SpecError, match="jacobi is for a matrix with at least as many rows as columns; got 39 x 40"):
        computed(A[:39], B[:39], preconditioner="jacobi")


def test_rank_deficient_and_trivial_problems() -> None:
    A, B = gallery.rank_deficient(M, N, 11), gaussian(M, 2)
    B[:, 1] = 0
    X = computed(A, B, tolerance=1e-10).arrays["x"]
    np.testing.assert_allclose(X, np.linalg.lstsq(A, B, rcond=1e-10)[0], atol=1e-7 * np.abs(X).max())
    assert not X[:, 1].any()
    assert not computed(np.zeros((M, N)), B).arrays["x"].any()


def test_options_that_do_not_go_together() -> None:
    A, B = gaussian(M, N), gaussian(M, 1)
    for options, words in (({"rcond": 1e-3}, "rcond"), ({"panel": 8}, "panel"), ({"preconditioner": "block_jacobi"}, "jacobi")):
        with pytest.raises(SpecError, match=words):
            computed(A, B, **options)
    with pytest.raises(SpecError, match="tolerance: goes with an iterative method"):
        run_here(KIND, KIND.inputs({"matrix": A, "rhs": B}), LstsqOptions(method="direct", tolerance=1e-3))


@pytest.mark.parametrize(
    ("options", "method"), [({}, "tall"), ({"tolerance": 1e-6}, "tall"), ({"tolerance": 1e-6, "max_iterations": 4}, "cgls")]
)
def test_auto_chooses_by_counted_cost(options: dict[str, Any], method: str) -> None:
    inputs = Inputs({"matrix": AssumedMatrix((400_000, 2000)), "rhs": AssumedMatrix((400_000, 1))})
    plan = KIND.plan(inputs, LstsqOptions(**options), ClusterFacts("local", 1, 2, 4 * 10**9))
    assert plan.method == method
    assert any("method auto: CGLS" in note for note in plan.notes) == (method == "cgls")


def test_iterations_go_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "KEPT_FLOPS", 5 * 4.0 * M * N)
    path = store(tmp_path / "a.zarr", spectrum(gallery.geometric(N, 10), M, N), chunks=(50, N))
    rhs = store(tmp_path / "b.zarr", gaussian(M, 1), chunks=(50, 1))
    inputs, options = KIND.inputs({"matrix": str(path), "rhs": str(rhs)}), LstsqOptions(method="cgls", tolerance=1e-9)
    plan, stop_at = KIND.plan(inputs, options, THREADS), ""

    def emit(event: Any) -> None:
        if event.word == "pass_started" and event.step == stop_at:
            raise OSError("the disk is gone")

    def bits(folder: Path | None) -> tuple[Any, ...]:
        with open_cluster(THREADS) as cluster:
            outcome = KIND.compute(Run(cluster, checkpoint=folder and Checkpoint(folder), emit=emit), inputs, options, plan)
        return outcome.arrays["x"].tobytes(), outcome.arrays["history/residual"].tobytes(), outcome.estimates["residuals"]

    whole = bits(None)
    stop_at = "iteration-15"
    with pytest.raises(OSError, match="the disk is gone"):
        bits(tmp_path / "checkpoint")
    stop_at = ""
    assert bits(tmp_path / "checkpoint") == whole
    assert bits(tmp_path / "checkpoint") == whole


@pytest.mark.parametrize("preconditioner", ["none", "jacobi"])
def test_rounding_of_the_residual_is_counted_where_it_is_small(preconditioner: Any) -> None:
    n_found = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        A = np.vstack([np.diag(rng.standard_normal(2)), np.zeros(2)])
        b = A @ rng.standard_normal(2) + [0, 0, 10.0 ** -rng.integers(2, 9)]
        tolerance = 10.0 ** -rng.integers(9, 16)
        with suppress(NumericalError):
            x = computed(A, b, preconditioner=preconditioner, tolerance=tolerance).arrays["x"]
            a, y, c = ([Fraction(float(entry)) for entry in entries] for entries in (np.diag(A), x, b))
            r = [float(c[i] - a[i] * y[i]) for i in range(2)] + [float(c[2])]
            of_gradient = np.linalg.norm(A.T @ r) / np.linalg.norm(A) / np.linalg.norm(r)
            assert min(of_gradient, np.linalg.norm(r) / np.linalg.norm(b)) <= tolerance
            n_found += 1
    assert n_found >= 10
