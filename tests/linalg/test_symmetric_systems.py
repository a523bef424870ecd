"""Symmetric and Hermitian indefinite matrices by LDL^T: solutions, determinants, inverses and the signs of the eigenvalues."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, THREADS, Array, eps, gaussian, store
from hypothesis import given, settings
from hypothesis import strategies as st

import dlscale
from dlscale.batch.assumed import AssumedMatrix
from dlscale.engine.clusters import ClusterFacts, open_cluster
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import DoesNotFitError, InputError, NonFiniteError, NumericalError, SpecError
from dlscale.linalg.solve import block_diagonal, symmetric
from dlscale.linalg.solve.inverse import KIND as INVERSE
from dlscale.linalg.solve.inverse import InverseOptions
from dlscale.linalg.solve.kind import KIND as SOLVE
from dlscale.linalg.solve.kind import SolveOptions
from dlscale.linalg.solve.slogdet import KIND as SLOGDET
from dlscale.linalg.solve.slogdet import SlogdetOptions
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix

THRESHOLD = 30
KINDS: dict[type[Any], Any] = {SolveOptions: SOLVE, InverseOptions: INVERSE, SlogdetOptions: SLOGDET}


def run(options: Any, A: Any, B: Any = None, *, facts: ClusterFacts = THREADS) -> tuple[Outcome, dict[str, Array]]:
    kind = KINDS[type(options)]
    inputs = Inputs({"matrix": open_matrix(A)} | ({} if B is None else {"rhs": open_matrix(B, vectors=True)}))
    plan = kind.plan(inputs, options, facts)
    with open_cluster(facts) as cluster:
        job = Run(cluster)
        outcome = kind.compute(job, inputs, options, plan)
    return outcome, outcome.arrays | job.outputs


def hermitian(A: Array) -> Array:
    return np.asarray(A + A.conj().T) / 2


def saddle(n: int, dtype: str) -> Array:
    """No entry of its diagonal could be a pivot at first."""
    A, k = np.zeros((n, n), dtype), n // 2
    A[:k, k : 2 * k] = gaussian(k, k, dtype) + 3 * np.eye(k)
    A = A + A.conj().T
    if n % 2:
        A[-1, -1] = -1
    return A


def graded(n: int, dtype: str) -> Array:
    D = np.logspace(0, -1.5, n)
    return (D[:, None] * hermitian(gaussian(n, n, dtype) + 5 * np.diag((-1.0) ** np.arange(n))) * D).astype(dtype)


def arrow(n: int, dtype: str) -> Array:
    A = np.diag(np.arange(1, n + 1) * (-1.0) ** np.arange(n)).astype(dtype)
    A[0, 1:] = A[1:, 0] = 1
    return A


MATRICES: dict[str, Callable[[int, str], Array]] = {
    "gaussian": lambda n, dtype: hermitian(gaussian(n, n, dtype)),
    "saddle": saddle,
    "graded": graded,
    "arrow": arrow,
    "definite": lambda n, dtype: -hermitian(gaussian(n, n, dtype)) / n - 3 * np.eye(n, dtype=dtype),
    "exchange": lambda n, dtype: np.eye(n, dtype=dtype)[::-1].copy(),
}


def signs(A: Array) -> tuple[int, int]:
    values = np.linalg.eigvalsh(A.astype("c16"))
    return int((values > 0).sum()), int((values < 0).sum())


def backward_error(A: Array, X: Array, B: Array) -> float:
    wide = np.longdouble if A.dtype.kind == "f" else np.clongdouble
    R = np.abs(B.astype(wide) - A.astype(wide) @ X.astype(wide)).sum(axis=0)
    norms = np.abs(A.astype(wide)).sum(axis=0).max() * np.abs(X.astype(wide)).sum(axis=0)
    return float((R / norms / eps(A)).max())


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(MATRICES)),
    n=st.sampled_from((1, 2, 3, 33, 64, 65, 150)),
    dtype=st.sampled_from(DTYPES),
    assume=st.sampled_from(["sym", "her"]),
    precision=st.sampled_from(["double", "mixed"]),
    power=st.integers(-60, 60),
)
def test_solutions(name: str, n: int, dtype: str, assume: Any, precision: Any, power: int) -> None:
    A, B = MATRICES[name](n, dtype), gaussian(n, 2, dtype, seed=1)
    options = SolveOptions(assume=assume, precision=precision)
    outcome, arrays = run(options, A, B)
    assert outcome.certificate.passed, outcome.notes
    assert backward_error(A, arrays["x"], B) < THRESHOLD
    assert not any("QR" in note for note in outcome.notes)
    estimates = outcome.estimates
    assert (estimates["n_positive"], estimates["n_negative"], estimates["n_zero"]) == (*signs(A), 0)
    # Multiplied by a power of two, it has the same digits.
    scale = np.ldexp(1.0, power).astype(dtype)
    again = run(options, A * scale, B)[1]["x"]
    np.testing.assert_array_equal(again * scale, arrays["x"])


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(MATRICES)), n=st.sampled_from((1, 2, 3, 33, 65, 150)), dtype=st.sampled_from(DTYPES))
def test_determinants_and_inverses(name: str, n: int, dtype: str) -> None:
    A = MATRICES[name](n, dtype)
    wide = A.astype(np.result_type(dtype, "f8"))
    number = float(np.linalg.cond(wide))
    outcome, arrays = run(SlogdetOptions(assume="sym"), A)
    assert outcome.certificate.passed
    sign, logarithm = np.linalg.slogdet(wide)
    assert abs(arrays["sign"][0] - sign) < 1e-3
    assert arrays["logabsdet"][0] == pytest.approx(logarithm, abs=10 * n * eps(A) * number, rel=10 * eps(A))
    assert outcome.estimates == dict(zip(("n_positive", "n_negative", "n_zero"), (*signs(A), 0), strict=True))
    outcome, arrays = run(InverseOptions(assume="her"), A)
    X = arrays["inverse"]
    assert outcome.certificate.passed
    assert np.linalg.norm(wide @ X - np.eye(n), 1) <= 30 * n * eps(A) * np.linalg.norm(wide, 1) * np.linalg.norm(X, 1)
    assert outcome.estimates["n_negative"] == signs(A)[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_zero", [1, 5])
def test_what_is_not_told_from_zero_is_counted(dtype: str, n_zero: int) -> None:
    Q = np.linalg.qr(gaussian(60, 60, dtype).astype("c16" if np.dtype(dtype).kind == "c" else "f8")).Q
    values = np.concatenate([np.linspace(1, 3, 40), np.linspace(-2, -1, 20 - n_zero), np.zeros(n_zero)])
    A = hermitian((Q * values) @ Q.conj().T).astype(dtype)
    outcome, _ = run(SlogdetOptions(assume="sym"), A)
    assert outcome.estimates == {"n_positive": 40, "n_negative": 20 - n_zero, "n_zero": n_zero}


def many_near_one(n: int, dtype: str, rng: np.random.Generator) -> Array:
    """Graded over the range of the dtype or less, some with rows that repeat: many vectors are nearly null, and nearly the same."""
    X = rng.standard_normal((n, n)) + (1j * rng.standard_normal((n, n)) if np.dtype(dtype).kind == "c" else 0)
    M = hermitian(X) if rng.random() < 0.5 else X @ X.conj().T
    if rng.random() < 0.5:
        repeated = rng.integers(0, n // 2 + 1, n)
        M = M[np.ix_(repeated, repeated)]
    top = int(rng.integers(5, 40))
    exponents = rng.integers(-top, top + 1, n)
    D = np.ldexp(1.0, np.sort(exponents) if rng.random() < 0.3 else exponents)
    return hermitian(D[:, None] * M * D).astype(dtype)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 60), dtype=st.sampled_from(["f4", "c8"]), columns=st.sampled_from([5, 256]))
def test_no_more_eigenvalues_are_told_than_there_are(seed: int, n: int, dtype: str, columns: int) -> None:
    """Positive, negative or zero, up to n eps ||A||, whatever vectors are looked at together."""
    A = many_near_one(n, dtype, np.random.default_rng(seed))
    with pytest.MonkeyPatch.context() as patch, suppress(NumericalError):  # factors may overflow
        patch.setattr(block_diagonal, "_COLUMNS", columns)
        found = symmetric.factor_measured(A.copy(), np.ones((n, 1), dtype), 1, lambda *done: None).inertia
        values = np.linalg.eigvalsh(A.astype("c16"))
        room = 2 * n * eps(A) * np.abs(values).max()
        assert found.n_positive <= (values > -room).sum()
        assert found.n_negative <= (values < room).sum()
        assert found.n_zero <= (np.abs(values) <= room).sum()
        assert sum(found) == n


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_that_are_counted_in_lots(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_diagonal, "_COLUMNS", 32)
    X, S = gaussian(150, 40, dtype), np.where(np.arange(40) < 25, 1, -1)
    A = hermitian((X * S) @ X.conj().T).astype(dtype)
    found = symmetric.factor_measured(A, np.ones((150, 1), dtype), 1, lambda *done: None).inertia
    # Where U is ill-conditioned, some directions are lost between the lots.
    assert found.n_positive >= 25
    assert found.n_negative >= 15
    assert 100 <= found.n_zero <= 110


def test_of_zeros_every_eigenvalue_is_zero() -> None:
    outcome, arrays = run(SlogdetOptions(assume="sym"), np.zeros((7, 7)))
    assert outcome.estimates == {"n_positive": 0, "n_negative": 0, "n_zero": 7}
    assert (arrays["sign"][0], arrays["logabsdet"][0]) == (0, -np.inf)
    with pytest.raises(NumericalError, match=r"singular to working precision: pivot 3 of its LDL\^T factorization is zero.*lstsq"):
        dlscale.solve(np.diag([1.0, -2, 0]), np.ones(3), assume="sym")
    with pytest.raises(NumericalError, match="pivot 3 of its LDL"):
        dlscale.inverse(np.diag([1.0, -2, 0]), assume="sym")


def test_systems_of_complex_right_hand_sides() -> None:
    A, B = MATRICES["gaussian"](50, "f8"), gaussian(50, 2, "c16")
    for precision in ("double", "mixed"):
        _, arrays = run(SolveOptions(assume="sym", precision=precision), A, B)
        np.testing.assert_allclose(arrays["x"], np.linalg.solve(A, B), rtol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", [2, 570])
def test_what_is_not_symmetric_is_refused_with_its_worst_pair(row: int, dtype: str) -> None:
    A = MATRICES["definite"](600, dtype)
    A[row, 40] += 0.5
    word = "Hermitian" if A.dtype.kind == "c" else "symmetric"
    pair = rf"\(({row}, 40|40, {row})\)"
    for options, *more in ((SolveOptions(assume="sym"), np.ones(600)), (InverseOptions(assume="sym"),), (SlogdetOptions("her"),)):
        with pytest.raises(InputError, match=rf"must be {word}; its entries {pair} and {pair} differ most"):
            run(options, A, *more)


def test_complex_symmetric_is_not_hermitian() -> None:
    A = gaussian(20, 20, "c16")
    with pytest.raises(InputError, match="must be Hermitian"):
        dlscale.solve(A + A.T, np.ones(20), assume="sym")


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_hermitian_is_named_where_it_is_assumed_and_not_refined(dtype: str) -> None:
    for n in (2, 50):
        A = gaussian(n, n, dtype) + 3 * n * np.eye(n, dtype=dtype)
        with pytest.raises(InputError, match=r"must be (symmetric|Hermitian); A - A' is .* of A in the Frobenius norm"):
            dlscale.solve(A, np.ones(n, dtype), assume="pos", refine="never")
        H = hermitian(A).astype(dtype)
        assert backward_error(H, dlscale.solve(H, np.ones((n, 1), dtype), assume="pos", refine="never"), np.ones((n, 1))) < 30


def test_a_nan_is_named() -> None:
    A = MATRICES["gaussian"](30, "f8")
    A[4, 9] = A[9, 4] = np.nan
    with pytest.raises(NonFiniteError, match="nan at row 4, column 9"):
        dlscale.slogdet(A, assume="sym")


def test_wrong_factors_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The determinant is then that of QR, and a solution is that of it too where refinement does not bring it back."""
    right = symmetric.factor_in_place

    def wrong(M: Array) -> tuple[Array, Array, int]:
        found = right(M)
        M[5, 5] *= 3
        M[7, 20] += 10
        return found

    A, b = MATRICES["definite"](50, "f8"), np.ones(50)
    monkeypatch.setattr(symmetric, "factor_in_place", wrong)
    outcome, arrays = run(SlogdetOptions(assume="sym"), A)
    assert any("by QR" in note for note in outcome.notes)
    assert arrays["logabsdet"][0] == pytest.approx(np.linalg.slogdet(A)[1])
    outcome, arrays = run(SolveOptions(assume="sym"), A, b)
    assert outcome.certificate.passed
    np.testing.assert_allclose(arrays["x"], np.linalg.solve(A, b), rtol=1e-10)


