"""How far a truncated decomposition is from the matrix, estimated after the fact.

The last pass of a randomized method multiplies a few Gaussian probes along with the basis. They are independent of the
basis, so what the decomposition leaves of them is an unbiased picture of what it leaves of the matrix.

References
----------
Halko, Martinsson, Tropp (2011), section 4.3; Tropp et al. (2019), section 6.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.linalg.projection import Projection
from dlscale.linalg.sketch import Sketch, unit_probes
from dlscale.storage.matrices import Array

#: A difference of squares below this part of the total is rounding error.
_CANCELLED = 1e-11
#: The convergence factor is itself estimated from below.
_SAFETY = 1.3
#: Norms from four probes are themselves often too low.
_PROBE_SAFETY = 2.0
#: Times ``eps^1/2 s_1``: below it, a power step on what is left is rounding error.
_POWER_RESOLUTION = 30.0
#: Neighbouring values whose couplings are averaged.
_WINDOW = 8
#: What a step has done for one value, or the probes have seen of it, is less than the truth when they were lucky.
_STEP_SAFETY = 1.6
#: Values that differ by less than this part are taken for equal.
_NEAR = 0.01
#: Rounding error of a singular value, in eps s_1; and the part of ``eps s_1^2 / s_i`` that a division by R leaves.
_ROUNDING, _DIVIDED = 4.0, 0.05
#: A half step leaves at most so much of an error: in flat spectra, where little tells how far it goes.
_SLOWEST = 0.97


@dataclass(frozen=True)
class ErrorEstimate:
    """Estimated errors of ``A ~ U S V^H`` with k components.

    Parameters
    ----------
    spectral, frobenius : float
        Of the norms of ``A - U S V^H``.
    singular_values : (k,)
        Of each singular value: ``|s_i - sigma_i(A)|``.
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


def estimate_errors(seen: Sketch, k: int, residual: Array, rest: Array, *, history: Sequence[Array], eps: float) -> ErrorEstimate:
    """Estimate the errors of the leading k triplets.

    Parameters
    ----------
    seen : Sketch
        With a projection of width l.
    k : int
    residual, rest : (p, p)
        ``(E probes)^H (E probes)`` of what k, and of what all l triplets leave, summed row by row.
    history : sequence of arrays
        Estimates of the singular values from the iterations before.
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
    outside = norm_of_rest(seen, rest, eps=eps)
    return ErrorEstimate(min(spectral, frobenius), frobenius, _value_errors(seen, k, history, outside, eps))


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


def _value_errors(seen: Sketch, k: int, history: Sequence[Array], outside: float, eps: float) -> Array:
    """Error of each singular value: what the coupling to the rest of the matrix adds, or how it settled.

    Both projections give lower bounds of ``sigma_i``, and ``sigma_i^2 <= s_i^2 + ||E||^2`` with E what they leave of A.
    Behind the projection on W the coupling is known (`_coupled`). Behind that on the range, the half step from the one to the
    other has multiplied the distance to ``sigma_i`` by about ``rho_i = (sigma_behind / sigma_i)^2``, where sigma_behind is the
    largest that the basis does not hold: so does the half step that would follow. A random basis, which has made no step yet,
    has the coupling that the probes show (`_coupled_on_probes`).
    """
    found = seen.found
    s = found.s[:k]
    rounding = np.full(k, _ROUNDING * eps * found.s[0])
    if found.coordinates is None:
        # The division by R: rounding in Z goes with the square of A.
        rounding *= 1 + _DIVIDED * np.minimum(found.s[0] / np.maximum(s, np.finfo(float).tiny), found.resolution / eps)
    bound = _SAFETY * (np.sqrt(s**2 + outside**2) - s)
    if found.coordinates is not None:
        errors = _coupled(found, k, outside)
    elif not history:
        errors = _coupled_on_probes(seen, k, outside)
    else:
        half_step = np.maximum(s - found.before[:k], 0.0)
        behind = max(found.s[-1], outside)
        rho = np.minimum((behind / np.maximum(s, max(behind, np.finfo(float).tiny))) ** 2, _SLOWEST)
        errors = _STEP_SAFETY * half_step * rho / (1 - rho)
    return np.asarray(np.minimum(errors, bound) + rounding)


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
    R = R / np.sqrt(_distances(s**2, lengths, outside))
    lifted = np.empty(k)
    for i, j in clusters(s):
        F = np.linalg.qr(R[:, i:j], mode="r")
        lifted[i:j] = np.linalg.svd(np.vstack([np.diag(s[i:j]), F]), compute_uv=False)
    return np.maximum(lifted - s, 0.0)


def _coupled_on_probes(seen: Sketch, k: int, outside: float) -> Array:
    """The same behind a random basis, whose coupling ``S (E V)^H`` only the probes have met, through ``V^H E^H E probes``."""
    found, probes = seen.found, seen.probes
    s = found.s
    H = found.residual_on(probes, seen.Z_probes, len(s))
    met = found.V.conj().T @ H
    squares = (np.abs(met) ** 2).mean(axis=1) / unit_probes(probes)
    # From ||E^H E v|| to ||E v||: E where v meets it, between its norm and its mean size.
    tiny = float(np.finfo(float).tiny)
    mean = float(np.linalg.norm(H)) / np.sqrt(max(float(np.vdot(probes, H).real), tiny))
    coupling = s * np.sqrt(squares / max(outside * min(mean, outside), tiny))
    # A few probes tell little of one value; the coupling changes slowly from one to the next.
    window = np.ones(min(_WINDOW, len(s)))
    smooth = np.sqrt(np.convolve(coupling**2, window, "same") / np.convolve(np.ones(len(s)), window, "same"))
    lifted = s**2 + smooth**2 / _distances(s**2, smooth, outside)
    errors = _STEP_SAFETY * (np.sqrt(lifted) - s)[:k]
    # Of nearly equal values the last one is off by most of what all are.
    for i, j in clusters(s[:k]):
        errors[i:j] *= np.sqrt(j - i)
    return np.asarray(errors)


def clusters(s: Array) -> Iterator[tuple[int, int]]:
    """Runs of decreasing values that lie within `_NEAR` of the first of them: (start, stop)."""
    start = 0
    for i in range(1, len(s) + 1):
        if i == len(s) or s[i] < (1 - _NEAR) * s[start]:
            yield start, i
            start = i


def _distances(theta: Array, coupling: Array, outside: float) -> Array:
    """Effective distance of eigenvalues theta to ``outside^2`` when they are coupled with it by so much."""
    half = (theta - outside**2) / 2
    return np.asarray(np.maximum(half + np.hypot(half, coupling), np.finfo(float).tiny))
