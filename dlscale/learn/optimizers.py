"""First-order optimizers: one step in place, with a state of plain arrays that can be checkpointed.

A step is the same function of the same numbers on every rank: gradients come in already added up, regularized and clipped.
Elementwise work is done tile by tile, so that each array is read from memory once and written once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dlscale.kernels import Array, workspace
from dlscale.learn.parameters import TILE_ELEMENTS, Parameters, tiles

#: Named arrays of an optimizer, of the parameters' dtype, except ``step`` (1,) int64.
State = dict[str, Array]


def _work(like: Array, name: str = "learn/step") -> Array:
    return workspace(name, (TILE_ELEMENTS,), like.dtype)[: like.size]


@dataclass(frozen=True)
class Optimizer:
    """A rule that turns gradients into a step."""

    #: Names of the arrays it keeps for every parameter, in that parameter's shape.
    moments: ClassVar[tuple[str, ...]] = ()

    def start(self, parameters: Parameters) -> State:
        """The state before the first step: ``step``, and zeros under ``<moment>/<parameter>``."""
        state: State = {"step": np.zeros(1, np.int64)}
        for moment in self.moments:
            for name, array in parameters.items():
                state[f"{moment}/{name}"] = np.zeros_like(array)
        return state

    def update(self, parameters: Parameters, gradients: Parameters, state: State, *, learning_rate: float) -> None:
        """Take one step: parameters and state change in place, gradients do not."""
        state["step"] += 1
        for name, parameter in parameters.items():
            kept = [state[f"{moment}/{name}"] for moment in self.moments]
            self.step(name, parameter, gradients[name], kept, learning_rate, int(state["step"][0]))

    def step(self, name: str, parameter: Array, gradient: Array, kept: list[Array], learning_rate: float, n: int) -> None:
        """Step n (counted from 1) of one parameter, in place."""
        raise NotImplementedError


@dataclass(frozen=True)
class SGD(Optimizer):
    """``p -= rate * g``."""

    def step(self, name: str, parameter: Array, gradient: Array, kept: list[Array], learning_rate: float, n: int) -> None:
        for p, g in tiles(parameter, gradient):
            p -= np.multiply(g, learning_rate, out=_work(p))
