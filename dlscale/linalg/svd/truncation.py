"""How many singular triplets a tolerance asks for, and whether they meet it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Check

#: Errors of eps that are foreseen of the factors as they are computed and stored.
_ROUNDINGS = 4.0


def count_within(s: Array, rest: float, tolerance: float, dtype: np.dtype[Any], *, whole: bool) -> int:
    """The fewest triplets that leave less than ``tolerance * sigma_1``; 0 where more columns might help.

    Parameters
    ----------
    s : (l,)
    rest : float
        Norm of what all of them leave.
    tolerance : float
    dtype : numpy.dtype
    whole : bool
        Whether there are no more columns.

    Notes
    -----
    ``||A - U_k S_k V_k^H||^2 <= s_(k+1)^2 + ||E||^2`` with E what all l leave: the ranges are orthogonal. Rounding is added.
    """
    room = tolerance * s[0] - _ROUNDINGS * float(np.finfo(dtype).eps) * np.linalg.norm(s)
    if rest >= room and not whole:
        return 0
    return max(1, int((np.hypot(s, rest) > room).sum()))


def within_tolerance(s: Array, behind: float, rest: float, inside: float, tolerance: float, dtype: np.dtype[Any]) -> Check:
    """Check ``||A - U S V^H|| / (tolerance s_1)``.

    Parameters
    ----------
    s : (k,)
    behind, rest : float
        The next singular value, and the norm of what lies outside of all that were found.
    inside : float
        The measured error within them.
    tolerance : float
    dtype : numpy.dtype
        In which the factors are stored.
    """
    stored = float(np.finfo(dtype).eps) * float(np.linalg.norm(s))
    value = float(np.hypot(behind, rest)) + inside + stored
    size = tolerance * float(s[0])
    ratio = value / size if size else math.inf if value else 0.0
    return Check("||A - U S V'|| / (tolerance s_1)", ratio, 1.0, "what the factors leave of the matrix is within the tolerance")
