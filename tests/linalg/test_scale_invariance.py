"""Matrices times powers of two: the bits of the answer do not change, or it is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from helpers import DTYPES, HARD, Array, compute, gaussian, spectrum
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import dlscale
from dlscale import gallery
from dlscale.errors import NonFiniteError, NumericalError
from dlscale.kernels import times_power_of_two
from dlscale.linalg.svd import SVDOptions, compute_svd, plan_svd
from dlscale.linalg.tall_qr import QROptions, compute_qr, plan_qr

EXPONENTS = {4: (-149, 127), 8: (-1074, 1023)}
OPTIONS: dict[str, dict[str, Any]] = {
    "randomized": {"n_components": 3, "power_iterations": 2, "oversampling": 2},
    "no iteration": {"n_components": 3, "power_iterations": 0},
    "krylov": {"n_components": 3, "method": "krylov", "power_iterations": 1},
    "streaming": {"n_components": 3, "method": "streaming"},
    "exact": {"method": "exact"},
    "tolerance": {"tolerance": 1e-2},
    "exact, tolerance": {"tolerance": 1e-2, "method": "exact"},
}


def real_bytes(dtype: str) -> int:
    return np.dtype(dtype).itemsize // (2 if np.dtype(dtype).kind == "c" else 1)


def simple(A: Array) -> Array:
    """Entries of few digits, which nearly every power of two in range multiplies exactly."""
    return np.asarray((A * 8).round() / 8).astype(A.dtype)


def matrices(dtype: str) -> dict[str, Array]:
    return {
        "tall": simple(gaussian(50, 8, dtype)),
        "wide": simple(gaussian(9, 40, dtype)),
        "graded": spectrum(gallery.geometric(16, 1e3), 60, 16, dtype=dtype),
        "low rank": simple(gaussian(40, 2, dtype)) @ simple(gaussian(2, 12, dtype)),
    }


def svd(A: Array, name: str) -> tuple[dict[str, Array], dict[str, Any]]:
    outcome, arrays, _ = compute(plan_svd, compute_svd, A, SVDOptions(block_rows=16, **OPTIONS[name]))
    assert outcome.certificate.passed
    return arrays, outcome.estimates


def qr(A: Array) -> dict[str, Array]:
    outcome, arrays, _ = compute(plan_qr, compute_qr, A, QROptions(block_rows=16))
    assert outcome.certificate.passed
    return dict(arrays)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
@given(st.data())
@settings(max_examples=12, deadline=None)
def test_svd_at_every_scale(name: str, dtype: str, data: st.DataObject) -> None:
    """The SVD of 2^e A is U, 2^e S, V to the bit, or the singular values are out of range."""
    A = matrices(dtype)[data.draw(st.sampled_from(["tall", "wide", "graded", "low rank"]))]
    exponent = data.draw(st.integers(*EXPONENTS[real_bytes(dtype)]))
    scaled = times_power_of_two(A, exponent)
    assume(np.isfinite(scaled).all() and (times_power_of_two(scaled, -exponent) == A).all())
    expected, errors = svd(A, name)
    s = times_power_of_two(expected["s"], exponent)
    if not np.isfinite(s).all() or s[0] < np.finfo(dtype).tiny:
        with pytest.raises(NumericalError, match="singular values"):
            svd(scaled, name)
        return
    found, told = svd(scaled, name)
    np.testing.assert_array_equal(found["u"], expected["u"])
    np.testing.assert_array_equal(found["vh"], expected["vh"])
    np.testing.assert_array_equal(found["s"], s)
    np.testing.assert_array_equal(told["singular_value_errors"], np.ldexp(errors["singular_value_errors"], exponent))


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.data())
@settings(max_examples=20, deadline=None)
def test_tall_qr_at_every_scale(dtype: str, data: st.DataObject) -> None:
    A = matrices(dtype)[data.draw(st.sampled_from(["tall", "graded", "low rank"]))]
    exponent = data.draw(st.integers(*EXPONENTS[real_bytes(dtype)]))
    scaled = times_power_of_two(A, exponent)
    assume(np.isfinite(scaled).all() and (times_power_of_two(scaled, -exponent) == A).all())
    expected = qr(A)
    r = times_power_of_two(expected["r"], exponent)
    if not np.isfinite(r).all() or np.abs(r).max() < np.finfo(dtype).tiny:
        with pytest.raises(NumericalError, match="entries of R"):
            qr(scaled)
        return
    found = qr(scaled)
    np.testing.assert_array_equal(found["q"], expected["q"])
    np.testing.assert_array_equal(found["r"], r)


@pytest.mark.parametrize(
    ("dtype", "size"), [("f4", 1e-22), ("f4", 1e-30), ("f4", 1e30), ("f8", 1e-160), ("f8", 1e160), ("f8", 1e300)]
)
@pytest.mark.parametrize("name", ["rank 11", "equal and zero columns", "constant columns"])
def test_hard_matrices_at_hard_scales(name: str, dtype: str, size: float) -> None:
    """Every method works where LAPACK does."""
    A = (HARD[name]("f8") * size).astype(dtype)
    exact = np.linalg.svd((A / A.dtype.type(size)).astype(float), compute_uv=False)
    for options in OPTIONS:
        s = svd(A, options)[0]["s"].astype(float) / size
        assert np.abs(s[0] - exact[0]) < 0.1 * exact[0]
    assert np.abs(np.linalg.norm(qr(A)["r"].astype(float) / size) / np.linalg.norm(exact) - 1) < 1e-5


@pytest.mark.parametrize("name", OPTIONS)
def test_all_zeros(name: str) -> None:
    arrays, _ = svd(np.zeros((40, 6)), name)
    assert not arrays["s"].any()


def test_what_is_out_of_range_of_the_answer_is_named() -> None:
    with pytest.raises(NumericalError, match=r"singular values overflow float64.*near 1e30[89]"):
        dlscale.svd(np.full((100, 3), 1.5e308))
    with pytest.raises(NumericalError, match=r"singular values are too small for the digits of float64.*multiply"):
        dlscale.svd(gaussian(100, 3) * 5e-320)
    with pytest.raises(NumericalError, match=r"entries of R overflow float32"):
        dlscale.qr(np.full((100, 3), 3e38, "f4"))


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
@pytest.mark.parametrize("wide", [False, True])
def test_nan_is_named_at_every_scale(wide: bool, size: float) -> None:
    A = gaussian(60, 8) * size
    A[41, 5] = np.nan
    row, column = (5, 41) if wide else (41, 5)
    with pytest.raises(NonFiniteError, match=f"nan at row {row}, column {column}"):
        dlscale.randomized_svd(A.T if wide else A, 2)


def test_jobs_resume_at_the_scale_that_they_found(tmp_path: Path) -> None:
    """The steps of another scale have names of their own: a job that goes on decides as before, and gives the same bits."""
    zarr.save_array(str(tmp_path / "a.zarr"), gaussian(80, 8) * 1e-200)
    spec = {"kind": "svd", "cluster": "threads", "input": {"matrix": str(tmp_path / "a.zarr")}, "params": {"n_components": 3}}
    result = dlscale.run(spec, workspace=tmp_path / "ws")
    s = np.asarray(result.open()["s"])
    np.testing.assert_allclose(s / 1e-200, np.linalg.svd(gaussian(80, 8))[1][:3], rtol=1e-2)