@pytest.mark.parametrize("chunks", [(33, 33), (20, 120), (120, 20)])
def test_from_disk_and_in_memory_the_factors_are_the_same(tmp_path: Path, chunks: tuple[int, int]) -> None:
    A, B = MATRICES["gaussian"](120, "f8"), gaussian(120, 2)
    path = str(store(tmp_path / "a.zarr", A, chunks=chunks))
    for options, *more in ((SolveOptions(assume="sym"), B), (SlogdetOptions(assume="sym"),)):
        found, expected = run(options, path, *more)[1], run(options, A, *more)[1]
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name])


def test_what_no_worker_holds_is_refused_with_a_way_out() -> None:
    large = Inputs({"matrix": AssumedMatrix((40_000, 40_000)), "rhs": AssumedMatrix((40_000, 1))})
    with pytest.raises(
        DoesNotFitError, match=r"assume: sym .* 40000 rows need 1[34]\.\d\d GB, and has 2.15 GB; use assume: general"
    ):
        SOLVE.plan(large, SolveOptions(assume="sym", method="direct"), THREADS)
    huge = AssumedMatrix((50_000, 50_000))
    with pytest.raises(DoesNotFitError, match=r"LAPACK takes 46340 rows; use assume: general, which is LU by panels"):
        SLOGDET.plan(Inputs({"matrix": huge}), SlogdetOptions(assume="sym"), ClusterFacts("threads", 1, 2, 2**40))


def test_stored_factors_go_with_what_they_are_of() -> None:
    inputs = Inputs({"matrix": open_matrix(np.eye(3)), "rhs": open_matrix(np.ones((3, 1)))}, {"factors": Any})  # type: ignore[dict-item]
    with pytest.raises(SpecError, match=r"params\.assume: sym does not go with input\.factors"):
        SOLVE.plan(inputs, SolveOptions(assume="sym"), THREADS)
