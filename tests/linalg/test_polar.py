"""Polar decompositions of hard matrices, by LAPACK and by Newton's iteration, in memory and out of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from helpers import DTYPES, THREADS, Array, departure, eps, gaussian, norm, spectrum, store, wide_precision

import dlscale
from dlscale import gallery
from dlscale.batch import run as jobs
from dlscale.batch.workspace import Workspace
from dlscale.engine.clusters import open_cluster
from dlscale.engine.run import Run
from dlscale.errors import CertificateError, DlscaleError, NumericalError, SpecError
from dlscale.kernels import times_power_of_two
from dlscale.linalg.panels import plan as plans
from dlscale.linalg.polar import by_panels, direct, newton
from dlscale.linalg.polar.kind import compute_polar, plan_polar
from dlscale.linalg.polar.options import PolarOptions
from dlscale.storage.matrices import open_matrix

N = 50
#: What each is hard for.
HARD: dict[str, Callable[[str], Array]] = {
    "tall": lambda dtype: gaussian(70, 33, dtype),
    "condition 1e4": lambda dtype: spectrum(gallery.geometric(N, 1e4), N, N, dtype=dtype),
    "condition 1e15": lambda dtype: spectrum(gallery.geometric(N, 1e15), N, N, dtype=dtype),
    "one tiny value": lambda dtype: spectrum(np.r_[np.ones(N - 1), 1e-5], 80, N, dtype=dtype),
    "rank 11": lambda dtype: gallery.rank_deficient(70, N, 11, dtype=dtype),
    "columns that repeat": lambda dtype: gaussian(N, 20, dtype)[:, np.random.default_rng(0).integers(0, 20, N)],
    "two columns that alternate": lambda dtype: np.tile(gaussian(N, 2, dtype), N // 2),
    "zeros": lambda dtype: np.zeros((40, 20), dtype),
    "one column": lambda dtype: gaussian(17, 1, dtype),
    "1 x 1": lambda dtype: -np.ones((1, 1), dtype),
    # The inverse of its triangle, were that regular, would be out of range.
    "nilpotent": lambda dtype: np.eye(N, k=1, dtype=dtype),
    "an inverse that grows by 1e9 a row": lambda dtype: (np.eye(N, k=1) + 1e-9 * np.eye(N)).astype(dtype),
    "unitary already": lambda dtype: np.linalg.qr(gaussian(N, N, dtype)).Q,
    "a multiple of the identity": lambda dtype: -7 * np.eye(N, dtype=dtype),
    "growth": lambda dtype: gallery.HARD_SQUARE["wilkinson"](N, dtype),
    "kahan": lambda dtype: gallery.kahan(N, dtype=dtype),
    # The rows of their triangles are ever smaller, and so are those of an iterate.
    "hilbert": lambda dtype: rotated_phases(scipy.linalg.hilbert(58), dtype),
    "vandermonde": lambda dtype: rotated_phases(np.vander(np.linspace(-1, 1, 101), 76, increasing=True), dtype),
    "vandermonde, barely regular": lambda dtype: rotated_phases(np.vander(np.linspace(-1, 1, 62), 40, increasing=True), dtype),
}  # fmt: skip


def rotated_phases(A: Array, dtype: str) -> Array:
    """A, or in complex numbers its rows and columns times numbers of modulus 1: a matrix with the same singular values."""
    if np.dtype(dtype).kind == "c":
        rng = np.random.default_rng(0)
        A = np.exp(2j * np.pi * rng.random((len(A), 1))) * A * np.exp(2j * np.pi * rng.random(A.shape[1]))
    return A.astype(dtype)


def run(source: Array, **options: Any) -> tuple[Any, Array, Array]:
    A, chosen = open_matrix(source), PolarOptions(**options)
    plan = plan_polar(A, chosen, THREADS)
    with open_cluster(THREADS) as cluster:
        job = Run(cluster)
        outcome = compute_polar(job, A, chosen, plan)
    arrays = outcome.arrays | job.outputs
    return outcome, arrays["u"], arrays.get("p")


@pytest.mark.parametrize(("method", "dtype"), [("direct", "c8"), ("direct", "f8"), *(("newton", dtype) for dtype in DTYPES)])
@pytest.mark.parametrize("name", HARD)
def test_hard_matrices(name: str, method: str, dtype: str) -> None:
    """||A - U P|| <= 30 n eps ||A||, ||I - U^H U|| <= 30 n eps, P = P^H >= -30 n eps ||A||, and P is that of the SVD."""
    A = HARD[name](dtype)
    n = A.shape[1]
    limit, size = 30 * n * eps(A), norm(A)
    outcome, U, P = run(A, method=method, panel=min(n, 16) if method == "newton" else None)
    assert U.dtype == P.dtype == A.dtype
    assert outcome.certificate.passed, outcome.certificate
    assert departure(U) <= limit
    wide = wide_precision(A)
    assert norm(wide - wide_precision(U) @ wide_precision(P)) <= limit * size
    assert np.array_equal(P, P.conj().T)
    assert np.linalg.eigvalsh(wide_precision(P))[0] >= -limit * size
    _, s, VH = np.linalg.svd(wide, full_matrices=False)
    # P is determined for a singular matrix, too; it moves by the logarithm of the size more than the matrix.
    assert norm(P - (VH.conj().T * s) @ VH) <= 10 * limit * size
    assert outcome.estimates["distance"] == pytest.approx(float(np.linalg.norm(wide - U)), rel=1e-4, abs=limit)
    singular = s[-1] <= n * eps(A) * s[0]
    assert any("one of several" in note for note in outcome.notes) == singular or 0.01 < s[-1] / max(s[0] * n * eps(A), 1e-300) < 1
    if method == "newton":
        assert outcome.estimates["iterations"] <= 10


@pytest.mark.parametrize("n", [2, 3, 6, 20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_that_repeat_or_depend(dtype: str, n: int) -> None:
    for seed in range(12):
        rng = np.random.default_rng([n, seed])
        few = np.asarray(gaussian(n, max(1, n // 2), dtype))
        A = few[:, rng.integers(0, few.shape[1], n)] if seed % 2 else few @ rng.integers(-2, 3, (few.shape[1], n)).astype(few.dtype)
        for method in ("direct", "newton"):
            outcome, U, _ = run(np.ascontiguousarray(A), method=method)
            assert outcome.certificate.passed, (seed, outcome.certificate)
            assert departure(U) <= 30 * n * eps(A)
            assert outcome.estimates.get("condition", np.inf) == np.inf


@pytest.mark.parametrize("method", ["direct", "newton"])
def test_out_of_the_range_of_squares(method: str) -> None:
    A = gaussian(30, 20)
    _, U, P = run(A, method=method)
    for exponent in (-900, 900):
        outcome, scaled_U, scaled_P = run(np.ldexp(A, exponent), method=method)
        assert outcome.certificate.passed
        assert np.array_equal(U, scaled_U)
        assert np.array_equal(np.ldexp(P, exponent), scaled_P)


@pytest.mark.parametrize("method", ["direct", "newton"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_u_needs_no_p_that_is_in_range(dtype: str, method: str) -> None:
    """P of subnormal entries has no digits, that of the largest ones overflows: both are refused, and U alone is as near 1."""
    A, info = gaussian(9, 9, dtype), np.finfo(dtype)
    tiny = times_power_of_two(A / np.abs(A).max(), info.minexp - 8)
    huge = np.full((40, 1), info.max / 4, dtype)
    for M in (tiny, huge):
        with pytest.raises(NumericalError, match=r"P (are too small|overflow)|overflow"):
            run(M, method=method)
        outcome, U, _ = run(M, method=method, mode="u")
        assert outcome.certificate.passed
        assert departure(U) <= 30 * len(M) * eps(A)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("shape", [(30, 30), (40, 25), (25, 40)])
@pytest.mark.parametrize("dtype", ["f8", "c16"])
def test_scipy_agrees(shape: tuple[int, int], side: Any, dtype: str) -> None:
    A = gaussian(*shape, dtype)
    u, p = dlscale.polar(A, side)
    expected_u, expected_p = scipy.linalg.polar(A, side=side)
    np.testing.assert_allclose(u, expected_u, atol=1e-12)
    np.testing.assert_allclose(p, expected_p, atol=1e-12)


@pytest.mark.parametrize("dtype", ["f8", "c16"])
def test_the_left_decomposition_by_newton(dtype: str) -> None:
    A = gaussian(25, 60, dtype)
    outcome, U, P = run(A, side="left", panel=8)
    assert outcome.certificate.passed
    assert "the rows of U are orthonormal" in outcome.certificate.checks[0].meaning
    expected_u, expected_p = scipy.linalg.polar(A, side="left")
    np.testing.assert_allclose(U, expected_u, atol=1e-12)
    np.testing.assert_allclose(P, expected_p, atol=1e-12)


#: Options, a shape, and what is said of them.
REFUSED: dict[str, tuple[dict[str, Any], tuple[int, int], str]] = {
    "wide": ({}, (3, 5), r"params\.side: right is for .* at least as many rows as columns; got 3 x 5: use side: left"),
    "tall": ({"side": "left"}, (5, 3), r"at least as many columns as rows; got 5 x 3: use side: right"),
    "no such side": ({"side": "both"}, (3, 3), r"side: got 'both' \(text\); allowed: right .* or left"),
    "a panel for LAPACK": ({"method": "direct", "panel": 2}, (3, 3), r"params\.panel: goes with method newton"),
    "a panel that is too wide": ({"panel": 4}, (7, 3), r"params\.panel must be from 1 to 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    options, shape, words = REFUSED[name]
    with pytest.raises(SpecError, match=words):
        run(gaussian(*shape), **options)


def test_a_factor_that_is_not_the_nearest_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """U with a column mirrored is unitary, and U^H A then indefinite, or not Hermitian."""
    svd, go = direct.svd, newton.iterate

    def mirrored(A: Array) -> Any:
        X, s, VH = svd(A)
        return X, np.r_[s[:-1], -s[-1]], np.r_[VH[:-1], VH[-1:]]

    def reflected(*arguments: Any) -> Any:
        found = go(*arguments)
        X = found.X.read(0, found.X.shape[0]).copy()
        X[:, 0] *= -1
        return found._replace(X=open_matrix(X))

    A = gaussian(30, 20)
    with monkeypatch.context() as patch:
        patch.setattr(direct, "svd", mirrored)
        outcome, *_ = run(A, method="direct")
    assert not outcome.certificate.passed
    monkeypatch.setattr("dlscale.linalg.polar.by_panels.iterate", reflected)
    outcome, *_ = run(A, method="newton")
    assert not outcome.certificate.passed
    with pytest.raises(CertificateError):
        outcome.certificate.require()


def job_of(folder: Path, A: Array, **more: Any) -> dict[str, Any]:
    store(folder / "a.zarr", A, chunks=(200, 300))
    return {"kind": "polar", "input": {"matrix": str(folder / "a.zarr")}, "cluster": "threads", **more}


class StoppedError(Exception):
    """What a listener raises to stop a job."""


def go_on(job: dict[str, Any], workspace: Workspace, **more: Any) -> Any:
    """Run a job, or go on with it where it was stopped."""
    if not list(workspace.jobs()):
        return jobs.run(job, workspace=workspace.root, **more)
    stopped = workspace.find(None)
    resumed = jobs.resume(stopped, jobs.reopen(stopped, workspace), **more)
    if resumed.error:
        raise resumed.error
    return resumed


#: Matrices of order 400, and steps after which their jobs are stopped.
STOPPED: dict[str, tuple[Callable[[], Array], tuple[str, ...]]] = {
    "regular": (lambda: gaussian(400, 400) + 30 * np.eye(400), ("newton-1-1", "iterate-2", "lu-4-1", "p")),
    "nearly singular": (
        lambda: np.vander(np.linspace(-1, 1, 400), increasing=True),
        ("turned-1", "newton-1-1", "iterate-2", "turned-back-1", "p"),
    ),
}


@pytest.mark.parametrize("name", STOPPED)
def test_a_triangle_that_no_worker_holds_and_a_job_that_is_stopped(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes 1.3 MB, of which a pass would hold sixteen."""
    monkeypatch.setattr(plans, "STRIP_BYTES", 2**20)
    monkeypatch.setattr(newton, "PIECES_BYTES", 2**19)
    monkeypatch.setattr(by_panels, "PIECES_BYTES", 2**19)
    for module in (newton, by_panels):
        monkeypatch.setattr(module, "COPIES", 8)  # a few slabs a step
    make, stops = STOPPED[name]
    A = make()
    job = job_of(tmp_path, A, cluster={"type": "threads", "threads": 2, "memory": "11.4MB"}, params={"panel": 100})
    with pytest.raises(DlscaleError, match="One worker needs"):
        jobs.run({**job, "params": {"method": "direct"}}, workspace=tmp_path)
    on_disk = 0

    def measuring(event: Any) -> None:
        nonlocal on_disk
        on_disk = max(on_disk, sum(path.stat().st_size for path in (tmp_path / "whole").rglob("c/*/*") if path.is_file()))

    whole = jobs.run(job, workspace=tmp_path / "whole", listener=measuring)
    plan = json.loads((whole.folder / "plan.json").read_text())
    assert plan["method"] == "newton"
    assert plan["peak_bytes_per_worker"] <= 11.4e6
    assert 5 * A.nbytes < on_disk <= plan["disk_bytes"] < sum(step["bytes_written"] for step in plan["steps"]) / 2
    assert whole.certificate is not None
    assert whole.certificate["passed"]
    U, P = (np.asarray(whole.open()[name]) for name in ("u", "p"))
    assert norm(A - U @ P) <= 30 * 400 * eps(A) * norm(A)
    assert departure(U) <= 30 * 400 * eps(A)
    workspace = Workspace(tmp_path / "ws")
    for stop in stops:

        def stopping(event: Any, stop: str = stop) -> None:
            told = event if isinstance(event, dict) else event.to_dict()
            if told["event"] == "pass_finished" and told["step"] == stop and not told["resumed"]:
                raise StoppedError

        with pytest.raises(StoppedError):
            go_on(job, workspace, listener=stopping)
    stopped = workspace.find(None)
    # Of the iterates and their factors the last one is left.
    kept = [path.name for path in (stopped.checkpoint / "scratch").iterdir()]
    assert len([name for name in kept if name.startswith(("iterate", "lu"))]) == 1
    resumed = go_on(job, workspace)
    for name, array in (("u", U), ("p", P)):
        assert np.asarray(resumed.open()[name]).tobytes() == array.tobytes()


def test_u_alone(tmp_path: Path) -> None:
    result = jobs.run(job_of(tmp_path, gaussian(60, 40), params={"mode": "u", "panel": 16}), workspace=tmp_path)
    assert sorted(result.open()) == ["u"]


@pytest.mark.parametrize("method", ["direct", "newton"])
@pytest.mark.parametrize("exponent", [0, 400, 1000])
def test_how_far_a_matrix_is_at_any_scale(method: str, exponent: int) -> None:
    outcome, *_ = run(np.diag(np.ldexp([1.0, 0.75], exponent)), method=method)
    assert outcome.estimates["distance"] == pytest.approx(np.ldexp(1.25, exponent) if exponent else 0.25, rel=1e-14)
