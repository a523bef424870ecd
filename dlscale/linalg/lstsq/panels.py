"""Least squares by Householder QR in panels, for matrices whose small side does not fit beside a block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.columns import Applied, Columns, Span, Tell
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Need, Plan, Step
from dlscale.engine.run import Cost, State
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.errors import NumericalError, OutOfRange
from dlscale.kernels import safe_norm
from dlscale.linalg.conditions import condition_number
from dlscale.linalg.folds.least_squares import read_rhs
from dlscale.linalg.lstsq.pseudo_inverse import PseudoInverse, Solution
from dlscale.linalg.panels.plan import factor_chunks
from dlscale.linalg.solve.applying import Planned, apply, fits, plan_columns
from dlscale.linalg.solve.condition import N_PRODUCTS, N_VECTORS, condition
from dlscale.linalg.solve.factoring import FACTORS, factor_orthogonally
from dlscale.linalg.solve.factors import rotation
from dlscale.linalg.solve.substitution import Substitution, loaded
from dlscale.linalg.solve.triangular import How, solve_triangular
from dlscale.storage.matrix import Matrix, RowRange


def by_panels(passes: Passes, A: Matrix, B: Matrix, plan: Plan, cutoff: float) -> Solution:
    """Solve by a plan with panels.

    Raises
    ------
    NumericalError
        If the matrix has no full rank, and is too large for the singular values of R.
    """
    long = A.T if plan.transposed else A
    factors = factor_orthogonally(passes, long, plan, name=FACTORS)
    n, rhs = long.shape[1], read_rhs(B, 0, B.shape[0])
    Y: Array | None = None
    R = RowRange(factors.factored.matrix, 0, n)

    def applied(step: str, function: Callable[..., Array], cost: Cost, C: Array) -> Array:
        return apply(passes.run, step, function, cost, C, facts=plan.cluster)

    def rotated(C: Array) -> Array:
        return applied("rotated", factors.rotated, factors.rotation_cost, C)

    what = TriangleCondition(R, factors.n_threads, fits(R.n_bytes, plan.cluster))
    (found,) = Columns(passes.run, plan.cluster).apply("condition", what, n_columns=1, width=1)
    norm, number = float(found["norm"][0]), float(found["condition"][0])
    if not np.isfinite(norm):
        raise OutOfRange(f"The factors of the matrix overflow {A.dtype}.")
    sizes = [norm, *safe_norm(rhs, axis=0).tolist()]
    small = n * n * A.dtype.itemsize * 6 <= plan.cluster.memory_bytes // 2
    words = "Householder QR by panels"
    # ||.||_2 is at most sqrt(n) ||.||_1, and the estimate within a factor of 3.
    if 3 * n * number * cutoff < 1 or (not small and 3 * number * cutoff < 1):
        number = condition_number(number, 1.0, A.shape, A.dtype, sums=A.dtype)
        if not plan.transposed:
            X = applied("triangular", factors.solve, factors.cost, rhs)
            return Solution(X, n, None, number, f"{words}; full rank", sizes)
        X = applied("triangular", partial(factors.solve, adjoint=True), factors.cost, rhs.conj())
        back = partial(_back_substituted, R, n_threads=factors.n_threads)
        Y = applied("triangular-back", back, Substitution.of(R).cost(lower=False), rotated(X)[:n]).conj()
        return Solution(X.conj(), n, None, number, f"{words} of the transpose; full rank", sizes, Y)
    if not small:
        raise NumericalError(
            f"The matrix has no full rank (condition about {number:.1e}), and its numerical rank needs the singular values of a "
            f"triangle of order {n}, for which there is no room; raise cluster.memory."
        )
    inverse = PseudoInverse.of(np.triu(R.region((0, n), (0, n))), cutoff)
    if not plan.transposed:
        X = inverse.apply(rotated(rhs)[:n])
    else:
        Z = inverse.apply_adjoint(rhs.conj())
        Y = inverse.apply(Z).conj()
        padded = np.concatenate([Z, np.zeros((long.shape[0] - n, Z.shape[1]), Z.dtype)])
        X = applied("unrotated", factors.unrotated, factors.rotation_cost, padded).conj()
    kept = inverse.kept.conj() if plan.transposed and inverse.kept is not None else inverse.kept
    number = inverse.condition(A.shape, A.dtype, sums=A.dtype)
    return Solution(X, inverse.rank, inverse.s, number, f"{words}, singular values of R", sizes, Y, kept)


def _back_substituted(R: Matrix, B: Array, *, n_threads: int, width: int, tell: Tell) -> Array:
    return solve_triangular(R, B, lower=False, how=How(B.dtype, n_threads, width, tell))


def plan_applying(
    shape: tuple[int, int], k: int, itemsize: int, facts: ClusterFacts, grid: PanelGrid, *, transposed: bool
) -> list[Planned]:
    """What comes after the factorization of a matrix (m, n), m >= n, of full rank, or of its transpose."""
    m, n = shape
    chunks = factor_chunks(shape, itemsize, grid)
    way, turn = Substitution.of_chunks(n, chunks, itemsize), rotation(grid, chunks[0], itemsize)
    triangle = way.cost(lower=False)
    n_bytes = n * n * itemsize
    condition = TriangleCondition.cost_of(n, itemsize, triangle, loaded=fits(n_bytes, facts))
    step = Step("condition", condition.flops, condition.bytes_read, n_threads=facts.threads_per_worker)
    back = [
        plan_columns("rotated", turn, m, k, itemsize, facts),
        plan_columns("triangular-back", triangle, n, k, itemsize, facts),
    ]
    return [
        Planned(step, Need("factors in memory", n_bytes if fits(n_bytes, facts) else 0)),
        plan_columns("triangular", turn + triangle, m, k, itemsize, facts),
        *(back if transposed else []),
    ]


@dataclass(frozen=True)
class TriangleCondition(Applied):
    """``||R||_1`` of an upper triangle, and an estimate of its condition number; one task.

    Parameters
    ----------
    R : Matrix
    n_threads : int
    loaded : bool
        Whether there is room for R: it is read once then.
    """

    R: Matrix
    n_threads: int
    loaded: bool

    @staticmethod
    def cost_of(n: int, itemsize: int, triangle: Cost, *, loaded: bool) -> Cost:
        """Of a triangle of order n, from what a solve with it takes."""
        n_bytes = n * n * itemsize + (0 if loaded else triangle.bytes_read * N_PRODUCTS)
        return Cost(triangle.flops * N_VECTORS, n_bytes)

    def cost(self, slabs: Sequence[Span]) -> Cost:
        triangle = Substitution.of(self.R).cost(lower=False)
        return self.cost_of(self.R.shape[0], self.R.dtype.itemsize, triangle, loaded=self.loaded)

    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        R, n = loaded(self.R, tell) if self.loaded else self.R, self.R.shape[0]
        sums = np.zeros(n)
        for i in range(0, n, 512):
            rows = R.region((i, min(i + 512, n)), (0, n))
            sums += np.abs(np.triu(rows, i)).sum(axis=0)
            tell(0.0, 0 if self.loaded else rows.nbytes)
        norm = float(sums.max())
        solve = partial(solve_triangular, R, lower=False, how=How(n_threads=self.n_threads, tell=tell))
        number = condition(norm, solve, partial(solve, op="C"), n, complex_valued=R.dtype.kind == "c")
        return [{"norm": np.array([norm]), "condition": np.array([number])}]
