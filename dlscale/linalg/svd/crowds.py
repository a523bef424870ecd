"""By how much more singular values may be lifted where others come to stand among them.

Values that the basis has met badly are lifted far, and may end beside values that were above them: these move up by a place,
or are pushed apart. In a crowd of nearly equal values that is far more than the lift of each.
"""

from __future__ import annotations

import numpy as np

from dlscale.arrays import Array

#: Values that differ by less than this part are taken for nearly equal.
NEAR = 0.01
#: So many nearly equal values tell how far those of their crowd lie apart, each of them being known within so many times the error
#: of the one that is asked about.
_CROWD, _AS_WELL = 3, 3.0
#: Lifted values lie within so many times their lift of where they are likely to be.
_UNSURE = 2.0
#: Values up to so many times the norm of what is left, as four probes tell it, may have been missed.
MISSED = 1.5
_TINY = float(np.finfo(float).tiny)


def in_reach(s: Array, k: int, outside: float) -> int:
    """How many of the decreasing values may come to stand among the first k: ``(s_j^2 + outside^2)^1/2 > s_k``."""
    return max(k, int((np.hypot(s, outside) > s[k - 1]).sum()))


def ordered(s: Array, lifts: Array) -> Array:
    """Lifts of decreasing values once what is lifted stands in decreasing order."""
    return np.asarray(np.sort(s + lifts)[::-1] - s)


def raised_by_others(s: Array, likely: Array, high: Array, floor: float, missed: float) -> Array:
    """What others may add to the larger bounds of the lifts, (l,).

    Parameters
    ----------
    s : (l,)
        Decreasing, with those beyond k that are `in_reach`.
    likely, high : (l,)
        Of the lift of each by itself.
    floor : float
        Rounding.
    missed : float
        The largest value that the basis may have missed altogether.

    Notes
    -----
    What is left of the matrix couples two vectors by at most the geometric mean of their lifts, and values at a distance by no more
    than the square of that over the distance. A value may also be overtaken, in a crowd by one that was missed too. All this is no
    more than what a crowd spans once it is lifted: a random basis meets all directions of nearly equal values alike, so those that
    are known well lie apart as all of them do.
    """
    more, lifted = np.maximum(ordered(s, high), high), s + likely
    for i, own in enumerate(high):
        coupling = np.sqrt(own) * np.sqrt(high)
        distance = np.maximum(np.abs(lifted - lifted[i]) - _UNSURE * high, 0.0)
        apart = np.where(high > own, coupling * (coupling / np.maximum(np.maximum(distance, coupling), _TINY)), 0.0)
        near = np.abs(s - s[i]) <= NEAR * s[i]
        more[i] = max(more[i], own + float(apart.max()), min(missed - s[i], float(s[near].max() - s[near].min())))
        crowd = lifted[near & (high <= max(_AS_WELL * own, floor))]
        if len(crowd) >= _CROWD:
            more[i] = min(more[i], own + float(crowd.max() - crowd.min()))
    return np.asarray(more - high)
