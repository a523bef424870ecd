"""First-order optimizers: one step in place, with a state of plain arrays that can be checkpointed.

A step is the same function of the same numbers on every rank: gradients come in already added up, regularized and clipped.
Elementwise work is done tile by tile, so that each array is read from memory once and written once.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dlscale.arrays import Array
from dlscale.declaration.sections import AboveZero, Fraction, NotNegative
from dlscale.errors import SpecError
from dlscale.learn.models.parameters import Parameters, is_weight, norm, tiles_with_work
from dlscale.learn.optimizers.regularization import soft_threshold
from dlscale.learn.optimizers.stepping import Optimizer, State, Stepping, Taken, whole_gradient
from dlscale.learn.options import choose

#: Why optimizers do not minimise an objective with an L1 penalty.
NO_L1 = {
    "lbfgs": "optimizer.type lbfgs needs a smooth objective, and regularization.l1 is not; choose proximal, or l1: 0.",
    "lars": "optimizer.type lars sets a layer's rate by the norm of its weights, which regularization.l1 brings to zero; "
    "choose adam, sgd or proximal, or l1: 0.",
    "kfac": "optimizer.type kfac moves in a metric in which regularization.l1 has no proximal step; "
    "choose adam, sgd or proximal, or l1: 0.",
}


@dataclass(frozen=True)
class FirstOrder(Optimizer):
    """A rule that turns the gradient of a batch into a step of each parameter by itself."""

    #: Names of the arrays it keeps for every parameter, in that parameter's shape and dtype.
    moments: ClassVar[tuple[str, ...]] = ()

    def start(self, parameters: Parameters) -> State:
        """The state before the first step: ``step`` (1,) int64, and zeros under ``<moment>/<parameter>``."""
        state: State = {"step": np.zeros(1, np.int64)}
        for moment in self.moments:
            for name, array in parameters.items():
                state[f"{moment}/{name}"] = np.zeros_like(array)
        return state

    def advance(self, training: Stepping) -> Taken:
        """One parameter after the other, in the order in which the gradients arrive; together where they are clipped."""
        rate, l1 = training.learning_rate, training.regularization.l1
        if training.clip_norm is not None:
            gradients, taken = whole_gradient(training)
            # Both parts of the objective are scaled alike, so that clipping does not move its minimum.
            l1 *= min(1.0, training.clip_norm / max(math.hypot(*taken.norms.values()), np.finfo(float).tiny))
            self.update(training.parameters, gradients, training.state, learning_rate=rate, l1=l1)
            return taken
        arriving, penalty, norms = training.reduce(), 0.0, dict[str, float]()
        training.state["step"] += 1
        n = int(training.state["step"][0])
        for name in arriving.names():
            parameter, gradient = training.parameters[name], arriving.gradient(name)
            penalty += training.regularization.add({name: parameter}, {name: gradient})
            if training.keeps_norms:
                norms[name] = norm(gradient)
            kept = [training.state[f"{moment}/{name}"] for moment in self.moments]
            self.step(name, parameter, gradient, kept, rate, n, l1=l1 if is_weight(name) else 0.0)
        loss = arriving.loss()
        if not math.isfinite(loss):
            training.refuse(loss)
        return Taken(loss, penalty, norms, {"learning_rate": rate})

    def update(self, parameters: Parameters, gradients: Parameters, state: State, *, learning_rate: float, l1: float = 0.0) -> None:
        """Take one step: parameters and state change in place, gradients do not.

        Parameters
        ----------
        parameters, gradients : Parameters
            Gradients of the smooth part of the objective.
        state : State
        learning_rate : float
        l1 : float
            The L1 penalty on weights: see `step`.
        """
        state["step"] += 1
        n = int(state["step"][0])
        for name, parameter in parameters.items():
            kept = [state[f"{moment}/{name}"] for moment in self.moments]
            self.step(name, parameter, gradients[name], kept, learning_rate, n, l1=l1 if is_weight(name) else 0.0)

    @abstractmethod
    def step(
        self, name: str, parameter: Array, gradient: Array, kept: list[Array], learning_rate: float, n: int, *, l1: float = 0.0
    ) -> None:
        """Step n (counted from 1) of one parameter, in place.

        It ends with the proximal step of ``l1 ||p||_1`` in the metric of the step: what a gradient g that stays the same takes
        from an entry by now, l1 takes from its size, down to zero. So a parameter that rests is a minimum of the objective.
        """


@dataclass(frozen=True)
class SGD(FirstOrder):
    """``p -= rate * g``."""

    def step(
        self, name: str, parameter: Array, gradient: Array, kept: list[Array], learning_rate: float, n: int, *, l1: float = 0.0
    ) -> None:
        for work, p, g in tiles_with_work(parameter, gradient):
            p -= np.multiply(g, learning_rate, out=work)
            if l1:
                soft_threshold(p, learning_rate * l1)


@dataclass(frozen=True)
class Momentum(FirstOrder):
    """``v = momentum * v + g``, ``p -= rate * v`` (Polyak 1964)."""

    momentum: Fraction = 0.9
    moments: ClassVar[tuple[str, ...]] = ("velocity",)

    def step(
        self, name: str, parameter: Array, gradient: Array, kept: list[Array], learning_rate: float, n: int, *, l1: float = 0.0
    ) -> None:
        # Of n equal gradients the velocity is the sum of n powers.
        threshold = learning_rate * l1 * (1 - self.momentum**n) / (1 - self.momentum)
        for work, p, g, v in tiles_with_work(parameter, gradient, *kept):
            v *= self.momentum
            v += g
            p -= np.multiply(v, learning_rate, out=work)
            if l1:
                soft_threshold(p, threshold)


@dataclass(frozen=True)
class Nesterov(Momentum):
    """``v = momentum * v + g``, ``p -= rate * (g + momentum * v)``: Nesterov's method about the point looked ahead to."""

    def step(
        self, name: str, parameter: Array, gradient: Array, kept: list[Array], learning_rate: float, n: int, *, l1: float = 0.0
    ) -> None:
        threshold = learning_rate * l1 * (1 - self.momentum ** (n + 1)) / (1 - self.momentum)
        for work, p, g, v in tiles_with_work(parameter, gradient, *kept):
            v *= self.momentum
            v += g
            np.multiply(v, self.momentum, out=work)
            work += g
            work *= learning_rate
            p -= work
            if l1:
                soft_threshold(p, threshold)


