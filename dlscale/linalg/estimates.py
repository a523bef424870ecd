"""How far a truncated decomposition is from the matrix, estimated after the fact.

The last pass of a randomized method multiplies a few Gaussian probes along with the basis. They are independent of the
basis, so what the decomposition leaves of them is an unbiased picture of what it leaves of the matrix.

References
----------
Halko, Martinsson, Tropp (2011), section 4.3; Tropp et al. (2019), section 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.linalg.projection import Projection
from dlscale.storage.matrices import Array

#: A difference of squares below this part of the total is rounding error.
_CANCELLED = 1e-11
#: The convergence factor is itself estimated from below.
_SAFETY = 1.3


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


def estimate_errors(
    found: Projection,
    k: int,
    *,
    squares: float,
    gram: Array,
    history: Sequence[Array],
    residual: Array,
    probes: Array,
    Z_probes: Array,
    eps: float,
) -> ErrorEstimate:
    """Estimate the errors of the leading k triplets.

    Parameters
    ----------
    found : Projection of width l
    squares : float
        ``||A||_F^2``.
    gram : (l, l)
        ``Y^H Y``: the squares of its eigenvalues' roots are the singular values of A on W.
    history : sequence of arrays
        Estimates of the singular values from the iterations before.
    residual : (p,)
        ``||(A - U S V^H) probe||^2`` of each probe, summed over rows: accurate, but a Frobenius norm.
    probes, Z_probes : (n, p)
        And ``A^H A probes``.
    eps : float
    """
    s = found.s
    tail = float(s[k]) if k < len(s) else 0.0
    left_over = squares - float((s[:k] ** 2).sum())
    if left_over > max(_CANCELLED, 100 * eps) * squares:
        frobenius = float(np.sqrt(left_over))
        spectral = max(tail, largest_ritz(found.residual_on(probes, Z_probes, k), probes))
    else:
        # Too small to be seen in differences of squares: what was measured on the probes row by row.
        frobenius = float(np.sqrt(residual.mean()))
        spectral = max(tail, frobenius / 3)
    outside = largest_ritz(found.residual_on(probes, Z_probes, len(s)), probes)
    return ErrorEstimate(min(spectral, frobenius), frobenius, _value_errors(found, k, gram, history, outside, eps))


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


def _value_errors(found: Projection, k: int, gram: Array, history: Sequence[Array], outside: float, eps: float) -> Array:
    """Error of each singular value, from how it settled.

    Both projections give lower bounds of ``sigma_i``, and the half step from the one to the other multiplies the distance
    to it by about ``rho_i = (sigma_behind / sigma_i)^2``, where sigma_behind is the largest that the basis does not hold:
    so does the half step that would follow. Of a random basis, which has made no step yet, only the bound
    ``sigma_i^2 <= s_i^2 + ||E||^2`` is known, with E what the basis leaves of A.
    """
    s = found.s[:k]
    rounding = 4 * eps * found.s[0]
    bound = np.sqrt(s**2 + outside**2) - s
    if not history:
        return np.asarray(_SAFETY * bound + rounding)
    before = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1][:k], 0.0))
    half_step = np.maximum(s - before, 0.0)
    if found.coordinates is None:
        behind = max(found.s[-1], outside)
        rho = np.minimum((behind / np.maximum(s, max(behind, np.finfo(float).tiny))) ** 2, 0.9)
        half_step = _SAFETY * half_step * rho / (1 - rho)
    return np.asarray(np.minimum(half_step, bound) + rounding)
