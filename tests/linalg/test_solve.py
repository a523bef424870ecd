"""Linear systems: every hard matrix in every dtype, judged by the backward error as LAPACK's testers judge it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, THREADS, Array, each_of, eps, gaussian, spectrum, store, two_dtypes

from dlscale import gallery
from dlscale.engine.clusters import open_cluster
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import DoesNotFitError, NumericalError, SpecError
from dlscale.linalg.solve.kind import SolveOptions, compute_solve, plan_solve
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix

THRESHOLD = 30


def run(A: Any, B: Any, *, group: int | None = None, **options: Any) -> Outcome:
    """Solve; with a group, so many panels are in memory at a time."""
    inputs = Inputs({"matrix": open_matrix(A), "rhs": open_matrix(B, vectors=True)})
    chosen = SolveOptions(**options)
    plan = plan_solve(inputs, chosen, THREADS)
    plan = replace(plan, grids=replace(plan.grids, panels=replace(plan.panels, group=group or plan.panels.group)))
    with open_cluster(THREADS) as cluster:
        return compute_solve(Run(cluster), inputs, chosen, plan)


def scaled_error(A: Array, X: Array, B: Array) -> float:
    """max_j ||b_j - A x_j||_1 / (||A||_1 ||x_j||_1 eps), LAPACK's dget02, computed in higher precision."""
    wide = np.longdouble if A.dtype.kind == "f" else np.clongdouble
    R = np.abs(B.astype(wide) - A.astype(wide) @ X.astype(wide)).sum(axis=0)
    norms = np.abs(A.astype(wide)).sum(axis=0).max() * np.abs(X.astype(wide)).sum(axis=0)
    return float((R / norms / eps(A)).max())


@pytest.mark.parametrize("precision", ["double", "mixed"])
@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("name", [name for name in gallery.HARD_SQUARE if name != "wilkinson"])
def test_hard_matrices(name: str, dtype: str, precision: str) -> None:
    """Panels of 32: one unknown, one panel, one over a panel, several."""
    for n in (1, 32, 33, 150):
        A = gallery.HARD_SQUARE[name](n, dtype)
        B = gaussian(n, 2, dtype)
        try:
            outcome = run(A, B, precision=precision, panel=min(n, 32))
        except NumericalError:
            # Hilbert's matrix in single precision is singular to working precision.
            assert np.linalg.cond(A.astype("c16")) > 1 / eps(A)
            continue
        X = outcome.arrays["x"]
        assert X.dtype == A.dtype
        assert outcome.certificate.passed, (n, outcome.certificate, outcome.notes)
        assert scaled_error(A, X, B) < THRESHOLD
        assert scaled_error(A, X, B) == pytest.approx(outcome.certificate.checks[0].value, rel=0.2, abs=3.0)


@pytest.mark.parametrize("precision", ["double", "mixed"])
@each_of(dtype=DTYPES)
@pytest.mark.parametrize("n", [20, 100])
def test_growth(n: int, dtype: str, precision: str) -> None:
    """LU of Wilkinson's matrix grows by 2^99 at n = 100, and loses every digit; QR does not."""
    A, B = gallery.wilkinson_growth(n, dtype=dtype), gaussian(n, 2, dtype)
    outcome = run(A, B, precision=precision, panel=16)
    assert outcome.certificate.passed, outcome.notes
    assert scaled_error(A, outcome.arrays["x"], B) < THRESHOLD
    assert any("by QR" in note for note in outcome.notes) == (n == 100)


@pytest.mark.parametrize("dtype", ["f8", "c16"])
def test_mixed_says_what_it_did(dtype: str) -> None:
    good, bad = (spectrum(gallery.geometric(100, condition), 100, 100, dtype=dtype) for condition in (1e3, 1e14))
    B = gaussian(100, 2, dtype)
    easy, hard = run(good, B, precision="mixed"), run(bad, B, precision="mixed")
    assert len(easy.notes) == 1
    assert "factored in single precision; " in easy.notes[0]
    assert easy.estimates["refinement_steps"] > 0
    assert easy.estimates["backward_error"] <= eps(good)
    assert "factored again in double precision" in hard.notes
    assert hard.certificate.passed


@pytest.mark.parametrize("scale", [1e-200, 1e-60, 1e60, 1e200])
def test_what_single_precision_cannot_hold_is_scaled(scale: float) -> None:
    A, B = gaussian(60, 60) * scale, gaussian(60, 2)
    outcome = run(A, B, precision="mixed")
    assert "single precision; " in outcome.notes[0]
    np.testing.assert_allclose(outcome.arrays["x"], np.linalg.solve(A, B), rtol=1e-10)


def test_singular_in_single_precision_only() -> None:
    """Rows 1e-60 apart in size: those that round to zero make the rounded matrix singular, and the matrix is not."""
    A, B = gaussian(40, 40), gaussian(40, 1)
    A[20:] *= 1e-60
    B[20:] *= 1e-60
    outcome = run(A, B, precision="mixed")
    assert "singular to working precision" in outcome.notes[0]
    assert outcome.notes[1] == "factored again in double precision"
    assert scaled_error(A, outcome.arrays["x"], B) < THRESHOLD


