"""Norms, conditions, ranks, pseudo-inverses, determinants and traces: those of NumPy, at every scale."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import zarr
from helpers import DTYPES, HARD, Array, each_of, eps, gaussian, two_dtypes, wide_precision

import dlscale
from dlscale import gallery
from dlscale.declaration.kind import run_here
from dlscale.engine.clusters import ClusterFacts
from dlscale.errors import InexactNote, NonFiniteError, SpecError
from dlscale.kernels import times_power_of_two
from dlscale.linalg.solve.slogdet import KIND as SLOGDET
from dlscale.linalg.solve.slogdet import SlogdetOptions
from dlscale.linalg.statistics import kind
from dlscale.linalg.statistics.kind import KIND, NormOptions
from dlscale.storage.matrices import open_matrix

ORDERS = [None, "fro", 1, -1, 2, -2, np.inf, -np.inf, "nuc"]


@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("name", HARD)
def test_norms_of_hard_matrices(name: str, dtype: str) -> None:
    A = HARD[name](dtype)
    wide = wide_precision(A)
    size = np.linalg.norm(wide)
    for order in ORDERS:
        found, expected = dlscale.norm(A, order), np.linalg.norm(wide, order)
        assert found.dtype == A.real.dtype
        assert abs(found - expected) <= 60 * max(A.shape) * eps(A) * (size if order in (2, -2, "nuc") else expected)


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("order", ORDERS)
def test_norms_at_every_scale_have_the_same_digits(dtype: str, order: Any) -> None:
    A, limits = gaussian(300, 20, dtype), np.finfo(dtype)
    whole, two = dlscale.norm(A, order), np.ones(1, A.real.dtype)
    for exponent in (limits.minexp + 30, limits.minexp // 2, limits.maxexp // 2, limits.maxexp - 16):
        assert dlscale.norm(A * np.ldexp(two, exponent), order) == np.ldexp(whole, exponent)


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", [-1, -np.inf])
def test_smallest_sums_beside_entries_of_any_size(order: Any, compressed: bool, dtype: str) -> None:
    """Whatever the other columns or rows hold, and though their sums overflow."""
    limits = np.finfo(dtype)
    for exponent in (limits.minexp - limits.nmant, limits.minexp, -50, 50):
        for largest in (1, limits.max / 4, limits.max):
            A = np.full((70, 40), largest, dtype)
            small = A[:, 5] if order == -1 else A[5]
            small[:] = 0
            small[3:7] = np.ldexp(1.0, exponent)
            expected = 4 * float(np.ldexp(1.0, exponent)) if largest > 1 or exponent < 0 else 70.0 if order == -1 else 40.0
            assert float(dlscale.norm(scipy.sparse.csr_array(A) if compressed else A, order)) == expected
    A = np.full((70, 40), limits.max / 1000, dtype)
    n_terms = A.shape[0 if order == -1 else 1]
    assert float(dlscale.norm(A, order)) == pytest.approx(n_terms * float(A[0, 0].real), rel=n_terms * eps(A))


def test_a_norm_that_overflows_is_infinite_with_a_warning() -> None:
    for dtype in DTYPES:
        A = np.full((50, 40), np.finfo(dtype).max / 4, dtype)
        for order in ("fro", 1, 2, "nuc"):
            with pytest.warns(RuntimeWarning, match=r"The norm overflows float\d+ and is infinite"):
                assert dlscale.norm(A, order) == np.inf


def test_norms_of_vectors() -> None:
    x = gaussian(70, 1)[:, 0]
    for order in (None, 2, 1, np.inf, -np.inf):
        assert dlscale.norm(x, order) == pytest.approx(np.linalg.norm(x, order), rel=1e-14)
    for vector, order in ((x, 3), (x, "fro"), (x[:, None], 3), (x[:, None], "max")):
        with pytest.raises(SpecError, match=r"ord: got .*; norms of a (vector|matrix) here: None"):
            dlscale.norm(vector, order)


@pytest.mark.parametrize("given", [1, "1", np.inf, "inf", "max", 2.0, -2])
def test_a_job_file_says_a_norm_by_a_word_or_a_number(given: Any) -> None:
    A = gaussian(60, 30)
    found = run_here(KIND, KIND.inputs({"matrix": A}), NormOptions(ord=given)).arrays["norm"][0]
    expected = np.abs(A).max() if given == "max" else np.linalg.norm(A, float(given))
    assert found == pytest.approx(expected, rel=1e-13)
    for wrong in (3, True, "two"):
        with pytest.raises(SpecError, match=r"ord: got .*allowed: fro \(root of the sum of squares\)"):
            NormOptions(ord=wrong)  # type: ignore[arg-type]


def test_the_two_norm_of_what_is_large_both_ways_has_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "EXACT", 50)
    A = gallery.SpectrumMatrix((400, 300), gallery.geometric(300, 1e3), dtype=np.dtype("f8"), offset=0.0).rows(0, 400)
    outcome, arrays = run_here(KIND, KIND.inputs({"matrix": A}), NormOptions(ord="2"))
    exact = np.linalg.norm(A, 2)
    assert abs(arrays["norm"][0] - exact) <= outcome.estimates["error"] + 1e-13 * exact
    assert arrays["norm"][0] == pytest.approx(exact, rel=1e-6)
    with pytest.raises(SpecError, match=r"params\.ord: nuc takes all singular values.* Of larger ones there is ord: 2"):
        KIND.plan(KIND.inputs({"matrix": A}), NormOptions(ord="nuc"), ClusterFacts("threads", 1, 1, 10**9))


def test_entries_that_are_no_numbers_are_refused_by_their_place(tmp_path: Path) -> None:
    A = gaussian(40, 40)
    A[7, 7] = np.nan
    path = tmp_path / "a.zarr"
    zarr.create_array(path, shape=A.shape, chunks=(9, 11), dtype="f8")[:] = A
    for source in (A, path):
        for function in (dlscale.norm, dlscale.cond, dlscale.matrix_rank, dlscale.pinv, dlscale.det, dlscale.trace):
            with pytest.raises(NonFiniteError, match="nan at row 7, column 7"):
                function(source)


SQUARE = [name for name in gallery.HARD_SQUARE if name != "hilbert"]


@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("name", SQUARE)
def test_conditions(name: str, dtype: str) -> None:
    A = gallery.HARD_SQUARE[name](40, dtype)
    wide = wide_precision(A)
    for p in (None, 2, 1, np.inf, "fro", -2, -1, -np.inf):
        found, expected = dlscale.cond(A, p), np.linalg.cond(wide, p)
        assert found.dtype == A.real.dtype
        largest = np.linalg.cond(wide)
        if largest * eps(A) < 1e-3:
            assert found == pytest.approx(expected, rel=300 * eps(A) * largest + 40 * eps(A))
        elif p in (None, 2, 1, np.inf, "fro"):
            assert found > 1e-4 / eps(A)


def test_conditions_of_singular_matrices_are_infinite() -> None:
    zero = np.zeros((6, 6))
    for p in (None, 1, np.inf, "fro"):
        assert dlscale.cond(zero, p) == np.linalg.cond(zero, p) == np.inf
    assert dlscale.cond(gallery.singular_at(10, 3), 1) == np.inf
    tall = np.hstack([gaussian(30, 4), np.zeros((30, 1))])
    assert dlscale.cond(tall) == np.inf
    with pytest.raises(SpecError, match="must be square for the condition number of p = 1; got 30 x 5"):
        dlscale.cond(tall, 1)
    with pytest.raises(SpecError, match="p: got 'nuc'"):
        dlscale.cond(zero, "nuc")


@pytest.mark.parametrize("dtype", DTYPES)
def test_ranks(dtype: str) -> None:
    for shape in ((60, 40), (40, 60), (40, 40)):
        for rank in (1, 11, 40):
            A = gallery.rank_deficient(*shape, rank, dtype=dtype)
            assert dlscale.matrix_rank(A) == np.linalg.matrix_rank(A) == rank
    A = np.diag(np.array([1, 1e-1, 1e-2, 0], dtype))
    assert [dlscale.matrix_rank(A, t) for t in (0.5, 0.05, 0.001)] == [1, 2, 3]
    assert dlscale.matrix_rank(10 * A, rtol=0.05) == 2
    tiny = np.diag([1.0, 1e-200, 0.0])
    assert [dlscale.matrix_rank(tiny, t) for t in (None, 0, 1e-201, 1e-199)] == [1, 2, 2, 1]
    assert [dlscale.matrix_rank(x) for x in (np.ones(5), np.zeros(5), np.zeros((3, 3)))] == [1, 0, 0]
    with pytest.raises(SpecError, match="give one of them"):
        dlscale.matrix_rank(A, 0.1, rtol=0.1)


@pytest.mark.parametrize("wrong", [-1, np.nan, -np.inf, "a", [0.1], np.array([0.1, 0.2]), True, 1j, {}])
def test_tolerances_that_are_no_numbers_are_refused(wrong):
    A = np.eye(3)
    for function, name in (
        (dlscale.matrix_rank, "tol"),
        (dlscale.matrix_rank, "rtol"),
        (dlscale.pinv, "rcond"),
        (dlscale.pinv, "rtol"),
    ):
        with pytest.raises(SpecError, match=f"{name}: must be a number of at least 0; got "):
            function(A, **{name: wrong})
    with pytest.raises(SpecError, match=r"p: got .*; allowed: None, 2, -2, 1"):
        dlscale.cond(A, [wrong])


def assert_pseudo_inverse(A: Array, X: Array, condition: float) -> None:
    """The four conditions of Penrose."""
    A, X, bound = wide_precision(A), wide_precision(X), 100 * max(A.shape) * eps(X) * condition
    AX, XA = A @ X, X @ A
    for found, expected in ((AX @ A, A), (XA @ X, X), (AX.conj().T, AX), (XA.conj().T, XA)):
        assert np.linalg.norm(found - expected) <= bound * max(np.linalg.norm(expected), 1e-300)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pseudo_inverses(dtype: str) -> None:
    for shape in ((60, 40), (40, 60), (40, 40), (1, 5), (5, 1)):
        for rank in (1, min(11, *shape), min(shape)):
            A = gallery.rank_deficient(*shape, rank, dtype=dtype)
            X = dlscale.pinv(A)
            assert X.shape == shape[::-1]
            assert X.dtype == A.dtype
            assert_pseudo_inverse(A, X, np.linalg.cond(A) if rank == min(shape) else 100)
    assert (dlscale.pinv(np.zeros((4, 3), dtype)) == 0).all()
    B = np.diag(np.array([1, 1e-2], dtype))
    np.testing.assert_allclose(dlscale.pinv(B, 0.1), np.diag([1, 0]), atol=1e-6)
    np.testing.assert_allclose(dlscale.pinv(B, rtol=0.001), np.diag([1, 100]), rtol=1e-5)


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("shape", [(7, 4), (3, 5)])
def test_pseudo_inverses_at_any_scale(shape: tuple[int, int], dtype: str) -> None:
    A = gaussian(*shape, dtype)
    X, limits = dlscale.pinv(A), np.finfo(dtype)
    for power in (limits.minexp + 20, limits.minexp // 2, limits.maxexp // 2, limits.maxexp - 20):
        scaled = dlscale.pinv(times_power_of_two(A, power))
        np.testing.assert_allclose(times_power_of_two(scaled, power), X, rtol=100 * limits.eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_determinants_and_traces(dtype: str) -> None:
    for n in (1, 2, 5, 30):
        A = gaussian(n, n, dtype)
        found, expected = dlscale.det(A), np.linalg.det(wide_precision(A))
        assert found.dtype == A.dtype
        assert abs(found - expected) <= 100 * n * eps(A) * np.linalg.cond(wide_precision(A)) * abs(expected)
    assert dlscale.det(np.zeros((3, 3), dtype)) == 0
    with pytest.warns(RuntimeWarning, match="The determinant overflows"):
        assert np.isinf(dlscale.det(np.eye(50, dtype=dtype) * np.asarray(1e30, dtype)))
    assert dlscale.det(np.eye(50, dtype=dtype) * np.asarray(1e-30, dtype)) == 0
    A = gaussian(700, 600, dtype)
    for offset in (0, 3, -650, 700, -900):
        found = dlscale.trace(A, offset)
        assert found.dtype == A.dtype
        diagonal = np.diagonal(A, offset)
        expected = complex(math.fsum(diagonal.real), math.fsum(diagonal.imag))
        assert found == A.dtype.type(expected if A.dtype.kind == "c" else expected.real)
    assert dlscale.trace(np.diag([1e308, 1e308, -1e308, 1.0])) == 1e308
    assert dlscale.trace(np.diag([1e308, 1e308, -1e308, -1e308, 5e-324])) == 5e-324
    with pytest.warns(InexactNote):
        dlscale.trace(np.diag([2**53 + 1, -(2**53)]))
    with pytest.warns(RuntimeWarning, match="The trace overflows"):
        assert dlscale.trace(np.diag([1e308, 1e308])) == np.inf
    with pytest.raises(SpecError, match=r"offset: must be an integer; got 1\.5"):
        dlscale.trace(A, 1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("assume", ["general", "pos"])
@each_of(dtype=DTYPES)
def test_determinants_of_what_is_large_and_what_is_small(dtype: str, assume: Any) -> None:
    """No pivot vanishes beside another, whose product may be an ordinary number."""
    limits, rng = np.finfo(dtype), np.random.default_rng(0)
    for top in range(10, limits.maxexp - 10, 9):
        exponents = rng.permutation([top, top // 2, 5, 0, 1, -(top // 2), -top])
        A = np.diag(np.ldexp(1.5, exponents).astype(dtype))
        if assume == "general":
            A[0, 1:] = A[0, 0] / 2
        found = dlscale.slogdet(A, assume=assume)
        assert found.sign == 1
        assert found.logabsdet == pytest.approx(7 * np.log(1.5) + float(exponents.sum()) * np.log(2), rel=40 * eps(A))
        assert dlscale.det(A) == pytest.approx(1.5**7 * 2.0 ** exponents.sum(), rel=400 * eps(A))


@pytest.mark.parametrize("assume", ["sym", "her"])
def test_a_determinant_says_whose_signs_are_those_of_rounding(assume: Any) -> None:
    """Where the inertia counts zeros, the sign is none of its counts."""
    for seed in range(8):
        X = gaussian(9, 3, "f8" if assume == "sym" else "c16", seed=seed)
        outcome = run_here(SLOGDET, SLOGDET.inputs({"matrix": X @ X.conj().T}), SlogdetOptions(assume=assume)).outcome
        assert outcome.estimates["n_zero"] == 6
        assert any("6 of the eigenvalues are not told from zero" in note for note in outcome.notes)
    regular = run_here(SLOGDET, SLOGDET.inputs({"matrix": np.diag([2.0, -1.0])}), SlogdetOptions(assume=assume))
    assert (regular.outcome.estimates["n_negative"], regular.arrays["sign"][0], regular.outcome.notes) == (1, -1, ())


def test_one_read_tells_a_norm_of_entries(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    zarr.create_array(path, shape=(500, 40), chunks=(50, 40), dtype="f4", compressors=None)[:] = gaussian(500, 40, "f4")
    plan = KIND.plan(KIND.inputs({"matrix": open_matrix(path)}), NormOptions(ord="1"), ClusterFacts("threads", 1, 2, 10**9))
    assert plan.bytes_read == 500 * 40 * 4
    assert [step.id for step in plan.steps] == ["entries"]
