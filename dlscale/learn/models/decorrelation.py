"""Penalty on the correlation of hidden units, from sums that the caller adds up over ranks.

``P = (lambda / 2) sum_{i != j} C_ij^2`` with ``C`` the weighted covariance of the last hidden layer over the whole batch (Cogswell
et al. 2016, DeCov). A rank that used the covariance of its own rows would optimise something that depends on the number of
ranks; so the sums are taken first, in a phase of their own.
"""

from __future__ import annotations

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import workspace


def covariance_sums(H: Array, weights: Array) -> Array:
    """``sum_r w_r h_r`` and ``sum_r w_r h_r h_r^T`` of these rows, to be added up over ranks.

    Parameters
    ----------
    H : (b, n)
    weights : (b,)

    Returns
    -------
    (n + 2, n) : double precision
        The second moments, under them the first, and under these the sum of the weights.
    """
    n = H.shape[1]
    sums = np.zeros((n + 2, n))
    total = float(weights.sum(dtype=np.float64))
    if total == 0:
        return sums
    # Centred on these rows' own mean before it is multiplied, so that single precision does not cancel.
    mean = np.asarray((weights @ H) / total)
    centred = np.subtract(H, mean, out=workspace("learn/centred", H.shape, H.dtype))
    weighted = np.multiply(centred, weights[:, None], out=workspace("learn/weighted", H.shape, H.dtype))
    rest = weighted.sum(axis=0, dtype=np.float64)
    mean = mean.astype(np.float64)
    sums[:n] = centred.T @ weighted
    sums[:n] += np.outer(mean, rest) + np.outer(rest, mean) + total * np.outer(mean, mean)
    sums[n] = rest + total * mean
    sums[n + 1] = total
    return sums


def penalty_and_slope(H: Array, sums: Array, strength: float) -> tuple[float, Array]:
    """The penalty of the whole batch, and rows ``2 lambda (h_r - mean) (C - diag C)``: times ``w_r / sum w``, its gradient.

    Parameters
    ----------
    H : (b, n)
        Hidden activations of this rank's rows.
    sums : (n + 2, n)
        `covariance_sums`, added up over ranks.
    strength : float
        lambda.

    Returns
    -------
    penalty : float
    slope : (b, n)
        A workspace.
    """
    total = sums[-1, 0] or 1.0
    mean = sums[-2] / total
    C = sums[:-2] / total
    C -= np.outer(mean, mean)
    np.fill_diagonal(C, 0)
    centred = np.subtract(H, mean.astype(H.dtype), out=workspace("learn/centred", H.shape, H.dtype))
    slope = np.matmul(centred, (2 * strength * C).astype(H.dtype), out=workspace("learn/weighted", H.shape, H.dtype))
    return 0.5 * strength * float(np.vdot(C, C)), slope