@pytest.mark.parametrize("precision", ["double", "mixed"])
@pytest.mark.parametrize("step", [0, 17, 49])
def test_exactly_singular_is_reported_with_its_step(step: int, precision: str) -> None:
    with pytest.raises(NumericalError, match=rf"singular to working precision: the pivot of step {step + 1} .* lstsq"):
        run(gallery.singular_at(50, step), np.ones(50), precision=precision, panel=16)


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("precision", ["double", "mixed"])
@pytest.mark.parametrize("assume", ["pos", "sym"])
def test_hermitian(assume: str, precision: str, dtype: str) -> None:
    A = gallery.positive_definite(90, dtype=dtype)
    if assume == "sym":
        A = A - np.eye(90, dtype=dtype) / 10
    B = gaussian(90, 3, dtype)
    outcome = run(A, B, assume=assume, precision=precision, panel=32)
    assert outcome.certificate.passed
    assert scaled_error(A, outcome.arrays["x"], B) < THRESHOLD


@pytest.mark.parametrize("assume", ["general", "pos"])
@pytest.mark.parametrize("precision", ["double", "mixed"])
def test_group_by_group(assume: Any, precision: Any) -> None:
    """As for a matrix larger than memory; the same bits."""
    A, B = gallery.positive_definite(100), gaussian(100, 2)
    found = [run(A, B, assume=assume, precision=precision, panel=16, group=group).arrays["x"] for group in (None, 2)]
    np.testing.assert_array_equal(*found)


def test_one_vector() -> None:
    A, b = gaussian(40, 40), gaussian(40, 1)[:, 0]
    x = run(A, b).arrays["x"]
    assert x.shape == (40,)
    np.testing.assert_allclose(x, np.linalg.solve(A, b), rtol=1e-9)


def test_real_matrix_and_complex_right_hand_sides() -> None:
    A, B = gaussian(50, 50), gaussian(50, 2, "c16")
    for precision in ("double", "mixed"):
        X = run(A, B, precision=precision).arrays["x"]
        assert X.dtype == np.complex128
        np.testing.assert_allclose(X, np.linalg.solve(A, B), rtol=1e-9)


def test_many_right_hand_sides_go_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    A, B = gaussian(50, 50), gaussian(50, 33)
    monkeypatch.setattr("dlscale.linalg.solve.options.BATCH_BYTES", 50 * 8 * 10)
    outcome = run(A, B, precision="mixed")
    np.testing.assert_allclose(outcome.arrays["x"], np.linalg.solve(A, B), rtol=1e-9)
    assert outcome.certificate.passed


def test_zero_right_hand_side() -> None:
    assert not run(gaussian(20, 20), np.zeros((20, 2)), precision="mixed").arrays["x"].any()


def test_the_forward_error_is_under_its_bound() -> None:
    """||x - X|| <= bound ||x||, with x in higher precision."""
    for condition in (1e2, 1e8):
        A = spectrum(gallery.geometric(60, condition), 60, 60)
        truth = gaussian(60, 1)
        exact = (A.astype(np.longdouble) @ truth.astype(np.longdouble)).astype(float)
        outcome = run(A, exact)
        error = abs(outcome.arrays["x"] - truth).sum() / abs(truth).sum()
        # The right-hand side was rounded too.
        assert error <= outcome.estimates["forward_error_bound"] + 2 * outcome.estimates["condition"] * eps(A)
        assert outcome.estimates["condition"] == pytest.approx(np.linalg.cond(A, 1), rel=0.7)


def test_without_refinement_it_only_measures() -> None:
    A, B = gaussian(80, 80), gaussian(80, 1)
    outcome = run(A, B, refine="never")
    assert outcome.estimates["refinement_steps"] == 0
    assert outcome.estimates["backward_error"] > 0


def test_from_disk(tmp_path: Path) -> None:
    A, B = gaussian(100, 100), gaussian(100, 2)
    path = store(tmp_path / "a.zarr", A, chunks=(33, 33), compressors=None)
    for precision in ("double", "mixed"):
        X = run(str(path), B, precision=precision, panel=32).arrays["x"]
        np.testing.assert_array_equal(X, run(A, B, precision=precision, panel=32).arrays["x"])


@pytest.mark.parametrize(
    ("A", "B", "options", "words"),
    [
        (np.ones((3, 4)), np.ones(3), {}, "must be square .* lstsq"),
        (np.eye(3), np.ones(4), {}, "input.rhs: must have 3 rows"),
        (
            np.eye(3),
            np.ones(3),
            {"assume": "diagonal"},
            r"assume: got 'diagonal' \(text\); allowed: general, pos .*sym .*, lower or upper",
        ),
        (np.eye(3), np.ones(3), {"precision": "half"}, "precision: got 'half' .*double, or mixed"),
        (np.eye(3), np.ones(3), {"precision": "mixed", "refine": "never"}, "must be auto with precision mixed"),
        (np.eye(3), np.ones(3), {"panel": 4}, "params.panel"),
    ],
)
def test_what_does_not_suit_is_refused(A: Array, B: Array, options: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        run(A, B, **options)


def test_too_little_memory_is_refused() -> None:
    inputs = Inputs({"matrix": open_matrix(np.broadcast_to(1.0, (100_000, 100_000))), "rhs": open_matrix(np.ones((100_000, 1)))})
    with pytest.raises(DoesNotFitError, match="GB"):
        plan_solve(inputs, SolveOptions(), THREADS)
