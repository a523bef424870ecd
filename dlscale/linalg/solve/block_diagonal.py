"""The block diagonal factor of a symmetric indefinite matrix, and the signs of the eigenvalues that it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.lapack import multiply_triangular, solve_upper

#: Vectors that are measured at a time.
_COLUMNS = 64


class Inertia(NamedTuple):
    """How many eigenvalues are positive, negative, and not told from zero beside the largest entry of the matrix."""

    n_positive: int
    n_negative: int
    n_zero: int


@dataclass(frozen=True)
class Blocks:
    """D, with blocks of order 1 and 2.

    Parameters
    ----------
    d : (n,), real
        Its diagonal.
    e : (n,)
        ``D[i, i + 1]``; zero where no block of order 2 begins.
    """

    d: Array
    e: Array

    @property
    def pivots(self) -> Array:
        """Numbers (n,) whose product is the determinant, none of which overflows where D does not."""
        pivots, first = self.d.copy(), np.flatnonzero(self.e)
        sizes = np.abs(self.e[first])
        pivots[first] = sizes
        pivots[first + 1] = sizes * (self.d[first] / sizes * (self.d[first + 1] / sizes) - 1)
        return pivots

    def times(self, X: Array) -> Array:
        """``D X``."""
        Y, e = self.d[:, None] * X, self.e[:-1, None]
        Y[:-1] += e * X[1:]
        Y[1:] += e.conj() * X[:-1]
        return Y

    def solve(self, B: Array) -> Array:
        """``D^-1 B`` in the dtype of B."""
        first, alone = np.flatnonzero(self.e), np.ones(len(self.d), bool)
        alone[first] = alone[first + 1] = False
        X = np.empty_like(B)
        real = np.dtype(B.dtype.char.lower())
        X[alone] = B[alone] / self.d[alone, None].astype(real, copy=False)
        # As LAPACK's sytrs: rows are divided by what stands beside the diagonal, the larger one, before they are combined.
        e = self.e[first, None].astype(B.dtype if self.e.dtype.kind == "c" else real, copy=False)
        upper, lower = self.d[first, None].astype(real) / e, self.d[first + 1, None].astype(real) / e.conj()
        b, c = B[first] / e, B[first + 1] / e.conj()
        determinant = upper * lower - 1
        X[first], X[first + 1] = (lower * b - c) / determinant, (upper * c - b) / determinant
        return X


def inertia_of(U: Array, blocks: Blocks, largest: float) -> Inertia:
    """The inertia of ``A = U^H D U`` (Sylvester), less what rounding does not tell from zero.

    Parameters
    ----------
    U : (n, n)
        Unit upper triangular, whatever is stored on its diagonal and below.
    blocks : Blocks
    largest : float
        The largest entry of A.

    Notes
    -----
    For an eigenvector q of a block of D with the value v, and ``x = U^-1 q``, ``A x = v U^H q``: an eigenvalue of A is no further
    from zero than ``|v| ||U^H q|| / ||x||``, and not told from zero where that is at most n eps of the largest entry. Only small
    values are looked at, n^2 flops each.
    """
    n, e, eps = len(blocks.d), blocks.e, float(np.finfo(blocks.d.dtype).eps)
    first = np.flatnonzero(e)
    values, vectors = blocks.d.astype(float), np.ones((n, 2), e.dtype)
    vectors[:, 1] = 0
    if len(first):
        D = np.empty((len(first), 2, 2), np.result_type(e, float))
        D[:, 0, 0], D[:, 1, 1], D[:, 0, 1], D[:, 1, 0] = blocks.d[first], blocks.d[first + 1], e[first], e[first].conj()
        found, Q = np.linalg.eigh(D)
        values[first], values[first + 1] = found.T
        vectors[first], vectors[first + 1] = Q[:, :, 0], Q[:, :, 1]
    # Where the vectors of a block begin.
    place = np.arange(n)
    place[first + 1] = first
    zero, limit = values == 0, n * eps * largest
    small = np.flatnonzero((np.abs(values) <= eps**0.5 * largest) & ~zero)
    for start in range(0, len(small), _COLUMNS):
        chosen = small[start : start + _COLUMNS]
        X, columns = np.zeros((n, len(chosen)), U.dtype), np.arange(len(chosen))
        X[place[chosen], columns] = vectors[chosen, 0]
        pairs = vectors[chosen, 1] != 0
        X[place[chosen[pairs]] + 1, columns[pairs]] = vectors[chosen[pairs], 1]
        Y = multiply_triangular(U, X.copy(), uplo="U", op="C", unit=True)
        solve_upper(U, X, unit=True)
        with np.errstate(all="ignore"):
            reach = np.abs(values[chosen]) * np.linalg.norm(Y, axis=0) / np.linalg.norm(X, axis=0)
        zero[chosen] = reach <= limit
    positive, negative = int((~zero & (values > 0)).sum()), int((~zero & (values < 0)).sum())
    return Inertia(positive, negative, n - positive - negative)
