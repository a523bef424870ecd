"""Least squares by iterations: their plan, their products, and what is measured in the end."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Certificate, Check
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import measured_rates
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Grids, Need, Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import NumericalError, SpecError
from dlscale.kernels import accumulator_dtype, safe_norm
from dlscale.linalg.folds.least_squares import read_rhs
from dlscale.linalg.iterative.cgls import CGLS
from dlscale.linalg.iterative.gradients import StoredLeastSquares
from dlscale.linalg.iterative.options import NAMES, Iterations
from dlscale.linalg.iterative.recurrence import Iterate, Limits, Map, iterate, unchanged
from dlscale.linalg.iterative.sketched import AIM, BACKWARD_ERROR, MAX_ITERATIONS, Sketch, SketchedLeastSquares, sketch_grid
from dlscale.linalg.iterative.stored import COARSE, Sides, plan_products, threads_of_held_products
from dlscale.linalg.operators import MatrixOperator, OperatorPlan
from dlscale.linalg.scaling import at_safe_scale, scale_words
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import Scaled

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
    if options.preconditioner == "jacobi" and m < n:
        raise SpecError(
            f"params.preconditioner: jacobi is for a matrix with at least as many rows as columns; got {m} x {n}, of which it "
            "would find a solution that is not the one of minimum norm. Leave it out."
        )
    wide, max_iterations = np.result_type(accumulator_dtype(A.dtype), B.dtype), options.iterations_for(min(m, n))
    width = k * (2 if wide.kind == "c" and A.dtype.kind != "c" else 1)
    driver_bytes = (_VECTORS * n + 3 * m) * k * wide.itemsize
    how, steps, each = plan_products(A, 2 * width, facts, driver_bytes=driver_bytes, n_products=max_iterations)
    threads = 0.0 if each else threads_of_held_products(A.dtype, 4.0 * width, facts)
    steps += [Step(f"product-{i}", 4.0 * A.n_entries * width, each, n_threads=threads) for i in range(1, max_iterations + 3)]
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
        rates=measured_rates(A, facts, grid=how.grid, sparse=True),
        notes=tuple(A.notes),
        choices={"way": how.way},
    )


@dataclass(frozen=True)
class _Found:
    X: Array
    it: Iterate
    residuals: Array
    #: What rounding may hide of what is held against the tolerance.
    hidden: float
    #: What digits that x has no room for may leave of the residual.
    coarse: float


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
    sides = Sides.of(read_rhs(B, 0, B.shape[0]), A.dtype)
    solve = partial(_solve, sides=sides, options=options)
    found, exponent = at_safe_scale(Passes(run), A, plan.rows, lambda passes, A: solve(passes, A, plan))
    it, tolerance = found.it, limits_of(plan, options, A)[0]
    true = float(it.reached.max(initial=0.0))
    if not true <= tolerance or (plan.method == "cgls" and it.end != "converged"):
        raise NumericalError(_ended(found, plan, tolerance))
    X = sides.back(found.X, exponent)
    name, meaning = _CHECKS[plan.method]
    check = Check(name, true / tolerance, 1.0, meaning.format(tolerance=tolerance))
    arrays = {"x": X[:, 0] if B.is_vector else X, "history/residual": it.claimed, "history/true_residual": it.measured}
    with np.errstate(over="ignore", under="ignore"):
        squares = np.ldexp(found.residuals**2, [2 * e for e in sides.exponents])
    estimates = {
        "true_residual": true, "iterations": it.iterations, "ended": "converged", "reads": 1 + it.iterations + len(it.measured),
        "residuals": squares.tolist(), "norm_of_x": safe_norm(X, axis=0).tolist(),
    }  # fmt: skip
    notes = (*scale_words(exponent), *([_ANY_NORM] if options.preconditioner == "jacobi" else []))
    return Outcome(arrays, (), Certificate((check,)), estimates, notes)


def _solve(passes: Passes, A: Matrix, plan: Plan, *, sides: Sides, options: Iterations) -> _Found:
    """Iterate on a matrix and right-hand sides whose entries are in range."""
    how = OperatorPlan(plan.choices["way"], plan.rows, A.shape[0], plan.words, plan.peak_bytes_per_worker)
    exponent = -A.exponent if isinstance(A, Scaled) else 0
    B, handed_out = sides.B, partial(sides.published, exponent=exponent)
    tolerance, max_iterations = limits_of(plan, options, A)
    with MatrixOperator(passes, A, how) as operator:
        problem: StoredLeastSquares
        precondition: Map
        if plan.method == "sketch":
            d = plan.choices["sketch_rows"]
            grid = sketch_grid(plan.rows, d, held=plan.choices["way"] == "memory")
            sketch = passes.sweep("sketch", A, Sketch(A.shape[1], B, d), grid)["sketch"]
            sketched = SketchedLeastSquares(operator, B, handed_out, sketch)
            problem, precondition, tolerance = sketched, sketched.precondition, AIM * tolerance
        else:
            problem = StoredLeastSquares(operator, B, handed_out)
            precondition = _scaled(problem, options)
        method = CGLS(problem.relative, lambda: problem.residuals, precondition)
        it = iterate(method, problem, Limits(tolerance, max_iterations))
        if it.iterations and problem.n_measured == 1:
            # It was resumed when all was done.
            problem.reached(problem.residual(it.X), it.X)
    return _Found(it.X, it, problem.residuals, float(problem.hidden.max(initial=0.0)), sides.coarse(problem.norm, exponent))


def limits_of(plan: Plan, options: Iterations, A: Matrix) -> tuple[float, int]:
    """The tolerance, and the iterations at most."""
    if plan.method == "sketch":
        return options.tolerance or BACKWARD_ERROR * float(np.finfo(A.dtype).eps), options.max_iterations or MAX_ITERATIONS
    return options.tolerance_for(A.dtype), options.iterations_for(min(A.shape))


def _scaled(problem: StoredLeastSquares, options: Iterations) -> Map:
    """``M S`` for the inverse of the diagonal of ``A^H A``."""
    if options.preconditioner == "none":
        return unchanged
    diagonal = np.where(problem.squares > 0, problem.squares, 1)[:, None]

    def divided(S: Array) -> Array:
        # A recurrence that overflows has broken down, and says so.
        with np.errstate(over="ignore"):
            return np.asarray(S / diagonal)

    return divided


#: What is held against the tolerance, as a formula and in words.
_CHECKS = {
    "cgls": (
        "||A'(b - Ax)|| / (tolerance ||A|| ||b - Ax||), or ||b - Ax|| / (tolerance ||b||)",
        "the residual of every column is orthogonal to the columns of the matrix within {tolerance:.1e}, or at most that part of "
        "its right-hand side, as a read of the matrix measured it",
    ),
    "sketch": (
        "||(A'A + mu^2 I)^(-1/2) A'(b - Ax)|| / (tolerance ||A|| ||x||), mu = ||b - Ax|| / ||x||",
        "every column of x solves exactly a problem whose matrix differs from A by about {tolerance:.1e} of it or less",
    ),
}


_ANY_NORM = (
    "preconditioner jacobi: x is the solution of minimum norm where the columns of the matrix are independent, which this method "
    "does not find out"
)


def _ended(found: _Found, plan: Plan, tolerance: float) -> str:
    it, advice = found.it, "Raise params.tolerance or params.max_iterations, or use method direct."
    n, end = it.iterations, "at the limit of" if it.end == "limit" else f"{it.end} after"
    what = "the backward error" if plan.method == "sketch" else "||A'r|| / (||A|| ||r||) of the true residual r"
    true = float(it.reached.max())
    hidden = f", of which rounding alone may hide {found.hidden:.1e}" if true <= tolerance else ""
    if it.end == "stagnated" and found.coarse > tolerance:
        advice = COARSE
    return (
        f"{NAMES[plan.method]} ended {end} {n} iteration{'s' * (n != 1)}: {what} is {true:.1e}, and must be at most "
        f"{tolerance:.1e}{hidden}. {advice}"
    )
