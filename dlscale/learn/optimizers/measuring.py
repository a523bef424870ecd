"""What a training is judged by: its stated objective on all rows, and how far its gradient is from zero.

At a minimum of ``F(p) = f(p) + l1 ||W||_1``, with f the weighted mean loss, L2 and all, zero is a subgradient (the condition of
Karush, Kuhn and Tucker). The least subgradient is the gradient of f where l1 is 0; else ``f' + l1 sign(w)`` at a weight that is
not zero, and what of ``f'`` exceeds l1 in size at one that is.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import NumericalError
from dlscale.learn.models.parameters import Parameters, norm
from dlscale.learn.optimizers.regularization import Regularization


@dataclass(frozen=True)
class Measured:
    """The objective at some parameters, on all rows.

    Parameters
    ----------
    loss : float
        Weighted mean loss with all penalties.
    optimality, norm : float
        Largest absolute entry and Euclidean norm of the least subgradient: 0 at a minimum.
    """

    loss: float
    optimality: float
    norm: float

    def to_array(self) -> Array:
        return np.array(astuple(self))

    @classmethod
    def of(cls, loss: float, parameters: Parameters, gradients: Parameters, regularization: Regularization) -> Measured:
        """From the weighted mean loss without penalties and its gradients, which are overwritten."""
        loss += regularization.add(parameters, gradients)
        return cls.completed(loss, parameters, gradients, regularization)

    @classmethod
    def completed(cls, loss: float, parameters: Parameters, gradients: Parameters, regularization: Regularization) -> Measured:
        """From the loss with all penalties, and gradients that lack the L1 penalty's part; they are overwritten."""
        regularization.complete(parameters, gradients)
        optimality = max(float(np.abs(gradient).max(initial=0)) for gradient in gradients.values())
        # Divided by the largest entry first, so that no square overflows or underflows.
        unit = optimality if 0 < optimality < np.inf else 1.0
        squares = sum(norm(gradient / gradient.dtype.type(unit)) ** 2 for gradient in gradients.values())
        return cls(float(loss), optimality, unit * float(np.sqrt(squares)))


def require_range(first: Measured) -> None:
    """Refuse an objective that is zero though its gradient is not: what it says of any parameters is lost.

    Raises
    ------
    NumericalError
    """
    if first.loss < np.finfo(np.float64).tiny and first.norm > 0:
        raise NumericalError(
            f"The loss of the first parameters is {first.loss:g}, below what float64 holds, and its gradient is not zero; multiply "
            "the targets by a number that brings them near 1."
        )
