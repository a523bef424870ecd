"""How far single singular values of a truncated decomposition are from those of the matrix.

What is left of the matrix lifts each of them by its coupling with it; rounding moves them; and what is found below the norm
of what is left may not be the value of its number at all. What was measured brackets each error; where the bracket is too wide
for an estimate that is right within a factor, none is given.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dlscale.arrays import Array
from dlscale.kernels import accumulator_dtype
from dlscale.lapack import svd
from dlscale.linalg.svd.crowds import MISSED, NEAR, in_reach, ordered, raised_by_others
from dlscale.linalg.svd.lifts import bracket_of_lifts, running_median
from dlscale.linalg.svd.projection import Projection
from dlscale.linalg.svd.sketch import Sketch, unit_probes

#: On each side, neighbours that share their errors.
_SHARING = 3
#: None is larger than so many times those before it.
_LUCK = 3.0
#: Four probes tell norms too low by about this factor where they have bad luck.
_PROBE_SAFETY = 2.5
#: What is left has a norm that its estimate may be off by.
_NORM_LUCK = 1.1
#: An error is estimated where the larger bound of it is at most so many times the smaller one.
_DETERMINED = 15.0
#: Of the geometric mean of the bounds, and of the smaller one at most, what lies well between a tenth and three times the truth.
_MIDDLE, _AT_MOST = 1.6, 6.0
#: Likewise behind the projection on W.
_MIDDLE_ON_W = 1.4
#: Neighbours that share their errors and would raise one by more than this tell that it is not known.
_AGREED = 1.2
#: Errors of equal values that differ by more than this tell likewise.
_ASTRAY = 4.0
#: Values above this part of the norm of what is left are near it.
_BESIDE = 0.85
#: Values below this part of the norm of what is left may have been overtaken by one that was missed; those up to so many times it
#: go with how far four probes tell it wrong, unless iterations carried so many more columns than are asked for.
_OVERTAKEN, _NOT_BESIDE, _SPARE = 0.95, 1.75, 10
#: An error behind what was cut off is given where it is at most this part of its value.
_PART = 0.5
#: Times ``(max(m, n))^1/2 eps s_1``: what is no more than rounding.
_FLOOR = 10.0
#: Rounding error of a singular value, in eps s_1, and of ``A^H A v``, in eps s_1^2.
_ROUNDING, _ROUNDING_OF_COUPLING = 4.0, 5.0
#: By how much more rounding is where an inverse is formed and sums are in the precision of the matrix.
_FORMED = 3.0
_TINY = float(np.finfo(float).tiny)


def value_errors(seen: Sketch, k: int, rest: Array, inside: Array, missed: Array, *, outside: float, eps: float) -> Array:
    """Errors of the leading k singular values (k,); NaN where what was measured does not determine one.

    Parameters
    ----------
    seen : Sketch
        With a projection of width l.
    k : int
    rest : (p, p)
        ``(E probes)^H (E probes)`` of what all l triplets leave, summed row by row.
    inside : (k, p)
        ``U^H E probes``.
    missed : (k, p)
        ``U^H A probes - S V^H probes``, behind the projection on the range: rounding.
    outside : float
        An estimate of ``||E||_2``.
    eps : float

    Notes
    -----
    Given errors are meant to be within a factor 3 below and 10 above the truth, beside rounding of
    ``10 max(m, n)^1/2 eps s_1``.
    """
    s = np.minimum.accumulate(seen.found.s[:k].astype(float))
    floor = _FLOOR * float(np.sqrt(max(seen.Y.shape[0], len(seen.W)))) * eps * s[0]
    if seen.found.coordinates is None:
        return _behind_range(seen, s, missed, outside=outside, eps=eps, floor=floor)
    unit = unit_probes(seen.probes)
    on_probes = _on_probes(s, rest / unit, inside / np.sqrt(unit))
    return _behind_w(seen.found, s, on_probes, outside=outside, eps=eps, floor=floor)


def _behind_w(found: Projection, s: Array, on_probes: Array, *, outside: float, eps: float, floor: float) -> Array:
    """Errors behind the projection on W, where ``A^H A V`` is known.

    Notes
    -----
    They go with the distance of each value to the norm of what is left, which is bracketed by what its estimate may be off by.
    Values beyond k are bracketed too, as far as they are in reach of those before; none is above what the probes tell of the last.
    Those far below that norm are told by the probes alone. Where ``A^H A v`` is ``s^2 v`` to working precision, s is a singular
    value.
    """
    k, every = len(s), np.minimum.accumulate(found.s.astype(float))
    every = every[: in_reach(every, k, _NORM_LUCK * outside)]
    n, top, by_probes = len(every), _most(every, outside), np.append(on_probes, every[k - 1] + on_probes[k - 1] - every[k:])
    smaller, likely, larger = (_coupled(found, n, outside * luck) for luck in (1 / _NORM_LUCK, 1.0, _NORM_LUCK))
    likely = np.minimum(np.minimum(likely, top), by_probes)
    errors = _MIDDLE_ON_W * (_shared(s, likely[:k], outside) + _ROUNDING * eps * s[0])
    coupling = np.linalg.norm(found.normal[:, :n] - found.V[:, :n] * found.s[:n] ** 2, axis=0)
    resolved = coupling > _ROUNDING_OF_COUPLING * eps * s[0] ** 2
    low = np.where(resolved, np.minimum(smaller, by_probes), 0.0)
    high = np.minimum(np.minimum(larger, _NORM_LUCK**2 * top), by_probes)
    raised = raised_by_others(every, likely, np.maximum(high, likely), floor, MISSED * outside)[:k]
    low, high, coupling, resolved = ordered(every, low)[:k], ordered(every, high)[:k], coupling[:k], resolved[:k]
    determined = (high + raised <= _DETERMINED * low) & ~_beside(s, outside) | (resolved & (s < outside / _NORM_LUCK))
    rounding = (errors <= floor) & (np.minimum(high, coupling / np.maximum(s, _TINY)) + raised <= floor)
    return np.asarray(np.where(determined | rounding, errors, np.nan))


def _behind_range(seen: Sketch, s: Array, missed: Array, *, outside: float, eps: float, floor: float) -> Array:
    """Errors behind the projection on the range of A W.

    Notes
    -----
    Rounding in ``Z = A^H A W`` goes with the columns of ``A W = Q R`` and is multiplied by ``R^-1``: ``U^H A`` is ``S V^H`` but for
    what the probes miss, of which ``n^-1/2`` is met by v. Where small singular values of R are cut off, the projection is that on
    the range of a part of W, and what A does on the other part tells of the values that are missing: a random subspace of
    dimension ``l - r`` of the ``n - r`` dimensions that are left meets the j-th of them with about ``(l - r - j) / (n - r)`` of its
    square.
    """
    found, W, k = seen.found, seen.W, len(s)
    n, width = W.shape
    R = np.asarray(seen.basis.R, np.result_type(seen.basis.R, float))
    rank = width
    if found.cut:
        values, rows = svd(R)[1:]
        rank = int((values > found.cut * values[0]).sum())
        W = W @ rows[:rank].conj().T
    by_probes = (np.abs(missed) ** 2).mean(axis=1) / unit_probes(seen.probes)
    rounding = np.maximum(np.sqrt(by_probes / n), _divided(seen, R, k, eps))
    lifts = bracket_of_lifts(seen, W, by_probes, outside=outside, norm_luck=_NORM_LUCK, eps=eps, floor=floor)
    own = np.minimum(np.minimum(_MIDDLE * np.sqrt(lifts.low * lifts.high), _AT_MOST * lifts.low), _most(s, outside))
    errors = _shared(s, own, outside)
    # Equal values near the norm of what is left have like errors.
    astray = (s < _NORM_LUCK * outside) & (own > _ASTRAY * running_median(own, 2 * _SHARING + 1))
    determined = (lifts.high <= _DETERMINED * lifts.low) & lifts.resolved & (s > _OVERTAKEN * outside) & ~astray
    determined &= (errors <= _AGREED * own) & (rounding <= lifts.low)
    beside = _beside(s, outside)
    determined &= ~beside | (seen.n_carried >= k + _SPARE)
    errors = errors + _ROUNDING * eps * s[0] + rounding
    determined |= np.maximum(np.where(beside, lifts.high, lifts.likely), errors) + rounding <= floor
    if rank < k:
        missing = found.before[rank:] * np.sqrt((n - rank) / np.arange(width - rank, 0, -1))
        errors[rank:] = (np.minimum(_PROBE_SAFETY * missing, outside) + _ROUNDING * eps * s[0])[: k - rank]
        determined[rank:] = errors[rank:] <= np.maximum(_PART * s[rank:], floor)
    return np.asarray(np.where(determined, errors, np.nan))


def _divided(seen: Sketch, R: Array, k: int, eps: float) -> Array:
    """Rounding in ``Z = A^H A W`` that is divided by R, of k singular values."""
    found, n = seen.found, len(seen.W)
    X = found.X[:, :k]
    amplified = np.linalg.pinv(R, rcond=found.cut) @ X if found.cut else np.linalg.solve(R, X)
    rounding = eps * float(np.sqrt(seen.squares / n)) * np.linalg.norm(np.linalg.norm(R, axis=0)[:, None] * amplified, axis=0)
    formed = bool(found.cut) and accumulator_dtype(seen.probes.dtype) == seen.probes.dtype
    return np.asarray(rounding * (_FORMED if formed else 1.0))


def _most(s: Array, outside: float) -> Array:
    """``(s^2 + ||E||^2)^1/2 - s``, which no error is above."""
    return np.asarray(outside**2 / (np.hypot(s, outside) + s + _TINY))


def _beside(s: Array, outside: float) -> Array:
    """Whether values are near the norm of what is left, (k,) of bool."""
    return np.asarray((s > _OVERTAKEN * outside) & (s < _NOT_BESIDE * outside))


def _on_probes(s: Array, rest: Array, inside: Array) -> Array:
    """Errors behind the projection on W, as far as U tells.

    Notes
    -----
    ``U^H A = S V^H + U^H E``, whose rows are longer than S says. What is left outside of U, ``E - U U^H E``, has singular
    values of its own. All of them together, in decreasing order, stand for those of A.
    """
    k, p = inside.shape
    rows = np.hypot(s, _PROBE_SAFETY * np.linalg.norm(inside, axis=1) / np.sqrt(p))
    left = np.linalg.eigvalsh(rest - inside.conj().T @ inside)[::-1]
    # Of Gaussian probes, the j-th direction that is left is met by p - j that are orthogonal to those before.
    beside = 2 * np.sqrt(np.maximum(left, 0.0) / np.arange(p, 0, -1))
    everything = np.sort(np.concatenate([rows, beside[:-1], np.full(k, beside[-1])]))[::-1]
    return np.asarray(np.maximum(everything[:k] - s, 0.0))


def _shared(s: Array, errors: Array, outside: float) -> Array:
    """Errors near the norm of what is left: means of near neighbours where they are larger, as far as the neighbours lie apart.

    Notes
    -----
    A value that is missed moves those behind it up by a place, whatever the coupling of each. None is larger than those before
    it may be.
    """
    sums, counts, span = errors.copy(), np.ones(len(s)), np.zeros(len(s))
    for j in range(1, min(_SHARING + 1, len(s))):
        distances = s[:-j] - s[j:]
        near = distances <= NEAR * s[:-j]
        for one, other in ((slice(j, None), slice(None, -j)), (slice(None, -j), slice(j, None))):
            sums[one] += near * errors[other]
            counts[one] += near
            span[one] = np.maximum(span[one], near * distances)
    errors = np.where(s < outside / _BESIDE, np.maximum(errors, np.minimum(sums / counts, span)), errors)
    return np.asarray(np.minimum(errors, np.minimum.accumulate(s + _LUCK * errors) - s))


def _coupled(found: Projection, k: int, outside: float) -> Array:
    """How far the coupling with the rest lifts the singular values.

    Notes
    -----
    In the basis of V and its complement, ``A^H A = [[S^2, R^H], [R, E^H E]]`` with ``R = A^H A V - V S^2``. Its leading
    eigenvalues are those of ``S^2 + R^H D^-1 R`` to second order, D being the distance of each to ``||E||^2``: the larger root of
    the pair that it makes with it. Vectors of nearly equal values are taken together: there the singular values of
    ``[S; R D^-1/2]`` are meant.
    """
    s, R = found.s[:k], found.normal[:, :k] - found.V[:, :k] * found.s[:k] ** 2
    lengths = np.linalg.norm(R, axis=0)
    R = R / np.sqrt(_distances(s**2, lengths, outside**2))
    lifted = np.empty(k)
    for i, j in clusters(s):
        F = np.linalg.qr(R[:, i:j], mode="r")
        lifted[i:j] = np.linalg.svd(np.vstack([np.diag(s[i:j]), F]), compute_uv=False)
    return np.maximum(lifted - s, 0.0)


def clusters(s: Array) -> Iterator[tuple[int, int]]:
    """Runs of decreasing values that lie within `NEAR` of the first of them: (start, stop)."""
    start = 0
    for i in range(1, len(s) + 1):
        if i == len(s) or s[i] < (1 - NEAR) * s[start]:
            yield start, i
            start = i


def _distances(theta: Array, coupling: Array, t: Array | float) -> Array:
    """Effective distance of eigenvalues theta to t when they are coupled with it by so much."""
    half = (theta - t) / 2
    return np.asarray(np.maximum(half + np.hypot(half, coupling), _TINY))
