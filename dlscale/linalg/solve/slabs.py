"""Many right-hand sides, each slab of them solved and refined by the worker that has it: none of its bytes travels meanwhile.

Every worker reads the factors and the matrix for the slabs that it has. For few columns that is too much for one worker, and a
residual is sooner a pass over the rows, which all workers share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import workspace
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.columns import FEW_COLUMNS, MIN_SLABS, Applied, Columns, Span, Tell, slab_columns
from dlscale.engine.grids import blocks
from dlscale.engine.passes.reading import read_ahead
from dlscale.engine.run import Cost, Run, State
from dlscale.kernels import accumulator_dtype, one_blas_thread, sharing
from dlscale.linalg.solve.applying import Planned, planned
from dlscale.linalg.solve.factors import Factorization
from dlscale.linalg.solve.refinement import Refined, refine
from dlscale.storage.matrix import Matrix

#: From so many columns on there are slabs for several workers.
MANY_COLUMNS = MIN_SLABS * FEW_COLUMNS
#: Slabs of the same size that a task holds for each: right-hand sides, solutions and residuals, before and after a step.
REFINED_COPIES = 8
#: Rows of the matrix that are multiplied at once: with fewer, products are slower.
PIECE_ROWS = 256


@dataclass(frozen=True)
class How:
    """How solutions are refined.

    Parameters
    ----------
    norm : float
        ``||A||_1``.
    target : float
        The backward error at which to stop.
    max_steps : int
        Corrections at most.
    block_rows : int
        Of the matrix, that are read at a time.
    n_solves : int
        How often systems are solved, and residuals taken, as far as is known before.
    """

    norm: float
    target: float
    max_steps: int
    block_rows: int
    n_solves: int


@dataclass(frozen=True)
class RefinedSlabs(Applied):
    """``A^-1 B`` by factors, refined with residuals in double precision.

    Parameters
    ----------
    factors : Factorization
    A : Matrix (n, n)
    how : How
    width : int
        Columns of a slab.
    n_threads : int
        That a task uses.
    """

    factors: Factorization
    A: Matrix
    how: How
    width: int
    n_threads: int

    def cost(self, slabs: Sequence[Span]) -> Cost:
        return refined_cost(self.factors.cost, self.A, self.how.n_solves)(slabs)

    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        assert B is not None

        def solve(R: Array) -> Array:
            return self.factors.solve(R, width=self.width, tell=tell).astype(B.dtype, copy=False)

        how = self.how
        found = refine(solve(B), partial(self._residual, B, tell), solve, how.norm, target=how.target, max_steps=how.max_steps)
        ends = np.cumsum([stop - start for start, stop in slabs])[:-1]
        parts = (np.split(array, ends, axis=-1) for array in (found.X, found.residuals, found.errors))
        return [
            {"x": X, "residuals": residuals, "errors": errors, "n_steps": np.array(found.n_steps)}
            for X, residuals, errors in zip(*parts, strict=True)
        ]

    def _residual(self, B: Array, tell: Tell, X: Array) -> Array:
        """``B - A X`` in double precision; one read of A."""
        n, k = B.shape
        wide = accumulator_dtype(np.result_type(X, B))
        X, R = X.astype(accumulator_dtype(X.dtype), copy=False), np.empty((n, k), wide)
        row_bytes = self.A.n_stored_bytes // n
        slabs = [slice(*span) for span in blocks(0, k, self.width)]

        def part(piece: Array, first: int, columns: slice) -> None:
            """Slab by slab, so that no bit depends on others."""
            at, piece = slice(first, first + len(piece)), piece.astype(accumulator_dtype(piece.dtype), copy=False)
            product = workspace("product", (len(piece), columns.stop - columns.start), wide)
            np.subtract(B[at, columns], np.matmul(piece, X[:, columns], out=product), out=R[at, columns])

        found = read_ahead([self.A], 0, n, self.how.block_rows * self.n_threads)
        with np.errstate(all="ignore"), one_blas_thread(), sharing(self.n_threads) as share, closing(found):
            # A block for each thread; no bit depends on how many there are, since blocks are cut alike.
            for top, (rows,) in found:
                pieces = [
                    piece for block in blocks(0, len(rows), self.how.block_rows) for piece in blocks(*block, PIECE_ROWS)
                ]  # fmt: skip
                share([partial(part, rows[a:b], top + a, columns) for a, b in pieces for columns in slabs])
                tell(2.0 * rows.size * k, len(rows) * row_bytes)
        return R


def refined_cost(one: Cost, A: Matrix, n_solves: int) -> Callable[[Sequence[Span]], Cost]:
    """Of solving for some slabs in one task, and refining them.

    Parameters
    ----------
    one : Cost
        Of a solve with one column; the bytes of any number of them.
    A : Matrix (n, n)
    n_solves : int
        How often systems are solved, and residuals taken.
    """
    n = A.shape[0]

    def cost(slabs: Sequence[Span]) -> Cost:
        n_columns = sum(stop - start for start, stop in slabs)
        return Cost(n_solves * (one.flops + 2.0 * n * n) * n_columns, n_solves * (one.bytes_read + A.n_stored_bytes))

    return cost


def plan_refined(name: str, one: Cost, A: Matrix, k: int, facts: ClusterFacts, *, dtype: np.dtype[Any], n_solves: int) -> Planned:
    """What it takes to solve for k columns and to refine them, where these are many; see `refined_cost`."""
    n, itemsize = A.shape[0], accumulator_dtype(dtype).itemsize
    width = slab_columns(n, k, itemsize)
    step, need = planned(name, refined_cost(one, A, n_solves), k, facts, width=width, column_bytes=REFINED_COPIES * n * itemsize)
    return Planned(replace(step, bytes_written=n * k * dtype.itemsize), need)


def solve_refined(run: Run, step: str, factors: Factorization, A: Matrix, B: Array, how: How, *, facts: ClusterFacts) -> Refined:
    """Solve ``A X = B`` for many columns and refine the solutions, by slabs on the workers.

    Parameters
    ----------
    run : Run
    step : str
        Unique in the job.
    factors : Factorization
    A : Matrix (n, n)
    B : (n, k)
    how : How
    facts : ClusterFacts
        Of the plan.

    Returns
    -------
    Refined
        Of each column the bits depend on its slab alone.
    """
    n, k = B.shape
    itemsize = accumulator_dtype(B.dtype).itemsize
    width = slab_columns(n, k, itemsize)
    what = RefinedSlabs(factors, A, how, width, facts.threads_per_worker)
    held = REFINED_COPIES * n * itemsize
    found = Columns(run, facts).apply(step, what, B, n_columns=k, width=width, column_bytes=held)
    residuals, errors = (np.concatenate([part[name] for part in found]) for name in ("residuals", "errors"))
    return Refined(np.hstack([part["x"] for part in found]), residuals, errors, max(int(part["n_steps"]) for part in found))
