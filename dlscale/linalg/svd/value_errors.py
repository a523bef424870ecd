"""How far single singular values of a truncated decomposition are from those of the matrix.

What is left of the matrix lifts each of them by its coupling with it; rounding moves them; and what is found below the norm
of what is left may not be the value of its number at all.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import median_filter

from dlscale.arrays import Array
from dlscale.kernels import accumulator_dtype
from dlscale.linalg.svd.projection import Projection
from dlscale.linalg.svd.sketch import Sketch, unit_probes

#: Neighbouring values whose means of what is left are compared, and on each side those that share their errors.
_WINDOW, _SHARING = 5, 3
#: The larger bound of an error may itself be so much too low, as the probes tell of it; the smaller one may be so far below.
_LUCK, _FAR = 3.0, 10.0
#: Four probes tell norms too low by about this factor where they have bad luck.
_PROBE_SAFETY = 2.5
#: Values that differ by less than this part are taken for equal; those above this part of the norm of what is left are near it.
_NEAR, _BESIDE = 0.01, 0.85
#: Rounding error of a singular value, in eps s_1; of one that is divided by R, in ``eps ||A||_F n^-1/2`` times what the division
#: multiplies rounding by; and by how much more where the inverse is formed and sums are in the precision of the matrix.
_ROUNDING, _DIVIDED, _FORMED = 4.0, 1.0, 3.0
_TINY = float(np.finfo(float).tiny)


def value_errors(seen: Sketch, k: int, rest: Array, inside: Array, *, outside: float, eps: float) -> Array:
    """Errors of the leading k singular values (k,).

    Parameters
    ----------
    seen : Sketch
        With a projection of width l.
    k : int
    rest : (p, p)
        ``(E probes)^H (E probes)`` of what all l triplets leave, summed row by row.
    inside : (k, p)
        ``U^H E probes``.
    outside : float
        An estimate of ``||E||_2``.
    eps : float
    """
    if seen.found.coordinates is None:
        return _behind_range(seen, outside, eps)[:k]
    s = seen.found.s[:k].astype(float)
    errors = np.minimum(_coupled(seen.found, k, outside), outside**2 / (np.hypot(s, outside) + s + _TINY))
    unit = unit_probes(seen.probes)
    errors = _shared(s, np.minimum(errors, _on_probes(s, rest / unit, inside / np.sqrt(unit))), outside)
    return np.asarray(errors + _ROUNDING * eps * s[0])


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


def _behind_range(seen: Sketch, outside: float, eps: float) -> Array:
    """Errors of all l singular values behind the projection on the range of A W.

    Notes
    -----
    The product ``Z = A^H A W`` has rounding errors that go with the columns of ``A W = Q R``; the triplet of ``Q x_i`` meets them
    multiplied by ``R^-1 x_i``. Where small singular values of R are cut off, the projection is that on the range of a part of
    W, and what A does on the other part tells of the values that are missing: a random subspace of dimension ``l - r`` of the
    ``n - r`` dimensions that are left meets the j-th of them with about ``(l - r - j) / (n - r)`` of its square.
    """
    found, W = seen.found, seen.W
    s, (n, width) = found.s.astype(float), W.shape
    R = np.asarray(seen.basis.R, np.result_type(seen.basis.R, float))
    rank = width
    if found.cut:
        values, rows = np.linalg.svd(R)[1:]
        rank = int((values > found.cut * values[0]).sum())
        W, amplified = W @ rows[:rank].conj().T, np.linalg.pinv(R, rcond=found.cut) @ found.X
    else:
        amplified = np.linalg.solve(R, found.X)
    amplified = np.linalg.norm(np.linalg.norm(R, axis=0)[:, None] * amplified, axis=0)
    divided = _DIVIDED * float(np.sqrt(seen.squares / n))
    if found.cut and accumulator_dtype(seen.probes.dtype) == seen.probes.dtype:
        divided *= _FORMED
    rounding = eps * (_ROUNDING * s[0] + divided * amplified)
    errors = np.minimum(_lifted(seen, W, outside), outside**2 / (np.hypot(s, outside) + s + _TINY))
    errors = _shared(s, errors, outside) + rounding
    missing = found.before[rank:] * np.sqrt((n - rank) / np.arange(width - rank, 0, -1))
    errors[rank:] = np.minimum(_PROBE_SAFETY * missing, outside) + _ROUNDING * eps * s[0]
    return np.asarray(errors)


def _lifted(seen: Sketch, W: Array, outside: float) -> Array:
    """By how much what is left lifts the singular values behind the projection on the range of A W.

    Notes
    -----
    E is zero on W. So ``E v_i = E c_i``, where ``c_i = (I - W W^H) v_i`` is known. To second order ``sigma_i^2`` is
    ``s_i^2 + sum_j s_i^2 t_j |u_j^H c_i|^2 / (s_i^2 - t_j)``, with the eigenpairs ``t_j, u_j`` of ``E^H E``, which are at most
    ``T = ||E||^2``; where that is more than s_i^2, which the iterations would have found, it is taken for that. Of the terms of
    the sum three moments are known: ``m_0 = ||c_i||^2``; ``m_2 = ||E^H E c_i||^2`` on the probes, whose luck
    is evened out over neighbours by the median of ``m_2 / m_0``; and ``m_1 = ||E c_i||^2`` between ``m_2 / T`` and
    ``(m_0 m_2)^1/2``. ``v_i^H H (probes^H H)^-1 H^H v_i`` with ``H = E^H E probes`` (Nystrom) is at most m_1 too, and equal where E
    is of low rank. The sum is convex in t: it is least, L, with all of m_1 at its mean ``m_2 / m_1``, largest, U, with
    m_1 shared out between 0 and T, or with all of m_0 at T. With L and 3 U as bounds of the truth, what is above a third of it
    and below ten times of it lies between U and 10 L: their geometric mean.
    """
    found, probes = seen.found, seen.probes
    # In double precision, whose range holds these products.
    s = found.s.astype(float)
    theta = np.maximum(s**2, _TINY)
    T = np.minimum(max(outside**2, _TINY), theta)
    H = found.residual_on(probes, seen.Z_probes, len(s))
    H = H.astype(np.result_type(H, float))
    c = found.V - W @ (W.conj().T @ found.V)
    m_0 = np.maximum(np.linalg.norm(c, axis=0).astype(float) ** 2, _TINY)
    met = found.V.conj().T @ H
    squares = (np.abs(met) ** 2).mean(axis=1) / unit_probes(probes)
    m_2 = m_0 * median_filter(np.minimum(squares, T**2 * m_0) / m_0, _WINDOW)
    first = probes.conj().T @ H
    values, vectors = np.linalg.eigh((first + first.conj().T) / 2)
    keep = values > max(values[-1] * 1e-10, _TINY)
    nystrom = (np.abs(met @ (vectors[:, keep] / np.sqrt(values[keep]))) ** 2).sum(axis=1)
    least = np.minimum(np.maximum(nystrom, m_2 / T), T * m_0)
    most = np.maximum(np.sqrt(m_0 * m_2), least)
    low = _lift(theta, least, np.minimum(m_2 / np.maximum(least, _TINY), T))
    share = np.minimum(m_2 / np.maximum(most * T, _TINY), 1.0)
    high = _lift(theta, most * (1 - share), np.zeros_like(T)) + _lift(theta, most * share, T)
    low, high = (lift / (np.sqrt(theta + lift) + s) for lift in (low, np.maximum(np.minimum(high, _lift(theta, T * m_0, T)), low)))
    return np.asarray(np.minimum(np.sqrt(_FAR * low) * np.sqrt(high), _LUCK * high))


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
        near = distances <= _NEAR * s[:-j]
        for one, other in ((slice(j, None), slice(None, -j)), (slice(None, -j), slice(j, None))):
            sums[one] += near * errors[other]
            counts[one] += near
            span[one] = np.maximum(span[one], near * distances)
    errors = np.where(s < outside / _BESIDE, np.maximum(errors, np.minimum(sums / counts, span)), errors)
    return np.asarray(np.minimum(errors, np.minimum.accumulate(s + _LUCK * errors) - s))


def _lift(theta: Array, moment: Array, t: Array) -> Array:
    """By how much the larger eigenvalue of ``[[theta, c], [c, t]]`` is above theta, where ``c^2 = theta moment``."""
    half, c = (theta - t) / 2, np.sqrt(theta * moment)
    root = np.hypot(half, c)
    # The same number twice; each is without cancellation on its side.
    return np.asarray(np.where(half > 0, c * (c / (np.maximum(half, 0.0) + root + _TINY)), root - half))


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
    """Runs of decreasing values that lie within `_NEAR` of the first of them: (start, stop)."""
    start = 0
    for i in range(1, len(s) + 1):
        if i == len(s) or s[i] < (1 - _NEAR) * s[start]:
            yield start, i
            start = i


def _distances(theta: Array, coupling: Array, t: Array | float) -> Array:
    """Effective distance of eigenvalues theta to t when they are coupled with it by so much."""
    half = (theta - t) / 2
    return np.asarray(np.maximum(half + np.hypot(half, coupling), _TINY))
