"""Linear systems A X = B, or A^T X = B: factor, solve, measure the backward error, refine until it is at rounding level.

With ``precision: mixed`` the matrix is factored in single precision, which takes half of the time, and the solution refined to
double precision. Where that does not converge (condition numbers above about 1e8), the matrix is factored in double precision.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from dlscale.certificates import Certificate, near_singular_words, solution
from dlscale.declaration.kind import RHS, Kind, Role
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.machine import matmul_rate
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.errors import InputError, NumericalError, SpecError
from dlscale.linalg.iterative.choice import is_iterative, plan_by_method
from dlscale.linalg.iterative.systems import compute_system
from dlscale.linalg.panels.plan import FactorOptions, factor_chunks
from dlscale.linalg.scaling import scale_words
from dlscale.linalg.solve.factoring import After, Around, is_symmetric, plan_square
from dlscale.linalg.solve.factors import triangles, triangles_of_symmetric
from dlscale.linalg.solve.options import Precision, Refine, SolveOptions, is_mixed, lower_dtype, solution_dtype, usual_solves
from dlscale.linalg.solve.planning import Solving
from dlscale.linalg.solve.stored import stored_factors
from dlscale.linalg.solve.substitution import Substitution
from dlscale.linalg.solve.system import System
from dlscale.linalg.solve.triangle import Triangle, plan_triangle
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import conjugated, promoted

__all__ = ["Precision", "Refine", "SolveOptions", "compute_solve", "plan_solve"]


def plan_solve(inputs: Inputs, options: SolveOptions, facts: ClusterFacts) -> Plan:
    """Plan a solve, by factors or by iterations.

    Raises
    ------
    SpecError
        If the matrix is not square or the right-hand sides do not suit it.
    DoesNotFitError
    """
    options.check()
    direct = partial(_plan_direct, inputs, options, facts)
    known = "general" if options.transposed else options.assume
    return plan_by_method(inputs, options.method, known, options, facts, direct=direct)


def _plan_direct(inputs: Inputs, options: SolveOptions, facts: ClusterFacts) -> Plan:
    A, B = operands(inputs, options)
    (m, n), k = A.shape, B.shape[1]
    if m != n:
        raise SpecError(f"input.matrix: must be square to be solved with; got {m} x {n}. Use kind lstsq.")
    if B.shape[0] != n:
        raise SpecError(f"input.rhs: must have {n} rows like the matrix; got {B.shape[0]}.")
    if "factors" in inputs.results:
        if options.assume not in ("general", "pos") or options.transposed:
            name = "transposed" if options.transposed else f"assume: {options.assume}"
            raise SpecError(f"params.{name} does not go with input.factors; leave one of them out.")
        factors = stored_factors(inputs.results["factors"], n_threads=1)
        if factors.shape != A.shape:
            raise InputError(f"input.factors: must be of a matrix of order {n} like input.matrix; got {factors.shape[0]}.")
        if factors.dtype.kind == "c" and A.dtype.kind != "c":
            raise InputError("input.factors: must be of a real matrix like input.matrix; they are complex.")
    given = "factors" in inputs.results
    mixed = is_mixed(A, options) and not given
    factored = lower_dtype(A.dtype) if mixed else A.dtype
    solving = Solving(A, k, solution_dtype(A, B), usual_solves(n, options, mixed=mixed))
    if options.triangular:
        return plan_triangle(solving, facts, lower=options.lower)

    def more(grid: PanelGrid) -> After:
        way = Substitution.of_chunks(n, factor_chunks((n, n), factored.itemsize, grid), factored.itemsize)
        one = triangles(way, alike=options.assume == "pos")
        one = triangles_of_symmetric(way) if is_symmetric(options.factored_as) else one
        return solving.after(one, n * n * factored.itemsize, facts)

    around = Around(
        before=(Step("norms", 2.0 * n * n, A.n_stored_bytes),),
        after=more,
        driver_bytes=solving.driver_bytes,
        state_bytes=solving.state_bytes,
        given=given,
    )
    plan = plan_square("solve", options.factored_as, A, FactorOptions(options.panel), facts, around=around)
    words = f"{plan.words}{' in single precision' if mixed else ''}, triangular systems, refinement"
    if given:
        words = f"factors of {inputs.results['factors'].uri}, triangular systems, refinement"
    notes = plan.notes
    if options.precision == "mixed" and not mixed:
        notes += ("precision mixed: the matrix is in single precision already, or its factors are given; nothing is rounded",)
    rates = plan.rates | {"matmul_flops_per_second": matmul_rate(str(factored)) * facts.n_threads}
    return replace(plan, words=words, notes=notes, rates=rates)


def operands(inputs: Inputs, options: SolveOptions) -> tuple[Matrix, Matrix]:
    """The matrix and the right-hand sides of the system that is solved: ``A^T x = b`` is ``A^H conj(x) = conj(b)``."""
    B = inputs["rhs"]
    A = promoted(inputs["matrix"], B.dtype)
    if options.transposed:
        A, B = conjugated(A.T), conjugated(B) if options.transposed is True else B
    if options.triangular:
        A = Triangle(A, lower=options.lower, only=options.only_triangle, unit=options.unit_diagonal)
    return A, B


def compute_solve(run: Run, inputs: Inputs, options: SolveOptions, plan: Plan) -> Outcome:
    """Solve by a plan.

    Returns
    -------
    Outcome
        With ``x``: (n, k), or (n,) for a right-hand side of one dimension.

    Raises
    ------
    NumericalError
        If the matrix is singular to working precision, or so nearly that no solution is in range, or not positive definite where
        that was assumed.

    Notes
    -----
    2/3 n^3 flops (half of it with Cholesky), one read of A for its norm, one for the factorization (more out of core), and one
    for each residual.

    References
    ----------
    Golub and Van Loan (2013), sections 3.4 and 3.5; Higham (2002), chapters 9 and 12.
    """
    A, B = operands(inputs, options)
    if is_iterative(plan):
        return compute_system(run, A, B, options, plan)
    system = System(Passes(run), A, plan, options)
    system.measure()
    stored = inputs.results.get("factors")
    given = system.compare(stored_factors(stored, n_threads=plan.cluster.threads_per_worker)) if stored else None
    found = system.solve(B, given)
    if not np.isfinite(found.errors).all():
        raise NumericalError(
            f"The matrix is singular to the precision of {A.dtype}: no factors of it give a solution in range. "
            "Use lstsq for the solution of minimum norm, or correct the matrix."
        )
    X, found = system.published(found)
    sizes = np.abs(found.X).sum(axis=0, dtype=float)
    certificate = Certificate((solution(found.residuals, system.norm, sizes, A.dtype),))
    estimates = system.estimates(found)
    system.notes += scale_words(system.exponent)
    if not estimates["forward_error_bound"] < 1:
        system.notes.append(near_singular_words(estimates["condition"], A.dtype))
    if options.transposed is True:
        X = X.conj()
    return Outcome({"x": X[:, 0] if B.is_vector else X}, (), certificate, estimates, tuple(system.notes))


KIND = Kind(
    name="solve",
    title="Linear system",
    words="Linear systems with one matrix and any number of right-hand sides.",
    arrays="`x` (n, k)",
    options=SolveOptions,
    plan=plan_solve,
    compute=compute_solve,
    example="{kind: solve, input: {matrix: a.zarr, rhs: b.zarr}, params: {precision: mixed}}",
    roles=(
        Role("matrix"),
        RHS,
        Role(
            "factors",
            "path of the result of a lu or cholesky job on the same matrix",
            optional=True,
            result_of=("lu", "cholesky"),
        ),
    ),
)
