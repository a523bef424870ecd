"""The pseudo-inverse of a small matrix, and the least squares solutions that come of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.kernels import largest_part, one_blas_thread, times_power_of_two
from dlscale.lapack import svd
from dlscale.linalg.conditions import condition_number
from dlscale.linalg.scaling import exponent_of


@dataclass(frozen=True)
class Solution:
    """A least squares solution of minimum norm.

    Parameters
    ----------
    X : (n, k)
    rank : int
    s : (min(m, n),), optional
    condition : float
        Ratio of the largest to the smallest singular value, or an estimate of it.
    words : str
    sizes : sequence of float
        Of the matrix and of each right-hand side: a norm, or the largest entry.
    Y : (m, k), optional
        Of a wide matrix: ``X = A^H Y``.
    kept : (min(m, n), rank), optional
        The singular vectors on the short side of A whose singular values count, where others do not.
    """

    X: Array
    rank: int
    s: Array | None
    condition: float
    words: str
    sizes: Sequence[float] = ()
    Y: Array | None = None
    kept: Array | None = None


@dataclass(frozen=True)
class PseudoInverse:
    """``R^+`` of a small matrix by its singular values."""

    U: Array
    s: Array
    VH: Array
    rank: int

    @classmethod
    def of(cls, R: Array, cutoff: float) -> PseudoInverse:
        # LAPACK rescales matrices whose norm is far from 1, and by what is no power of two.
        exponent = exponent_of(largest_part(R))
        with one_blas_thread():
            U, s, VH = svd(times_power_of_two(R, -exponent), full_matrices=False)
        return cls(U, times_power_of_two(s, exponent), VH, int((s > cutoff * s[0]).sum()) if s.size else 0)

    def apply(self, C: Array) -> Array:
        """``R^+ C``; infinite where it overflows."""
        r = self.rank
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            return np.asarray(self.VH[:r].conj().T @ ((self.U[:, :r].conj().T @ C) / self.s[:r, None]))

    def apply_adjoint(self, C: Array) -> Array:
        """``(R^H)^+ C``; infinite where it overflows."""
        r = self.rank
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            return np.asarray(self.U[:, :r] @ ((self.VH[:r] @ C) / self.s[:r, None]))

    @property
    def kept(self) -> Array | None:
        """The right singular vectors that count, as columns; None where all do."""
        return self.VH[: self.rank].conj().T if self.rank < len(self.s) else None

    @property
    def largest(self) -> float:
        return float(self.s.max(initial=0.0))

    def condition(self, shape: tuple[int, int], dtype: np.dtype[Any], *, sums: np.dtype[Any] | None = None) -> float:
        """Of the matrix of that shape which R, in that precision, comes of; see `condition_number`."""
        return condition_number(self.largest, float(self.s[-1]), shape, dtype, sums=sums)
