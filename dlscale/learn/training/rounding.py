"""What rounding may have made of a measured objective: bounds that hold whatever the numbers are, for models of one layer.

With R_j the root mean square of a column, ``R W + b`` bounds that of a score and of the terms that it is a sum of; an error of
scores reaches a gradient entry by at most its own root mean square times that of the column (Cauchy and Schwarz).

References
----------
Higham (2002), section 3.1: a sum or inner product of n terms is off by at most n units of rounding of the terms' sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.learn.models.losses import Hinge, Loss
from dlscale.learn.optimizers.regularization import Regularization

#: Roundings of a row beside its inner products: of the loss's functions, of weights, and of the largest score taken off.
_MORE = 8


class Rounding(NamedTuple):
    """How far the computed objective and the entries of its computed gradient can be from those of the parameters."""

    loss: float
    gradient: float


def rounding(
    parameters: Mapping[str, Array], loss: Loss, regularization: Regularization, *, columns: Array, measured: float, n_added: int
) -> Rounding | None:
    """Bounds on what double precision rounds; None of hidden layers, and of a loss whose slope jumps.

    Parameters
    ----------
    parameters : Parameters
    loss : Loss
    regularization : Regularization
    columns : (2, n_features)
        Weighted means, and standard deviations or more.
    measured : float
        The objective at the parameters, as computed.
    n_added : int
        Rows and partial sums that are added up one after the other.
    """
    if len(parameters) > 2 or isinstance(loss, Hinge):
        return None
    W, b = (np.abs(parameters[f"layer-0/{part}"].astype(np.float64)) for part in ("weight", "bias"))
    # Twice the unit of rounding, which also covers that of these few lines and of the columns' sizes.
    eps, tiny = float(np.finfo(np.float64).eps), float(np.finfo(np.float64).tiny)
    with np.errstate(over="ignore", invalid="ignore"):
        sizes = np.hypot(*columns)
        scores = eps * (len(W) + _MORE) * float(np.linalg.norm(sizes @ W + b))
        # Of every smooth loss here the derivative in a row's scores is at most ``sqrt(2 loss)``; that of classes, 2.
        slope = float(np.sqrt(2 * measured)) + scores
        functions = eps * (len(b) + _MORE) * (1.0 if loss.classifies else slope)
        rows = scores + functions
        sums = rows + eps * n_added * (slope + rows)
        penalties = 4 * eps * (regularization.l1 + regularization.l2 * float(W.max()))
        of_gradient = max(1.0, float(sizes.max())) * sums + penalties + tiny
        of_loss = (2.0 if loss.classifies else slope) * rows + eps * (n_added + W.size) * (1.0 + measured) + tiny
    return Rounding(of_loss, of_gradient)
