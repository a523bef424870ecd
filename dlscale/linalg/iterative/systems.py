"""Square systems by iterations: their plan, their products, and what is measured in the end."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

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
from dlscale.kernels import accumulator_dtype, one_blas_thread, times_power_of_two
from dlscale.linalg.folds.least_squares import read_rhs
from dlscale.linalg.iterative.cg import CG
from dlscale.linalg.iterative.gauss_seidel import STRIP_BYTES, GaussSeidel, sweep_bytes, sweeps
from dlscale.linalg.iterative.gmres import GMRES, restart_for
from dlscale.linalg.iterative.jacobi import Jacobi, inverse_of_diagonal, require_diagonal
from dlscale.linalg.iterative.minres import MINRES
from dlscale.linalg.iterative.options import NAMES, STATIONARY, SYMMETRIC, Method, SystemIterations
from dlscale.linalg.iterative.preconditioners import block_width, columns_at_once, inverse_by_nystrom, inverse_of_blocks, rank_for
from dlscale.linalg.iterative.recurrence import Iterate, Limits, Map, Problem, Recurrence, iterate, unchanged
from dlscale.linalg.iterative.stored import COARSE, Sides, Stored, by_parts, plan_products, rounding_of, threads_of_held_products
from dlscale.linalg.iterative.survey import Survey
from dlscale.linalg.operators import MatrixOperator, OperatorPlan
from dlscale.linalg.scaling import at_safe_scale, scale_words
from dlscale.linalg.svd.subspace import gaussian
from dlscale.linalg.symmetry import limit, refuse
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import Scaled

#: Random vectors that symmetry is measured with.
N_PROBES = 4
#: Vectors of a column that the driver has at a time.
_VECTORS = {"cg": 16, "minres": 24, "gmres": 16, "jacobi": 12, "gauss_seidel": 12}


def plan_system(A: Matrix, B: Matrix, method: Method, options: SystemIterations, facts: ClusterFacts) -> Plan:
    """Plan a system by an iterative method.

    Raises
    ------
    SpecError
        If the matrix is not square or the right-hand sides do not suit it.
    DoesNotFitError
    """
    require_system(A, B)
    n, k = B.shape
    wide, max_iterations = np.result_type(accumulator_dtype(A.dtype), B.dtype), options.iterations_for(n)
    width = k * (2 if wide.kind == "c" and A.dtype.kind != "c" else 1)
    restart = restart_for(n * k * wide.itemsize) if method == "gmres" else 0
    driver_bytes = (_VECTORS[method] + restart) * n * k * wide.itemsize
    blocks = _block_width(method, options, n)
    rank = rank_for(options.rank, n) if options.preconditioner == "nystrom" else 0
    driver_bytes += (3 * blocks + 3 * rank) * n * wide.itemsize
    most = max(2 * width, N_PROBES + blocks, columns_at_once(rank))
    how, steps, each = plan_products(A, most, facts, driver_bytes=driver_bytes, n_products=max_iterations)
    product = 2.0 * A.n_entries * width
    steps.append(Step("survey", (4.0 if method in SYMMETRIC else 2.0) * A.n_entries * N_PROBES, each))
    at_once = columns_at_once(rank)
    steps += [
        Step(f"columns-{i // at_once + 1}", 2.0 * A.n_entries * at_once, each) for i in range(0, rank and rank + at_once, at_once)
    ]
    # Each iteration multiplies, and the residual is measured at least once.
    threads = 0.0 if each else threads_of_held_products(A.dtype, 2.0 * width, facts)
    steps += [Step(f"product-{i}", product, each, n_threads=threads) for i in range(1, max_iterations + 2)]
    strips = []
    if method == "gauss_seidel":
        once = 0 if how.way == "memory" else sweep_bytes(A)
        steps += [Step(f"sweep-{i}", float(n) ** 2 * width, once, n_threads=1.0) for i in range(1, max_iterations + 1)]
        strips.append(Need("a strip of the matrix, for the triangle", 3 * STRIP_BYTES))
    by = "" if options.preconditioner == "none" else f", preconditioner {options.preconditioner}"
    return Plan(
        kind="solve",
        method=method,
        words=f"{NAMES[method]}{by}, at most {max_iterations} iterations of one product"
        f"{' and a read of the triangle' if strips else ''} each ({how.words})",
        matrix=A.describe(),
        grids=Grids(rows=how.grid),
        steps=tuple(steps),
        memory=(
            Need("blocks of the matrix, and partial results", how.peak_bytes),
            Need("vectors of the iterations", driver_bytes),
            *strips,
        ),
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts, grid=how.grid, sparse=True),
        notes=tuple(A.notes),
        choices={"way": how.way, "restart": restart},
    )


def require_system(A: Matrix, B: Matrix) -> None:
    """Check shapes (SpecError)."""
    (m, n), rows = A.shape, B.shape[0]
    if m != n:
        raise SpecError(f"input.matrix: must be square to be solved with; got {m} x {n}. Use kind lstsq.")
    if rows != n:
        raise SpecError(f"input.rhs: must have {n} rows like the matrix; got {rows}.")


@dataclass(frozen=True)
class Solved:
    """What iterations on ``2^-e A`` came to.

    Parameters
    ----------
    X : (n, k)
    it : Iterate
    rounding : float
        What rounding may hide of the largest residual, relative to its right-hand side.
    n_reads : int
    coarse : float
        What digits of x that its dtype has no room for may leave of it.
    """

    X: Array
    it: Iterate
    rounding: float
    n_reads: int
    coarse: float


@dataclass(frozen=True)
class Starting:
    """Where iterations start, and what they are preconditioned with.

    Parameters
    ----------
    x0 : (n, k), optional
        Zeros if absent.
    precondition : callable, optional
        ``M R`` (n, k) of R (n, k).
    """

    x0: Array | None = None
    precondition: Map | None = None

    def scaled(self, exponents: list[int], dtype: np.dtype[Any]) -> Array | None:
        """x0 with each column times a power of two."""
        if self.x0 is None:
            return None
        return np.stack([times_power_of_two(self.x0[:, j].astype(dtype), e) for j, e in enumerate(exponents)], axis=1)


#: At zeros, with the preconditioner that the options say.
FROM_ZEROS = Starting()


def compute_system(
    run: Run, A: Matrix, B: Matrix, options: SystemIterations, plan: Plan, starting: Starting = FROM_ZEROS
) -> Outcome:
    """Solve by a plan.

    Returns
    -------
    Outcome
        With ``x``: (n, k), or (n,) for a right-hand side of one dimension; ``history/residual`` (i,), what the recurrence claimed
        after each iteration, and ``history/true_residual`` (r, 2), after which iteration it was measured, and what it was.

    Raises
    ------
    InputError
        If the method needs a symmetric matrix and this one is not.
    NumericalError
        If the iterations end otherwise than converged, saying how.

    References
    ----------
    Saad (2003), Iterative Methods for Sparse Linear Systems.
    """
    n = B.shape[0]
    sides = Sides.of(read_rhs(B, 0, n), A.dtype)
    solve = partial(_solve, sides=sides, options=options, plan=plan, starting=starting)
    found, exponent = at_safe_scale(Passes(run), A, plan.rows, solve)
    it, tolerance = found.it, options.tolerance_for(A.dtype)
    if it.end != "converged":
        raise NumericalError(ended_words(found, plan.method, tolerance, options.iterations_for(n)))
    X = sides.back(found.X, exponent)
    true = float(it.reached.max(initial=0.0))
    check = Check(
        "||b - Ax|| / (tolerance ||b||)",
        true / tolerance,
        1.0,
        f"every column of x leaves at most {tolerance:.1e} of its right-hand side, as a read of the matrix measured it",
    )
    arrays = {"x": X[:, 0] if B.is_vector else X, "history/residual": it.claimed, "history/true_residual": it.measured}
    estimates = {"true_residual": true, "iterations": it.iterations, "ended": it.end, "reads": found.n_reads}
    return Outcome(arrays, (), Certificate((check,)), estimates, scale_words(exponent))


def _solve(passes: Passes, A: Matrix, *, sides: Sides, options: SystemIterations, plan: Plan, starting: Starting) -> Solved:
    """Iterate on a matrix and right-hand sides whose entries are in range."""
    n = len(sides.B)
    how = OperatorPlan(plan.choices["way"], plan.rows, n, plan.words, plan.peak_bytes_per_worker)
    with MatrixOperator(passes, A, how) as operator:
        squares, precondition = _surveyed(operator, options, plan.method)
        n_before, precondition = operator.n_reads, starting.precondition or precondition
        if plan.method == "gauss_seidel":
            precondition = sweeps(passes.run, A, options.relaxation, plan.cluster)
        exponent = -A.exponent if isinstance(A, Scaled) else 0
        problem = _StoredSystem(operator, sides.B, squares, partial(sides.published, exponent=exponent))
        problem.x0 = starting.scaled([exponent - e for e in sides.exponents], sides.B.dtype)
        limits = Limits(options.tolerance_for(A.dtype), options.iterations_for(n))
        it = iterate(method_of(plan.method, plan.choices["restart"], precondition, options.relaxation), problem, limits)
    rounding = float((problem.rounding(it.X) / np.where(problem.sizes > 0, problem.sizes, 1)).max(initial=0.0))
    swept = it.iterations * sweep_bytes(A) / A.n_stored_bytes if plan.method == "gauss_seidel" else 0.0
    coarse = sides.coarse(float(np.sqrt(squares.sum())), exponent)
    return Solved(it.X, it, rounding, n_before + it.iterations + round(swept) + len(it.measured), coarse)


def method_of(name: str, restart: int, precondition: Map, relaxation: float = 1.0) -> Recurrence:
    """The recurrence of a method; a stationary one steps by its preconditioner."""
    if name in STATIONARY:
        return Jacobi(precondition, relaxation) if name == "jacobi" else GaussSeidel(precondition)
    match name:
        case "cg":
            return CG(precondition)
        case "minres":
            return MINRES(precondition)
        case _:
            return GMRES(precondition, restart)


def _surveyed(operator: MatrixOperator, options: SystemIterations, method: str) -> tuple[Array, Map]:
    """The squared norms of the columns, and the preconditioner; that the matrix is symmetric where the method needs it."""
    n, dtype = operator.shape[0], operator.dtype
    symmetric, width = method in SYMMETRIC, _block_width(method, options, n)
    X = np.ascontiguousarray(gaussian(n, N_PROBES, 0, dtype), dtype)
    state = operator.read(Survey(X, width, symmetric), "survey")
    with one_blas_thread():
        product, blocks = state["rows"][:, :N_PROBES], state["rows"][:, N_PROBES:]
        if symmetric:
            size = float(state["squares"].sum()) ** 0.5
            # Of a normal X the mean of the columns of ||M X||^2 is ||M||_F^2, twice that of a complex one.
            skew = float(np.linalg.norm(product - state["ZH"].conj().T)) / (N_PROBES * (2 if dtype.kind == "c" else 1)) ** 0.5
            if not skew <= limit(dtype) * size:
                raise refuse(skew / size, dtype)
        if method == "gauss_seidel":
            require_diagonal(blocks, method)
        if not width or method == "gauss_seidel":
            return state["squares"], unchanged
        if method == "jacobi":
            return state["squares"], inverse_of_diagonal(blocks)
        if options.preconditioner == "nystrom":
            return state["squares"], inverse_by_nystrom(operator, blocks[:, 0].real, rank_for(options.rank, n))
        return state["squares"], inverse_of_blocks(blocks, definite=method == "cg", symmetric=symmetric)


def _block_width(method: str, options: SystemIterations, n: int) -> int:
    """Columns of the blocks on the diagonal that are surveyed."""
    return max(block_width(options.preconditioner, n), int(method in STATIONARY))


class _StoredSystem(Stored, Problem):
    """A system with a stored matrix: its products are reads, its states go to the checkpoint.

    Parameters
    ----------
    operator : MatrixOperator (n, n)
    B : (n, k), double precision
    squares : (n,)
        Squared norms of the columns of A.
    handed_out : callable
        From solutions to what is left of them when they are handed out.
    """

    def __init__(self, operator: MatrixOperator, B: Array, squares: Array, handed_out: Map) -> None:
        Problem.__init__(self, self._product, B)
        Stored.__init__(self, operator, 2.0 * len(B) ** 2 * B.shape[1], handed_out)
        self.squares = squares

    def _product(self, X: Array) -> Array:
        return by_parts(self.operator.apply, X, self.operator.dtype)

    def rounding(self, X: Array) -> Array:
        return rounding_of(self.operator.A, self.squares, X)


#: What to do about an end.
_ADVICE = {
    "stagnated": "Rounding alone may leave {rounding:.1e} of it; raise params.tolerance, take a preconditioner or method direct.",
    "broken down": "The matrix is singular to working precision, or the method has met a system that it cannot "
    "go on with; use method gmres or direct, or kind lstsq where there is no solution.",
    "not definite": "The matrix, or a preconditioner that was given, is not positive definite to working precision; "
    "use method minres.",
    "diverged": "Its steps do not converge for this matrix: lower params.relaxation, or use method cg, minres, gmres or direct.",
    "limit": "Raise params.max_iterations or params.tolerance, take a preconditioner or method direct.",
}


_OF_MINRES = "The preconditioner that was given is not positive definite, which minres needs; give another one."


def ended_words(found: Solved, method: str, tolerance: float, max_iterations: int) -> str:
    """How iterations ended that have not converged, and what to do about it."""
    it = found.it
    n = it.iterations
    end = f"at the limit of {max_iterations} iterations" if it.end == "limit" else f"{it.end} after {n} iteration{'s' * (n != 1)}"
    advice = _OF_MINRES if (method, it.end) == ("minres", "not definite") else _ADVICE[it.end].format(rounding=found.rounding)
    if it.end == "stagnated" and found.coarse > tolerance:
        advice = COARSE
    return (
        f"{NAMES[method]} ended {end}: the true residual is {float(it.reached.max()):.1e} of the right-hand side, and must be at "
        f"most {tolerance:.1e}. {advice}"
    )
