"""What an optimizer is to a training, and a training to its optimizer.

An optimizer says how a step is taken: parameter by parameter as their gradients arrive, from the whole gradient, or from all rows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NoReturn, Protocol

from dlscale.arrays import Array
from dlscale.declaration.options import Options
from dlscale.learn.models.coordinates import Coordinates
from dlscale.learn.models.parameters import Parameters
from dlscale.learn.optimizers.clipping import clip_by_norm
from dlscale.learn.optimizers.regularization import Regularization

#: Named arrays of an optimizer, to be checkpointed with the parameters.
State = dict[str, Array]


class Arriving(Protocol):
    """Gradients of a batch that are on their way, without penalties, the same on every rank."""

    def names(self) -> Iterable[str]:
        """The parameters in the order in which their gradients arrive."""

    def gradient(self, name: str) -> Array:
        """The gradient of a parameter; waits for it."""

    def loss(self) -> float:
        """The mean loss of the batch; waits for everything."""


class Stepping(Protocol):
    """A training as its optimizer sees it.

    Attributes
    ----------
    parameters : Parameters
    state : State
        Of the optimizer; it and the parameters are changed in place.
    regularization : Regularization
    learning_rate : float
        Of this step.
    clip_norm : float, optional
        Largest norm of all gradients together.
    keeps_norms : bool
        Whether the norms of this step's gradients are of interest.
    """

    parameters: Parameters
    state: State

    @property
    def regularization(self) -> Regularization: ...

    @property
    def learning_rate(self) -> float: ...

    @property
    def clip_norm(self) -> float | None: ...

    @property
    def keeps_norms(self) -> bool: ...

    def reduce(self) -> Arriving:
        """Backpropagate the batch of this step."""

    def factors(self) -> Parameters:
        """The factors of K-FAC of the batch, added up over ranks."""

    def evaluate(self, parameters: Parameters) -> tuple[float, Parameters]:
        """Mean loss of all rows and its gradients (`dlscale.learn.optimizers.full_batch.Evaluate`)."""

    def evaluate_first(self) -> tuple[float, Parameters, Coordinates]:
        """As `evaluate` at the parameters, and standard coordinates of the features from the same read."""

    def refuse(self, loss: float) -> NoReturn:
        """End the training for a loss that is not finite, with the reason (collective)."""


@dataclass(frozen=True)
class Taken:
    """What a step came to.

    Parameters
    ----------
    loss : float
        Mean loss of the batch; of an optimizer that takes all rows, the whole objective.
    penalty : float
        To be added to it.
    norms : mapping of str to float
        Of the gradients, by parameter, before clipping; empty where they were not asked for.
    curves : mapping of str to float
        More for the history.
    ending : str
        What ended the training, if the step did: one of `dlscale.learn.training.saving.ENDINGS`.
    measured : (2, 3) array, optional
        The objective at the first parameters and now, where the step knows it (`dlscale.learn.optimizers.measuring.Measured`).
    """

    loss: float
    penalty: float = 0.0
    norms: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, float] = field(default_factory=dict)
    ending: str = ""
    measured: Array | None = None


@dataclass(frozen=True)
class Optimizer(Options, ABC):
    """A rule by which parameters move; without state of its own."""

    section: ClassVar[str] = "optimizer"

    #: Whether a step reads all rows, several times; an epoch is then one of its steps.
    takes_all_rows: ClassVar[bool] = False

    @abstractmethod
    def start(self, parameters: Parameters) -> State:
        """The state before the first step."""

    @abstractmethod
    def advance(self, training: Stepping) -> Taken:
        """Take one step: the parameters and the state of the training change in place."""


def whole_gradient(training: Stepping) -> tuple[Parameters, Taken]:
    """The gradients of a batch with their L2 penalty, clipped by their common norm, and what the step comes to."""
    arriving = training.reduce()
    gradients = {name: arriving.gradient(name) for name in training.parameters}
    loss = arriving.loss()
    if not math.isfinite(loss):
        training.refuse(loss)
    penalty = training.regularization.add(training.parameters, gradients)
    norms = clip_by_norm(gradients, training.clip_norm or math.inf)
    return gradients, Taken(loss, penalty, norms, {"learning_rate": training.learning_rate})
