"""In which precision factors are, and the same ones in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlscale.linalg.solve.factors import CholeskyFactors, Factorization, LUFactors, ScaledFactors, TimesPower
from dlscale.linalg.solve.symmetric import LDLFactors


def computed_in(factors: Factorization) -> np.dtype[Any]:
    """The precision that factors were computed in."""
    while isinstance(factors, TimesPower | ScaledFactors):
        factors = factors.factors
    return factors.dtype


def in_double(factors: Factorization, double: np.dtype[Any]) -> Factorization:
    """Factors in single precision as approximate ones of a matrix in double precision."""
    exponent = factors.exponent if isinstance(factors, TimesPower) else 0
    inner = factors.factors if isinstance(factors, TimesPower) else factors
    if isinstance(inner, LUFactors | CholeskyFactors | LDLFactors):
        return ScaledFactors(inner, float(np.ldexp(1.0, -exponent)), double)
    return factors
