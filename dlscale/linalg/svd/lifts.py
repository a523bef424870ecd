"""By how much what is left of a matrix lifts the singular values behind the projection on the range of A W, from a few probes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dlscale.arrays import Array
from dlscale.linalg.svd.crowds import MISSED, in_reach, ordered, raised_by_others
from dlscale.linalg.svd.sketch import Sketch, unit_probes

#: Neighbouring values whose means of what is left are compared.
_WINDOW = 5
#: What the probes meet is known where it is more than so many times its rounding.
_RESOLVED = 3.0
#: Rounding of ``A^H A probes``, in ``eps ||A||_F^2 n^-1/2``; of the Nystrom approximation, in squares of that.
_ROUNDING, _ROUNDING_OF_NYSTROM = 4.0, 4.0
#: Of the way from what the probes tell to what the norm allows, where the larger bound is: the more iterations W has seen, the more
#: of what is left in it belongs to the norm.
_TOWARDS_NORM, _BY_ITERATIONS, _AT_MOST = 0.2, 0.25, 0.7
#: Values below this part of the norm of what is left may be lifted beyond it.
_BELOW = 0.95
_TINY = float(np.finfo(float).tiny)


@dataclass(frozen=True)
class Lifts:
    """Brackets of the lifts of k singular values.

    Parameters
    ----------
    low, high : (k,)
    likely : (k,)
        The larger bound with the norm of what is left as it was estimated, and what the probes tell.
    resolved : (k,) of bool
        Whether what the probes met is above its rounding.
    """

    low: Array
    high: Array
    likely: Array
    resolved: Array


@dataclass(frozen=True)
class _Moments:
    """Of ``c = (I - W W^H) v`` with what is left: ``m_0 = ||c||^2``, the least of ``m_1 = ||E c||^2``, and ``m_2 = ||E^H E c||^2``.

    ``m_2`` is what the probes met (``own``), and the same evened out over neighbours (``even``).
    """

    m_0: Array
    nystrom: Array
    own: Array
    even: Array
    resolved: Array


def running_median(values: Array, width: int) -> Array:
    """The medians of an odd number of neighbours, (k,), where those beyond an end are its mirror image.

    Notes
    -----
    That is `scipy.ndimage.median_filter`, which takes as long to load as a small decomposition to compute.
    """
    padded = np.pad(values, width // 2, mode="symmetric")
    return np.asarray(np.sort(sliding_window_view(padded, width), axis=-1)[:, width // 2])


def bracket_of_lifts(
    seen: Sketch, W: Array, by_rounding: Array, *, outside: float, norm_luck: float, eps: float, floor: float
) -> Lifts:
    """Bracket the lifts of the leading k singular values.

    Parameters
    ----------
    seen : Sketch
    W : (n, r)
        On which E is zero.
    by_rounding : (k,)
        Squares of what rounding leaves of the rows of ``U^H A - S V^H``.
    outside : float
        An estimate of ``||E||_2``,
    norm_luck : float
        which may be too low by this factor.
    eps : float
    floor : float
        What is no more than rounding.

    Notes
    -----
    E is zero on W. So ``E v_i = E c_i``, where ``c_i = (I - W W^H) v_i`` is known. To second order ``sigma_i^2`` is
    ``s_i^2 + sum_j s_i^2 t_j |u_j^H c_i|^2 / (s_i^2 - t_j)``, with the eigenpairs ``t_j, u_j`` of ``E^H E``, which are at most
    ``T = ||E||^2``; where that is more than s_i^2, which the iterations would have found, it is taken for that, but in the larger
    bound of values that are well below. Of the terms of the sum three moments are known: m_0; m_2 on the probes, as the smaller and
    the larger one of a value's own and the median of its neighbours; and m_1 between ``m_2 / T`` and ``(m_0 m_2)^1/2``.
    ``v_i^H H (probes^H H)^-1 H^H v_i`` with ``H = E^H E probes`` (Nystrom) is at most m_1 too, and equal where E is of low rank.
    The sum is convex in t: it is least with all of m_1 at its mean ``m_2 / m_1``, and largest with m_1 shared out between 0 and T,
    or with all of m_0 at T, between which the larger bound is taken. To it comes what other values may add, those beyond k too.
    """
    s, k = np.minimum.accumulate(seen.found.s.astype(float)), len(by_rounding)
    s = s[: in_reach(s, k, norm_luck * outside)]
    by_rounding = np.pad(by_rounding, (0, len(s) - k), mode="edge")
    theta = np.maximum(s**2, _TINY)
    T, T_high = (np.minimum(max((outside * luck) ** 2, _TINY), theta) for luck in (1.0, norm_luck))
    moments = _moments(seen, W, by_rounding, T, eps)
    m_0, less, more = moments.m_0, np.minimum(moments.own, moments.even), np.maximum(moments.own, moments.even)
    least = np.minimum(np.maximum(moments.nystrom, less / T), T * m_0)
    low = larger_root(theta, least, np.minimum(less / np.maximum(least, _TINY), T))
    most = np.maximum(np.sqrt(m_0 * more), least)
    likely, larger = (np.clip(_shared_out(theta, most, more, t), low, _all_at(theta, m_0, t, low)) for t in (T, T_high))
    part = min(_TOWARDS_NORM + _BY_ITERATIONS * seen.n_iterations, _AT_MOST)
    high = larger ** (1 - part) * _all_at(theta, m_0, T_high, low) ** part
    beyond = np.full(len(s), outside**2)
    high = np.maximum(high, np.where(s < _BELOW * outside, larger_root(theta, beyond * m_0, beyond), 0.0))
    low, likely, high = (lift / (np.sqrt(theta + lift) + s) for lift in (low, likely, high))
    raised = raised_by_others(s, likely, high, floor, MISSED * outside)
    low, likely, high = np.minimum(low, ordered(s, low)), ordered(s, likely) + raised, high + raised
    return Lifts(low[:k], high[:k], likely[:k], moments.resolved[:k])


def _moments(seen: Sketch, W: Array, by_rounding: Array, T: Array, eps: float) -> _Moments:
    found, probes, k = seen.found, seen.probes, len(by_rounding)
    # In double precision, whose range holds these products.
    H = found.residual_on(probes, seen.Z_probes, len(found.s))
    H = H.astype(np.result_type(H, float))
    V = found.V[:, :k]
    c = V - W @ (W.conj().T @ V)
    m_0 = np.maximum(np.linalg.norm(c, axis=0).astype(float) ** 2, _TINY)
    met, unit = V.conj().T @ H, unit_probes(probes)
    m_2 = (np.abs(met) ** 2).mean(axis=1) / unit
    noise = (_ROUNDING * eps * seen.squares) ** 2 / len(V) + found.s[:k].astype(float) ** 2 * by_rounding
    own = np.minimum(m_2, T**2 * m_0)
    even = m_0 * running_median(own / m_0, _WINDOW)
    first = probes.conj().T @ H
    values, vectors = np.linalg.eigh((first + first.conj().T) / 2)
    keep = values > max(values[-1] * 1e-10, _TINY)
    nystrom = (np.abs(met @ (vectors[:, keep] / np.sqrt(values[keep]))) ** 2).sum(axis=1)
    nystrom = np.maximum(nystrom - _ROUNDING_OF_NYSTROM * noise * unit * (1 / values[keep]).sum(), 0.0)
    return _Moments(m_0, nystrom, own, even, np.minimum(m_2, even) > _RESOLVED**2 * noise)


def _shared_out(theta: Array, m_1: Array, m_2: Array, T: Array) -> Array:
    """The lift with m_1 shared out between 0 and T so that m_2 is met."""
    share = np.minimum(m_2 / np.maximum(m_1 * T, _TINY), 1.0)
    return larger_root(theta, m_1 * (1 - share), np.zeros_like(T)) + larger_root(theta, m_1 * share, T)


def _all_at(theta: Array, m_0: Array, T: Array, low: Array) -> Array:
    """The lift with all of m_0 at T."""
    return np.maximum(larger_root(theta, T * m_0, T), low)


def larger_root(theta: Array, moment: Array, t: Array) -> Array:
    """By how much the larger eigenvalue of ``[[theta, c], [c, t]]`` is above theta, where ``c^2 = theta moment``."""
    half, c = (theta - t) / 2, np.sqrt(theta * moment)
    root = np.hypot(half, c)
    # The same number twice; each is without cancellation on its side.
    return np.asarray(np.where(half > 0, c * (c / (np.maximum(half, 0.0) + root + _TINY)), root - half))
