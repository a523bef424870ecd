"""Condition numbers by singular values, and how small a singular value may be what rounding has made of zero."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dlscale.kernels import accumulator_dtype

#: Times eps and the root of the length: what sums make of zero. Rounding errors of equal terms go one way. Where a pass factors
#: blocks in small pieces (`dlscale.linalg.folds.triangles`), equal, repeated and dependent columns made up to 0.33 of it.
_OF_SUMS = 1.0
#: The same of panels, which are factored at once: of two constant columns up to 0.9 of it below 3,000 rows, and 3.4 of 200,000.
_OF_PANELS = 4.0
#: Times eps and the root of the order: what is left of zero by rounding the entries of a triangle, and by its singular values. It
#: was up to 0.5 of it.
_OF_TRIANGLES = 2.0


def rounding(shape: tuple[int, int], dtype: np.dtype[Any], *, sums: np.dtype[Any] | None = None) -> float:
    """What part of the largest singular value a QR factorization and an SVD of its triangle may make of one that is zero.

    Parameters
    ----------
    shape : (m, n)
        Of the matrix.
    dtype : numpy.dtype
        Of the triangle.
    sums : numpy.dtype, optional
        In which panels make sums along the long side; passes, which make them in double precision, if absent.
    """
    of_sums = _OF_PANELS * float(np.finfo(sums).eps) if sums else _OF_SUMS * float(np.finfo(accumulator_dtype(dtype)).eps)
    return of_sums * math.sqrt(max(shape)) + _OF_TRIANGLES * float(np.finfo(dtype).eps) * math.sqrt(min(shape))


def condition_number(
    largest: float, smallest: float, shape: tuple[int, int], dtype: np.dtype[Any], *, sums: np.dtype[Any] | None = None
) -> float:
    """The condition number by singular values; infinite where `rounding` may have made the smallest one of zero."""
    largest, smallest = float(largest), float(smallest)
    return largest / smallest if smallest > rounding(shape, dtype, sums=sums) * largest else float("inf")
