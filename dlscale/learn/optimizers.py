"""First-order optimizers: one step in place, with a state of plain arrays that can be checkpointed.

A step is the same function of the same numbers on every rank: gradients come in already added up, regularized and clipped.
Elementwise work is done tile by tile, so that each array is read from memory once and written once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dlscale.kernels import Array
from dlscale.learn.options import choose, require_number
from dlscale.learn.parameters import Parameters, is_weight, norm, tiles_with_work

#: Named arrays of an optimizer, to be checkpointed with the parameters.
State = dict[str, Array]


@dataclass(frozen=True)
class Optimizer(ABC):
    """A rule that turns gradients into a step."""

    #: Names of the arrays it keeps for every parameter, in that parameter's shape and dtype.
    moments: ClassVar[tuple[str, ...]] = ()

    def start(self, parameters: Parameters) -> State:
        """The state before the first step: ``step`` (1,) int64, and zeros under ``<moment>/<parameter>``."""
        state: State = {"step": np.zeros(1, np.int64)}
        for moment in self.moments:
            for name, array in parameters.items():
                state[f"{moment}/{name}"] = np.zeros_like(array)
        return state

    def update(self, parameters: Parameters, gradients: Parameters, state: State, *, learning_rate: float) -> None:
        """Take one step: parameters and state change in place, gradients do not."""
        state["step"] += 1
        n = int(state["step"][0])
        for name, parameter in parameters.items():
            self.step(name, parameter, gradients[name], [state[f"{moment}/{name}"] for moment in self.moments], learning_rate, n)

    @abstractmethod
    def step(self, name: str, parameter: Array, gradient: Array, kept: list[Array], learning_rate: float, n: int) -> None:
        """Step n (counted from 1) of one parameter, in place."""


@dataclass(frozen=True)
class SGD(Optimizer):
    """``p -= rate * g``."""

    def step(self, name: str, parameter: Array, gradient: Array, kept: list[Array], learning_rate: float, n: int) -> None:
        for work, p, g in tiles_with_work(parameter, gradient):
            p -= np.multiply(g, learning_rate, out=work)


@dataclass(frozen=True)
class Momentum(Optimizer):
    """``v = momentum * v + g``, ``p -= rate * v`` (Polyak 1964)."""

    momentum: float = 0.9
    moments: ClassVar[tuple[str, ...]] = ("velocity",)

    def __post_init__(self) -> None:
        require_number("optimizer.momentum", self.momentum, at_least=0, below=1)

    def step(self, name: str, parameter: Array, gradient: Array, kept: list[Array], learning_rate: float, n: int) -> None:
        for work, p, g, v in tiles_with_work(parameter, gradient, *kept):
            v *= self.momentum
            v += g
            p -= np.multiply(v, learning_rate, out=work)


@dataclass(frozen=True)
class Nesterov(Momentum):
    """``v = momentum * v + g``, ``p -= rate * (g + momentum * v)``: Nesterov's method about the point looked ahead to."""

    def step(self, name: str, parameter: Array, gradient: Array, kept: list[Array], learning_rate: float, n: int) -> None:
        for work, p, g, v in tiles_with_work(parameter, gradient, *kept):
            v *= self.momentum
            v += g
            np.multiply(v, self.momentum, out=work)
            work += g
            work *= learning_rate
            p -= work


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam with bias correction (Kingma and Ba 2015, algorithm 1).

    Parameters
    ----------
    beta1, beta2 : float in [0, 1)
        Decay of the running mean of the gradient and of its square.
    epsilon : float
        Added to the root of the second moment.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    moments: ClassVar[tuple[str, ...]] = ("mean", "square")

    def __post_init__(self) -> None:
        require_number("optimizer.beta1", self.beta1, at_least=0, below=1)
        require_number("optimizer.beta2", self.beta2, at_least=0, below=1)
        require_number("optimizer.epsilon", self.epsilon, above=0)

    def decay(self, name: str) -> float:
        """Share of a parameter that one unit of learning rate takes away."""
        return 0.0

    def step(self, name: str, parameter: Array, gradient: Array, kept: list[Array], learning_rate: float, n: int) -> None:
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
            np.divide(m, work, out=work)
            work *= rate
            if keep != 1:
                p *= keep
            p -= work


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with weight decay outside the moments, on weights but not biases (Loshchilov and Hutter 2019, algorithm 2).

    Parameters
    ----------
    weight_decay : float
        A step takes away ``learning_rate * weight_decay`` of each weight.
    """

    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("optimizer.weight_decay", self.weight_decay, at_least=0)

    def decay(self, name: str) -> float:
        return self.weight_decay if is_weight(name) else 0.0


@dataclass(frozen=True)
class LARS(Optimizer):
    """Momentum with a rate for each layer, ``trust * ||w|| / (||g|| + weight_decay * ||w||)`` (You et al. 2017, algorithm 1).

    Biases, and weights or gradients that are all zero, take the global rate alone and do not decay.
    """

    momentum: float = 0.9
    trust: float = 0.001
    weight_decay: float = 0.0
    moments: ClassVar[tuple[str, ...]] = ("velocity",)

    def __post_init__(self) -> None:
        require_number("optimizer.momentum", self.momentum, at_least=0, below=1)
        require_number("optimizer.trust", self.trust, above=0)
        require_number("optimizer.weight_decay", self.weight_decay, at_least=0)

    def step(self, name: str, parameter: Array, gradient: Array, kept: list[Array], learning_rate: float, n: int) -> None:
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


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adam": Adam,
    "adamw": AdamW,
    "lars": LARS,
}


def optimizer(options: Mapping[str, Any] | str) -> Optimizer:
    """The first-order optimizer that ``{"type": "adam", "beta2": 0.99}`` asks for; the learning rate is the caller's."""
    return choose("optimizer", options, OPTIMIZERS)
