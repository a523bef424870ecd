"""Clipping of gradients by their common norm."""

from __future__ import annotations

import math

from dlscale.learn.models.parameters import Parameters, norms


def clip_by_norm(gradients: Parameters, max_norm: float) -> dict[str, float]:
    """Scale all gradients in place by one factor, so that their common Euclidean norm is at most ``max_norm``.

    It comes after gradients have been added up over ranks: clipping each rank's share would depend on their number.

    Parameters
    ----------
    gradients : Parameters
        Changed only when the norm is finite and larger.
    max_norm : float, above 0; infinity never clips

    Returns
    -------
    dict
        The norm of each array before clipping; their root sum of squares is the common norm, not finite when a gradient is not.
    """
    parts = norms(gradients)
    total = math.hypot(*parts.values())
    if max_norm < total < math.inf:
        for gradient in gradients.values():
            gradient *= max_norm / total
    return parts
