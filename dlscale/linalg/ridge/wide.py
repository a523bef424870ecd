"""Ridge regression with a wide matrix: its transpose is ``Q R``, so that the coefficients are ``conj(Q) z`` of a small problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from dlscale.arrays import Array
from dlscale.kernels import one_blas_thread, safe_norm
from dlscale.linalg.folds.least_squares import Rotation, read_rhs
from dlscale.linalg.folds.orthogonal import find_basis
from dlscale.linalg.folds.products import sweep_gram
from dlscale.linalg.ridge.folds import Contrasts, from_contrasts, to_contrasts
from dlscale.linalg.ridge.reduced import Reduced, RidgeProblem
from dlscale.linalg.ridge.small import SmallProblem, leave_one_out


class Wide(Reduced):
    """The triangle of the transpose of a wide matrix; where there is an intercept, of its rows less their mean."""

    def __init__(self, problem: RidgeProblem) -> None:
        self.problem, self.rhs = problem, read_rhs(problem.B, 0, problem.B.shape[0])
        self.T = Contrasts(problem.A.T) if problem.intercept else problem.A.T
        C = to_contrasts(self.rhs) if problem.intercept else self.rhs
        gram = sweep_gram(problem.passes, self.T, problem.plan.rows)
        problem.require_range(float(np.sqrt(np.trace(gram).real)), *safe_norm(self.rhs, axis=0).tolist())
        self.basis, how = find_basis(problem.passes, self.T, problem.plan.rows, gram, step="basis")
        self.L = np.triu(self.basis.R).T
        self.small = SmallProblem.of(self.L, C, problem.penalties, problem.cutoffs)
        self.s, self.freedom = self.small.svd.s, self.small.freedom
        self.words = f"QR of the transpose ({how}), singular values of R"

    def errors(self) -> Array:
        problem, U = self.problem, self.small.svd.U
        if problem.n_folds == problem.A.shape[0]:
            return leave_one_out(self.small, from_contrasts(U) if problem.intercept else U)
        rows = [from_contrasts(self.L) if problem.intercept else self.L, self.rhs]
        if problem.intercept:
            rows.insert(0, np.ones((len(self.rhs), 1)))
        whole = np.hstack(rows)
        pieces = [whole[start:stop] for start, stop in pairwise(problem.bounds)]
        return replace(problem.refits, n=self.L.shape[1]).leave_folds_out(pieces)

    def coefficients(self, which: Sequence[int]) -> Array:
        z = self.small.coefficients(which)
        across = np.concatenate(list(z), axis=1).conj()
        parts = [across] if self.T.dtype.kind == "c" or across.dtype.kind != "c" else [across.real, across.imag]
        rotated = []
        for i, part in enumerate(parts):
            with one_blas_thread():
                fold = Rotation(self.basis.rotated(part), part)
            rotated.append(self.problem.passes.sweep(f"coefficients-{i}", self.T, fold, self.problem.plan.rows)["rows"])
        W = (rotated[0] if len(parts) == 1 else rotated[0] + 1j * rotated[1]).conj()
        return np.ascontiguousarray(W.reshape(len(W), len(which), -1).transpose(1, 0, 2))
