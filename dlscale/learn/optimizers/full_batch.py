"""What methods that read all rows in every step have in common: their objective, in standard coordinates, and when they end."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dlscale.arrays import Array
from dlscale.learn.models.coordinates import Coordinates
from dlscale.learn.models.parameters import Parameters
from dlscale.learn.optimizers.measuring import Measured, require_range
from dlscale.learn.optimizers.regularization import Regularization
from dlscale.learn.optimizers.stepping import Optimizer, State, Stepping, Taken

#: ``evaluate(parameters)``: weighted mean loss of all rows and its gradients, without L1 and L2 penalties, the same on every rank.
#: The gradients may be overwritten by who called, and by the next evaluation.
Evaluate = Callable[[Parameters], tuple[float, Parameters]]


@dataclass(frozen=True)
class Iteration:
    """What an iteration on all rows came to.

    Parameters
    ----------
    loss : float
        Objective with its penalties, after the step.
    optimality : float
        Largest absolute entry of the least subgradient after the step: 0 at the optimum.
    n_evaluations : int
        Passes over all rows that it took.
    converged : bool
        Optimality is within the tolerance; further iterations change nothing.
    stalled : bool
        No step improves the objective in this precision; further iterations change nothing.
    to_rounding : bool
        It stalled where the gradient had fallen to rounding beside the first one.
    """

    loss: float
    optimality: float
    n_evaluations: int
    converged: bool
    stalled: bool = False
    to_rounding: bool = False

    @property
    def ending(self) -> str:
        """What it ended, in a word of `dlscale.learn.training.saving.ENDINGS`; nothing where further iterations may help."""
        if self.converged:
            return "converged"
        return "converged to rounding" if self.to_rounding else "stalled" if self.stalled else ""


class Objective:
    """The smooth objective in a vector; leaves the point it was asked about in the parameters, its gradients in ``gradients``."""

    def __init__(
        self, evaluate: Evaluate, parameters: Parameters, regularization: Regularization, coordinates: Coordinates
    ) -> None:
        self.evaluate, self.parameters, self.regularization = evaluate, parameters, regularization
        self.coordinates, self._smooth = coordinates, Regularization(l2=regularization.l2)
        self.n_evaluations = 0
        self.gradients: Parameters = {}

    @property
    def standard(self) -> bool:
        return self.coordinates.scale.size > 0

    def vector(self) -> Array:
        """Where the parameters are."""
        return self.coordinates.vector(self.parameters)

    def place(self, x: Array) -> None:
        self.coordinates.place(x, self.parameters)

    def __call__(self, x: Array) -> tuple[float, Array]:
        self.place(x)
        return self.take(*self.evaluate(self.parameters))

    def take(self, loss: float, gradients: Parameters) -> tuple[float, Array]:
        """An evaluation at the parameters: with its L2 penalty, in the vector."""
        self.n_evaluations += 1
        loss += self._smooth.add(self.parameters, gradients)
        self.gradients = {name: gradients[name] for name in self.parameters}
        return loss, self.coordinates.gradient(self.gradients)

    def slack(self, loss: float) -> float:
        """By how much losses near this one, at the parameters, may differ by rounding alone.

        A score far from zero features is a difference of large numbers: its rounding times the largest slope of the loss.
        """
        W, b = (self.parameters[f"layer-0/{part}"] for part in ("weight", "bias"))
        size = float((np.abs(b) + np.abs(self.coordinates.mean) @ np.abs(W)).max()) if self.standard else 0.0
        rounding = float(np.finfo(W.dtype).eps) * size * np.sqrt(2 * max(loss, 0.0))
        return 10 * float(np.finfo(np.float64).eps) * abs(loss) + float(rounding)

    def least(self, gradient: Array) -> Array:
        """The least subgradient of the whole objective in the vector, where its smooth part has this gradient."""
        threshold = self.coordinates.thresholds(self.regularization.l1, self.parameters)
        x = self.vector()
        at_zero = gradient - np.clip(gradient, -threshold, threshold)
        return np.asarray(np.where(x == 0, at_zero, gradient + threshold * np.sign(x)))

    def measured(self, loss: float) -> Measured:
        """The whole objective where it was evaluated last; the gradients are spent."""
        whole = loss + self.regularization.l1_penalty(self.parameters)
        return Measured.completed(whole, self.parameters, self.gradients, self.regularization)


class FullBatch(Optimizer):
    """A method whose every step reads all rows, several times."""

    takes_all_rows: ClassVar[bool] = True

    tolerance: float

    def start(self, parameters: Parameters) -> State:
        """The state before the first iteration, double precision for parameters of either dtype."""
        n, n_features = sum(array.size for array in parameters.values()), len(parameters["layer-0/weight"])
        return {
            "begun": np.zeros(1, np.int64),
            "n_iterations": np.zeros(1, np.int64),
            "loss": np.zeros(1),
            "gradient": np.zeros(n),
            "first_loss": np.zeros(1),
            "relative": np.zeros(1),
            "measured": np.zeros((2, 3)),
            "mean": np.zeros(n_features),
            "scale": np.zeros(n_features),
        }

    def advance(self, training: Stepping) -> Taken:
        """One iteration; the first one begins by getting to know the columns."""
        state, regularization = training.state, training.regularization
        if not state["begun"][0]:
            loss, gradients, coordinates = training.evaluate_first()
            self.begin(training.parameters, state, loss, gradients, regularization=regularization, coordinates=coordinates)
        found = self.iterate(training.evaluate, training.parameters, state, regularization=regularization)
        if not (math.isfinite(found.loss) and math.isfinite(found.optimality)):
            training.refuse(found.loss)
        curves = {"optimality": found.optimality, "evaluations": float(found.n_evaluations)}
        return Taken(found.loss, curves=curves, ending=found.ending, measured=state["measured"])

    def begin(
        self,
        parameters: Parameters,
        state: State,
        loss: float,
        gradients: Parameters,
        *,
        regularization: Regularization,
        coordinates: Coordinates | None = None,
    ) -> None:
        """Take over an evaluation at the first parameters, and the coordinates to move in."""
        if coordinates is not None:
            state["mean"][:], state["scale"][:] = coordinates.mean, coordinates.scale
        objective = self._objective(_never, parameters, state, regularization)
        state["loss"][0], state["gradient"][:] = objective.take(loss, gradients)
        state["first_loss"][0] = state["loss"][0]
        self.keep(state, objective, float(state["loss"][0]), state["gradient"])
        state["measured"][0] = state["measured"][1]
        require_range(Measured(*state["measured"][0]))
        state["begun"][0] = 1

    @abstractmethod
    def iterate(
        self, evaluate: Evaluate, parameters: Parameters, state: State, *, regularization: Regularization | None = None
    ) -> Iteration:
        """One step on ``evaluate`` and penalties; parameters and state change in place."""

    def objective(
        self, evaluate: Evaluate, parameters: Parameters, state: State, regularization: Regularization | None
    ) -> Objective:
        """The objective of an iteration; the first one begins with an evaluation unless `begin` was called."""
        regularization = regularization or Regularization()
        begun = bool(state["begun"][0])
        if not begun:
            self.begin(parameters, state, *evaluate(parameters), regularization=regularization)
        objective = self._objective(evaluate, parameters, state, regularization)
        objective.n_evaluations += not begun
        return objective

    def _objective(self, evaluate: Evaluate, parameters: Parameters, state: State, regularization: Regularization) -> Objective:
        known = slice(None) if state["scale"].any() else slice(0)
        return Objective(evaluate, parameters, regularization, Coordinates(state["mean"][known], state["scale"][known]))

    def keep(self, state: State, objective: Objective, loss: float, gradient: Array) -> None:
        """Note where the objective was evaluated last."""
        state["loss"][0], state["gradient"][:] = loss, gradient
        state["relative"][0] = _beside(np.abs(objective.least(gradient)).max(), float(state["first_loss"][0]))
        state["measured"][1] = objective.measured(loss).to_array()

    def reached(self, state: State) -> bool:
        """Whether the least subgradient is within the tolerance, in the parameters and whatever the units of rows and targets."""
        return bool(state["measured"][1][1] <= self.tolerance and state["relative"][0] <= self.tolerance)

    def outcome(self, state: State, objective: Objective, *, stalled: bool = False) -> Iteration:
        """What an iteration that ended where ``state`` says came to."""
        loss, optimality, _ = map(float, state["measured"][1])
        # Losses that differ by rounding are of gradients that differ by its root.
        eps = np.finfo(objective.parameters["layer-0/weight"].dtype).eps
        to_rounding = stalled and bool(state["relative"][0] <= np.sqrt(eps))
        return Iteration(
            loss,
            optimality,
            objective.n_evaluations,
            converged=self.reached(state),
            stalled=stalled and not to_rounding,
            to_rounding=to_rounding,
        )


def _beside(gradient: float, first_loss: float) -> float:
    """A gradient in standard coordinates beside the one that the first loss could have.

    Of every smooth loss here the derivative r in a score is at most ``sqrt(2 loss)``, and columns have mean square 1, so a
    mean of ``r z`` is at most ``sqrt(2 loss)``, whatever the units of features and targets.
    """
    return float(gradient / np.sqrt(2 * first_loss)) if first_loss > 0 else float(gradient)


def _never(parameters: Parameters) -> tuple[float, Parameters]:
    raise AssertionError("the first parameters are evaluated already")
