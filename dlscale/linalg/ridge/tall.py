"""Ridge regression with a tall matrix: the triangle of ``[1 A B]`` in one read; leaving one row out takes another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlscale.arrays import Array
from dlscale.kernels import one_blas_thread, safe_norm
from dlscale.linalg.ridge.folds import FoldTriangles, LeaveOneOut
from dlscale.linalg.ridge.reduced import Reduced, RidgeProblem
from dlscale.linalg.ridge.small import SmallProblem, leave_fold_out
from dlscale.storage.matrix import RowRange


def batch(n: int) -> int:
    """Right-hand sides that are reduced in one pass."""
    return max(n, 256)


class Tall(Reduced):
    """The triangle of a tall matrix and its right-hand sides."""

    words = "TSQR with the right-hand sides reduced in the same pass, singular values of R"

    def __init__(self, problem: RidgeProblem) -> None:
        self.problem, self._pieces = problem, list[list[Array]]()
        n, k, first = problem.A.shape[1], problem.B.shape[1], int(problem.intercept)
        triangles, shift, means = [], np.zeros(0), []
        for start in range(0, k, batch(n)):
            some = problem.B if k <= batch(n) else RowRange(problem.B.T, start, min(start + batch(n), k)).T
            dtype = np.result_type(problem.A.dtype, problem.B.dtype)
            fold = FoldTriangles(n, some.shape[1], dtype, problem.bounds, problem.intercept, start)
            state = problem.passes.sweep(f"triangle-{start}", [problem.A, some], fold, problem.plan.rows)
            pieces = fold.pieces(state)
            with one_blas_thread():
                T: Array = pieces[0] if len(pieces) == 1 else np.asarray(np.linalg.qr(np.concatenate(pieces), mode="r"))
            problem.require_range(float(safe_norm(T[:, first : first + n])), *safe_norm(T[:, first + n :], axis=0).tolist())
            center = (state["shift"][1:] + T[0, 1:] / T[0, 0]) if problem.intercept else np.zeros(n + some.shape[1], T.dtype)
            shift = center[:n]
            means.append(center[n:])
            triangles.append(T[first : first + n, first:])
            self._pieces.append(pieces)
        self.shift, self.means = shift, np.concatenate(means)
        R, C = triangles[0][:, :n], np.hstack([T[:, n:] for T in triangles])
        self.small = SmallProblem.of(R, C, problem.penalties, problem.cutoff)
        self.s, self.freedom = self.small.svd.s, self.small.freedom

    def errors(self) -> Array:
        problem = self.problem
        if problem.n_folds < problem.A.shape[0]:
            found = [
                leave_fold_out(pieces, len(self.shift), problem.penalties, problem.cutoff, intercept=problem.intercept)
                for pieces in self._pieces
            ]
            return np.concatenate(found, axis=1)
        small, m = self.small, problem.A.shape[0]
        with np.errstate(divide="ignore", over="ignore"):
            inverses = np.where(small.counts & (small.roots > 0), small.roots**-2.0, 0.0)
        fits = np.ascontiguousarray((small.filters[:, :, None] * small.rotated).transpose(1, 0, 2))
        share = 1 / m if problem.intercept else 0.0
        fold = LeaveOneOut(small.svd.VH.conj().T, inverses, fits, self.shift, self.means, share)
        state = problem.passes.sweep("leave-one-out", [problem.A, problem.B], fold, problem.plan.rows)
        return np.where(state["undefined"][:, None] > 0, np.inf, state["squares"])

    def coefficients(self, which: Sequence[int]) -> Array:
        return self.small.coefficients(which)
