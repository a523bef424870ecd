"""Norms and powers of two over the whole range of each precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, gaussian

from dlscale.kernels import SAFE_EXPONENTS, largest_part, safe_exponent, safe_norm, times_power_of_two
from dlscale.storage.matrices import open_matrix
from dlscale.storage.scaled import Scaled


@pytest.mark.parametrize("dtype", DTYPES)
def test_safe_norm_over_the_whole_range(dtype: str) -> None:
    """The norm of c A is c times that of A, to the bit, down to where entries lose digits."""
    A, info = gaussian(30, 4, dtype), np.finfo(dtype)
    A /= np.abs(A).max()
    for exponent in range(info.minexp + 60 if info.bits == 64 else info.minexp + 25, info.maxexp - 3, 37):
        scaled = times_power_of_two(A, exponent)
        assert safe_norm(scaled) == np.ldexp(safe_norm(A), exponent)
        assert (safe_norm(scaled, axis=0) == np.ldexp(safe_norm(A, axis=0), exponent)).all()
    assert safe_norm(A) == pytest.approx(np.linalg.norm(A.astype(np.complex128)), rel=1e-14)


def test_safe_norm_of_columns_beside_any_others() -> None:
    """A column far below another one keeps its own norm."""
    A = np.array([[3.0, 4.0], [4.0, 3.0]]) * [2.0**-1060, 2.0**1000]
    np.testing.assert_array_equal(safe_norm(A, axis=0), [5 * 2.0**-1060, 5 * 2.0**1000])
    np.testing.assert_array_equal(safe_norm(1j * A.T, axis=1), [5 * 2.0**-1060, 5 * 2.0**1000])
    np.testing.assert_array_equal(safe_norm(np.array([[np.inf + 1j, 0, 1, np.nan]]), axis=0), [np.inf, 0, 1, np.nan])


@pytest.mark.parametrize("dtype", DTYPES)
def test_safe_norm_of_what_has_none(dtype: str) -> None:
    A = gaussian(3, 3, dtype)
    for value in (np.nan, np.inf):
        A[1, 2] = value
        assert not np.isfinite(safe_norm(A))
    assert safe_norm(np.zeros((3, 2), dtype)) == 0
    assert safe_norm(np.zeros((0, 2), dtype)) == 0
    assert safe_norm(np.full(4, np.finfo(np.float64).smallest_subnormal)) == 2 * np.finfo(np.float64).smallest_subnormal
    assert safe_norm(np.full(4, np.finfo(np.float64).max)) == np.inf


@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_of_two_are_exact(dtype: str) -> None:
    A, info = gaussian(5, 3, dtype), np.finfo(dtype)
    for exponent in (info.minexp + 10, -1, 0, 1, info.maxexp - 3):
        there = times_power_of_two(A, exponent)
        assert there.dtype == A.dtype
        assert (times_power_of_two(there, -exponent) == A).all()
    smallest = np.full((1, 1), info.smallest_subnormal, dtype)
    assert times_power_of_two(smallest, info.nmant - info.minexp) == 1
    assert largest_part(A) == max(np.abs(A.real).max(), np.abs(A.imag).max())


def test_an_exponent_is_even_and_brings_the_largest_entry_near_one() -> None:
    for dtype in (np.dtype("f4"), np.dtype("c16")):
        limit = SAFE_EXPONENTS[np.finfo(dtype).bits]
        for exponent in (-limit - 300, -limit - 1, -limit + 2, 0, limit, limit + 1, limit + 200):
            k = safe_exponent(float(np.ldexp(0.7, exponent)), dtype)
            assert k % 2 == 0
            assert 0.5 <= np.ldexp(0.7, exponent - k) < 2 if abs(exponent) > limit else k == 0
    assert safe_exponent(0.0, np.dtype("f8")) == safe_exponent(np.inf, np.dtype("f8")) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scaled_view_reads_what_it_says(dtype: str, tmp_path: Any) -> None:
    import dask.array as da
    import zarr

    A = gaussian(7, 5, dtype)
    kept = A.copy()
    zarr.save_array(str(tmp_path / "a.zarr"), A)
    for source in (A, da.from_array(A, chunks=3), str(tmp_path / "a.zarr")):
        for view in (Scaled(open_matrix(source), -11), Scaled(open_matrix(source).T, -11).T):
            assert (view.read(0, 7) == A * np.float32(2.0**-11)).all()
            out = np.empty((2, 3), dtype)
            assert (view.region((1, 3), (2, 5), out) == A[1:3, 2:5] * np.float32(2.0**-11)).all()
            assert (view.T.region((2, 5), (1, 3)) == A[1:3, 2:5].T * np.float32(2.0**-11)).all()
    assert (kept == A).all()
