"""Penalties on weights: L2 through the gradient, L1 through its proximal step; both together are the elastic net.

The penalty is ``(l2 / 2) ||W||^2 + l1 ||W||_1`` over all weights, added to the weighted MEAN of the rows' losses. Biases
(intercepts) are not penalised. It is the same on every rank: it is added once, after gradients have been added up.

In scikit-learn's terms, for n rows of weight 1: ``Ridge(alpha)`` is ``l2 = alpha / n``; ``Lasso(alpha)`` is ``l1 = alpha``;
``ElasticNet(alpha, l1_ratio)`` is ``l1 = alpha * l1_ratio, l2 = alpha * (1 - l1_ratio)``; ``LogisticRegression(C)`` is
``l2 = 1 / (C n)``. The squared loss here is half the squared residual, as in Lasso.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from dlscale.arrays import Array
from dlscale.declaration.options import Options
from dlscale.declaration.sections import NotNegative
from dlscale.learn.models.parameters import Parameters, is_weight, tiles, tiles_with_work


@dataclass(frozen=True)
class Regularization(Options):
    """Penalties on the weights of all layers.

    Parameters
    ----------
    l1, l2 : float, at least 0
    """

    section: ClassVar[str] = "regularization"

    l1: NotNegative = 0.0
    l2: NotNegative = 0.0

    def add(self, parameters: Parameters, gradients: Parameters) -> float:
        """Add the L2 penalty's gradient in place; returns the whole penalty, L1's part too.

        L1's part has no gradient at zero: it is left to the proximal step that ends an optimizer's own.
        """
        penalty = 0.0
        if self.l1 == self.l2 == 0:
            return penalty
        for name, parameter in parameters.items():
            if not is_weight(name):
                continue
            for work, p, g in tiles_with_work(parameter, gradients[name]):
                if self.l2:
                    penalty += 0.5 * self.l2 * float(np.dot(p, p))
                    g += np.multiply(p, self.l2, out=work)
                if self.l1:
                    penalty += self.l1 * float(np.abs(p).sum(dtype=np.float64))
        return penalty

    def l1_penalty(self, parameters: Parameters) -> float:
        """``l1 ||W||_1`` over all weights."""
        if not self.l1:
            return 0.0
        return self.l1 * sum(float(np.abs(array).sum(dtype=np.float64)) for name, array in parameters.items() if is_weight(name))

    def complete(self, parameters: Parameters, gradients: Parameters) -> None:
        """Turn gradients of the smooth part into the least subgradient of the whole objective, in place."""
        if self.l1:
            for name, parameter in parameters.items():
                if is_weight(name):
                    for p, g in tiles(parameter, gradients[name]):
                        g += self.l1 * np.sign(p)
                        at_zero = p == 0
                        g[at_zero] -= np.clip(g[at_zero], -self.l1, self.l1)


def soft_threshold(x: Array, threshold: float | Array) -> None:
    """``x <- sign(x) max(|x| - threshold, 0)`` in place, as ``x - clip(x, -threshold, threshold)``, which needs no signs."""
    x -= np.clip(x, -threshold, threshold)


@dataclass(frozen=True)
class Penalties(Regularization):
    """As a job file has them: with the penalty that the model adds itself."""

    decorrelation: Annotated[float, Field(ge=0, description="a number of at least 0, for mlp")] = 0.0
