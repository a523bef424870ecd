"""Exponentials of matrices: those of SciPy, and where they are known exactly."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.linalg
from helpers import DTYPES, each_of, eps, gaussian, wide_precision

import dlscale
from dlscale.errors import NumericalError, SpecError


@pytest.mark.parametrize("dtype", DTYPES)
def test_exponentials(dtype: str) -> None:
    for n, size in ((1, 1.0), (20, 0.01), (20, 1.0), (20, 3.0)):
        A = (size * gaussian(n, n, dtype) / n**0.5).astype(dtype)
        found, expected = dlscale.expm(A), scipy.linalg.expm(wide_precision(A))
        assert found.dtype == A.dtype
        bound = 200 * n * eps(A) * max(1.0, np.linalg.norm(wide_precision(A), 1)) * math.exp(np.linalg.norm(wide_precision(A), 2))
        assert np.linalg.norm(found - expected) <= bound
    np.testing.assert_allclose(dlscale.expm(np.zeros((5, 5), dtype)), np.eye(5), atol=2 * eps(np.zeros(1, dtype)))
    nilpotent = np.diag(np.ones(3, dtype), 1)
    exact = sum(np.diag(np.full(4 - i, 1 / math.factorial(i)), i) for i in range(4))
    np.testing.assert_allclose(dlscale.expm(nilpotent), exact, atol=20 * eps(nilpotent))


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("part", [0.9, 0.4, 0.1, 0.04, 0.01])
def test_small_matrices(part: float, dtype: str) -> None:
    """Whose powers are below the smallest numbers."""
    size = 2.0 ** int(part * np.finfo(dtype).minexp)
    A = (size * gaussian(6, 6, dtype)).astype(dtype)
    found = dlscale.expm(A)
    expected = scipy.linalg.expm(wide_precision(A))
    np.testing.assert_allclose(found, expected, rtol=0, atol=40 * eps(A) * np.abs(expected).max())
    assert found.dtype == A.dtype
    beside = ~np.eye(6, dtype=bool)
    np.testing.assert_allclose(found[beside], A[beside], rtol=max(40 * eps(A), 40 * size))


def test_a_rotation_by_many_turns() -> None:
    angle = 40.0
    found = dlscale.expm(np.array([[0, -angle], [angle, 0]]))
    np.testing.assert_allclose(found, [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], atol=1e-13 * angle)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("size", [1e3, 1e6, 1e9, 1e15, 1e40])
def test_matrices_whose_powers_are_small_beside_them(size: float, turned: bool) -> None:
    """Halved as their powers ask, they lose no digit; what rounding might do to them is told."""
    A = np.array([[1, size], [0, -1]])
    expected = np.array([[math.e, size * math.sinh(1)], [0, 1 / math.e]])
    if turned:
        A, expected = A[::-1, ::-1], expected[::-1, ::-1]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        np.testing.assert_allclose(dlscale.expm(A), expected, rtol=1e-13, atol=1e-15)
    assert [warning.category for warning in told] == ([scipy.linalg.LinAlgWarning] if size > 1e7 else [])


@pytest.mark.parametrize("size", [1e3, 1e10, 1e100, 1e200])
def test_a_nilpotent_matrix_of_any_size(size: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.linalg.LinAlgWarning)
        np.testing.assert_allclose(dlscale.expm(np.array([[0, size], [0, 0]])), [[1, size], [0, 1]], rtol=1e-14, atol=0)


@pytest.mark.parametrize("size", [1e5, 1e6])
def test_digits_that_squaring_loses_are_told(size: float) -> None:
    """A nilpotent matrix that hides in cancellation."""
    A = size * np.array([[1.0, -1.0], [1.0, -1.0]])
    with pytest.warns(scipy.linalg.LinAlgWarning, match="Rounding may have put the exponential off by"):
        dlscale.expm(A)


def test_what_has_no_exponential_is_refused() -> None:
    with pytest.raises(SpecError, match="must be square to have an exponential; got 2 x 3"):
        dlscale.expm(np.ones((2, 3)))
    for size in (1e3, -1e3, 1e308):
        with pytest.raises(NumericalError, match=r"or a power of it on the way, is out of the range of float64\.$"):
            dlscale.expm(size * np.eye(3))
    for dtype, size in (("f8", 1e300), ("f4", 1e30)):
        with pytest.raises(NumericalError, match="out of the range"):
            dlscale.expm(np.array([[1, size], [0, -1]], dtype))
