"""Singular triplets, and what to do with the tall one of the two factors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Certificate
from dlscale.linalg.scaling import scale_words, scaled_back
from dlscale.linalg.svd.estimates import ErrorEstimate


@dataclass(frozen=True)
class LeftOutput:
    """What to write of the tall factor U.

    Parameters
    ----------
    name : str, optional
        The output array; None writes nothing.
    times_s : bool
        Write U S (the scores of a PCA) instead of U.
    factor : float
        Multiplies what is written.
    transposed : bool
        Write the transpose, by blocks of columns.
    exponent : int
        With ``times_s``: write ``2^exponent U S``.
    decides_sign : bool
        Whether the largest entry of each column of U is made positive, or that of V.
    """

    name: str | None
    times_s: bool = False
    factor: float = 1.0
    transposed: bool = False
    exponent: int = 0
    decides_sign: bool = True

    def scale(self, s: Array) -> Array:
        """What each column of U is multiplied by before it is written."""
        return np.asarray(np.ldexp((s if self.times_s else np.ones_like(s)) * self.factor, self.exponent))


@dataclass(frozen=True)
class Triplets:
    """``A ~ U S V^H``; U is in the output of the passes, if it was asked for.

    Parameters
    ----------
    s : (k,)
    V : (n, k)
    error : ErrorEstimate
    certificate : Certificate
    squares : float
        ``||A||_F^2``.
    notes : tuple of str
    """

    s: Array
    V: Array
    error: ErrorEstimate
    certificate: Certificate
    squares: float
    notes: tuple[str, ...]

    def times_power(self, exponent: int, dtype: np.dtype[Any]) -> Triplets:
        """The same of ``2^exponent A``, of a dtype.

        Raises
        ------
        NumericalError
            If the singular values are out of its range.
        """
        s = scaled_back(self.s, exponent, np.dtype(dtype.char.lower()), what="The singular values")
        with np.errstate(over="ignore", under="ignore"):
            error, squares = self.error.times_power(exponent), float(np.ldexp(self.squares, 2 * exponent))
        return replace(self, s=s, error=error, squares=squares, notes=self.notes + scale_words(exponent))
