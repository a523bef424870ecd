"""Ridge regression with a tall matrix: the triangle of ``[1 A B]`` in one read; leaving one row out takes another, or two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dlscale.arrays import Array
from dlscale.kernels import one_blas_thread, safe_norm
from dlscale.linalg.ridge.folds import FoldTriangles, LeaveOneOut
from dlscale.linalg.ridge.reduced import Reduced, RidgeProblem
from dlscale.linalg.ridge.small import SmallProblem
from dlscale.storage.matrix import RowRange


def batch(n: int) -> int:
    """Right-hand sides that are reduced in one pass."""
    return max(n, 256)


class Tall(Reduced):
    """The triangle of a tall matrix and its right-hand sides."""

    words = "TSQR with the right-hand sides reduced in the same pass, singular values of R"

    def __init__(self, problem: RidgeProblem) -> None:
        self.problem, self._pieces = problem, list[list[Array]]()
        n, first = problem.A.shape[1], int(problem.intercept)
        triangles, shift, means = [], np.zeros(0), []
        for _, subtracted, pieces in self._triangles("triangle", problem.bounds):
            with one_blas_thread():
                T: Array = pieces[0] if len(pieces) == 1 else np.asarray(np.linalg.qr(np.concatenate(pieces), mode="r"))
            problem.require_range(float(safe_norm(T[:, first : first + n])), *safe_norm(T[:, first + n :], axis=0).tolist())
            center = subtracted + T[0, 1:] / T[0, 0] if problem.intercept else subtracted
            shift = center[:n]
            means.append(center[n:])
            triangles.append(T[first : first + n, first:])
            self._pieces.append(pieces)
        self.shift, self.means = shift, np.concatenate(means)
        R, C = triangles[0][:, :n], np.hstack([T[:, n:] for T in triangles])
        self.small = SmallProblem.of(R, C, problem.penalties, problem.cutoffs)
        self.s, self.freedom = self.small.svd.s, self.small.freedom

    def _triangles(
        self, step: str, bounds: tuple[int, ...], without: Array | None = None
    ) -> Iterator[tuple[int, Array, list[Array]]]:
        """For each batch of right-hand sides its first, what is subtracted from rows of ``[A B]``, and the triangles of folds."""
        problem, n, k = self.problem, self.problem.A.shape[1], self.problem.B.shape[1]
        for start in range(0, k, batch(n)):
            some = problem.B if k <= batch(n) else RowRange(problem.B.T, start, min(start + batch(n), k)).T
            dtype = np.result_type(problem.A.dtype, problem.B.dtype)
            fold = FoldTriangles(n, some.shape[1], dtype, bounds, problem.intercept, start, without)
            state = problem.passes.sweep(f"{step}-{start}", [problem.A, some], fold, problem.plan.rows)
            yield start, state["shift"][int(problem.intercept) :], fold.pieces(state)

    def errors(self) -> Array:
        problem = self.problem
        if problem.n_folds < problem.A.shape[0]:
            return np.concatenate([problem.refits.leave_folds_out(pieces) for pieces in self._pieces], axis=1)
        small, m = self.small, problem.A.shape[0]
        with np.errstate(divide="ignore", over="ignore"):
            inverses = np.where(small.s > 0, small.roots**-2.0, 0.0)
        fits = np.ascontiguousarray((small.filters[:, :, None] * small.rotated).transpose(1, 0, 2))
        share = 1 / m if problem.intercept else 0.0
        fold = LeaveOneOut(small.svd.VH.conj().T, inverses, fits, self.shift, self.means, share)
        state = problem.passes.sweep("leave-one-out", [problem.A, problem.B], fold, problem.plan.rows)
        decisive = state["decisive"]
        return np.asarray(state["squares"] + (self._errors_of(decisive) if len(decisive) else 0.0))

    def _errors_of(self, decisive: Array) -> Array:
        """Squares of rows whose leverages are near 1, which fits to all others tell; in one more read."""
        problem, n, first, found = self.problem, len(self.shift), int(self.problem.intercept), []
        without, rows = decisive[:, 0].real.astype(int), decisive[:, 1:]
        for start, subtracted, pieces in self._triangles("rest", (0, problem.A.shape[0]), without):
            mine = np.hstack([rows[:, :n], rows[:, n + start : start + len(subtracted)]]) - subtracted
            held = np.hstack([np.ones((len(rows), first)), mine])
            found.append(problem.refits.leave_rows_out(pieces[0], held, self.small.ranks))
        return np.concatenate(found, axis=1)

    def coefficients(self, which: Sequence[int]) -> Array:
        return self.small.coefficients(which)
