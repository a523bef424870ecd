"""Condition numbers by singular values, and how small a singular value may be what rounding has made of zero."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dlscale.kernels import accumulator_dtype

#: Times eps and the root of the length: what sums make of zero. Rounding errors of equal terms go one way, and BLAS cuts sums in
#: pieces: of two constant columns a QR factorization made up to 1.4 of it (2,000 rows at once), and one of 200,000 rows in blocks
#: of 3,000, each below the triangle of those before it, 3.2.
_OF_SUMS = 4.0
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
        In which sums along the long side are made; double precision, as passes do, if absent.
    """
    of_sums = _OF_SUMS * float(np.finfo(sums or accumulator_dtype(dtype)).eps) * math.sqrt(max(shape))
    return of_sums + _OF_TRIANGLES * float(np.finfo(dtype).eps) * math.sqrt(min(shape))


def condition_number(
    largest: float, smallest: float, shape: tuple[int, int], dtype: np.dtype[Any], *, sums: np.dtype[Any] | None = None
) -> float:
    """The condition number by singular values; infinite where `rounding` may have made the smallest one of zero."""
    largest, smallest = float(largest), float(smallest)
    return largest / smallest if smallest > rounding(shape, dtype, sums=sums) * largest else float("inf")
