"""dlscale.lu, cholesky and qr: arrays of any kind in, what SciPy returns out."""

from __future__ import annotations

from pathlib import Path

import dask.array
import numpy as np
import pytest
import scipy.linalg
import zarr
from factorizations import assert_cholesky, assert_lu, assert_qr, lapack_lu
from helpers import DTYPES, Array, each_of, eps, gaussian, store

import dlscale
from dlscale import gallery
from dlscale.errors import InputError, NonFiniteError, NumericalError, SpecError


def backward_error(A: Array, x: Array, b: Array) -> float:
    scale = np.linalg.norm(A, 1) * np.abs(x).sum(axis=0) * eps(A)
    return float((np.abs(b - A @ x).sum(axis=0) / scale).max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_lu(dtype: str) -> None:
    A, b = gaussian(150, 150, dtype), gaussian(150, 2, dtype)
    result = dlscale.lu(A, panel=32)
    assert_lu(A, result.lu, result.piv)
    assert result.piv.dtype == np.int32
    lu, piv = scipy.linalg.lu_factor(A)
    np.testing.assert_array_equal(result.piv, piv)
    np.testing.assert_allclose(result.lu, lu, rtol=0, atol=2000 * eps(A) * np.abs(lu).max())
    for x in (result.solve(b), scipy.linalg.lu_solve((result.lu, result.piv), b)):
        assert x.shape == b.shape
        assert backward_error(A, x, b) < 30
    assert result.solve(b[:, 0]).shape == (150,)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cholesky(dtype: str) -> None:
    A, b = gallery.positive_definite(150, dtype=dtype), gaussian(150, 2, dtype)
    result = dlscale.cholesky(A, panel=32)
    assert_cholesky(A, result.l)
    for x in (result.solve(b), scipy.linalg.cho_solve((result.l, True), b)):
        assert backward_error(A, x, b) < 30
    assert result.solve(b[:, 0]).shape == (150,)


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("shape", [(150, 150), (90, 150), (1, 1)], ids=str)
def test_qr(shape: tuple[int, int], dtype: str) -> None:
    A = gaussian(*shape, dtype)
    q, r = dlscale.qr(A)
    assert_qr(A, q, r)
    np.testing.assert_array_equal(dlscale.qr(A, mode="r"), r)
    raw, t = dlscale.qr(A, mode="raw")
    assert raw.shape == A.shape
    np.testing.assert_allclose(np.abs(np.triu(raw[: len(r)])), np.abs(r), atol=500 * eps(A))
    assert t.shape[1] == min(shape)


def test_whatever_holds_the_matrix(tmp_path: Path) -> None:
    A = gaussian(80, 80)
    path = store(tmp_path / "a.zarr", A, chunks=(32, 32), compressors=None)
    expected = dlscale.lu(A, panel=16)
    for source in (path, str(path), zarr.open_array(path), dask.array.from_array(A, chunks=(30, 40)), np.asfortranarray(A)):
        np.testing.assert_array_equal(dlscale.lu(source, panel=16).lu, expected.lu)
    integers = np.random.default_rng(0).integers(-9, 9, (40, 40))
    np.testing.assert_array_equal(dlscale.lu(integers).lu, dlscale.lu(integers.astype("f8")).lu)
    transposed = dlscale.lu(A.T, panel=16)
    assert_lu(A.T, transposed.lu, transposed.piv)


def test_the_input_is_not_changed() -> None:
    A = gallery.positive_definite(70)
    before = A.copy()
    A.setflags(write=False)
    dlscale.lu(A, panel=32), dlscale.qr(A, panel=32), dlscale.cholesky(A, panel=32)
    np.testing.assert_array_equal(A, before)


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(SpecError, match="square"):
        dlscale.cholesky(np.ones((3, 2)))
    with pytest.raises(NumericalError, match="leading minor of order 1 "):
        dlscale.cholesky(-np.eye(3))
    with pytest.raises(SpecError, match=r"params\.panel.*got 9"):
        dlscale.lu(np.eye(8), panel=9)
    with pytest.raises(NonFiniteError, match="row 2, column 1"):
        dlscale.lu(np.where(np.arange(12).reshape(4, 3) == 7, np.nan, 1.0))
    with pytest.raises(InputError, match="two dimensions"):
        dlscale.lu(np.ones(3))
    with pytest.raises(NumericalError, match="singular"):
        dlscale.lu(gallery.singular_at(40, 7), panel=16).solve(np.ones(40))


@pytest.mark.parametrize("shape", [(1, 3000), (3, 5000), (40, 2000)])
def test_short_wide_matrices(shape: tuple[int, int]) -> None:
    A = gaussian(*shape)
    lu, piv = lapack_lu(A)
    found = dlscale.lu(A)
    np.testing.assert_array_equal(found.piv, piv)
    np.testing.assert_allclose(found.lu, lu, atol=1e-12)
    q, r = dlscale.qr(A)
    np.testing.assert_allclose(q @ r, A, atol=1e-12)
    qr, t = dlscale.qr(A, mode="raw")
    assert t.shape[0] <= min(shape)  # as LAPACK demands
    np.testing.assert_allclose(np.abs(np.triu(qr)), np.abs(r), atol=1e-12)


@pytest.mark.parametrize(
    ("b", "error", "words"),
    [
        (np.ones(20), SpecError, "must have 30 rows.*got 20"),
        (np.ones((40, 2)), SpecError, "must have 30 rows.*got 40"),
        (np.array([1.0] * 7 + [np.nan] + [1.0] * 22), NonFiniteError, "row 7, column 0"),
        (np.array([[1.0, np.inf]] * 30), NonFiniteError, "row 0, column 1"),
    ],
)
def test_factors_check_what_they_are_given(b: Array, error: type[Exception], words: str) -> None:
    A = gaussian(30, 30)
    for factors in (dlscale.lu(A), dlscale.lu(A[::-1].copy()), dlscale.cholesky(A @ A.T + np.eye(30))):
        with pytest.raises(error, match=words):
            factors.solve(b)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_factors_of_a_rectangle_solve_nothing(shape: tuple[int, int]) -> None:
    with pytest.raises(SpecError, match=r"square matrix.*lstsq"):
        dlscale.lu(gaussian(*shape)).solve(np.ones(shape[0]))


@pytest.mark.parametrize("rhs", DTYPES)
@each_of(dtype=DTYPES)
def test_precisions_are_those_of_numpy(dtype: str, rhs: str) -> None:
    """The digits too: single precision matrices are solved in double precision where the right-hand side is in it."""
    A, b = gaussian(40, 40, dtype), gaussian(40, 2, rhs, seed=1)
    want = np.linalg.solve(A, b)
    for found in (dlscale.solve(A, b), dlscale.lu(A).solve(b), dlscale.solve(A, b, precision="mixed")):
        assert found.dtype == want.dtype
    close = 1e-10 if np.finfo(want.dtype).bits == 64 else 1e-3
    np.testing.assert_allclose(dlscale.solve(A, b), want, rtol=close, atol=close)
    tall = gaussian(60, 9, dtype), gaussian(60, 2, rhs, seed=1)
    x, residuals, rank, s = np.linalg.lstsq(*tall, rcond=None)
    result = dlscale.lstsq(*tall)
    assert (result.x.dtype, result.s.dtype, result.rank) == (x.dtype, s.dtype, rank)
    np.testing.assert_allclose(result.x, x, rtol=close, atol=close)
    np.testing.assert_allclose(result.residuals, residuals, rtol=close)
