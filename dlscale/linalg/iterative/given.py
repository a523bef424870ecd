"""Systems with an operator that a user gives, by iterations in this process."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError, NumericalError, SpecError
from dlscale.kernels import safe_norm
from dlscale.linalg.folds.least_squares import read_rhs
from dlscale.linalg.given_operators import Measured, Operator, measure
from dlscale.linalg.iterative.gmres import restart_for
from dlscale.linalg.iterative.options import SYMMETRIC, Iterations, Method
from dlscale.linalg.iterative.recurrence import Limits, Problem, iterate, unchanged
from dlscale.linalg.iterative.stored import Sides, by_parts
from dlscale.linalg.iterative.systems import N_PROBES, Solved, Starting, ended_words, method_of
from dlscale.linalg.svd.subspace import gaussian
from dlscale.linalg.symmetry import limit
from dlscale.storage.matrices import open_matrix


class _System(Problem):
    """A system with an operator, near size 1.

    Parameters
    ----------
    found : Measured
    sides : Sides
    """

    def __init__(self, found: Measured, sides: Sides) -> None:
        super().__init__(partial(_product, found.A), sides.B)
        self.size, self.sides, self.exponent = found.size, sides, found.exponent

    def handed_out(self, X: Array) -> Array:
        return self.sides.published(X, self.exponent)

    def rounding(self, X: Array) -> Array:
        return np.asarray(float(np.finfo(float).eps) * self.size * safe_norm(X, axis=0))


def solve_with_operator(A: Operator, b: Any, method: Method, options: Iterations, given: Starting) -> Array:
    """Solve ``A x = b`` for b (n,) or (n, k), by products with an operator; the true residual is one of them.

    Raises
    ------
    SpecError
        If the shapes do not suit, or a preconditioner is asked for, which needs entries.
    InputError
        If the method needs a symmetric operator and this one is not.
    NumericalError
        If the iterations end otherwise than converged, saying how.
    """
    (m, n), rhs = A.shape, open_matrix(b, vectors=True)
    if m != n:
        raise SpecError(f"A must be square to be solved with; got {m} x {n}.")
    if rhs.shape[0] != n:
        raise SpecError(f"b must have {n} rows like A; got {rhs.shape[0]}.")
    if options.preconditioner != "none":
        words = "M must be none with an operator, whose entries are not known, or a function or an operator of its own"
        raise SpecError(f"{words}; got {options.preconditioner}.")
    found = measure(A, np.ascontiguousarray(gaussian(n, N_PROBES, 0, A.dtype), A.dtype))
    if method in SYMMETRIC and not found.skew <= limit(A.dtype) * found.size:
        word = "Hermitian" if A.dtype.kind == "c" else "symmetric"
        raise InputError(
            f"A must be {word} for {method}; A - A' is about {found.skew / found.size:.1e} of A in the Frobenius norm."
        )
    sides, tolerance = Sides.of(read_rhs(rhs, 0, n), A.dtype), options.tolerance_for(A.dtype)
    problem = _System(found, sides)
    problem.x0 = given.scaled([found.exponent - e for e in sides.exponents], sides.B.dtype)
    limits = Limits(tolerance, options.iterations_for(n))
    it = iterate(method_of(method, restart_for(sides.B.nbytes), given.precondition or unchanged), problem, limits)
    if it.end != "converged":
        rounding = float((problem.rounding(it.X) / np.where(problem.sizes > 0, problem.sizes, 1)).max(initial=0.0))
        coarse = sides.coarse(found.size, found.exponent)
        raise NumericalError(ended_words(Solved(it.X, it, rounding, 0, coarse), method, tolerance, limits.max_iterations))
    X = sides.back(it.X, found.exponent)
    return np.ascontiguousarray(X[:, 0]) if rhs.is_vector else X


def _product(A: Operator, X: Array) -> Array:
    return by_parts(A.apply, X, A.dtype)
