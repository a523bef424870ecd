"""Stationary iterations, the same step from every x: ``x += M (b - A x)``, with an approximate inverse M of A.

    p = M r,    x += p,    r -= A p

They converge if and only if all eigenvalues of ``I - M A`` are below 1 in modulus, and from any x then.

References
----------
Varga (1962), Matrix Iterative Analysis; Saad (2003), chapter 4.
"""

from __future__ import annotations

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.kept import State
from dlscale.linalg.iterative.recurrence import DIVERGED, GOES_ON, Map, Recurrence

#: A residual that has grown by so much since the iteration was begun tells that it diverges.
GROWN = 1e8


class Stationary(Recurrence):
    """A stationary iteration.

    Parameters
    ----------
    step : callable
        ``M R`` for an approximate inverse M of A.
    """

    patience = 1.0

    def __init__(self, step: Map) -> None:
        self.step = step

    def begin(self, R: Array) -> State:
        size = np.linalg.norm(R, axis=0)
        return {
            "D": np.zeros_like(R), "R": R, "P": np.zeros_like(R), "first": size, "size": size, "code": np.full(len(size), GOES_ON)
        }  # fmt: skip

    def operand(self, state: State) -> Array:
        state["P"][...] = self.step(state["R"])
        return state["P"]

    def advance(self, state: State, product: Array) -> State:
        D, R, code = state["D"] + state["P"], state["R"] - product, state["code"].copy()
        size = np.linalg.norm(R, axis=0)
        code[~(size <= GROWN * state["first"])] = DIVERGED
        return state | {"D": D, "R": R, "P": np.zeros_like(R), "size": size, "code": code}

    def correction(self, state: State) -> Array:
        return state["D"]
