"""Least squares by iterations: their plan, their products, and what is measured in the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Certificate, Check
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import measured_rates
from dlscale.engine.passes import Fold, Passes, State
from dlscale.engine.passes.fold import Squares
from dlscale.engine.plan import Grids, Need, Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import DoesNotFitError, NumericalError, SpecError
from dlscale.kernels import accumulator_dtype, largest_part, safe_norm, tiles, times_power_of_two
from dlscale.linalg.folds.least_squares import read_rhs
from dlscale.linalg.folds.products import squares_of
from dlscale.linalg.iterative.cgls import CGLS
from dlscale.linalg.iterative.options import Iterations
from dlscale.linalg.iterative.recurrence import Iterate, Limits, Map, Problem, iterate
from dlscale.linalg.iterative.stored import Stored, by_parts, threads_of_held_products
from dlscale.linalg.operators import MatrixOperator, OperatorPlan, plan_operator
from dlscale.linalg.scaling import at_safe_scale, exponent_of, scale_words, scaled_back
from dlscale.storage.matrix import Matrix

#: Vectors of a column that the driver has at a time, as long as A is wide.
_VECTORS = 16


def plan_least_squares(A: Matrix, B: Matrix, options: Iterations, facts: ClusterFacts) -> Plan:
    """Plan a least squares problem by CGLS.

    Raises
    ------
    SpecError
        If the right-hand sides do not suit the matrix.
    DoesNotFitError
    """
    (m, n), k = A.shape, B.shape[1]
    if B.shape[0] != m:
        raise SpecError(f"input.rhs: must have {m} rows like the matrix; got {B.shape[0]}.")
    if options.preconditioner not in ("none", "jacobi"):
        raise SpecError(f"params.preconditioner: must be none or jacobi with method cgls; got {options.preconditioner}.")
    wide, max_iterations = np.result_type(accumulator_dtype(A.dtype), B.dtype), options.iterations_for(min(m, n))
    width = k * (2 if wide.kind == "c" and A.dtype.kind != "c" else 1)
    driver_bytes = (_VECTORS * n + 3 * m) * k * wide.itemsize
    left = replace(facts, memory_bytes=max(1, facts.memory_bytes - driver_bytes))
    how = plan_operator(A, 2 * width, left, n_products=max_iterations)
    if how.way == "blocks":
        raise DoesNotFitError(f"One worker has no room for rows of {n} columns beside the vectors; raise cluster.memory.")
    once, each = {"resident": (A.n_stored_bytes, 0), "memory": (0, 0)}.get(how.way, (0, A.n_stored_bytes))
    threads = 0.0 if each else threads_of_held_products(A.dtype, 4.0 * width, facts)
    steps = [Step("resident", 0.0, once)] if once else []
    steps += [Step(f"product-{i}", 4.0 * m * n * width, each, n_threads=threads) for i in range(1, max_iterations + 3)]
    by = "" if options.preconditioner == "none" else f", preconditioner {options.preconditioner}"
    return Plan(
        kind="lstsq",
        method="cgls",
        words=f"Conjugate gradients for least squares (CGLS){by}, at most {max_iterations} iterations of one product each "
        f"({how.words})",
        matrix=A.describe(),
        grids=Grids(rows=how.grid),
        steps=tuple(steps),
        memory=(Need("blocks of the matrix, and partial results", how.peak_bytes), Need("vectors of the iterations", driver_bytes)),
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts, grid=how.grid),
        notes=tuple(A.notes),
        choices={"way": how.way},
    )


@dataclass(frozen=True)
class Gradient(Fold):
    """``A^H R`` with ``R = B - A X``, and the squares of R and of the columns of A.

    Parameters
    ----------
    X : (n, k), double precision
    B : (m, k), double precision
    """

    X: Array
    B: Array

    @property
    def flops_per_row(self) -> float:
        return 4.0 * self.X.size

    def start(self) -> State:
        n, k = self.X.shape
        return {"gradient": np.zeros((n, k), self.X.dtype), "residuals": np.zeros(k), "squares": np.zeros(n)}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        for i, tile in tiles(A):
            tile = tile.astype(accumulator_dtype(tile.dtype), copy=False)
            R = self.B[first_row + i : first_row + i + len(tile)] - tile @ self.X
            state["gradient"] += tile.conj().T @ R
            state["residuals"] += (np.abs(R) ** 2).sum(axis=0)
            state["squares"] += np.einsum("ij,ij->j", tile, tile.conj()).real
        return ()

    def squares_in(self, state: State) -> Squares | None:
        return squares_of(float(state["squares"].sum()), self.X.dtype)


class _StoredLeastSquares(Stored, Problem):
    """A least squares problem with a stored matrix.

    What is held against the tolerance is ``||A^H r|| / (||A|| ||r||)``, or ``||r|| / ||b||`` where that is less.

    Parameters
    ----------
    operator : MatrixOperator (m, n)
    rhs : (m, k), double precision
    dtype : numpy.dtype
        In which solutions are handed out.
    """

    def __init__(self, operator: MatrixOperator, rhs: Array, dtype: np.dtype[Any]) -> None:
        (_, n), k = operator.shape, rhs.shape[1]
        self.rhs, self.lengths, self.n_measured = rhs, safe_norm(rhs, axis=0), 0
        Stored.__init__(self, operator, 4.0 * operator.shape[0] * n * k, dtype)
        gradient = self.residual(np.zeros((n, k), rhs.dtype))
        Problem.__init__(self, self._product, gradient)
        self.sizes = (self.sizes > 0).astype(float)

    def _product(self, X: Array) -> Array:
        return by_parts(self.operator.normal, X, self.operator.dtype)

    def residual(self, X: Array) -> Array:
        """``A^H (b - A x)``."""
        self.n_measured += 1
        state = self.operator.read(Gradient(np.ascontiguousarray(X), self.rhs), f"gradient-{self.n_measured}")
        self.residuals, self.squares = np.sqrt(state["residuals"]), state["squares"]
        self.norm = float(np.sqrt(self.squares.sum()))
        return np.asarray(state["gradient"])

    def relative(self, slopes: Array, residuals: Array, columns: Array) -> Array:
        lengths, reach = self.lengths[columns], self.norm * residuals
        return np.fmin(slopes / np.where(reach > 0, reach, np.inf), residuals / np.where(lengths > 0, lengths, 1))

    def reached(self, R: Array, X: Array) -> tuple[Array, Array]:
        columns = np.arange(X.shape[1])
        found = self.relative(safe_norm(R, axis=0), self.residuals, columns)
        # Where the residual is small beside the right-hand side, rounding errors of A x are part of it.
        hidden = float(np.finfo(float).eps) * np.sqrt(self.squares @ np.abs(X) ** 2) / np.where(self.lengths > 0, self.lengths, 1)
        by_length = found >= self.residuals / np.where(self.lengths > 0, self.lengths, 1)
        return found * self.sizes, np.where(by_length, hidden, 0.0)


@dataclass(frozen=True)
class _Found:
    X: Array
    it: Iterate
    residuals: Array


def compute_least_squares(run: Run, A: Matrix, B: Matrix, options: Iterations, plan: Plan) -> Outcome:
    """Solve by a plan.

    Returns
    -------
    Outcome
        With ``x``: (n, k), or (n,) for a right-hand side of one dimension; ``history/residual`` (i,), what the recurrence claimed
        after each iteration, and ``history/true_residual`` (r, 2), after which iteration it was measured, and what it was.

    Raises
    ------
    NumericalError
        If the iterations end otherwise than converged, saying how.

    References
    ----------
    Bjorck (1996), section 7.4; Paige and Saunders (1982) for what is held against the tolerance.
    """
    (m, n), k = A.shape, B.shape[1]
    rhs = read_rhs(B, 0, m)
    exponents = [exponent_of(largest_part(rhs[:, j])) for j in range(k)]
    solve = partial(_solve, rhs=rhs, exponents=exponents, options=options)
    found, exponent = at_safe_scale(Passes(run), A, plan.rows, lambda passes, A: solve(passes, A, plan))
    it, tolerance = found.it, options.tolerance_for(A.dtype)
    if it.end != "converged":
        raise NumericalError(_ended(it, tolerance, options.iterations_for(min(m, n))))
    dtype = np.result_type(A.dtype, np.complex64) if B.dtype.kind == "c" else A.dtype
    columns = [scaled_back(found.X[:, j], e - exponent, dtype, what="The entries of x") for j, e in enumerate(exponents)]
    X = np.stack(columns, axis=1)
    true = float(it.reached.max(initial=0.0))
    check = Check(
        "||A'(b - Ax)|| / (tolerance ||A|| ||b - Ax||), or ||b - Ax|| / (tolerance ||b||)",
        true / tolerance,
        1.0,
        f"the residual of every column is orthogonal to the columns of the matrix within {tolerance:.1e}, or at most that part of "
        "its right-hand side, as a read of the matrix measured it",
    )
    arrays = {"x": X[:, 0] if B.is_vector else X, "history/residual": it.claimed, "history/true_residual": it.measured}
    with np.errstate(over="ignore", under="ignore"):
        squares = np.ldexp(found.residuals**2, [2 * e for e in exponents])
    estimates = {
        "true_residual": true, "iterations": it.iterations, "ended": it.end, "reads": 1 + it.iterations + len(it.measured),
        "residuals": squares.tolist(), "norm_of_x": safe_norm(X, axis=0).tolist(),
    }  # fmt: skip
    return Outcome(arrays, (), Certificate((check,)), estimates, scale_words(exponent))


def _solve(passes: Passes, A: Matrix, plan: Plan, *, rhs: Array, exponents: list[int], options: Iterations) -> _Found:
    """Iterate on a matrix and right-hand sides whose entries are in range."""
    wide = np.result_type(accumulator_dtype(A.dtype), rhs.dtype)
    how = OperatorPlan(plan.choices["way"], plan.rows, A.shape[0], plan.words, plan.peak_bytes_per_worker)
    B = np.stack([times_power_of_two(rhs[:, j].astype(wide), -e) for j, e in enumerate(exponents)], axis=1)
    with MatrixOperator(passes, A, how) as operator:
        problem = _StoredLeastSquares(operator, B, np.result_type(A.dtype, np.complex64) if wide.kind == "c" else A.dtype)
        method = CGLS(problem.relative, lambda: problem.residuals, _scaled(problem, options))
        limits = Limits(options.tolerance_for(A.dtype), options.iterations_for(min(A.shape)))
        it = iterate(method, problem, limits)
        if it.iterations and problem.n_measured == 1:
            # It was resumed when all was done.
            problem.residual(it.X)
    return _Found(it.X, it, problem.residuals)


def _scaled(problem: _StoredLeastSquares, options: Iterations) -> Map | None:
    """``M S`` for the inverse of the diagonal of ``A^H A``."""
    if options.preconditioner == "none":
        return None
    diagonal = np.where(problem.squares > 0, problem.squares, 1)[:, None]
    return lambda S: np.asarray(S / diagonal)


def _ended(it: Iterate, tolerance: float, max_iterations: int) -> str:
    n = it.iterations
    end = f"at the limit of {max_iterations} iterations" if it.end == "limit" else f"{it.end} after {n} iteration{'s' * (n != 1)}"
    return (
        f"CGLS ended {end}: ||A'r|| / (||A|| ||r||) of the true residual r is {float(it.reached.max()):.1e}, and must be at most "
        f"{tolerance:.1e}. Raise params.tolerance or params.max_iterations, take preconditioner jacobi, or use method direct."
    )
