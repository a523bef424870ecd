"""Linear systems A X = B: factor, solve, measure the backward error, refine until it is at rounding level.

With ``precision: mixed`` the matrix is factored in single precision, which takes half of the time, and the solution refined to
double precision. Where that does not converge (condition numbers above about 1e8), the matrix is factored in double precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from dlscale.certificates import Certificate, solution
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import PassCost
from dlscale.engine.grids import RowGrid
from dlscale.engine.machine import matmul_rate
from dlscale.engine.outcome import Outcome
from dlscale.engine.passes import Passes
from dlscale.errors import InputError, NumericalError, SpecError
from dlscale.kernels import accumulator_dtype
from dlscale.linalg.condition import condition
from dlscale.linalg.factor_plan import PanelPlan
from dlscale.linalg.factoring import FACTORS, Assume, factor, factor_orthogonally, plan_factoring
from dlscale.linalg.factors import CholeskyFactors, Factorization, LUFactors, ScaledFactors, stored_factors
from dlscale.linalg.refinement import Refined, refine, refine_by_gmres
from dlscale.linalg.residuals import Norms, Residual, Rounded, rounding_scale
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import Array, ArrayMatrix, Matrix

Precision = Literal["double", "mixed"]
Refine = Literal["auto", "never"]

#: Times eps: the backward error at which factors in single precision are good enough, and that of a solve without refinement.
MIXED_TARGET = 1.0
DOUBLE_TARGET = 4.0
#: Right-hand sides that are solved together.
BATCH_BYTES = 2**26


@dataclass(frozen=True)
class SolveOptions:
    """How to solve.

    Parameters
    ----------
    assume : str
        What is known of the matrix: ``general``; ``pos``: Hermitian positive definite (Cholesky, half of the work); ``sym``:
        Hermitian (solved by LU). What is assumed must hold; where it does not, the backward error shows it.
    precision : str
        ``double``: factor in the matrix's own precision; ``mixed``: factor in single precision and refine.
    refine : str
        ``auto``: while the backward error asks for it; ``never``: only measure (not with ``mixed``).
    panel : int, optional
        Columns of a panel, instead of the planner's choice.
    """

    assume: Assume = "general"
    precision: Precision = "double"
    refine: Refine = "auto"
    panel: int | None = None

    def check(self) -> None:
        """Check the options by themselves.

        Raises
        ------
        SpecError
        """
        for name, values in (("assume", Assume), ("precision", Precision), ("refine", Refine)):
            if getattr(self, name) not in get_args(values):
                raise SpecError(f"params.{name}: must be one of {', '.join(get_args(values))}; got {getattr(self, name)!r}.")
        if self.refine == "never" and self.precision == "mixed":
            raise SpecError("params.refine: must be auto with precision mixed, whose factors alone have 7 digits; got never.")


def plan_solve(inputs: Inputs, options: SolveOptions, facts: ClusterFacts) -> PanelPlan:
    """Plan a solve.

    Raises
    ------
    SpecError
        If the matrix is not square or the right-hand sides do not suit it.
    DoesNotFitError
    """
    options.check()
    A, B = inputs["matrix"], inputs["rhs"]
    (m, n), k = A.shape, B.shape[1]
    if m != n:
        raise SpecError(f"input.matrix: must be square to be solved with; got {m} x {n}. Use kind lstsq.")
    if B.shape[0] != n:
        raise SpecError(f"input.rhs: must have {n} rows like the matrix; got {B.shape[0]}.")
    if "factors" in inputs.results:
        factors = stored_factors(inputs.results["factors"], n_threads=1)
        if factors.shape != A.shape:
            raise InputError(f"input.factors: must be of a matrix of order {n} like input.matrix; got {factors.shape[0]}.")
    given = "factors" in inputs.results
    mixed = is_mixed(A, options) and not given
    wide = accumulator_dtype(A.dtype).itemsize
    width = min(k, batch_columns(n, A.dtype))
    n_solves = 6 if mixed else 2
    plan = plan_factoring(
        "solve",
        A,
        facts,
        assume=options.assume,
        panel=options.panel,
        driver_bytes=(6 * width + k) * n * wide,
        state_bytes=n * width * wide,
        before=(PassCost("norms", 2.0 * n * n, A.n_stored_bytes),),
        more=(
            PassCost("triangular", 2.0 * n * n * k * n_solves, n_solves * n * n * lower_dtype(A.dtype).itemsize),
            PassCost("residual", 2.0 * n * n * k * n_solves, A.n_stored_bytes * n_solves),
        ),
    )
    words = f"{plan.algorithm}{' in single precision' if mixed else ''}, triangular systems, refinement"
    if given:
        words = f"factors of {inputs.results['factors'].uri}, triangular systems, refinement"
        plan = replace(plan, passes=tuple(p for p in plan.passes if not p.name.startswith((FACTORS, "rows"))))
    notes = plan.notes
    if options.precision == "mixed" and not mixed:
        notes += ("precision mixed: the matrix is in single precision already, or its factors are given; nothing is rounded",)
    lower = lower_dtype(A.dtype) if mixed else A.dtype
    rates = plan.rates | {"matmul_flops_per_second": matmul_rate(str(lower)) * facts.n_threads}
    return replace(plan, algorithm=words, notes=notes, rates=rates)


def is_mixed(A: Matrix, options: SolveOptions) -> bool:
    """Whether there is a lower precision to factor in."""
    return options.precision == "mixed" and lower_dtype(A.dtype) != A.dtype


def lower_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.complex64 if dtype.kind == "c" else np.float32)


def batch_columns(n: int, dtype: np.dtype[Any]) -> int:
    """Right-hand sides that are solved together."""
    return max(1, BATCH_BYTES // (n * accumulator_dtype(dtype).itemsize))


def compute_solve(passes: Passes, inputs: Inputs, options: SolveOptions, plan: PanelPlan) -> Outcome:
    """Solve by a plan.

    Returns
    -------
    Outcome
        With ``x``: (n, k), or (n,) for a right-hand side of one dimension.

    Raises
    ------
    NumericalError
        If the matrix is exactly singular, or not positive definite where that was assumed.

    Notes
    -----
    2/3 n^3 flops (half of it with Cholesky), one read of A for its norm, one for the factorization (more out of core), and one
    for each residual.

    References
    ----------
    Golub and Van Loan (2013), sections 3.4 and 3.5; Higham (2002), chapters 9 and 12.
    """
    A, B = inputs["matrix"], inputs["rhs"]
    system = System(passes, A, plan, options)
    system.measure()
    stored = inputs.results.get("factors")
    found = system.solve(B, stored_factors(stored, n_threads=plan.cluster.threads_per_worker) if stored else None)
    sizes = np.abs(found.X).sum(axis=0, dtype=float)
    certificate = Certificate((solution(found.residuals, system.norm, sizes, A.dtype),))
    x = found.X[:, 0] if B.is_vector else found.X
    return Outcome({"x": x}, (), certificate, system.estimates(found), tuple(system.notes))


class System:
    """A square matrix with its norm, its factors in one precision after another, and what was decided on the way."""

    def __init__(self, passes: Passes, A: Matrix, plan: PanelPlan, options: SolveOptions) -> None:
        self.passes, self.A, self.plan, self.options = passes, A, plan, options
        self.grid: RowGrid = plan.grid
        self.notes: list[str] = []
        self.norm = self.largest = 0.0
        self.factors: Factorization | None = None
        self._n_residuals = 0

    def measure(self) -> None:
        """``||A||_1`` and the largest entry; finds entries that are not finite."""
        norms = self.passes.sweep("norms", self.A, Norms(self.A.shape[1]), self.grid)
        self.norm, self.largest = float(norms["sums"].max()), float(norms["largest"][0])

    def solve(self, B: Matrix, given: Factorization | None = None, *, refined: bool = True) -> Refined:
        """Solve, with better factors where those at hand do not reach the target, which is n eps where nothing is refined."""
        n, k = B.shape
        goal = (DOUBLE_TARGET if refined else max(n, DOUBLE_TARGET)) * self._eps
        dtype = np.result_type(self.A.dtype, self.A.dtype if B.dtype.kind != "c" else np.complex64)
        found = Refined(np.zeros((n, k), dtype), np.full(k, np.inf), np.full(k, np.inf), 0)
        for factors, target, words in self._attempts(given):
            self.factors = factors
            unsolved = np.flatnonzero(found.errors > goal)
            width = batch_columns(n, dtype)
            for columns in (unsolved[i : i + width] for i in range(0, len(unsolved), width)):
                found = _put(found, columns, self._refined(_columns(B, columns, dtype), factors, target if refined else None))
            if found.backward_error <= goal or self.options.refine == "never":
                if found.n_steps:
                    self.notes.append(
                        f"{words}; {found.n_steps} refinement steps to a backward error of {found.backward_error:.1e}"
                    )
                return found
            stopped = "refinement stopped at a" if refined else "a"
            self.notes.append(f"{words}: {stopped} backward error of {found.backward_error:.1e}")
        return found

    @property
    def _eps(self) -> float:
        return float(np.finfo(self.A.dtype).eps)

    def _attempts(self, given: Factorization | None) -> Iterator[tuple[Factorization, float, str]]:
        """Factors with the target of their refinement, the cheaper ones first; how they are called."""
        if given is not None:
            yield given, DOUBLE_TARGET, "stored factors"
        elif is_mixed(self.A, self.options):
            scale = rounding_scale(self.largest)
            try:
                rounded = self._factor(Rounded(self.A, scale), f"{FACTORS}-single")
                yield ScaledFactors(rounded, scale, self.A.dtype), MIXED_TARGET, "factored in single precision"
            except NumericalError as error:
                self.notes.append(f"in single precision: {error}")
            self.notes.append("factored again in double precision")
        yield self._factor(self.A, FACTORS), DOUBLE_TARGET, f"factored in {self.A.dtype}"
        self.notes.append("factored once more by QR: the entries of LU grew too much")
        yield factor_orthogonally(self.passes, self.A, self.plan, name=f"{FACTORS}-qr"), DOUBLE_TARGET, "factored by QR"

    def _factor(self, A: Matrix, name: str) -> LUFactors | CholeskyFactors:
        return factor(self.passes, A, self.plan, self.options.assume, name=name)

    def _refined(self, B: Array, factors: Factorization, target: float | None) -> Refined:
        rhs = ArrayMatrix(B)

        def residual(X: Array) -> Array:
            return self.residual(X, rhs)

        def solve(R: Array) -> Array:
            return factors.solve(R).astype(B.dtype, copy=False)

        if target is None or self.options.refine == "never":
            return refine(B, residual, solve, self.norm, target=0.0, max_steps=0)
        target *= self._eps
        found = refine(B, residual, solve, self.norm, target=target)
        if found.backward_error <= DOUBLE_TARGET * self._eps:
            return found
        wide = factors.widened() if isinstance(factors, ScaledFactors) else factors

        def product(X: Array) -> Array:
            return -self.residual(X)

        return refine_by_gmres(found, product, residual, wide.solve, self.norm, target=target)

    def residual(self, X: Array, B: Matrix | None = None) -> Array:
        """``B - A X`` in double precision; one read of A."""
        self._n_residuals += 1
        X = np.ascontiguousarray(X, accumulator_dtype(X.dtype))
        return self.passes.sweep(f"residual-{self._n_residuals}", self.A, Residual(X, B), self.grid)["residual"]

    def condition(self) -> float:
        """Estimate of ``||A||_1 ||A^-1||_1`` by the last factors."""
        factors = self.factors
        assert factors is not None
        return condition(
            self.norm,
            factors.solve,
            lambda X: factors.solve(X, adjoint=True),
            self.A.shape[0],
            complex_valued=self.A.dtype.kind == "c",
        )

    def estimates(self, found: Refined) -> dict[str, Any]:
        """What is reported beside the certificate.

        References
        ----------
        Higham (2002), theorem 7.2: the forward error is at most ``2 condition error / (1 - condition error)``.
        """
        number = self.condition()
        reach = number * found.backward_error
        bound = 2 * reach / (1 - reach) if reach < 1 else float("inf")
        return {
            "condition": number,
            "backward_error": found.backward_error,
            "forward_error_bound": bound,
            "refinement_steps": found.n_steps,
            "norm": self.norm,
        }


def _columns(B: Matrix, columns: Array, dtype: np.dtype[Any]) -> Array:
    return np.ascontiguousarray(B.read(0, B.shape[0])[:, columns], dtype)


def _put(found: Refined, columns: Array, part: Refined) -> Refined:
    """Keep the better solution of each column."""
    better = columns[part.errors <= found.errors[columns]]
    chosen = np.isin(columns, better)
    found.X[:, better] = part.X[:, chosen]
    found.residuals[better], found.errors[better] = part.residuals[chosen], part.errors[chosen]
    return replace(found, n_steps=max(found.n_steps, part.n_steps))
