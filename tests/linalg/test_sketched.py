"""Least squares by sketch and precondition: as backward stable as an orthogonal factorization, whatever the condition."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from helpers import DTYPES, THREADS, Array, eps, gaussian, spectrum, store, wide_precision

from dlscale import gallery
from dlscale.declaration.kind import run_here
from dlscale.engine.clusters import open_cluster
from dlscale.engine.grids import RowGrid, blocks
from dlscale.engine.passes import Passes
from dlscale.engine.run import Run
from dlscale.errors import NumericalError, SpecError
from dlscale.linalg.iterative import stored
from dlscale.linalg.iterative.sketched import NONZEROS, Sketch, sketch_grid
from dlscale.linalg.lstsq.kind import KIND, LstsqOptions
from dlscale.sparse_rows import SparseRows
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.matrices import open_matrix

M, N = 1200, 40


def computed(A: Any, B: Any, **options: Any) -> Any:
    return run_here(KIND, KIND.inputs({"matrix": A, "rhs": B}), LstsqOptions(method="sketch", **options))


def backward_error(A: Array, x: Array, b: Array) -> float:
    """Karlson and Walden's estimate, relative to ``||A||_F``, by the singular values of A."""
    A, x, b = (wide_precision(array) for array in (A, x, b))
    U, s, _ = np.linalg.svd(A, full_matrices=False)
    r = b - A @ x
    mu = np.linalg.norm(r) / np.linalg.norm(x)
    return float(np.linalg.norm(s / np.hypot(s, mu) * (U.conj().T @ r)) / np.linalg.norm(x) / np.linalg.norm(A))


