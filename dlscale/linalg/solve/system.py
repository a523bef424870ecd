"""A square matrix that systems are solved with: its scale, its norm, its factors in one precision after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import LAPACK_THRESHOLD
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Plan
from dlscale.errors import NumericalError, OutOfRange
from dlscale.kernels import accumulator_dtype, largest_part, safe_exponent, times_power_of_two
from dlscale.linalg.folds.least_squares import read_rhs
from dlscale.linalg.folds.residuals import Norms, Residual, Rounded, rounding_scale
from dlscale.linalg.panels.products import probes, scaled_residual
from dlscale.linalg.scaling import power_words
from dlscale.linalg.solve import applying
from dlscale.linalg.solve.block_diagonal import Inertia
from dlscale.linalg.solve.condition import SURE, Condition, is_sure, random_signs
from dlscale.linalg.solve.factoring import FACTORS, factor, factor_orthogonally, reason_for_qr, reproduced
from dlscale.linalg.solve.factors import CholeskyFactors, Factorization, LUFactors, ScaledFactors, TimesPower
from dlscale.linalg.solve.options import SolveOptions, batch_columns, is_mixed, solution_dtype, usual_solves
from dlscale.linalg.solve.precision import computed_in, in_double
from dlscale.linalg.solve.refinement import MAX_GMRES_COLUMNS, MAX_STEPS, Refined, in_range, refine, refine_by_gmres
from dlscale.linalg.solve.slabs import MANY_COLUMNS, How, solve_refined
from dlscale.linalg.solve.symmetric import LDLFactors
from dlscale.linalg.solve.triangle import TriangleFactors
from dlscale.linalg.symmetry import require_symmetric_on
from dlscale.storage.matrix import ArrayMatrix, Matrix
from dlscale.storage.scaled import scaled

#: Times eps: the backward error at which factors in single precision are good enough, and that of a solve without refinement.
MIXED_TARGET = 1.0
DOUBLE_TARGET = 4.0
#: How factors are called that were given.
STORED = "stored factors"
#: Parts of a vector that may be wrong for its length to be right: what refinement still changes, and what it leaves.
SETTLED = 0.25
LEFT = 0.1
#: Times 1/eps: condition numbers that factors in lower precision may tell where refinement changes little of several vectors.
FAR = 100
#: Random vectors that are asked beside the longest one.
N_WITNESSES = 2


class System:
    """A square matrix with its norm, its factors in one precision after another, and what was decided on the way."""

    def __init__(self, passes: Passes, A: Matrix, plan: Plan, options: SolveOptions) -> None:
        self.passes, self.A, self.plan, self.options = passes, A, plan, options
        self.grid: RowGrid = plan.rows
        self.notes: list[str] = []
        self.norm = self.largest = 0.0
        self.factors: Factorization | None = None
        #: A is ``2^-exponent`` times the matrix that was given; column j of a solution is to be multiplied by ``2^shifts[j]``.
        self.exponent = 0
        self.shifts: list[int] = []
        #: How far the matrix of the factors that were given is from A, relative to its size.
        self._distance = 0.0
        self._solved_by_given = False
        self._inertia: Inertia | None = None
        self._n_residuals = self._n_solves = self._n_conditions = 0

    def measure(self) -> None:
        """``||A||_1`` and the largest entry; finds entries that are not finite, and takes A to a safe scale."""
        fold = Norms(self.A.shape[1])
        norms = self.passes.sweep("norms", self.A, fold, self.grid)
        self.exponent = safe_exponent(float(norms["largest"][0]), self.A.dtype)
        if self.exponent:
            self.A = scaled(self.A, -self.exponent)
            norms = self.passes.sweep("norms-scaled", self.A, fold, self.grid)
        self.norm, self.largest = float(norms["sums"].max()), float(norms["largest"][0])

    def compare(self, given: LUFactors | CholeskyFactors) -> LUFactors | CholeskyFactors | None:
        """Stored factors, if they are of this matrix by their products with random vectors; others are left aside (None).

        Those of a matrix nearby would refine solutions, but tell nothing of the condition, and take more reads than factoring.
        """
        A, n = self.A, self.A.shape[0]
        W = probes(n, A.dtype)
        difference, size = reproduced(self.passes, given, W, -self.residual(W), self.exponent)
        eps = max(float(np.finfo(dtype).eps) for dtype in (A.dtype, given.dtype))
        self._distance = scaled_residual(difference, size, n, A.dtype) * n * self._eps
        if self._distance <= LAPACK_THRESHOLD * n * eps:
            return given
        self.notes.append(
            f"the stored factors are of another matrix, {self._distance:.1e} of its size away from this one, and were left aside"
        )
        return None

    def solve(self, B: Matrix, given: LUFactors | CholeskyFactors | None = None, *, refined: bool = True) -> Refined:
        """Solve, with better factors where those at hand do not reach the target, which is n eps where nothing is refined.

        The solution is that of the scaled system; see `published`.
        """
        n, k = B.shape
        goal = (DOUBLE_TARGET if refined else max(n, DOUBLE_TARGET)) * self._eps
        dtype = solution_dtype(self.A, B)
        rhs = read_rhs(B, 0, n).astype(dtype, copy=False)
        exponents = [safe_exponent(largest, dtype) for largest in largest_part(rhs, axis=0).tolist()]
        self.shifts = [exponent - self.exponent for exponent in exponents]
        if any(exponents):
            rhs = times_powers(rhs, [-exponent for exponent in exponents])
        found = Refined(np.zeros((n, k), dtype), np.full(k, np.inf), np.full(k, np.inf), 0)
        for factors, target, words in self._attempts(given):
            self.factors = factors
            self._solved_by_given = words == STORED
            unsolved = np.flatnonzero(found.errors > goal)
            B_left = rhs if len(unsolved) == k else np.ascontiguousarray(rhs[:, unsolved])
            for batch, part in self._solved(factors, B_left, target * self._eps if refined else None):
                found = _put(found, unsolved[batch], part)
            never = self.options.refine == "never"
            if never and self.options.assume == "pos" and not found.backward_error <= LAPACK_THRESHOLD * self._eps:
                W = probes(n, self.A.dtype)
                require_symmetric_on(W, -self.residual(W), self.A.dtype)
            if found.backward_error <= goal or never:
                if found.n_steps:
                    self.notes.append(
                        f"{words}; {found.n_steps} refinement steps to a backward error of {found.backward_error:.1e}"
                    )
                return found
            stopped = "refinement stopped at a" if refined else "a"
            self.notes.append(f"{words}: {stopped} backward error of {found.backward_error:.1e}")
        return found

    def published(self, found: Refined) -> tuple[Array, Refined]:
        """The solution of the system that was given, and what is known of it with the digits that it has there.

        Raises
        ------
        NumericalError
            If it overflows, or has fewer digits than its precision.
        """
        X = found.X
        if not any(self.shifts):
            return X, found
        Y = times_powers(X, self.shifts)
        left = times_powers(Y, [-shift for shift in self.shifts])
        with np.errstate(invalid="ignore"):
            lost, sizes = (np.abs(columns).sum(axis=0, dtype=float) for columns in (left - X, X))
            bad = np.flatnonzero(~(lost <= self._eps * sizes))
        if len(bad):
            j = int(bad[0])
            raise NumericalError(
                f"The solution is out of the range of {X.dtype}: its largest entry is about "
                f"{power_words(largest_part(X[:, j]), self.shifts[j])}. Multiply or divide the right-hand side by a power of two."
            )
        changed, residuals = lost > 0, found.residuals + self.norm * lost
        errors = np.where(changed, residuals / np.where(changed, self.norm * (sizes - lost), 1), found.errors)
        return Y, replace(found, X=left, residuals=residuals, errors=errors)

    @property
    def _eps(self) -> float:
        return float(np.finfo(self.A.dtype).eps)

    def _attempts(self, given: LUFactors | CholeskyFactors | None) -> Iterator[tuple[Factorization, float, str]]:
        """Factors with the target of their refinement, the cheaper ones first; how they are called."""
        if self.options.triangular:
            n_threads = self.plan.cluster.threads_per_worker
            yield TriangleFactors(self.A, self.options.lower, n_threads), DOUBLE_TARGET, "by substitution"
            return
        if given is not None:
            if given.dtype != self.A.dtype:
                scale = float(np.ldexp(1.0, self.exponent))
                yield ScaledFactors(given, scale, self.A.dtype), DOUBLE_TARGET, STORED
            else:
                yield TimesPower(given, -self.exponent) if self.exponent else given, DOUBLE_TARGET, STORED
        elif is_mixed(self.A, self.options):
            scale = rounding_scale(self.largest)
            try:
                rounded = self._factor(Rounded(self.A, scale), f"{FACTORS}-single")
                yield ScaledFactors(rounded, scale, self.A.dtype), MIXED_TARGET, "factored in single precision"
            except NumericalError as error:
                self.notes.append(f"in single precision: {error}")
            self.notes.append("factored again in double precision")
        yield self._own_factors(), DOUBLE_TARGET, f"factored in {self.A.dtype}"
        self.notes.append(f"factored once more by QR: {reason_for_qr(self.options.factored_as)}")
        yield factor_orthogonally(self.passes, self.A, self.plan, name=f"{FACTORS}-qr"), DOUBLE_TARGET, "factored by QR"

    def _factor(self, A: Matrix, name: str) -> LUFactors | CholeskyFactors | LDLFactors:
        factors = factor(self.passes, A, self.plan, self.options.factored_as, name=name)
        if isinstance(factors, LDLFactors):
            self._inertia = factors.inertia
        return factors

    def _own_factors(self) -> Factorization:
        # Square roots of 2 A are no multiples of those of A; of 4 A they are, so that any power of two gives the same bits.
        odd = int(np.frexp(self.largest)[1]) % 2 if self.options.assume == "pos" else 0
        factors = self._factor(scaled(self.A, -odd), FACTORS)
        return TimesPower(factors, odd) if odd else factors

    def _apply(self, factors: Factorization, B: Array) -> Array:
        """``A^-1 B`` by factors, on the workers."""
        self._n_solves += 1
        step = f"triangular-{self._n_solves}"
        return applying.solve(self.passes.run, step, factors, B, facts=self.plan.cluster)

    def _solved(self, factors: Factorization, B: Array, target: float | None) -> Iterator[tuple[slice, Refined]]:
        """Solutions of ``A X = B``, refined to a target if there is one, some columns at a time."""
        n, k = B.shape
        if k >= MANY_COLUMNS:
            yield slice(0, k), self._solved_by_slabs(factors, B, target)
            return
        first, width = self._apply(factors, B), batch_columns(n, B.dtype)
        for batch in (slice(i, i + width) for i in range(0, k, width)):
            X, part = np.ascontiguousarray(first[:, batch], B.dtype), np.ascontiguousarray(B[:, batch])
            yield batch, self._refined(X, part, factors, target)

    def _solved_by_slabs(self, factors: Factorization, B: Array, target: float | None) -> Refined:
        self._n_solves += 1
        if target is None or self.options.refine == "never":
            how = How(self.norm, 0.0, 0, self.grid.block_rows, 1)
        else:
            mixed = isinstance(factors, ScaledFactors) and not self._solved_by_given
            how = How(self.norm, target, MAX_STEPS, self.grid.block_rows, usual_solves(len(B), self.options, mixed=mixed))
        step = f"solve-{self._n_solves}"
        found = solve_refined(self.passes.run, step, factors, self.A, B, how, facts=self.plan.cluster)
        left = np.flatnonzero(found.errors > DOUBLE_TARGET * self._eps)
        if target is None or not how.max_steps or not 0 < len(left) <= MAX_GMRES_COLUMNS:
            return found
        start = Refined(found.X[:, left], found.residuals[left], found.errors[left], found.n_steps)
        return _put(found, left, self._by_gmres(start, np.ascontiguousarray(B[:, left]), factors, target))

    def _refined(self, X: Array, B: Array, factors: Factorization, target: float | None) -> Refined:
        """Refine a first solution X of ``A X = B``."""
        rhs = ArrayMatrix(B)

        def residual(X: Array) -> Array:
            return self.residual(X, rhs)

        def solve(R: Array) -> Array:
            return self._apply(factors, R).astype(B.dtype, copy=False)

        if target is None or self.options.refine == "never":
            return refine(X, residual, solve, self.norm, target=0.0, max_steps=0)
        found = refine(X, residual, solve, self.norm, target=target)
        if found.backward_error <= DOUBLE_TARGET * self._eps:
            return found
        return self._by_gmres(found, B, factors, target)

    def _by_gmres(self, found: Refined, B: Array, factors: Factorization, target: float) -> Refined:
        """Go on where plain refinement stagnated."""
        rhs = ArrayMatrix(B)
        wide = factors.widened() if isinstance(factors, ScaledFactors) else factors

        def product(X: Array) -> Array:
            if not in_range(X, self.norm).all():
                raise OutOfRange("Vectors of GMRES are out of range.")
            return -self.residual(X)

        return refine_by_gmres(
            found, product, lambda X: self.residual(X, rhs), lambda R: self._apply(wide, R), self.norm, target=target
        )

    def residual(self, X: Array, B: Matrix | None = None) -> Array:
        """``B - A X`` in double precision; one read of A."""
        self._n_residuals += 1
        X = np.ascontiguousarray(X, accumulator_dtype(X.dtype))
        inputs, fold = (self.A, Residual(X)) if B is None else ([self.A, B], Residual(X, B.dtype))
        return self.passes.sweep(f"residual-{self._n_residuals}", inputs, fold, self.grid)["residual"]

    def condition(self) -> Condition:
        """``||A||_1 ||A^-1||_1`` by the last factors.

        Where A is better known than its factors, they are asked for the vector x that ``A^-1`` stretches most, and A whether they
        are right about it, in one read: one step of refinement hardly changes ``F^-1 x``, or the vector is solved for with A, and
        what is told is then no more than the truth. Factors in lower precision must be right about random vectors as well, or are
        replaced.
        """
        factors, n = self.factors, self.A.shape[0]
        assert factors is not None
        is_complex = self.A.dtype.kind == "c"
        self._n_conditions += 1
        step = f"condition-{self._n_conditions}"
        found = applying.longest_of_inverse(self.passes.run, step, factors, complex_valued=is_complex, facts=self.plan.cluster)
        number, bound = (self.norm * size if self.norm and size else float("inf") for size in (found.estimate, found.bound))
        dtype, double = computed_in(factors), accumulator_dtype(self.A.dtype)
        if self._solved_by_given and number * self._distance > SURE and is_sure(number, double, n):
            # So ill-conditioned, a matrix within this distance may be singular: what else than rounding it is, nobody knows.
            self.factors, self._solved_by_given = self._own_factors(), False
            return self.condition()
        if not np.isfinite(number) or dtype == double or is_sure(number, dtype, n):
            return Condition(number, bound, is_sure(number, dtype, n))
        approximate, lower = in_double(factors, double), dtype != self.A.dtype
        X = np.ascontiguousarray(found.x[:, None], double)
        if lower:
            # Where they are wrong about other small singular values, these vectors have parts along them.
            X = np.hstack([X, random_signs(n, N_WITNESSES)])
        Z = self._apply(approximate, X)
        # What one step of refinement changes is what the factors are wrong about.
        change = self._apply(approximate, self.residual(Z, ArrayMatrix(X)))
        settled = bool((np.abs(change).sum(axis=0) <= SETTLED * np.abs(Z).sum(axis=0)).all())
        if lower and not (settled and number * float(np.finfo(dtype).eps) <= FAR):
            self.factors, self._solved_by_given = self._own_factors(), False
            return self.condition()
        if settled:
            return Condition(number, bound, is_sure(number, double, n))
        # From nothing: what such factors make of the vector is wrong in all that matters.
        size = np.abs(X).sum(axis=0)
        last = self._by_gmres(Refined(np.zeros_like(X), size, np.full(1, np.inf), 0), X, approximate, float(np.finfo(double).eps))
        stretched = float((np.abs(last.X).sum(axis=0) / (size + last.residuals))[0])
        number = self.norm * stretched if stretched > 0 else number
        return Condition(number, np.inf, last.backward_error * number <= LEFT and is_sure(number, double, n))

    def estimates(self, found: Refined) -> dict[str, Any]:
        """What is reported beside the certificate.

        References
        ----------
        Higham (2002), theorem 7.2: the forward error is at most ``2 condition error / (1 - condition error)``.
        """
        known = self.condition()
        # What is measured has the rounding errors of double precision itself.
        reach = known.bound * (found.backward_error + float(np.finfo(float).eps))
        bound = 2 * reach / (1 - reach) if known.sure and reach < 1 else float("inf")
        with np.errstate(over="ignore"):
            norm = float(np.ldexp(self.norm, self.exponent))
        return {
            "condition": known.number,
            "backward_error": found.backward_error,
            "forward_error_bound": bound,
            "refinement_steps": found.n_steps,
            "norm": norm,
            **self.inertia,
        }

    @property
    def inertia(self) -> dict[str, int]:
        """Of the last factors that tell it."""
        return self._inertia._asdict() if self._inertia else {}


def times_powers(X: Array, exponents: Sequence[int]) -> Array:
    """X with each column times a power of two."""
    return np.stack([times_power_of_two(X[:, j], exponent) for j, exponent in enumerate(exponents)], axis=1)


def _put(found: Refined, columns: Array, part: Refined) -> Refined:
    """Keep the better solution of each column."""
    if len(columns) == len(found.errors) and (part.errors <= found.errors).all():
        return replace(part, X=np.require(part.X, requirements="W"), n_steps=max(found.n_steps, part.n_steps))
    better = columns[part.errors <= found.errors[columns]]
    chosen = np.isin(columns, better)
    found.X[:, better] = part.X[:, chosen]
    found.residuals[better], found.errors[better] = part.residuals[chosen], part.errors[chosen]
    return replace(found, n_steps=max(found.n_steps, part.n_steps))
