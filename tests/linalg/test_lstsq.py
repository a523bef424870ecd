"""Least squares: NumPy's answers on every shape, rank and number of right-hand sides."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, THREADS, Array, eps, gaussian, spectrum, store

from dlscale import gallery
from dlscale.engine.clusters import open_cluster
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import NonFiniteError, NumericalError, SpecError
from dlscale.linalg.lstsq import kind as lstsq
from dlscale.linalg.lstsq.kind import LstsqOptions, compute_lstsq, plan_lstsq
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix

SHAPES = [(1, 1), (200, 1), (1, 200), (33, 32), (32, 33), (300, 40), (40, 300), (64, 64)]


@pytest.fixture(params=["passes", "panels"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Passes over the long side; or panels, which are for matrices that are large both ways."""
    if request.param == "panels":
        monkeypatch.setattr(lstsq, "PASS_COLUMNS", 0)
        monkeypatch.setattr(lstsq, "CLEARLY_LONG", 10**9)
    return str(request.param)


def run(A: Any, B: Any, **options: Any) -> Outcome:
    inputs = Inputs({"matrix": open_matrix(A), "rhs": open_matrix(B, vectors=True)})
    chosen = LstsqOptions(**options)
    plan = plan_lstsq(inputs, chosen, THREADS)
    with open_cluster(THREADS) as cluster:
        return compute_lstsq(Run(cluster), inputs, chosen, plan)


def assert_as_numpy(A: Array, B: Array, outcome: Outcome, *, condition: float) -> None:
    """The same rank, and x within the bound of the problem: eps times its condition number, squared for the residual's part."""
    wide = np.result_type(A.dtype, np.float64)
    x, _, rank, _ = np.linalg.lstsq(A.astype(wide), B, rcond=max(A.shape) * eps(A))
    assert outcome.estimates["rank"] == rank
    assert outcome.certificate.passed, outcome.certificate
    residual = np.linalg.norm(B - A.astype(wide) @ x) / max(np.linalg.norm(A) * np.linalg.norm(x), 1e-300)
    bound = 30 * max(A.shape) ** 0.5 * eps(A) * (condition + condition**2 * residual)
    assert np.linalg.norm(outcome.arrays["x"] - x) <= bound * np.linalg.norm(x)
    assert np.linalg.norm(outcome.arrays["x"]) <= np.linalg.norm(x) * (1 + bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, int], dtype: str, way: str) -> None:
    A, B = gaussian(*shape, dtype), gaussian(shape[0], 3, dtype, seed=1)
    s = np.linalg.svd(A, compute_uv=False)
    outcome = run(A, B, panel=min(16, *shape))
    assert outcome.arrays["x"].shape == (shape[1], 3)
    assert outcome.arrays["x"].dtype == A.dtype
    assert_as_numpy(A, B, outcome, condition=float(s[0] / s[-1]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(90, 30), (30, 90), (40, 40)], ids=str)
@pytest.mark.parametrize("rank", [1, 11, 29])
def test_rank_deficient(rank: int, shape: tuple[int, int], dtype: str, way: str) -> None:
    A, B = gallery.rank_deficient(*shape, rank, dtype=dtype), gaussian(shape[0], 2, dtype)
    s = np.linalg.svd(A.astype("c16"), compute_uv=False)
    outcome = run(A, B, panel=16)
    assert outcome.estimates["rank"] == rank
    assert_as_numpy(A, B, outcome, condition=float(s[0] / s[rank - 1]))


@pytest.mark.parametrize("condition", [1e3, 1e8, 1e12])
@pytest.mark.parametrize("shape", [(200, 40), (40, 200)], ids=str)
def test_conditions(shape: tuple[int, int], condition: float, way: str) -> None:
    A, B = spectrum(gallery.geometric(40, condition), *shape), gaussian(shape[0], 2)
    outcome = run(A, B, panel=16)
    assert_as_numpy(A, B, outcome, condition=condition)
    # Panels estimate it, in another norm.
    assert condition / 100 <= outcome.estimates["condition"] <= condition * 100


@pytest.mark.parametrize("shape", [(120, 20), (20, 120)], ids=str)
def test_rcond_decides_the_rank(shape: tuple[int, int], way: str) -> None:
    A, B = spectrum(gallery.step(20, 7, small=1e-5), *shape), gaussian(shape[0], 1)
    x, _, _, _ = np.linalg.lstsq(A, B, rcond=1e-3)
    outcome = run(A, B, rcond=1e-3, panel=8)
    assert outcome.estimates["rank"] == 7
    np.testing.assert_allclose(outcome.arrays["x"], x, atol=1e-10 * np.linalg.norm(x))
    assert run(A, B, panel=8).estimates["rank"] == 20


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(120, 20), (20, 120), (30, 30)], ids=str)
def test_what_rcond_leaves_out_is_not_held_against_the_answer(shape: tuple[int, int], dtype: str, way: str) -> None:
    """Nothing separates the singular values that count from those that do not, which are far from zero."""
    A, B = spectrum(np.geomspace(1, 1e-4, min(shape)), *shape).astype(dtype), gaussian(shape[0], 2, dtype)
    outcome = run(A, B, rcond=3e-3, panel=8)
    x, _, rank, _ = np.linalg.lstsq(A.astype("c16"), B.astype("c16"), rcond=3e-3)
    assert outcome.estimates["rank"] == rank
    assert outcome.certificate.passed
    np.testing.assert_allclose(outcome.arrays["x"], x, atol=1e5 * eps(A) * np.linalg.norm(x))


