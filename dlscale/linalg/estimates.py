"""How far a truncated decomposition is from the matrix, estimated after the fact.

The last pass of a randomized method multiplies a few Gaussian probes along with the basis. They are independent of the
basis, so what the decomposition leaves of them is an unbiased picture of what it leaves of the matrix.

References
----------
Halko, Martinsson, Tropp (2011), section 4.3; Tropp et al. (2019), section 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import median_filter

from dlscale.linalg.projection import Projection
from dlscale.linalg.sketch import Sketch, unit_probes
from dlscale.storage.matrices import Array

#: A difference of squares below this part of the total is rounding error.
_CANCELLED = 1e-11
#: Norms from four probes are themselves often too low.
_PROBE_SAFETY = 2.0
#: Times ``eps^1/2 s_1``: below it, a power step on what is left is rounding error.
_POWER_RESOLUTION = 30.0
#: Neighbouring values whose means of what is left are compared.
_WINDOW = 5
#: The larger bound of an error may itself be so much too low, as the probes tell of it; the smaller one may be so far below.
_LUCK, _FAR = 3.0, 10.0
#: Values that differ by less than this part are taken for equal.
_NEAR = 0.01
#: Rounding error of a singular value, in eps s_1; and the part of ``eps s_1^2 / s_i`` that a division by R leaves.
_ROUNDING, _DIVIDED = 4.0, 0.05
_TINY = float(np.finfo(float).tiny)


@dataclass(frozen=True)
class ErrorEstimate:
    """Estimated errors of ``A ~ U S V^H`` with k components.

    Parameters
    ----------
    spectral, frobenius : float
        Of the norms of ``A - U S V^H``.
    singular_values : (k,)
        Of each singular value: ``|s_i - sigma_i(A)|``.

    Notes
    -----
    The norms are meant to be within a factor 3 below and 10 above the truth, errors of singular values not below a third of it:
    these are no bounds, as four probes tell of what is left. On random spectra one value in 2,000 was below a third, one in 60
    above ten times the truth: most of them behind a random basis, in one read or without iterations, and near rounding or the
    norm of what is left.
    """

    spectral: float
    frobenius: float
    singular_values: Array

    def times_power(self, exponent: int) -> ErrorEstimate:
        """The same of ``2^exponent A``."""
        spectral, frobenius, values = (np.ldexp(error, exponent) for error in (self.spectral, self.frobenius, self.singular_values))
        return ErrorEstimate(float(spectral), float(frobenius), np.asarray(values))

    def to_dict(self) -> dict[str, Any]:
        return {
            "spectral_error": self.spectral,
            "frobenius_error": self.frobenius,
            "singular_value_errors": [float(error) for error in self.singular_values],
        }


def estimate_errors(seen: Sketch, k: int, residual: Array, rest: Array, *, eps: float) -> ErrorEstimate:
    """Estimate the errors of the leading k triplets.

    Parameters
    ----------
    seen : Sketch
        With a projection of width l.
    k : int
    residual, rest : (p, p)
        ``(E probes)^H (E probes)`` of what k, and of what all l triplets leave, summed row by row.
    eps : float
    """
    found, probes = seen.found, seen.probes
    s = found.s
    tail = float(s[k]) if k < len(s) else 0.0
    left_over = seen.squares - float((s[:k] ** 2).sum())
    if left_over > max(_CANCELLED, 100 * eps) * seen.squares:
        frobenius = float(np.sqrt(left_over))
        spectral = max(tail, largest_ritz(found.residual_on(probes, seen.Z_probes, k), probes))
    else:
        # Too small to be seen in differences of squares: what was measured on the probes row by row.
        spectral, frobenius = norms_on_probes(residual / unit_probes(probes))
        spectral, frobenius = max(tail, spectral), max(tail, frobenius)
    # Where the power step is all rounding, it may be anything: the probes tell.
    outside = min(norm_of_rest(seen, rest, eps=eps), _PROBE_SAFETY * norms_on_probes(rest / unit_probes(probes))[1])
    return ErrorEstimate(min(spectral, frobenius), frobenius, _value_errors(seen, k, outside, eps))


def largest_ritz(H: Array, probes: Array) -> float:
    """A lower estimate of ``||E||_2`` from ``H = E^H E probes``: the largest Ritz value of one step of block power iteration."""
    # H goes with the square of E, and its square with the fourth power: out of range long before E is.
    size = max(float(np.abs(H).max()), np.finfo(float).tiny)
    H = H / size
    first, second = probes.conj().T @ H, H.conj().T @ H
    values, vectors = np.linalg.eigh((first + first.conj().T) / 2)
    keep = values > max(values[-1], 0.0) * 1e-10
    if not keep.any():
        return 0.0
    basis = vectors[:, keep] / np.sqrt(values[keep])
    return float(np.sqrt(size * max(np.linalg.eigvalsh(basis.conj().T @ second @ basis)[-1], 0.0)))


def norms_on_probes(gram: Array) -> tuple[float, float]:
    """Estimates of ``||E||_2`` and ``||E||_F`` from ``(E probes)^H (E probes)`` (p, p) of p > 1 Gaussian probes of unit variance.

    Notes
    -----
    The diagonal estimates ``sum sigma_i^2``, the squares of what is beside it ``sum sigma_i^4``, and the root of the second by the
    first is at most ``||E||_2``, and just that where E is of rank one or flat. The safety keeps few probes from being three
    times too low.
    """
    p = len(gram)
    squares = float(np.trace(gram).real) / p
    if squares <= 0:
        return 0.0, 0.0
    fourths = float((np.abs(gram / squares) ** 2).sum() - (np.abs(np.diag(gram) / squares) ** 2).sum()) / (p * (p - 1))
    frobenius = _PROBE_SAFETY * float(np.sqrt(squares))
    return min(frobenius, _PROBE_SAFETY * float(np.sqrt(squares * fourths))), frobenius


def norm_of_rest(seen: Sketch, rest: Array, *, eps: float | None = None) -> float:
    """An estimate of ``||E||_2`` for what all triplets leave: by a step of a power iteration where that is above its rounding."""
    found, probes = seen.found, seen.probes
    eps = float(np.finfo(probes.dtype).eps) if eps is None else eps
    by_power = largest_ritz(found.residual_on(probes, seen.Z_probes, len(found.s)), probes)
    # The step goes with the square of E.
    if by_power > _POWER_RESOLUTION * float(np.sqrt(eps)) * found.s[0]:
        return by_power
    return norms_on_probes(rest / unit_probes(probes))[0]


def _value_errors(seen: Sketch, k: int, outside: float, eps: float) -> Array:
    """Error of each singular value: what the coupling to the rest of the matrix adds, and rounding."""
    found = seen.found
    s = found.s[:k].astype(float)
    rounding = np.full(k, _ROUNDING * eps * found.s[0])
    if found.coordinates is None:
        # The division by R: rounding in Z goes with the square of A. A value that is all rounding is off by itself at most.
        first = float(found.s[0])
        divided = _DIVIDED * first / np.maximum(s, max(first * eps / found.resolution, _TINY))
        rounding += np.minimum(rounding * divided, s)
        errors = _behind_range(seen, outside)[:k]
    else:
        errors = _coupled(found, k, outside)
    bound = outside**2 / (np.hypot(s, outside) + s + _TINY)
    return np.asarray(np.minimum(errors, bound) + rounding)


def _behind_range(seen: Sketch, outside: float) -> Array:
    """Errors of all l singular values behind the projection on the range of A W.

    Notes
    -----
    E is zero on W. So ``E v_i = E c_i``, where ``c_i = (I - W W^H) v_i`` is known. To second order ``sigma_i^2`` is
    ``s_i^2 + sum_j s_i^2 t_j |u_j^H c_i|^2 / (s_i^2 - t_j)``, with the eigenpairs ``t_j, u_j`` of ``E^H E``, which are at most
    ``T = ||E||^2``. Of its terms three moments are known: ``m_0 = ||c_i||^2``; ``m_2 = ||E^H E c_i||^2`` on the probes, whose luck
    is evened out over neighbours by the median of ``m_2 / m_0``; and ``m_1 = ||E c_i||^2`` between ``m_2 / T`` and
    ``(m_0 m_2)^1/2``. ``v_i^H H (probes^H H)^-1 H^H v_i`` with ``H = E^H E probes`` (Nystrom) is at most m_1 too, and equal where E
    is of low rank. The sum is convex in t: it is least, L, with all of m_1 at its mean ``m_2 / m_1``, largest, U, with
    m_1 shared out between 0 and T. With L and 3 U as bounds of the truth, what is above a third of it and below ten times of
    it lies between U and 10 L: their geometric mean.
    """
    found, W, probes = seen.found, seen.W, seen.probes
    # In double precision, whose range holds these products.
    s, T = found.s.astype(float), max(outside**2, _TINY)
    theta = np.maximum(s**2, _TINY)
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
    high = np.maximum(_lift(theta, most * (1 - share), 0.0) + _lift(theta, most * share, T), low)
    lifted = np.minimum(np.sqrt(_FAR * low) * np.sqrt(high), _LUCK * high)
    return np.asarray(lifted / (np.sqrt(theta + lifted) + s))


def _lift(theta: Array, moment: Array, t: Array | float) -> Array:
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
