"""c A, for c = 2^k over the whole range of each precision, gives the scaled answer to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from factorizations import factor
from helpers import DTYPES, Array, each_of, eps, gaussian, two_dtypes

import dlscale
from dlscale.errors import NumericalError, OutOfRange
from dlscale.kernels import times_power_of_two
from dlscale.linalg.lstsq import kind as lstsq

M, N = 60, 40


def exponents(dtype: str, *, below: int = 12, above: int = 12) -> list[int]:
    """From the smallest numbers of which no digit is lost to the largest, and the edges of what is left unscaled."""
    info = np.finfo(dtype)
    edges = [
        info.minexp + below,
        info.minexp // 2,
        -400,
        -150,
        -41,
        -40,
        -1,
        1,
        40,
        41,
        150,
        400,
        info.maxexp // 2,
        info.maxexp - above,
    ]
    return sorted({k for k in edges if info.minexp + below <= k <= info.maxexp - above})


def well_scaled(m: int, n: int, dtype: str) -> Array:
    """Parts of entries between 1/8 and 4 in size, so that none of c A is subnormal."""
    A = gaussian(m, n, dtype)
    for part in (A.real, A.imag) if A.dtype.kind == "c" else (A,):
        part[...] = np.copysign(np.clip(np.abs(part), 0.125, 4), part)
    return A


def positive_definite(dtype: str) -> Array:
    A = well_scaled(N, N, dtype)
    return np.asarray(np.tril(A, -1) + np.tril(A, -1).conj().T + 8 * N * np.eye(N), dtype)


def times_upper(packed: Array, k: int) -> Array:
    return np.tril(packed, -1) + times_power_of_two(np.triu(packed), k)


@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("row_blocks", [1, 2])
def test_factorizations(dtype: str, row_blocks: int) -> None:
    """Of several groups, and of panels in row blocks."""
    A, S = well_scaled(M, N, dtype), positive_definite(dtype)
    options: dict[str, Any] = {"panel": 16, "row_blocks": row_blocks, "group": 2}
    _, lu = factor("lu", A, **options)
    _, qr = factor("qr", A, **options)
    _, raw = factor("qr", A, mode="raw", **options)
    _, cholesky = factor("cholesky", S, **options)
    for k in exponents(dtype, below=14):
        outcome, found = factor("lu", times_power_of_two(A, k), **options)
        assert outcome.certificate.passed
        assert (found["piv"] == lu["piv"]).all()
        assert (found["lu"] == times_upper(lu["lu"], k)).all()
        _, found = factor("qr", times_power_of_two(A, k), **options)
        assert (found["q"] == qr["q"]).all()
        assert (found["r"] == times_power_of_two(qr["r"], k)).all()
        _, found = factor("qr", times_power_of_two(A, k), mode="raw", **options)
        assert (found["qr"] == times_upper(raw["qr"], k)).all()
        assert (found["t"] == raw["t"]).all()
        outcome, found = factor("cholesky", times_power_of_two(S, k // 2 * 2), **options)
        assert outcome.certificate.passed
        assert (found["l"] == times_power_of_two(cholesky["l"], k // 2)).all()


@pytest.mark.parametrize("assume", ["general", "pos", "sym"])
@each_of(dtype=DTYPES)
def test_solves_inverses_and_determinants(dtype: str, assume: Any) -> None:
    A = positive_definite(dtype) if assume != "general" else well_scaled(N, N, dtype)
    if assume == "sym":
        A[:: N // 2, :: N // 2] = 0  # pivots of order 2
    b = well_scaled(N, 2, dtype)
    x, inverse, determinant = (
        dlscale.solve(A, b, assume=assume),
        dlscale.inverse(A, assume=assume),
        dlscale.slogdet(A, assume=assume),
    )
    for k in exponents(dtype, below=20, above=16):
        scaled = times_power_of_two(A, k)
        assert (dlscale.solve(scaled, times_power_of_two(b, k), assume=assume) == x).all()
        if abs(k) < -np.finfo(dtype).minexp - 20:
            assert (dlscale.solve(scaled, b, assume=assume) == times_power_of_two(x, -k)).all()
            assert (dlscale.solve(A, times_power_of_two(b, k), assume=assume) == times_power_of_two(x, k)).all()
            assert (dlscale.inverse(scaled, assume=assume) == times_power_of_two(inverse, -k)).all()
        found = dlscale.slogdet(scaled, assume=assume)
        assert found.sign == determinant.sign
        assert found.logabsdet == pytest.approx(determinant.logabsdet + N * k * np.log(2), rel=1e-12, abs=N * eps(A))


@each_of(dtype=DTYPES)
def test_subnormal_matrices(dtype: str) -> None:
    """What their few digits determine is what it is of the same matrix near 1; factors that would lose digits are refused."""
    k = int(np.finfo(dtype).minexp) - 10
    small = times_power_of_two(positive_definite(dtype) / 512, k)
    A = times_power_of_two(small, -k)
    b, rhs = (np.ascontiguousarray(matrix[:, :2]) for matrix in (A, small))
    for assume in ("general", "pos", "sym" if A.dtype.kind == "f" else "her"):
        assert (dlscale.solve(small, rhs, assume=assume) == dlscale.solve(A, b, assume=assume)).all()
    assert dlscale.slogdet(small).logabsdet == pytest.approx(dlscale.slogdet(A).logabsdet + N * k * np.log(2), rel=1e-12)
    assert (dlscale.cholesky(small).l == times_power_of_two(dlscale.cholesky(A).l, k // 2)).all()
    for p in (2, 1):
        assert dlscale.cond(small, p) == pytest.approx(dlscale.cond(A, p), rel=100 * eps(A))
    assert dlscale.matrix_rank(small) == dlscale.matrix_rank(small, float(np.ldexp(1.0, k - 9))) == N
    refused: list[Callable[[Array], Any]] = [dlscale.lu, dlscale.qr, dlscale.eigh, dlscale.svd, dlscale.polar]
    for function in [*refused, lambda M: dlscale.qr(M, pivoting=True), lambda M: dlscale.qr(M, panel=8, mode="raw")]:
        function(A)
        with pytest.raises(NumericalError, match=r"too small for the digits of .* multiply the matrix by a power of two\.$"):
            function(small)
    with pytest.raises(NumericalError, match="The inverse is out of the range"):
        dlscale.inverse(small)


@pytest.mark.parametrize("precision", ["double", "mixed"])
def test_columns_of_right_hand_sides_have_their_own_scales(precision: Any) -> None:
    A, b = well_scaled(N, N, "f8"), well_scaled(N, 3, "f8")
    x = dlscale.solve(A, b, precision=precision)
    scales = np.array([2.0**-900, 1.0, 2.0**900])
    assert (dlscale.solve(A, b * scales, precision=precision) == x * scales).all()
    assert (dlscale.lstsq(A[:, :9], b * scales).x == dlscale.lstsq(A[:, :9], b).x * scales).all()
    assert (dlscale.lstsq(A[:9], b[:9] * scales).x == dlscale.lstsq(A[:9], b[:9]).x * scales).all()


@pytest.mark.parametrize("way", ["passes", "panels"])
@pytest.mark.parametrize("shape", [(M, 9), (9, M), (N, N)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_least_squares(dtype: str, shape: tuple[int, int], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "panels":
        monkeypatch.setattr(lstsq, "PASS_COLUMNS", 0)
        monkeypatch.setattr(lstsq, "CLEARLY_LONG", 10**9)
    A, b = well_scaled(*shape, dtype), well_scaled(shape[0], 2, dtype)
    found = dlscale.lstsq(A, b)
    for k in exponents(dtype, below=20, above=16):
        scaled = dlscale.lstsq(times_power_of_two(A, k), times_power_of_two(b, k))
        assert (scaled.x == found.x).all()
        assert scaled.rank == found.rank
        if found.s is not None:
            assert scaled.s is not None
            assert scaled.s.dtype == np.finfo(dtype).dtype
            assert (scaled.s == times_power_of_two(found.s, k)).all()
        if abs(k) < -np.finfo(dtype).minexp - 20:
            assert (dlscale.lstsq(times_power_of_two(A, k), b).x == times_power_of_two(found.x, -k)).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda A, b: dlscale.solve(A * 1e-200, b * 1e200), "solution is out of the range of float64.*1e400"),
        (lambda A, b: dlscale.solve(A * 1e200, b * 1e-200), "solution is out of the range of float64.*1e-40"),
        (lambda A, b: dlscale.inverse(A * 2.0**-1060), "inverse is out of the range of float64"),
        (lambda A, b: dlscale.lstsq(A[:, :5] * 1e-200, b * 1e200), "entries of x overflow float64"),
        (lambda A, b: dlscale.lstsq(A * 1e200, b * 1e-200), "entries of x are too small"),
        (lambda A, b: dlscale.lu(A / np.abs(A).max() * 1.7e308), "factors overflow float64"),
    ],
)
def test_answers_that_are_no_numbers_are_refused(call: Callable[[Array, Array], Any], words: str) -> None:
    with pytest.raises(NumericalError, match=words):
        call(gaussian(N, N), gaussian(N, 1))


def fit_or_refusal(A: Array, solver: Any) -> dlscale.PCA | str:
    try:
        return dlscale.PCA(8, solver=solver).fit(A)
    except OutOfRange as error:
        return str(error)


@pytest.mark.parametrize("solver", ["covariance", "full", "randomized"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_principal_components(dtype: str, solver: Any) -> None:
    """Variances, of which a small one leaves the range long before the matrix does, are to the bit or refused by name."""
    A = well_scaled(M, 9, dtype) * np.asarray([1, 1, 1, 1, 1, 1, 1, 2.0**-9, 2.0**-9], dtype)
    found = fit_or_refusal(A, solver)
    assert not isinstance(found, str)
    least = float(min(found.explained_variance_.min(), found.noise_variance_))
    refusals = []
    for k in sorted({*exponents(dtype, below=24, above=16), *range(-540, -490, 5), *range(-64, -40, 4)}):
        if k < np.finfo(dtype).minexp + 24:
            continue
        scaled = fit_or_refusal(times_power_of_two(A, k), solver)
        if isinstance(scaled, str):
            refusals.append(scaled)
            assert np.frexp(least)[1] + 2 * k < -1020 or k > 500
            continue
        assert (scaled.singular_values_ == times_power_of_two(found.singular_values_, k)).all()
        assert (scaled.components_ == found.components_).all()
        for variance in ("explained_variance_", "noise_variance_"):
            here, there = np.asarray(getattr(found, variance), dtype), np.asarray(getattr(scaled, variance), float)
            assert (np.ldexp(there, -2 * k).astype(dtype) == here).all()
    said = [sum(words in refusal for refusal in refusals) for words in ("are too small for the digits of", "overflow")]
    assert sum(said) == len(refusals)
    assert all(said) == (dtype == "f8")