@pytest.mark.parametrize("shape", [(120, 20), (20, 120)], ids=str)
def test_a_wrong_solution_of_fewer_directions_fails(shape: tuple[int, int], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    A, B = spectrum(np.geomspace(1, 1e-4, 20), *shape), gaussian(shape[0], 1)
    for name in ("apply", "apply_adjoint"):
        right = getattr(lstsq.PseudoInverse, name)
        monkeypatch.setattr(lstsq.PseudoInverse, name, lambda self, C, right=right: right(self, C) * (1 + 1e-8))
    assert not run(A, B, rcond=3e-3, panel=8).certificate.passed


def test_many_right_hand_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are reduced in one pass."""
    monkeypatch.setattr(lstsq, "_batch", lambda n: 10)
    A, B = gaussian(150, 20), gaussian(150, 64)
    np.testing.assert_allclose(run(A, B, block_rows=50).arrays["x"], np.linalg.lstsq(A, B)[0], atol=1e-12)


@pytest.mark.parametrize("shape", [(80, 20), (20, 80)], ids=str)
def test_one_vector_and_complex_right_hand_sides(shape: tuple[int, int], way: str) -> None:
    A, b = gaussian(*shape), gaussian(shape[0], 1, "c16")[:, 0]
    x = run(A, b, panel=8).arrays["x"]
    assert x.shape == (shape[1],)
    assert x.dtype == np.complex128
    np.testing.assert_allclose(x, np.linalg.lstsq(A, b)[0], atol=1e-12)


def test_the_residuals_are_those_of_numpy() -> None:
    A, B = gaussian(100, 10), gaussian(100, 4)
    outcome = run(A, B, block_rows=32)
    np.testing.assert_allclose(outcome.estimates["residuals"], np.linalg.lstsq(A, B)[1], rtol=1e-12)
    np.testing.assert_allclose(outcome.arrays["s"], np.linalg.svd(A, compute_uv=False), rtol=1e-12)


@pytest.mark.parametrize("shape", [(150, 30), (30, 150)], ids=str)
def test_from_disk(shape: tuple[int, int], tmp_path: Path) -> None:
    A, B = gaussian(*shape), gaussian(shape[0], 2)
    a = store(tmp_path / "a.zarr", A, chunks=(20, 20), compressors=None)
    b = store(tmp_path / "b.zarr", B, chunks=(64, 2), compressors=None)
    np.testing.assert_allclose(run(str(a), str(b)).arrays["x"], np.linalg.lstsq(A, B)[0], atol=1e-12)


def test_a_nan_is_found_with_its_place() -> None:
    A, B = gaussian(50, 5), gaussian(50, 2)
    A[31, 3] = np.nan
    with pytest.raises(NonFiniteError, match="row 31, column 3"):
        run(A, B)
    with pytest.raises(NonFiniteError, match="row 3, column 1"):
        run(gaussian(50, 5), np.where(np.arange(100).reshape(50, 2) == 7, np.inf, B))


def test_large_both_ways_goes_to_panels() -> None:
    A, B = open_matrix(np.broadcast_to(1.0, (6000, 5000))), open_matrix(np.ones((6000, 1)))
    facts = type(THREADS)("threads", 1, 2, 2**33)
    assert plan_lstsq(Inputs({"matrix": A, "rhs": B}), LstsqOptions(), facts).method == "panels"


@pytest.mark.parametrize(
    ("B", "options", "words"),
    [(np.ones(4), {}, "input.rhs: must have 3 rows"), (np.ones(3), {"rcond": 1.5}, "rcond: got 1.5 .*a number from 0 to below 1")],
)
def test_what_does_not_suit_is_refused(B: Array, options: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        run(np.ones((3, 2)), B, **options)


def of_lower_rank(kind: str, m: int, n: int, dtype: str) -> Array:
    if kind == "repeated column":
        A = gaussian(m, n, dtype)
        A[:, n - 1] = A[:, 0]
        return A
    return np.outer(np.arange(1, m + 1), np.ones(n) if kind == "alike" else np.arange(1, n + 1)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(20, 3), (3, 20), (4, 4), (2000, 2)], ids=str)
@pytest.mark.parametrize("kind", ["alike", "outer", "repeated column"])
def test_the_condition_of_a_lower_rank_is_infinite(kind: str, shape: tuple[int, int], dtype: str, way: str) -> None:
    A = of_lower_rank(kind, max(shape), min(shape), dtype)
    A = A if A.shape == shape else np.ascontiguousarray(A.T)
    outcome = run(A, gaussian(shape[0], 1, dtype), panel=2)
    assert outcome.certificate.passed
    assert outcome.estimates["condition"] == np.inf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9, 3), (3, 9), (4, 4)], ids=str)
def test_no_cutoff_at_all(shape: tuple[int, int], dtype: str, way: str) -> None:
    A, b = gaussian(*shape, dtype), gaussian(shape[0], 1, dtype)
    outcome, usual = run(A, b, panel=2, rcond=0), run(A, b, panel=2)
    assert outcome.estimates["rank"] == min(shape)
    np.testing.assert_allclose(outcome.arrays["x"], usual.arrays["x"], rtol=1e3 * eps(A))
    assert run(np.zeros(shape, dtype), b, panel=2, rcond=0).estimates["rank"] == 0


@pytest.mark.parametrize("power", [-149, -140, -130, -126, -90, 60, 100, 120])
@pytest.mark.parametrize("dtype", ["f4", "c8"])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (8, 1), (4, 4)], ids=str)
def test_single_precision_near_the_ends_of_its_range(shape: tuple[int, int], dtype: str, power: int, way: str) -> None:
    """The answer, or one sentence where it has no digits there."""
    A, b = np.round(4 * gaussian(*shape)).astype(dtype), np.round(4 * gaussian(shape[0], 1)).astype(dtype)
    panel = min(2, *shape)
    x = run(A, b, panel=panel).arrays["x"]
    A = (A * np.float64(2.0) ** power).astype(dtype)
    for own in (0, -100, power):
        B = (b * np.float64(2.0) ** own).astype(dtype)
        try:
            outcome = run(A, B, panel=panel)
        except NumericalError as error:
            assert "overflow" in str(error) or "too small for the digits" in str(error)  # noqa: PT017
            continue
        assert outcome.certificate.passed
        expected = x.astype("c16") * 2.0 ** (own - power)
        np.testing.assert_allclose(outcome.arrays["x"].astype("c16"), expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
        if "s" in outcome.arrays:
            s = np.linalg.svd(A.astype("c16"), compute_uv=False)
            np.testing.assert_allclose(outcome.arrays["s"], s, atol=1e-5 * s[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_numbers(dtype: str, way: str) -> None:
    """Factors overflow until the matrix is scaled, and so does what the right-hand sides are made of."""
    largest = float(np.finfo(dtype).max) / 2
    for shape in ((1, 1), (21, 13), (9, 15)):
        A, x = gaussian(*shape, dtype), gaussian(shape[1], 2, dtype)
        B = A @ x
        found = run(A, B)
        for M, C in ((A / np.abs(A).max() * largest, B / np.abs(B).max() * largest), (A, B / np.abs(B).max() * largest)):
            with suppress(NumericalError):  # of x that overflows
                outcome = run(M.astype(dtype), C.astype(dtype))
                assert outcome.certificate.passed
                assert outcome.estimates["rank"] == found.estimates["rank"]
    with pytest.raises(NumericalError, match="entries of x overflow"):
        run(np.array([[-8e-30, 4e-31]], dtype), np.full((1, 1), largest, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_solution_below_the_range_is_refused_in_words(dtype: str, way: str) -> None:
    """It is zero as it is computed, which is no least squares solution."""
    tiny = float(np.finfo(dtype).smallest_subnormal)
    for A in (np.array([[1e-9, 3e4]]), np.array([[3e4], [1e-9]]), np.array([[3e4, 0, 1], [0, 2e4, 0]])):
        with pytest.raises(NumericalError, match="entries of x are too small"):
            run(A.astype(dtype), np.full((len(A), 1), 9 * tiny, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_singular_values_that_make_the_solution_overflow_are_named(dtype: str, way: str) -> None:
    half = int(np.finfo(dtype).maxexp) - 8
    A = np.ldexp(gaussian(3, 5), np.array([0, -half // 2, -half])[:, None]).astype(dtype)
    assert run(A, np.ones((3, 1), dtype)).certificate.passed
    with pytest.raises(NumericalError, match=r"raise rcond, the part of the largest one.*which is 0\.0e\+00"):
        run(A, np.ones((3, 1), dtype), rcond=0.0)


def test_the_norm_of_a_column_of_x_beside_a_larger_one(way: str) -> None:
    A, scales = np.eye(6, 4), np.array([1.0, 2.0**-600])
    outcome = run(A, np.ones((6, 1)) * scales)
    np.testing.assert_array_equal(outcome.estimates["norm_of_x"], 2 * scales)
