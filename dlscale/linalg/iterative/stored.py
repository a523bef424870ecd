"""Iterations on a stored matrix: what its products take, and where their states are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.kept import State
from dlscale.engine.plan import NOMINAL_FLOPS_PER_SECOND
from dlscale.engine.run import Cost
from dlscale.linalg.iterative.recurrence import Map
from dlscale.linalg.operators import MatrixOperator

#: Work that is sooner done again than its result kept, as flops of products.
KEPT_FLOPS = 5e9
_STEP = "iteration"
#: Bytes that all threads read from memory in a second: what a product of few columns waits for, where the matrix is held.
_MEMORY_RATE = 1e10


class Stored:
    """Products with a stored matrix are reads, and states of iterations go to the checkpoint.

    Parameters
    ----------
    operator : MatrixOperator
    flops : float
        Of one product.
    dtype : numpy.dtype
        In which solutions are handed out.
    """

    def __init__(self, operator: MatrixOperator, flops: float, dtype: np.dtype[Any]) -> None:
        self.operator, self.run, self.dtype = operator, operator.passes.run, dtype
        self._every = max(1, int(KEPT_FLOPS / flops))

    def handed_out(self, X: Array) -> Array:
        return X.astype(self.dtype).astype(X.dtype)

    def newest(self) -> tuple[int, State] | None:
        return self.run.newest(_STEP)

    def keep(self, number: int, compute: Callable[[], State]) -> State:
        if number % self._every:
            return compute()
        return self.run.step(f"{_STEP}-{number}", Cost(), lambda _: compute(), keep="last")


def by_parts(product: Map, X: Array, dtype: np.dtype[Any]) -> Array:
    """A product of a matrix of this dtype with X, whose real and imaginary parts are multiplied as columns where it is real."""
    if X.dtype.kind != "c" or dtype.kind == "c":
        return product(X)
    Y, k = product(np.hstack([X.real, X.imag])), X.shape[1]
    return np.asarray(Y[:, :k] + 1j * Y[:, k:])


def threads_of_held_products(dtype: np.dtype[Any], flops_per_entry: float, facts: ClusterFacts) -> float:
    """Threads that a product with what is in memory keeps at work, as it waits for memory."""
    return min(float(facts.n_threads), flops_per_entry / NOMINAL_FLOPS_PER_SECOND * _MEMORY_RATE / dtype.itemsize)
