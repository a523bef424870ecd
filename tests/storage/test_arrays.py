"""What people hold in memory: every array-like is the matrix of its numbers, or is refused by the place of what is none."""

from __future__ import annotations

import array
import warnings
from decimal import Decimal
from fractions import Fraction
from typing import Any

import dask.array as da
import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse
from helpers import DTYPES, gaussian

import dlscale
from dlscale.errors import DlscaleError, InputError, SpecError
from dlscale.storage.matrices import open_matrix

A = np.arange(12.0).reshape(4, 3)


class Labelled(np.ndarray):
    """A subclass whose sums are not arrays of one dimension."""

    def mean(self, *arguments: Any, **named: Any) -> Any:
        raise TypeError("not the mean of an array")


class Offering:
    """Whatever offers an array."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return A


@pytest.mark.parametrize(
    "source",
    [
        A.tolist(),
        tuple(map(tuple, A.tolist())),
        list(A),
        [array.array("d", row) for row in A],
        [range(3), range(3, 6), range(6, 9), range(9, 12)],
        A.view(np.matrix),
        np.ma.masked_array(A),
        np.ma.masked_array(A, mask=False),
        np.ma.masked_array(A, mask=np.zeros(A.shape, bool)),
        [np.ma.masked_array(row, mask=False) for row in A],
        A.view(Labelled),
        A.astype(object),
        [[Decimal(int(x)) for x in row] for row in A],
        [[Fraction(int(x)) for x in row] for row in A],
        A.astype(np.longdouble),
        Offering(),
        pa.table(dict(zip("abc", A.T, strict=True))),
        da.from_array(A, chunks=(2, 2)),
        da.ma.masked_array(da.from_array(A, chunks=(2, 2)), mask=False),
        da.from_array(A.view(np.matrix), chunks=(2, 3), asarray=False),
    ],
    ids=lambda source: type(source).__name__,
)
def test_one_matrix_from_many_things(source: Any) -> None:
    matrix = open_matrix(source)
    block = matrix.read(1, 4)
    assert type(block) is np.ndarray
    assert block.dtype == matrix.dtype == np.float64
    np.testing.assert_array_equal(block, A[1:4])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_and_the_memory_of_an_array_stay(dtype: str) -> None:
    held = gaussian(5, 3, dtype)
    for source in (held, np.ma.masked_array(held), held.view(np.matrix)):
        block = open_matrix(source).read(0, 5)
        assert np.shares_memory(block, held)
        assert block.dtype == held.dtype


def test_complex_numbers_of_other_kinds() -> None:
    for source in ([[1, 2j], [3, 4]], np.array([[1, 2j], [3, 4]], object), np.array([[1, 2j], [3, 4]], np.clongdouble)):
        matrix = open_matrix(source)
        assert matrix.dtype == np.complex128
        np.testing.assert_array_equal(matrix.read(0, 2), [[1, 2j], [3, 4]])


MASK = np.zeros(A.shape, bool)
MASK[2, 1] = True


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.ma.masked_array(A, MASK), "row 2, column 1 is masked"),
        ([np.ma.masked_array(row, mask) for row, mask in zip(A, MASK, strict=True)], "row 2, column 1 is masked"),
        ([[1.0, 2.0], [3.0]], "rows of one length"),
        ([[1, "a"], [2, "b"]], "numbers"),
        (np.array([[1.0, None], [2.0, 3.0]]), "row 0, column 1 stands None"),
        (np.array([[1.0, 2.0], ["x", 3.0]], object), "row 1, column 0 stands 'x'"),
        (np.array([[1.0, np.datetime64("2020-01-01")]], object), "row 0, column 1"),
        (np.array([["2020-01-01"]], "M8[D]"), "numbers"),
        (np.array([(1.0, 2)], "f8,i4")[:, None], "numbers"),
        (pa.table({"a": [1.0, 2.0], "b": ["x", "y"]}), "row 0, column 1 stands 'x'"),
        ([[10**400]], "float64"),
        ([1.0, 2.0], "two dimensions"),
        ([], "two dimensions"),
        ([[]], "at least one row"),
        (da.map_blocks(lambda b: b[:1], da.from_array(A, chunks=(2, 3)), dtype=float), r"shape \(1, 3\)"),
        (da.from_array(A, chunks=(2, 3)).map_blocks(scipy.sparse.csr_matrix, dtype=float), "csr_matrix"),
        (da.from_array(A, chunks=(2, 3)).map_blocks(lambda b: b + 1j, dtype=float), "complex"),
    ],
)
def test_what_is_no_matrix_of_numbers(source: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_matrix(source).read(0, 2 if not isinstance(source, np.ma.MaskedArray) else 4)


@pytest.mark.parametrize("source", [None, 3.0, {"a": [1]}, {1, 2}, object(), (x for x in A), b"ab"])
def test_what_is_no_array_of_anything(source: Any) -> None:
    with pytest.raises(SpecError, match=type(source).__name__):
        open_matrix(source)


@pytest.mark.parametrize("start", [0, 3])
def test_masked_blocks_of_dask_are_named_by_their_place(start: int) -> None:
    masked = da.ma.masked_greater(da.from_array(np.where(MASK, 100.0, A), chunks=(2, 3)), 50)
    if start == 0:
        with pytest.raises(InputError, match="row 2, column 1 is masked"):
            open_matrix(masked).read(0, 4)
        with pytest.raises(InputError, match="row 2, column 1 is masked"):
            dlscale.svd(masked)
    else:
        np.testing.assert_array_equal(open_matrix(masked).read(3, 4), A[3:])


def test_functions_take_lists_matrices_and_masked_arrays() -> None:
    square, tall = gaussian(12, 12), gaussian(90, 5)
    b = gaussian(12, 1)
    x = np.linalg.solve(square, b)
    for kind in (np.ndarray.tolist, lambda B: B.view(np.matrix), np.ma.masked_array, lambda B: B.astype(object)):
        np.testing.assert_allclose(dlscale.solve(kind(square), kind(b)), x, rtol=1e-9)
        np.testing.assert_allclose(dlscale.inverse(kind(square)), np.linalg.inv(square), rtol=1e-9)
        np.testing.assert_array_equal(dlscale.lu(kind(square)).lu, dlscale.lu(square).lu)
        np.testing.assert_array_equal(dlscale.svd(kind(tall)).s, dlscale.svd(tall).s)
        np.testing.assert_array_equal(dlscale.qr(kind(tall)).r, dlscale.qr(tall).r)  # type: ignore[union-attr]
        np.testing.assert_array_equal(dlscale.randomized_svd(kind(tall), 2).s, dlscale.randomized_svd(tall, 2).s)
        np.testing.assert_array_equal(dlscale.PCA(2).fit(np.asarray(kind(tall))).mean_, dlscale.PCA(2).fit(tall).mean_)
    np.testing.assert_allclose(dlscale.solve([[1, 2], [3, 4]], [5, 6]), [-4, 4.5])


def test_nothing_is_warned_of_a_masked_constant() -> None:
    """A list with NumPy's masked constant becomes NaN, which is then named by its place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(DlscaleError, match="row 0, column 1"):
            dlscale.svd([[1.0, np.ma.masked], [2.0, 3.0], [4.0, 5.0]])
