"""Gauss and Seidel's iteration, and successive over-relaxation (SOR): every unknown from the newest values of the others.

``(D / omega + L) p = b - A x``, ``x += p``, with D the diagonal of A and L what is below it. It converges where A is positive
definite, for every omega between 0 and 2 (Ostrowski and Reich), and where A is strictly diagonally dominant, for omega up to 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.columns import Applied, Columns, Span, Tell
from dlscale.engine.run import Cost, Run, State
from dlscale.kernels import accumulator_dtype, blas_threads
from dlscale.lapack import solve_lower
from dlscale.linalg.in_memory import n_blas_threads
from dlscale.linalg.iterative.recurrence import Map
from dlscale.linalg.iterative.stationary import Stationary
from dlscale.linalg.iterative.stored import by_parts
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import promoted

#: Bytes of the rows that are read at a time.
STRIP_BYTES = 2**25


class GaussSeidel(Stationary):
    """Gauss and Seidel's iteration.

    Parameters
    ----------
    sweep : callable
        ``(D / omega + L)^-1 R``.

    References
    ----------
    Young (1971), Iterative Solution of Large Linear Systems; Saad (2003), section 4.1.
    """

    def __init__(self, sweep: Map) -> None:
        super().__init__(sweep)


@dataclass(frozen=True)
class Sweep(Applied):
    """Solves with the lower triangle of a matrix, strip by strip of its rows, as far as each reaches.

    Parameters
    ----------
    A : Matrix (n, n)
        In double precision.
    relaxation : float
        The diagonal is divided by it.
    n_threads : int
        Of BLAS, which decide the order of sums.
    """

    A: Matrix
    relaxation: float
    n_threads: int

    kept = False

    def cost(self, slabs: Sequence[Span]) -> Cost:
        n = self.A.shape[0]
        return Cost(float(n) ** 2 * sum(stop - start for start, stop in slabs), sweep_bytes(self.A))

    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        assert B is not None
        X = np.array(B, self.A.dtype, order="C")
        with blas_threads(self.n_threads):
            for i, j, n_bytes in _strips(self.A):
                strip = self.A.region((i, j), (0, j))
                X[i:j] -= strip[:, :i] @ X[:i]
                triangle = np.tril(strip[:, i:])
                triangle[np.diag_indices(j - i)] /= self.relaxation
                solve_lower(triangle, X[i:j])
                tell(float(j * j - i * i) * X.shape[1], n_bytes)
        return [{"x": X}]


def sweeps(run: Run, A: Matrix, relaxation: float, facts: ClusterFacts) -> Map:
    """``(D / omega + L)^-1 R`` for R (n, k), in one task."""
    wide, columns, numbers = accumulator_dtype(A.dtype), Columns(run, facts), count(1)
    what = Sweep(promoted(A, wide), relaxation, n_blas_threads(A.shape[0], facts))

    def solve(R: Array) -> Array:
        k = R.shape[1]
        (found,) = columns.apply(f"sweep-{next(numbers)}", what, np.ascontiguousarray(R), n_columns=k, width=k)
        return found["x"]

    return lambda R: by_parts(solve, R, wide)


def sweep_bytes(A: Matrix) -> int:
    """What a sweep reads: the lower triangle, as far as its chunks can be read in part."""
    return sum(n_bytes for _, _, n_bytes in _strips(A))


def _strips(A: Matrix) -> Iterator[tuple[int, int, int]]:
    """First row, the one behind the last, and bytes that are read of each strip."""
    n, wide = A.shape[0], accumulator_dtype(A.dtype).itemsize
    rows = max(1, STRIP_BYTES // (n * wide) // A.row_unit) * A.row_unit
    for i in range(0, n, rows):
        j = min(i + rows, n)
        yield i, j, int(A.n_stored_bytes * (j - i) / n * (j / n if A.any_range else 1.0))
