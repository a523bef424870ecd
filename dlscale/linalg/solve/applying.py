"""Factorizations applied to columns on the workers: solves, products with Q, and the condition number that solves tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.columns import KEPT_FLOPS, SLAB_COPIES, Applied, Columns, Span, Tell, share_out, slab_columns
from dlscale.engine.grids import blocks
from dlscale.engine.plan import Need, Step
from dlscale.engine.run import Cost, Run, State
from dlscale.kernels import accumulator_dtype
from dlscale.linalg.panels.plan import CHUNK_BYTES
from dlscale.linalg.solve.condition import N_PRODUCTS, N_VECTORS, Stretch, longest_image
from dlscale.linalg.solve.factoring import After
from dlscale.linalg.solve.factors import Factorization
from dlscale.linalg.solve.triangular import N_PIECES
from dlscale.storage.matrix import Matrix

#: Slabs of columns meet strips of factors at about this part of a product's rate.
EFFICIENCY = 0.8


@dataclass(frozen=True)
class Function(Applied):
    """``f(B)``, column by column.

    Parameters
    ----------
    function : callable
        From B (n, k) to an array of k columns, with the width of slabs and ``tell`` by name; picklable.
    column_cost : Cost
        The flops of one column; the bytes of all of them together.
    width : int
        Columns of a slab.
    """

    function: Callable[..., Array]
    column_cost: Cost
    width: int

    def cost(self, slabs: Sequence[Span]) -> Cost:
        return Cost(self.column_cost.flops * sum(stop - start for start, stop in slabs), self.column_cost.bytes_read)

    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        X = self.function(B, width=self.width, tell=tell)
        ends = np.cumsum([stop - start for start, stop in slabs])
        return [{"x": part} for part in np.split(X, ends[:-1], axis=1)]


@dataclass(frozen=True)
class LongestImage(Applied):
    """The vector that the inverse stretches most, as far as a few solves tell; one task, since each solve waits for the last.

    Parameters
    ----------
    factors : Factorization
    complex_valued : bool
    loaded : bool
        Whether there is room for the factors: they are read once then.
    """

    factors: Factorization
    complex_valued: bool
    loaded: bool

    def cost(self, slabs: Sequence[Span]) -> Cost:
        one = self.factors.cost
        n_bytes = self.factors.stored_bytes if self.loaded else one.bytes_read * N_PRODUCTS
        return Cost(one.flops * N_VECTORS, n_bytes)

    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        factors = self.factors.loaded(tell=tell) if self.loaded else self.factors
        solve = partial(factors.solve, tell=tell)
        n = self.factors.shape[0]
        found = longest_image(solve, partial(solve, adjoint=True), n, complex_valued=self.complex_valued)
        return [{"norms": np.array([found.estimate, found.bound]), "x": found.x}]


def fits(n_bytes: int, facts: ClusterFacts) -> bool:
    """Whether factors may be held in a worker beside what is done with them."""
    return n_bytes <= facts.work_bytes // 4


class Planned(NamedTuple):
    """What it takes to apply something to columns, and what a worker holds for it."""

    step: Step
    need: Need = Need("", 0)


def planned(
    name: str, cost: Callable[[Sequence[Span]], Cost], k: int, facts: ClusterFacts, *, width: int, column_bytes: int
) -> Planned:
    """What it takes to apply something to k columns.

    Parameters
    ----------
    name : str
    cost : callable
        As of `Applied`.
    k : int
    facts : ClusterFacts
    width : int
        Columns of a slab.
    column_bytes : int
        That a task holds for a column.
    """
    slabs = list(blocks(0, k, width))
    total, longest, most = Cost(), 0.0, 0
    for group in share_out(slabs, cost, facts, slab_bytes=width * column_bytes):
        costs = [cost([slabs[i] for i in share]) for share in group]
        total = sum(costs, total)
        # Workers wait for the one that has most to do.
        longest += max(one.flops for one in costs)
        most = max(most, *(len(share) for share in group))
    n_threads = total.flops / longest * facts.threads_per_worker * EFFICIENCY
    step = Step(name, total.flops, total.bytes_read, total.bytes_written, n_threads=n_threads)
    return Planned(step, Need("columns that factors are applied to", most * width * column_bytes))


def plan_columns(name: str, one: Cost, n: int, k: int, itemsize: int, facts: ClusterFacts) -> Planned:
    """What it takes to apply something to k columns of n entries, and to keep what comes of it.

    Parameters
    ----------
    name : str
    one : Cost
        Of one column; the bytes of any number of them.
    n, k, itemsize : int
    facts : ClusterFacts
    """
    width = slab_columns(n, k, itemsize)
    held = SLAB_COPIES * n * itemsize
    step, need = planned(name, Function(np.asarray, one, width).cost, k, facts, width=width, column_bytes=held)
    return Planned(replace(step, bytes_written=n * k * itemsize if step.flops >= KEPT_FLOPS else 0), need)


def plan_condition(name: str, factors: Cost, stored_bytes: int, facts: ClusterFacts) -> Planned:
    """What the estimate of the condition number of a factored matrix takes; it is one task.

    Parameters
    ----------
    name : str
    factors : Cost
        Of a solve with one column.
    stored_bytes : int
        Of the factors.
    facts : ClusterFacts
    """
    fitting = fits(stored_bytes, facts)
    n_bytes = stored_bytes if fitting else factors.bytes_read * N_PRODUCTS
    step = Step(name, factors.flops * N_VECTORS, n_bytes, n_threads=facts.threads_per_worker)
    return Planned(step, Need("factors in memory", stored_bytes if fitting else 0))


def plan_residual(name: str, A: Matrix, k: int) -> Planned:
    """What a pass over a matrix for ``B - A X`` with k columns takes; its result is kept."""
    n = A.shape[1]
    return Planned(Step(name, 2.0 * n * n * k, A.n_stored_bytes, n * k * accumulator_dtype(A.dtype).itemsize))


def after(*planned: Planned) -> After:
    """What comes after a factorization, one thing after the other."""
    pieces = Need("pieces of factors that are read", N_PIECES * CHUNK_BYTES)
    return After([each.step for each in planned], (max((each.need for each in planned), key=attrgetter("n_bytes")), pieces))


def apply(run: Run, step: str, function: Callable[..., Array], column_cost: Cost, B: Array, *, facts: ClusterFacts) -> Array:
    """``f(B)`` for columns B (n, k), by slabs on the workers.

    Parameters
    ----------
    run : Run
    step : str
        Unique in the job.
    function : callable
    column_cost : Cost
        See `Function`.
    B : (n, k)
    facts : ClusterFacts
        Of the plan.
    """
    n, k = B.shape
    itemsize = max(B.dtype.itemsize, np.dtype(float).itemsize)
    width = slab_columns(n, k, itemsize)
    what = Function(function, column_cost, width)
    found = Columns(run, facts).apply(step, what, B, n_columns=k, width=width, column_bytes=SLAB_COPIES * n * itemsize)
    return found[0]["x"] if len(found) == 1 else np.hstack([state["x"] for state in found])


def solve(run: Run, step: str, factors: Factorization, B: Array, *, facts: ClusterFacts, adjoint: bool = False) -> Array:
    """``A^-1 B``, or ``A^-H B``, by the factors of A, on the workers; see `apply`."""
    return apply(run, step, partial(factors.solve, adjoint=adjoint), factors.cost, B, facts=facts)


def longest_of_inverse(run: Run, step: str, factors: Factorization, *, complex_valued: bool, facts: ClusterFacts) -> Stretch:
    """`longest_image` of the inverse, on a worker."""
    what = LongestImage(factors, complex_valued, fits(factors.stored_bytes, facts))
    (found,) = Columns(run, facts).apply(step, what, n_columns=1, width=1)
    estimate, bound = found["norms"].tolist()
    return Stretch(estimate, found["x"], bound)
