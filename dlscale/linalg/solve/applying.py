"""Factorizations applied to columns on the workers: solves, products with Q, and the condition number that solves tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.columns import Applied, Columns, Tell, slab_columns
from dlscale.engine.plan import Step
from dlscale.engine.run import Cost, Run, State
from dlscale.linalg.solve.condition import N_COLUMNS, N_PRODUCTS, longest_image
from dlscale.linalg.solve.factors import Factorization


@dataclass(frozen=True)
class Function(Applied):
    """``f(B)``, column by column.

    Parameters
    ----------
    function : callable
        From B (n, k) to an array of k columns, ``tell`` by name; picklable.
    column_cost : Cost
        The flops of one column; the bytes of all of them together.
    """

    function: Callable[..., Array]
    column_cost: Cost

    def cost(self, n_columns: int) -> Cost:
        return Cost(self.column_cost.flops * n_columns, self.column_cost.bytes_read)

    def apply(self, B: Array | None, columns: tuple[int, int], tell: Tell) -> State:
        return {"x": self.function(B, tell=tell)}


@dataclass(frozen=True)
class LongestImage(Applied):
    """The vector that the inverse stretches most, as far as a few solves tell; one task, since each solve waits for the last."""

    factors: Factorization
    complex_valued: bool

    def cost(self, n_columns: int) -> Cost:
        one = self.factors.cost
        return Cost(one.flops * N_PRODUCTS * N_COLUMNS, one.bytes_read * N_PRODUCTS)

    def apply(self, B: Array | None, columns: tuple[int, int], tell: Tell) -> State:
        solve = partial(self.factors.solve, tell=tell)
        n = self.factors.shape[0]
        estimate, x = longest_image(solve, partial(solve, adjoint=True), n, complex_valued=self.complex_valued)
        return {"estimate": np.array([estimate]), "x": x}


def plan_columns(name: str, one: Cost, n: int, k: int, itemsize: int, facts: ClusterFacts, *, width: int | None = None) -> Step:
    """What it takes to apply something to k columns of n entries.

    Parameters
    ----------
    name : str
    one : Cost
        Of one column; the bytes of any number of them.
    n, k, itemsize : int
    facts : ClusterFacts
    width : int, optional
        Columns of a slab.
    """
    n_slabs = -(-k // (width or slab_columns(n, k, itemsize)))
    # Workers wait for the last slabs of a group.
    n_workers = n_slabs / -(-n_slabs // facts.n_workers)
    return Step(name, one.flops * k, one.bytes_read * n_slabs, n_threads=n_workers * facts.threads_per_worker)


def plan_condition(n: int, itemsize: int, facts: ClusterFacts) -> Step:
    """What the estimate of the condition number of a factored matrix takes; it is one task."""
    one = 2.0 * n * n
    n_bytes = N_PRODUCTS * n * n * itemsize
    return Step("condition", one * N_PRODUCTS * N_COLUMNS, n_bytes, n_threads=facts.threads_per_worker)


def apply(run: Run, step: str, what: Function, B: Array, *, together: int) -> Array:
    """``f(B)`` for columns B (n, k), by slabs on the workers.

    Parameters
    ----------
    run : Run
    step : str
        Unique in the job.
    what : Function
    B : (n, k)
    together : int
        Workers of the plan.
    """
    n, k = B.shape
    width = slab_columns(n, k, max(B.dtype.itemsize, np.dtype(float).itemsize))
    found = Columns(run).apply(step, what, B, n_columns=k, width=width, together=together)
    return found[0]["x"] if len(found) == 1 else np.hstack([state["x"] for state in found])


def solve(run: Run, step: str, factors: Factorization, B: Array, *, together: int, adjoint: bool = False) -> Array:
    """``A^-1 B``, or ``A^-H B``, by the factors of A, on the workers; see `apply`."""
    return apply(run, step, Function(partial(factors.solve, adjoint=adjoint), factors.cost), B, together=together)


def longest_of_inverse(run: Run, step: str, factors: Factorization, *, complex_valued: bool) -> tuple[float, Array]:
    """`longest_image` of the inverse, on a worker."""
    (found,) = Columns(run).apply(step, LongestImage(factors, complex_valued), n_columns=1, width=1)
    return float(found["estimate"][0]), found["x"]
