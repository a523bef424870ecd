"""What is stated of an x whose entries lose digits below the smallest normal number is true of the x that is handed out."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, Array, each_of, eps
from linear_systems import computed

from dlscale.declaration.kind import run_here
from dlscale.errors import DlscaleError, InputError, NumericalError
from dlscale.kernels import times_power_of_two
from dlscale.linalg.lstsq.kind import KIND as LSTSQ
from dlscale.linalg.lstsq.kind import LstsqOptions
from dlscale.linalg.panels.products import probes
from dlscale.linalg.solve.inverse import KIND as INVERSE
from dlscale.linalg.solve.inverse import InverseOptions

METHODS: dict[str, dict[str, Any]] = {
    "jacobi": {},
    "gauss_seidel": {},
    "gmres": {},
    "cg": {"preconditioner": "jacobi"},
    "minres": {"preconditioner": "jacobi"},
}


def exact(A: Array) -> tuple[Array, Array]:
    """Real and imaginary parts as fractions."""
    real, imaginary = (np.vectorize(lambda x: Fraction(float(x)), otypes=[object])(part) for part in (A.real, np.imag(A)))
    return real, imaginary


def residual(A: Array, b: Array, x: Array) -> tuple[Array, Array]:
    (A_r, A_i), (b_r, b_i), (x_r, x_i) = exact(A), exact(b), exact(x)
    return b_r - (A_r @ x_r - A_i @ x_i), b_i - (A_r @ x_i + A_i @ x_r)


def squares(parts: tuple[Array, Array]) -> Fraction:
    return Fraction(sum((parts[0] ** 2 + parts[1] ** 2).ravel()))


def root(square: Fraction) -> float:
    """Also of what is out of the range of floats."""
    n, d = square.numerator, square.denominator
    if not n:
        return 0.0
    shift = (n.bit_length() - d.bit_length()) // 2
    return float(np.ldexp(float(square * Fraction(2) ** (-2 * shift)) ** 0.5, shift))


def problem(seed: int, dtype: str, m: int = 3) -> tuple[Array, Array]:
    """A graded matrix (m, 3), positive definite where it is square, and a right-hand side by which entries of x lose digits."""
    rng, info = np.random.default_rng([seed, m]), np.finfo(dtype)
    span = 300 if info.bits == 64 else 30
    grades = rng.integers(-span, span, 3) * int(rng.integers(2)) // 2
    A = np.eye(m, 3) + 0.1 * rng.standard_normal((m, 3)) * (grades.max() == grades.min())
    A = (A + A.T) / 2 if m == 3 else A
    if info.dtype != np.dtype(dtype):
        A = A * np.exp(0.1j * (np.arange(m)[:, None] - np.arange(3)))
    A = np.asarray(np.ldexp(A.real, grades) + (1j * np.ldexp(A.imag, grades) if A.dtype.kind == "c" else 0), dtype)
    x = rng.standard_normal(3) * 2.0 ** rng.integers(-40, 1, 3)
    b = A.astype(np.result_type(A, "f8")) @ x if rng.integers(2) else rng.standard_normal(m) * 2.0 ** rng.integers(-30, 1, m)
    return A, times_power_of_two(b, info.minexp + int(rng.integers(-8, 30))).astype(dtype)


@pytest.mark.parametrize("tolerance", [1e-12, 1e-6])
@pytest.mark.parametrize("method", METHODS)
@each_of(dtype=DTYPES)
def test_iterations_state_the_residual_of_the_x_that_is_handed_out(dtype: str, method: Any, tolerance: float) -> None:
    n_found = 0
    for seed in range(30):
        A, b = problem(seed, dtype)
        with suppress(DlscaleError):
            found = computed(A, b, method=method, tolerance=tolerance, **METHODS[method])
            true = root(squares(residual(A, b, found.arrays["x"])) / squares(exact(b))) if b.any() else 0.0
            assert true <= tolerance
            assert true == pytest.approx(found.outcome.estimates["true_residual"], rel=1e-6, abs=1e-14)
            n_found += 1
    assert n_found >= 2


@pytest.mark.parametrize("assume", ["general", "pos"])
@each_of(dtype=DTYPES)
def test_backward_and_forward_errors_are_those_of_the_x_that_is_handed_out(dtype: str, assume: Any) -> None:
    n_found = 0
    for seed in range(30):
        A, b = problem(seed, dtype)
        with suppress(DlscaleError):
            found = computed(A, b, assume=assume)
            x, stated = found.arrays["x"], found.outcome.estimates
            r, norms = residual(A, b, x), np.abs(A).sum(axis=0, dtype=float).max()
            length = sum(abs(Fraction(float(entry))) for entry in np.abs(x.astype(np.result_type(x, "f8"))))
            r_length = sum(Fraction(root(p * p + q * q)) for p, q in zip(*r, strict=True))
            if length:
                assert float(r_length / Fraction(float(norms)) / length) <= stated["backward_error"] * (1 + 8 * eps(A)) + 1e-15
            n_found += 1
    assert n_found >= 5


def test_the_bound_of_the_error_counts_digits_that_are_lost() -> None:
    A, b = 4 * np.eye(2, dtype="f4"), np.array([4 * 2.0**-126, 6 * 2.0**-149], "f4")
    stated = computed(A, b).outcome.estimates
    # The second entry is 1.5 times the smallest number, and becomes twice that.
    assert 0.5 * 2.0**-149 / 2.0**-126 * (1 - 1e-6) <= stated["forward_error_bound"] < 1e-6


@pytest.mark.parametrize("m", [3, 5])
@each_of(dtype=DTYPES)
def test_residuals_of_least_squares_are_those_of_the_x_that_is_handed_out(dtype: str, m: int) -> None:
    n_found, double = 0, float(np.finfo(float).eps)
    for seed in range(30):
        A, b = problem(seed, dtype, m)
        A, b = (A, b) if dtype in ("f4", "c8") else (A, times_power_of_two(b, 500))
        with suppress(DlscaleError):
            found = run_here(LSTSQ, LSTSQ.inputs({"matrix": A, "rhs": b}), LstsqOptions(method="direct"))
            x = found.arrays["x"]
            true, stated = root(squares(residual(A, b, x))), root(Fraction(found.outcome.estimates["residuals"][0]))
            size = root(squares(exact(b))) + root(squares(exact(A)) * squares(exact(x)))
            assert true == pytest.approx(stated, rel=1e-6, abs=8 * double * size + 1e-160)
            n_found += 1
    assert n_found >= 5


@each_of(dtype=DTYPES)
def test_an_inverse_is_checked_with_the_digits_that_it_has(dtype: str) -> None:
    info, rng = np.finfo(dtype), np.random.default_rng(0)
    A = times_power_of_two(np.asarray(np.eye(4) + 0.2 * rng.standard_normal((4, 4)), dtype), info.maxexp - 6)
    A[0, 1:] = 0
    A[1:, 0] = A[0, 0] * np.asarray([2.0**-8, 2.0**-9, 2.0**-10], dtype)
    found = run_here(INVERSE, INVERSE.inputs({"matrix": A}), InverseOptions())
    W, wide = probes(4, np.dtype(dtype)), np.result_type(dtype, "f8")
    k = info.maxexp - 6
    near, inverse = times_power_of_two(A, -k).astype(wide), times_power_of_two(found.arrays["inverse"].astype(wide), k)
    norms = [np.linalg.norm(part, 1) for part in (near, inverse, W)]
    true = np.linalg.norm(W - near @ (inverse @ W), 1) / (np.prod(norms) * 4 * eps(A))
    assert found.outcome.certificate.checks[0].value >= 0.5 * true - 0.1


@pytest.mark.parametrize("method", METHODS)
def test_entries_that_vanish_end_in_a_sentence(method: Any) -> None:
    options = {"method": method, "tolerance": 1e-10} | METHODS[method]
    A, b = np.diag([2.0**300, 2.0**-50]), np.array([3 * 2.0**-1000, 2.0**-1000])
    with pytest.raises(NumericalError, match="Entries of x may be below the smallest normal number of its dtype"):
        computed(A, b, **options)
    with pytest.raises(NumericalError, match=r"Entries of x may be below|too small for the digits"):
        computed(np.diag([2.0**500, 2.0**-400]), np.array([3 * 2.0**-600, 2.0**-600]), **options)
    with pytest.raises(NumericalError, match=r"Entries of x may be below"):
        run_here(
            LSTSQ, LSTSQ.inputs({"matrix": A, "rhs": b}), LstsqOptions(method="cgls", preconditioner="jacobi", tolerance=1e-10)
        )


@pytest.mark.parametrize("method", METHODS)
def test_what_a_matrix_loses_in_being_scaled_is_counted_as_rounding(method: Any) -> None:
    A = np.diag([2.0**127, 1.5 * 2.0**-22]).astype("f4")
    with suppress(NumericalError):
        found = computed(A, np.array([0, 1], "f4"), method=method, **METHODS[method])
        assert found.arrays["x"][1] == pytest.approx(2.0**22 / 1.5)
    words = r"an inverse of a part of it overflows|is so beside the largest entry|ended"
    with pytest.raises((NumericalError, InputError), match=words):
        computed(np.diag([2.0**1023, 1.5 * 2.0**-51]), np.array([0, 2.0**-60]), method=method, **METHODS[method])


@each_of(dtype=["f8", "c16"])
def test_the_residual_of_least_squares_counts_digits_that_are_lost(dtype: str) -> None:
    A, b = np.diag([2.0**600, 2.0**560]).astype(dtype), np.array([3.3 * 2.0**-430, 2.0**-430]).astype(dtype)
    found = run_here(LSTSQ, LSTSQ.inputs({"matrix": A, "rhs": b}), LstsqOptions(method="direct"))
    true = squares(residual(A, b, found.arrays["x"]))
    assert true > 0
    assert found.outcome.estimates["residuals"][0] == pytest.approx(float(true), rel=1e-3)


@each_of(dtype=["f8", "c16"])
def test_a_norm_that_is_out_of_range_is_infinite(dtype: str) -> None:
    A = np.asarray(1e308 * np.array([[1.5, 0.5], [1.0, -1.0]]), dtype)
    found = computed(A, np.ones(2, dtype) * 1e300)
    assert found.outcome.estimates["norm"] == np.inf
    assert found.outcome.estimates["forward_error_bound"] < 1e-14
