"""Eigenpairs as the methods hand them on: which of them are wanted, what was measured of them, and their certificate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Check, scaled

#: The last products are rounded otherwise than those that met the tolerance.
_TOLERANCE_MARGIN = 1.1

Which = Literal["largest", "smallest", "magnitude"]


@dataclass(frozen=True)
class Pairs:
    """Eigenpairs of ``2^-exponent A``, and what was measured of them on the matrix.

    Parameters
    ----------
    values : (k,), ascending
    residuals : (k,)
        ``||A v - lambda v||_2``, as it is measured; of a pencil ``||L^-1 (A v - lambda B v)||_2``.
    hidden : (k,), or float
        What rounding may hide of them.
    norm : float
        ``||A||_2``, not more than it.
    departure : float
        ``||I - V^H V||_F``.
    nearest : float, optional
        The value next to those that are wanted; None where all are.
    exponent : int
    """

    values: Array
    residuals: Array
    hidden: Array | float
    norm: float
    departure: float
    nearest: float | None
    exponent: int

    def errors(self, dtype: np.dtype[Any]) -> Array:
        """So far from each value, as it is stored in this dtype, there is at most an eigenvalue of A."""
        return self.residuals + self.hidden + float(np.finfo(dtype).eps) * np.abs(self.values)

    def checks(self, n: int, dtype: np.dtype[Any], tolerance: float | None = None) -> tuple[Check, Check]:
        """Residuals and orthogonality, scaled as LAPACK's testers scale them (``dsyt21``), or by a tolerance that was given."""
        largest = float(self.residuals.max(initial=0.0))
        residual = scaled(
            "||AV - V L|| / (||A|| n eps)",
            largest,
            self.norm,
            size=n,
            dtype=dtype,
            meaning="every pair is an exact eigenpair of a matrix that differs from A by rounding only",
        )
        if tolerance is not None and tolerance > n * float(np.finfo(dtype).eps):
            ratio = largest / self.norm / tolerance if largest else 0.0
            meaning = f"every pair is an exact eigenpair of a matrix that differs from A by {tolerance:.1e} of its norm at most"
            residual = Check("||A v - l v|| / (||A|| tolerance)", ratio, _TOLERANCE_MARGIN, meaning)
        return (
            residual,
            scaled(
                "||I - V'V|| / (n eps)",
                self.departure,
                size=n,
                dtype=dtype,
                meaning="the eigenvectors are orthonormal to working precision",
            ),
        )


def rank(values: Array, which: Which) -> Array:
    """The order in which values are wanted: indices of ascending values, the most wanted first."""
    if which == "smallest":
        return np.arange(len(values))
    if which == "largest":
        return np.arange(len(values))[::-1]
    return np.argsort(-np.abs(values), kind="stable")


def indefinite_words(minor: int) -> str:
    """Why there are no Cholesky factors of B."""
    return f"input.b: must be positive definite; its leading minor of order {minor} is not positive to working precision."
