"""Statistics of columns and rows: NumPy's, of dense and of compressed rows, at any scale and beside any mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse

import dlscale
from dlscale.declaration.kind import run_here
from dlscale.errors import NonFiniteError, NumericalError, SpecError
from dlscale.linalg.statistics.columns import ColumnStatistics, moments_of
from dlscale.linalg.statistics.moments import KIND, StatisticsOptions
from dlscale.sparse_rows import SparseRows


def matrix(dtype: str, offset: float) -> Any:
    rng = np.random.default_rng(0)
    A = scipy.sparse.random_array((700, 60), density=0.06, rng=rng, format="lil", data_sampler=rng.standard_normal)
    A[:, 3], A[:, 4], A[:, 5] = 0.1, 0, offset + rng.standard_normal((700, 1))
    return A.tocsr().astype(dtype)


def told(A: Any, of: Any) -> dict[str, np.ndarray]:
    found = run_here(KIND, KIND.inputs({"matrix": A}), StatisticsOptions(of=of))
    return {name.partition("/")[2]: array.ravel() for name, array in found.arrays.items()}


@pytest.mark.parametrize("of", ["columns", "rows"])
@pytest.mark.parametrize(("dtype", "offset"), [("f4", 8.0), ("f8", 8.0), ("f8", 1e8), ("i4", 100.0)])
def test_those_of_numpy(dtype: str, offset: float, of: str) -> None:
    A = matrix(dtype, offset)
    dense = A.toarray().astype(float) if of == "columns" else A.toarray().astype(float).T
    near = dense[0]
    for source in (A, A.tocsc(), A.toarray()):
        found = told(source, of)
        np.testing.assert_allclose(found["mean"], dense.mean(axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found["variance"], (dense - near).var(axis=0, ddof=1), rtol=1e-7 if offset > 1e6 else 1e-10)
        np.testing.assert_array_equal(found["nonzeros"], np.count_nonzero(dense, axis=0))
        np.testing.assert_array_equal(found["smallest"], dense.min(axis=0))
        np.testing.assert_array_equal(found["largest"], dense.max(axis=0))
    if of == "columns":
        assert found["variance"][3] == 0


@pytest.mark.parametrize("exponent", [-490, 500])
def test_squares_that_are_out_of_range(exponent: int) -> None:
    A = matrix("f8", 8.0)
    want, found = told(A, "columns"), told(A * 2.0**exponent, "columns")
    np.testing.assert_array_equal(found["mean"], want["mean"] * 2.0**exponent)
    np.testing.assert_array_equal(found["variance"], np.ldexp(want["variance"], 2 * exponent))


@pytest.mark.parametrize("of", ["columns", "rows"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_columns_of_any_scales_beside_each_other(dtype: str, of: str) -> None:
    """Each has its own: no entry of one vanishes, and no square overflows, whatever stands in another."""
    info, rng = np.finfo(dtype), np.random.default_rng(1)
    plain = rng.integers(-8, 9, (40, 30)).astype(float)
    plain[:, 7], plain[:, 9] = 0, 3
    scales = rng.integers(-480, 480, 30) if dtype == "f8" else rng.integers(info.minexp, info.maxexp - 8, 30)
    A, want = np.ldexp(plain, scales).astype(dtype), told(plain, "columns")
    # What is beside the large entries of a column is no less than it was.
    A[0, 11], A[1, 11] = 2.0 ** (info.maxexp // 2 - 1), info.smallest_subnormal
    others = np.arange(30) != 11
    for source in (A, scipy.sparse.csr_array(A)):
        found = told(source if of == "columns" else source.T, of)
        np.testing.assert_allclose(found["mean"][others], np.ldexp(want["mean"], scales)[others], rtol=1e-13)
        np.testing.assert_allclose(found["variance"][others], np.ldexp(want["variance"], 2 * scales)[others], rtol=1e-13)
        np.testing.assert_array_equal(found["nonzeros"], np.count_nonzero(A, axis=0))
        np.testing.assert_array_equal(found["smallest"], A.min(axis=0))
        np.testing.assert_array_equal(found["largest"], A.max(axis=0))


@pytest.mark.parametrize("of", ["columns", "rows"])
def test_variances_at_the_ends_of_the_range(of: str) -> None:
    """Up to the largest number they are told, and none beyond is."""
    A = np.random.default_rng(0).standard_normal((30, 30))
    for scale in (1e153, 1e-153):
        variance = (A * scale).var(axis=0 if of == "columns" else 1, ddof=1)
        np.testing.assert_allclose(told(A * scale, of)["variance"], variance, rtol=1e-13)
    (A if of == "rows" else A.T)[4] *= 1e3
    with pytest.raises(NumericalError, match=f"variance of {of[:-1]} 4 overflows float64; divide the {of[:-1]} by a power of two"):
        told(A * 1e153, of)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("exponent", [-1000, -900, -401, 0, 401, 1020])
def test_blocks_of_zeros_beside_blocks_of_any_scale(exponent: int, sparse: bool) -> None:
    """They have no scale of their own, so that nothing of the others vanishes beside them."""
    near_1 = np.random.default_rng(0).standard_normal((12, 3))
    near_1[:4] = near_1[8:, 2] = 0
    A, fold, order = np.ldexp(near_1, exponent), ColumnStatistics(3), [1, 0, 2, 3, 5, 4]
    state = fold.start()
    for i in order:
        block = A[2 * i : 2 * i + 2]
        fold.update(state, SparseRows(scipy.sparse.csr_array(block)) if sparse else block, 2 * i)
    found = moments_of(state)
    np.testing.assert_allclose(found.mean, np.ldexp(near_1.mean(axis=0), exponent), rtol=1e-13)
    np.testing.assert_allclose(found.deviations, np.ldexp(near_1.std(axis=0, ddof=1), exponent), rtol=1e-13)


@pytest.mark.parametrize("of", ["columns", "rows"])
def test_variances_that_lose_their_digits_are_refused(of: str) -> None:
    A = matrix("f8", 8.0)
    A.data[:] *= 2.0**-530
    for source in (A, A.toarray()):
        with pytest.raises(NumericalError, match=f"The variance of {of[:-1]} 0 is out of the range in which float64 has all"):
            told(source, of)


def test_rows_of_a_job_on_any_workers(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", matrix("f8", 8.0).toarray())
    spec = {"kind": "statistics", "input": {"matrix": {"import": str(tmp_path / "a.npy")}}, "params": {"of": "rows"}}
    found = dlscale.run({**spec, "cluster": "threads"}, workspace=tmp_path / "ws").open()
    np.testing.assert_allclose(found["rows/mean"][:, 0], np.load(tmp_path / "a.npy").mean(axis=1), rtol=1e-12)


def test_what_is_refused() -> None:
    A = matrix("f8", 8.0).toarray()
    with pytest.raises(SpecError, match="statistics are of real matrices"):
        told(A.astype(complex), "columns")
    A[7, 9] = np.inf
    for of in ("columns", "rows"):
        for source in (A, scipy.sparse.csr_array(A)):
            with pytest.raises(NonFiniteError, match="row 7, column 9"):
                told(source, of)
