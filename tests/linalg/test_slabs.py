"""Systems with many right-hand sides, solved and refined slab by slab: as accurate as few, and none depends on another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, THREADS, Array, eps, gaussian, spectrum, store

from dlscale import gallery
from dlscale.engine.clusters import open_cluster
from dlscale.engine.events import Event, StepFinished
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.linalg.solve.kind import SolveOptions, compute_solve, plan_solve
from dlscale.linalg.solve.refinement import refine
from dlscale.linalg.solve.slabs import MANY_COLUMNS
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix

N, K = 90, MANY_COLUMNS + 7


def solve(A: Any, B: Array, **options: Any) -> tuple[Outcome, list[str]]:
    """The outcome, and the steps that it took."""
    inputs, chosen, told = Inputs({"matrix": open_matrix(A), "rhs": open_matrix(B)}), SolveOptions(**options), list[Event]()
    with open_cluster(THREADS) as cluster:
        outcome = compute_solve(Run(cluster, emit=told.append), inputs, chosen, plan_solve(inputs, chosen, THREADS))
    outcome.certificate.require()
    return outcome, [event.step for event in told if isinstance(event, StepFinished)]


def scaled_error(A: Array, X: Array, B: Array) -> float:
    """The worst normwise backward error, in units of eps."""
    A_wide, X_wide = A.astype(np.result_type(A, "f8")), X.astype(np.result_type(X, "f8"))
    sizes = abs(A_wide).sum(axis=0).max() * abs(X_wide).sum(axis=0)
    return float((abs(B - A_wide @ X_wide).sum(axis=0) / sizes).max() / eps(A))


@pytest.mark.parametrize("precision", ["double", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_columns_are_solved_as_accurately_as_few(dtype: str, precision: str) -> None:
    A, B = gaussian(N, N, dtype), gaussian(N, K, dtype)
    B[:, 3] = 0
    outcome, steps = solve(A, B, precision=precision)
    X = outcome.arrays["x"]
    assert X.dtype == A.dtype
    assert "solve-1" in steps
    assert not [step for step in steps if step.startswith(("residual", "triangular"))]
    assert not X[:, 3].any()
    assert scaled_error(A, np.delete(X, 3, axis=1), np.delete(B, 3, axis=1)) < 5
    few, _ = solve(A, B[:, :2], precision=precision)
    # Of small entries other roundings leave fewer digits.
    np.testing.assert_allclose(X[:, :2], few.arrays["x"], rtol=0, atol=300 * eps(A) * np.abs(X).max())


def test_complex_right_hand_sides_of_a_real_matrix_in_a_store(tmp_path: Path) -> None:
    """Chunks that are not those of a block."""
    A, B = gaussian(N, N), gaussian(N, K, "c16")
    outcome, _ = solve(str(store(tmp_path / "a.zarr", A, chunks=(37, 11))), B)
    np.testing.assert_allclose(outcome.arrays["x"], np.linalg.solve(A, B), rtol=1e-9)


@pytest.mark.parametrize("options", [{"assume": "lower"}, {"assume": "lower", "transposed": True}, {"transposed": "conjugate"}])
def test_triangles_and_transposes(options: dict[str, Any]) -> None:
    A, B = np.tril(gaussian(N, N, "c16")) + 9 * np.eye(N), gaussian(N, K, "c16")
    outcome, steps = solve(A, B, **options)
    assert "solve-1" in steps
    wanted = {True: A.T, "conjugate": A.conj().T}.get(options.get("transposed"), A)  # type: ignore[call-overload]
    np.testing.assert_allclose(outcome.arrays["x"], np.linalg.solve(wanted, B), rtol=1e-9)


def test_columns_that_refinement_leaves_are_left_to_gmres() -> None:
    """Three columns meet the part of a matrix that factors in single precision know nothing of."""
    A = np.eye(N)
    A[40:, 40:] = spectrum(gallery.geometric(50, 3e8), 50, 50)
    B = gaussian(N, K)
    B[40:, 3:] = 0
    outcome, steps = solve(A, B, precision="mixed")
    assert {"solve-1", "residual-1"} <= set(steps)
    assert "solve-2" not in steps
    assert outcome.notes[0].startswith("factored in single precision; ")
    assert scaled_error(A, outcome.arrays["x"], B) < 5


def test_growth_is_met_by_orthogonal_factors() -> None:
    A, B = gallery.wilkinson_growth(N), gaussian(N, K)
    outcome, steps = solve(A, B)
    assert "factors-qr-1" in steps
    assert scaled_error(A, outcome.arrays["x"], B) < 30


def test_what_is_only_measured_is_solved_for_once() -> None:
    outcome, _ = solve(gaussian(N, N), gaussian(N, K), refine="never")
    assert outcome.estimates["refinement_steps"] == 0


def test_each_column_is_refined_as_if_it_were_alone() -> None:
    A, B = spectrum(gallery.geometric(N, 1e4), N, N), gaussian(N, 6)
    rough = np.linalg.inv(A.astype("f4")).astype("f8")
    # The better the first solution, the fewer steps; one column begins out of range.
    X = np.linalg.solve(A, B) * (1 + np.array([0, 1e-14, 1e-9, 1e-4, 1, 0]) * gaussian(N, 6))
    X[:, 5] = np.inf

    def refined(columns: slice) -> Any:
        return refine(
            X[:, columns],
            lambda Y: np.stack([b - A @ y for b, y in zip(B[:, columns].T, Y.T, strict=True)], axis=1),
            lambda R: np.stack([rough @ r for r in R.T], axis=1),
            float(np.linalg.norm(A, 1)),
            target=float(np.finfo("f8").eps),
        )

    together, alone = refined(slice(0, 6)), [refined(slice(j, j + 1)) for j in range(6)]
    np.testing.assert_array_equal(together.X, np.hstack([found.X for found in alone]))
    # NumPy adds up a single column in pairs.
    np.testing.assert_allclose(together.errors, np.concatenate([found.errors for found in alone]), rtol=1e-12)
    assert together.n_steps == max(found.n_steps for found in alone) > min(found.n_steps for found in alone)