@dataclass(frozen=True)
class Adam(FirstOrder):
    """Adam with bias correction (Kingma and Ba 2015, algorithm 1).

    Parameters
    ----------
    beta1, beta2 : float in [0, 1)
        Decay of the running mean of the gradient and of its square.
    epsilon : float
        Added to the root of the second moment.
    """

    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: AboveZero = 1e-8
    moments: ClassVar[tuple[str, ...]] = ("mean", "square")

    def decay(self, name: str) -> float:
        """Share of a parameter that one unit of learning rate takes away."""
        return 0.0

    def step(
        self, name: str, parameter: Array, gradient: Array, kept: list[Array], learning_rate: float, n: int, *, l1: float = 0.0
    ) -> None:
        # The corrections are folded into two scalars: rate * (m / c1) / (sqrt(v / c2) + eps).
        root_c2 = math.sqrt(1 - self.beta2**n)
        rate, epsilon = learning_rate * root_c2 / (1 - self.beta1**n), self.epsilon * root_c2
        keep = 1 - learning_rate * self.decay(name)
        for work, p, g, m, v in tiles_with_work(parameter, gradient, *kept):
            np.subtract(g, m, out=work)
            work *= 1 - self.beta1
            m += work
            np.multiply(g, g, out=work)
            work -= v
            work *= 1 - self.beta2
            v += work
            np.sqrt(v, out=work)
            work += epsilon
            # Yun, Lozano and Yang 2021: the metric of the step is the diagonal that it is divided by.
            threshold = learning_rate * root_c2 * l1 / work if l1 else None
            np.divide(m, work, out=work)
            work *= rate
            if keep != 1:
                p *= keep
            p -= work
            if threshold is not None:
                soft_threshold(p, threshold)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with weight decay outside the moments, on weights but not biases (Loshchilov and Hutter 2019, algorithm 2).

    Parameters
    ----------
    weight_decay : float
        A step takes away ``learning_rate * weight_decay`` of each weight.
    """

    weight_decay: NotNegative = 0.01

    def decay(self, name: str) -> float:
        return self.weight_decay if is_weight(name) else 0.0


@dataclass(frozen=True)
class LARS(FirstOrder):
    """Momentum with a rate for each layer, ``trust * ||w|| / (||g|| + weight_decay * ||w||)`` (You et al. 2017, algorithm 1).

    Biases, and weights or gradients that are all zero, take the global rate alone and do not decay. It takes no L1 penalty: the
    rate of a layer jumps where its weights become zero.
    """

    momentum: Fraction = 0.9
    trust: AboveZero = 0.001
    weight_decay: NotNegative = 0.0
    moments: ClassVar[tuple[str, ...]] = ("velocity",)

    def step(
        self, name: str, parameter: Array, gradient: Array, kept: list[Array], learning_rate: float, n: int, *, l1: float = 0.0
    ) -> None:
        if l1:
            raise SpecError(NO_L1["lars"])
        rate, decay = learning_rate, 0.0
        if is_weight(name):
            size, slope = norm(parameter), norm(gradient)
            if size > 0 and slope > 0:
                decay = self.weight_decay
                rate *= self.trust * size / (slope + decay * size)
        for work, p, g, v in tiles_with_work(parameter, gradient, *kept):
            np.multiply(p, decay, out=work)
            work += g
            work *= rate
            v *= self.momentum
            v += work
            p -= v


OPTIMIZERS: dict[str, type[FirstOrder]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adam": Adam,
    "adamw": AdamW,
    "lars": LARS,
}


def optimizer(options: Mapping[str, Any] | str) -> FirstOrder:
    """The first-order optimizer that ``{"type": "adam", "beta2": 0.99}`` asks for; the learning rate is the caller's."""
    return choose("optimizer", options, OPTIMIZERS)
