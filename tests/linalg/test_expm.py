"""Exponentials of matrices: those of SciPy, and where they are known exactly."""

from __future__ import annotations

import math

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


def test_what_has_no_exponential_is_refused() -> None:
    with pytest.raises(SpecError, match="must be square to have an exponential; got 2 x 3"):
        dlscale.expm(np.ones((2, 3)))
    for size in (1e3, 1e308):
        with pytest.raises(NumericalError, match=r"overflows|out of the range"):
            dlscale.expm(size * np.eye(3))
