"""How far a truncated decomposition is from the matrix, estimated after the fact.

The last pass of a randomized method multiplies a few Gaussian probes along with the basis. They are independent of the
basis, so what the decomposition leaves of them is an unbiased picture of what it leaves of the matrix.

References
----------
Halko, Martinsson, Tropp (2011), section 4.3; Tropp et al. (2019), section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.linalg.svd.sketch import Sketch, unit_probes
from dlscale.linalg.svd.value_errors import value_errors

#: A difference of squares below this part of the total is rounding error.
_CANCELLED = 1e-11
#: Norms from four probes are themselves often too low.
_PROBE_SAFETY = 2.0
#: Times ``eps^1/2 s_1``: below it, a power step on what is left is rounding error; nearly all, and enough of it to matter.
_POWER_RESOLUTION, _POWER_NOISE = 30.0, 12.0
#: Of `_PROBE_SAFETY`, what is enough where an error within a factor is asked for, not a bound.
_MILDER = 0.7
#: Singular values that a note names.
_NAMED = 8


@dataclass(frozen=True)
class ErrorEstimate:
    """Estimated errors of ``A ~ U S V^H`` with k components.

    Parameters
    ----------
    spectral, frobenius : float
        Of the norms of ``A - U S V^H``.
    singular_values : (k,)
        Of each singular value: ``|s_i - sigma_i(A)|``; NaN where what was read does not determine it.

    Notes
    -----
    The norms, and what is given of singular values, are within a factor 3 below and 10 above the truth, beside rounding of
    ``10 max(m, n)^1/2 eps s_1``. These are estimates, not bounds, as four probes tell of what is left: on 300 random spectra
    92 in 100 errors of singular values were given, and 2 of 99,775 were outside; of nearly equal values through which the rank
    may cut 74 in 100, and one in 1,300 outside.
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
            "singular_value_errors": [None if np.isnan(error) else float(error) for error in self.singular_values],
        }

    def words(self) -> tuple[str, ...]:
        """A note that says which errors are not given, and what tells them."""
        missing = np.flatnonzero(np.isnan(self.singular_values)) + 1
        if not len(missing):
            return ()
        which = ", ".join(map(str, missing[:_NAMED])) + (f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else "")
        what = f"the error of singular value {which} is" if len(missing) == 1 else f"the errors of singular values {which} are"
        return (f"{what} not determined by what was read; one more power iteration, or more oversampling, tells more",)


def estimate_errors(
    seen: Sketch, k: int, residual: Array, rest: Array, inside: Array, missed: Array, *, eps: float
) -> ErrorEstimate:
    """Estimate the errors of the leading k triplets.

    Parameters
    ----------
    seen : Sketch
        With a projection of width l.
    k : int
    residual, rest : (p, p)
        ``(E probes)^H (E probes)`` of what k, and of what all l triplets leave, summed row by row.
    inside : (k, p)
        ``U^H E probes`` of what all l triplets leave.
    missed : (k, p)
        ``U^H A probes - S V^H probes``, behind the projection on the range.
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
    return ErrorEstimate(
        min(spectral, frobenius),
        frobenius,
        value_errors(seen, k, rest, inside, missed, outside=_likely_norm_of_rest(seen, rest, eps), eps=eps),
    )


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


def norm_of_rest(seen: Sketch, rest: Array) -> float:
    """An estimate of ``||E||_2`` for what all triplets leave: by a step of a power iteration where that is above its rounding."""
    by_power, resolution = _by_power(seen, float(np.finfo(seen.probes.dtype).eps))
    return by_power if by_power > _POWER_RESOLUTION * resolution else norms_on_probes(rest / unit_probes(seen.probes))[0]


def _likely_norm_of_rest(seen: Sketch, rest: Array, eps: float) -> float:
    """The same with less care not to be too low."""
    by_power, resolution = _by_power(seen, eps)
    spectral, frobenius = norms_on_probes(rest / unit_probes(seen.probes))
    # Where the power step is all rounding, it may be anything: the probes tell.
    return min(by_power if by_power > _POWER_NOISE * resolution else _MILDER * spectral, _PROBE_SAFETY * frobenius)


def _by_power(seen: Sketch, eps: float) -> tuple[float, float]:
    """``||E||_2`` by a power step, which goes with the square of E; and ``eps^1/2 s_1``."""
    found = seen.found
    by_power = largest_ritz(found.residual_on(seen.probes, seen.Z_probes, len(found.s)), seen.probes)
    return by_power, float(np.sqrt(eps) * found.s[0])
