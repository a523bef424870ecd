"""How many components data have, by the evidence of the probabilistic model of a PCA.

References
----------
Minka (2000), Automatic choice of dimensionality for PCA, equation 77 (``n_components="mle"`` of scikit-learn).
"""

from __future__ import annotations

import numpy as np
import scipy

from dlscale.arrays import Array


def most_likely_dimension(variances: Array, n_samples: int) -> int:
    """The number of components, 1 to n - 1, with the largest evidence; 1 of a single variance.

    Parameters
    ----------
    variances : (n,)
        All eigenvalues of the covariance matrix, decreasing.
    n_samples : int
        m, at least n.

    Notes
    -----
    O(n^2). The evidence does not depend on the scale; variances and their differences below 1e-15 of the largest count as
    that, so that equal ones neither win nor end the search.
    """
    n = len(variances)
    if n < 2 or not variances[0] > 0:
        return 1
    spectrum = np.maximum(variances / variances[0], _FLOOR)
    k = np.arange(1, n)
    tail = np.maximum((spectrum.sum() - np.cumsum(spectrum)[:-1]) / (n - k), _FLOOR)
    log_spectrum = np.cumsum(np.log(spectrum))[:-1]
    rest = (n - k + 1) / 2
    prior = -k * np.log(2) + np.cumsum(scipy.special.gammaln(rest) - np.log(np.pi) * rest)
    free = n * k - k * (k + 1) / 2
    evidence = prior - n_samples / 2 * (log_spectrum + (n - k) * np.log(tail)) + np.log(2 * np.pi) * (free + k) / 2
    evidence -= (_log_curvature(spectrum, tail) + free * np.log(n_samples) + k * np.log(n_samples)) / 2
    # A component without variance is none.
    evidence[variances[:-1] <= _FLOOR * variances[0]] = -np.inf
    return int(k[evidence.argmax()])


def _log_curvature(spectrum: Array, tail: Array) -> Array:
    """For each k the sum over ``i < k``, ``j > i`` of ``log((s_i - s_j) (1 / t_j - 1 / t_i))``; t is s, and the tail from k on."""
    n = len(spectrum)
    total, inside = np.zeros(n - 1), 0.0
    outside = 0.0
    for k in range(1, n):
        i = k - 1
        outside += _log(spectrum[i] - spectrum[k:]).sum()
        inside += _log(1 / spectrum[i] - 1 / spectrum[:i]).sum()
        total[i] = outside + inside + (n - k) * _log(1 / tail[i] - 1 / spectrum[:k]).sum()
    return total


def _log(differences: Array) -> Array:
    return np.asarray(np.log(np.maximum(differences, _FLOOR)))


_FLOOR = 1e-15