@pytest.mark.parametrize("form", ["dense", "sparse", "sparse less a row"])
@pytest.mark.parametrize("dtype", ["f4", "c16"])
def test_a_sketch_is_a_product_with_few_signs_whoever_makes_it(dtype: str, form: str) -> None:
    m, n, d = 700, 70, 560
    A, B = gaussian(m, n, dtype), gaussian(m, 2, "c16")
    sketch, rows = Sketch(n, B, d), RowGrid(m, 70, 210)
    if form == "dense":
        S = np.hstack([sketch.columns(start, stop - start).toarray() for start, stop in blocks(0, m, 70)])
        found = []
        for facts in (THREADS, replace(THREADS, threads_per_worker=1), replace(THREADS, threads_per_worker=3)):
            with open_cluster(facts) as cluster:
                found.append(Passes(Run(cluster)).sweep("sketch", open_matrix(A), sketch, rows)["sketch"])
        assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()
        signs = np.abs(S.reshape(NONZEROS, d // NONZEROS, m))
        np.testing.assert_allclose([signs.sum(axis=1), signs.max(axis=1)], NONZEROS**-0.5)
    else:
        A[gaussian(m, n) < 1.5] = 0
        shift = gaussian(1, n, "f8")[0] if "less" in form else None
        S, state = sketch.columns(0, m).toarray(), sketch.start()
        sketch.update(state, SparseRows(scipy.sparse.csr_array(A), shift), 0)
        found, A = [sketch.conclude(state)["sketch"]], A if shift is None else A - shift
    np.testing.assert_allclose(found[0], S @ np.hstack([A, B]), atol=1e-12)


def test_blocks_in_memory_are_whole_blocks_of_other_passes() -> None:
    held = sketch_grid(RowGrid(1_000_000, 2048, 14_336), 8000, held=True)
    assert (held.block_rows, held.leaf_rows) == (8192, 7 * 8192)
    assert sketch_grid(RowGrid(1200, 1200, 1200), 320, held=True) == RowGrid(1200, 1200, 1200)
    assert sketch_grid(RowGrid(1_000_000, 2048, 14_336), 8000, held=False).leaf_rows == 14_336


@pytest.mark.parametrize("residual", [1e-12, 1e-6, 1.0, 1e3])
@pytest.mark.parametrize("condition", [10.0, 1e8, 1e12])
def test_the_backward_error_is_within_ten_times_that_of_householder(condition: float, residual: float) -> None:
    A = spectrum(gallery.geometric(N, condition), M, N)
    noise = gaussian(M, 1, seed=3)[:, 0]
    noise -= A @ np.linalg.lstsq(A, noise)[0]
    b = A @ gaussian(N, 1)[:, 0] + residual * noise / np.linalg.norm(noise)
    here = computed(A, b)
    Q, R = np.linalg.qr(A)
    householder = backward_error(A, scipy.linalg.solve_triangular(R, Q.T @ b), b)
    assert backward_error(A, here.arrays["x"], b) <= 10 * max(householder, eps(A))
    assert here.outcome.estimates["iterations"] <= 60
    assert here.outcome.estimates["true_residual"] <= 16 * eps(A)


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_right_hand_sides_in_every_precision(dtype: str) -> None:
    A, B = spectrum(gallery.geometric(N, 50), M, N, dtype=dtype), gaussian(M, 3, dtype)
    B[:, 1] = 0
    X = computed(A, B).arrays["x"]
    assert X.dtype == A.dtype
    wide = wide_precision(A)
    np.testing.assert_allclose(X, np.linalg.lstsq(wide, wide_precision(B))[0], atol=2e3 * eps(A) * np.abs(X).max())
    assert not X[:, 1].any()


@pytest.mark.parametrize("scale", [1e-220, 1e200])
def test_any_scale(scale: float) -> None:
    A, b = spectrum(gallery.geometric(N, 100), M, N), gaussian(M, 1)[:, 0]
    x = computed(A, b).arrays["x"]
    np.testing.assert_allclose(computed(A * scale, b).arrays["x"] * scale, x, rtol=1e-9, atol=1e-10)


def test_rows_that_stand_out() -> None:
    """Of a coherent matrix some rows carry all that is known of some columns."""
    A = gaussian(M, N) * 1e-6
    A[np.arange(0, 2 * N, 2), np.arange(N)] = 1.0
    b = gaussian(M, 1)[:, 0]
    assert backward_error(A, computed(A, b).arrays["x"], b) <= 16 * eps(A)


def test_what_it_is_not_for_is_refused() -> None:
    with pytest.raises(SpecError, match="16 rows for each column; got 300 x 40"):
        computed(gaussian(300, N), gaussian(300, 1))
    with pytest.raises(SpecError, match="makes its own"):
        computed(gaussian(M, N), gaussian(M, 1), preconditioner="jacobi")
    with pytest.raises(NumericalError, match="dependent to working precision"):
        computed(gallery.rank_deficient(M, N, 11), gaussian(M, 1))
    with pytest.raises(NumericalError, match="Sketch and precondition ended at the limit of 2 iterations: the backward error is"):
        computed(gaussian(M, N), gaussian(M, 1), max_iterations=2)


def test_it_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "KEPT_FLOPS", 5 * 4.0 * M * N)
    path = store(tmp_path / "a.zarr", spectrum(gallery.geometric(N, 1e6), M, N), chunks=(200, N))
    rhs = store(tmp_path / "b.zarr", gaussian(M, 1), chunks=(200, 1))
    inputs, options = KIND.inputs({"matrix": str(path), "rhs": str(rhs)}), LstsqOptions(method="sketch")
    plan, stop_at = KIND.plan(inputs, options, THREADS), ""
    steps: list[str] = []

    def emit(event: Any) -> None:
        if event.word == "pass_started" and event.step == stop_at:
            raise OSError("the disk is gone")
        if event.word == "pass_finished" and not event.resumed:
            steps.append(event.step)

    def bits(folder: Path | None) -> bytes:
        steps.clear()
        with open_cluster(THREADS) as cluster:
            outcome = KIND.compute(Run(cluster, checkpoint=folder and Checkpoint(folder), emit=emit), inputs, options, plan)
        return outcome.arrays["x"].tobytes() + outcome.arrays["history/residual"].tobytes()

    whole = bits(None)
    assert len([step for step in steps if step.startswith(("sketch", "product", "gradient"))]) <= len(plan.steps)
    stop_at = "iteration-10"
    with pytest.raises(OSError, match="the disk is gone"):
        bits(tmp_path / "checkpoint")
    stop_at = ""
    assert bits(tmp_path / "checkpoint") == whole
    assert "sketch" not in steps


def test_the_best_x_is_published() -> None:
    """Where a later one is worse, and with what was measured of it."""
    n_back = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        least = int(rng.integers(4, 10))
        Q, W = (np.linalg.qr(rng.standard_normal(shape)).Q for shape in ((48, 3), (3, 3)))
        A = ((Q * np.geomspace(1, 10.0**-least, 3)) @ W.T).astype("f4")
        b, tolerance = rng.standard_normal(48).astype("f4"), 10.0 ** int(rng.integers(-10, -6))
        with suppress(NumericalError):  # none is within the tolerance
            found = computed(A, b, tolerance=tolerance)
            told, measured, x = found.outcome.estimates, found.arrays["history/true_residual"][:, 1], found.arrays["x"]
            assert told["true_residual"] == measured[-1] == measured.min() <= tolerance
            assert backward_error(A, x, b) < 3 * told["true_residual"]
            assert told["residuals"] == pytest.approx([np.linalg.norm(b - wide_precision(A) @ x) ** 2])
            n_back += bool(measured[-1] < measured[-2:][0])
    assert n_back >= 3


@pytest.mark.parametrize("entry", [3, 7, 17])
def test_a_sketch_that_solves_exactly_is_measured_as_it_is_published(entry: int) -> None:
    A, b = np.full((48, 1), entry, "f4"), np.ones(48, "f4")
    found = computed(A, b)
    expected = np.linalg.norm(b - A.astype(float) @ found.arrays["x"])
    assert found.outcome.estimates["residuals"] == pytest.approx([expected**2])
    assert found.outcome.estimates["true_residual"] == pytest.approx(expected / np.linalg.norm(b), rel=0.5)
