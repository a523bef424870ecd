"""What a PCA found, and what is published of it: in the dtype of the matrix, at its scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.ranks.outcome import Outcome
from dlscale.errors import OutOfRange
from dlscale.kernels import times_power_of_two
from dlscale.linalg.scaling import power_words
from dlscale.linalg.svd.triplets import Triplets


@dataclass(frozen=True)
class Principal:
    """The SVD of the centred matrix ``2^-exponent (A - 1 mean)``, in double precision.

    Parameters
    ----------
    found : Triplets
        Of the tall one of the matrix and its transpose.
    center : (n,)
        ``2^-exponent mean``.
    exponent : int
    n_rows : int
        m, of A.
    whiten, scores : bool
        What was asked for.
    transposed : bool
        Whether the matrix is wide.
    dtype : numpy.dtype
    """

    found: Triplets
    center: Array
    exponent: int
    n_rows: int
    whiten: bool
    scores: bool
    transposed: bool
    dtype: np.dtype[Any]

    @property
    def mean(self) -> Array:
        """The mean of A (n,), in double precision."""
        return times_power_of_two(self.center, self.exponent)

    def outcome(self) -> Outcome:
        """What a job publishes, in the dtype of A.

        Raises
        ------
        NumericalError
            If the singular values are out of its range, or the variances of that of double precision.
        """
        found, m, dtype = self.found, self.n_rows, self.dtype
        real = np.dtype(dtype.char.lower())
        answer = found.times_power(self.exponent, dtype)
        s, k = found.s, len(found.s)
        variance, total = s**2 / (m - 1), found.squares / (m - 1)
        n_left = min(m, len(self.center)) - k
        noise = max(total - float(variance.sum()), 0.0) / n_left if n_left else 0.0
        variances = variances_in(np.append(variance, noise), self.exponent, real)
        ratio = variance / total if total > 0 else np.zeros_like(variance)
        arrays = {
            "explained_variance": variances[:-1],
            "explained_variance_ratio": ratio.astype(real),
            "singular_values": answer.s.astype(real),
            "mean": self.mean.astype(dtype),
            "noise_variance": variances[-1:],
        }
        stored: tuple[str, ...] = ()
        if self.transposed:
            stored = ("components",)
            if self.scores:
                weights = np.full(k, math.sqrt(m - 1)) if self.whiten else np.ldexp(s, self.exponent)
                arrays["scores"] = (found.V.conj() * weights).astype(dtype)
        else:
            arrays["components"] = np.ascontiguousarray(found.V.conj().T, dtype)
            stored = ("scores",) if self.scores else ()
        with np.errstate(over="ignore", under="ignore"):
            total_variance = float(np.ldexp(total, 2 * self.exponent))
        explained = {"total_variance": total_variance, "explained": float(variance.sum() / total) if total > 0 else 0.0}
        return Outcome(arrays, stored, found.certificate, answer.error.to_dict() | explained, answer.notes)


def variances_in(values: Array, exponent: int, real: np.dtype[Any]) -> Array:
    """``2^(2 exponent) values`` in a real dtype, or in double precision where single has too few digits for one of them.

    Raises
    ------
    OutOfRange
        If one overflows double precision, or has fewer digits there; those that rounding made of nothing do not count.
    """
    largest = float(values.max())
    decided = values > float(np.finfo(real).eps) ** 2 * largest
    with np.errstate(over="ignore", under="ignore"):
        variances = np.asarray(np.ldexp(values.astype(np.float64), 2 * exponent))
        narrow = variances.astype(real)
    if not np.isfinite(variances).all():
        words = power_words(largest, 2 * exponent)
        raise OutOfRange(f"The variances overflow float64: the largest is near {words}; divide the matrix by a power of two.")
    smallest = np.finfo(np.float64).tiny
    if (lost := decided & (variances < smallest) & (np.ldexp(variances, -2 * exponent) != values)).any():
        words = power_words(float(values[lost].max()), 2 * exponent)
        raise OutOfRange(
            f"The variances are too small for the digits of float64: one is near {words}, and numbers below {smallest:.1e} have "
            "fewer; multiply the matrix by a power of two."
        )
    held = np.isfinite(narrow).all() and (narrow[decided] >= np.finfo(real).tiny).all()
    return narrow if held else variances
