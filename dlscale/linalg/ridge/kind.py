"""Ridge regression: the W and c of least ``||B - A W - 1 c'||^2 + a ||W||^2``, for a path of penalties a, and the one to choose.

One factorization serves the whole path, by the shape of A (m x n):

- tall: one read reduces ``[1 A B]`` to a triangle; the error of leaving each row out takes a second read, and a
  third one where leverages are near 1, that of folds none;
- wide: the transpose is factored, ``A^T = Q R``; errors of both kinds follow from R, and the coefficients take one more read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dlscale.arrays import Array
from dlscale.declaration.kind import RHS, Kind, Role
from dlscale.declaration.options import Options
from dlscale.declaration.sections import BlockRows
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import bytes_of, lay_out, measured_rates
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Grids, Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import NumericalError, OutOfRange, SpecError
from dlscale.kernels import accumulator_dtype
from dlscale.linalg.conditions import condition_number
from dlscale.linalg.folds.least_squares import ColumnsTimesPowers, LargestOfColumns
from dlscale.linalg.ridge.check import Measured, certify, measure_tall, measure_wide
from dlscale.linalg.ridge.folds import Contrasts
from dlscale.linalg.ridge.penalties import DEFAULT, Penalties, path_of
from dlscale.linalg.ridge.reduced import SAFE_EXPONENT, RidgeProblem
from dlscale.linalg.ridge.selection import choose, end_of_path
from dlscale.linalg.ridge.tall import Tall, batch
from dlscale.linalg.ridge.wide import Wide
from dlscale.linalg.scaling import Largest, exponent_of, scale_words, scaled_back
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import promoted, scaled

#: Right-hand sides are looked at by so many rows where they are out of range.
_RHS_ROWS = 8192


@dataclass(frozen=True)
class RidgeOptions(Options):
    """Which penalties, and by which error one is chosen."""

    penalties: Penalties = field(default_factory=lambda: list(DEFAULT))
    fit_intercept: Annotated[bool, Field(description="true or false: fit a constant too, without penalty")] = True
    cv: Annotated[
        Literal["loo", "none"] | Annotated[int, Field(ge=2)],
        Field(description="loo (each row left out), an integer of at least 2 (folds of neighbouring rows) or none (one penalty)"),
    ] = "loo"
    path: Annotated[bool, Field(description="true or false: also keep the coefficients for all penalties")] = False
    block_rows: BlockRows = None

    def check(self, m: int) -> None:
        """Check the options against the number of rows.

        Raises
        ------
        SpecError
        """
        n_penalties = len(path_of(self.penalties))
        if self.cv == "none" and n_penalties > 1:
            raise SpecError(f"params.cv: none goes with one penalty, since nothing chooses among them; got {n_penalties}.")
        if isinstance(self.cv, int) and self.cv > m:
            raise SpecError(f"params.cv: must be at most the number of rows, {m}; got {self.cv}.")
        least = 1 + (self.fit_intercept or self.cv != "none")
        if m < least:
            raise SpecError(f"input.matrix: must have at least {least} rows for an intercept, or for leaving some out; got {m}.")

    def n_folds(self, m: int) -> int:
        """0 for none, m for leaving one row out."""
        return {"none": 0, "loo": m}.get(self.cv, 0) if isinstance(self.cv, str) else self.cv


def plan_ridge(inputs: Inputs, options: RidgeOptions, facts: ClusterFacts) -> Plan:
    """Plan a ridge regression.

    Raises
    ------
    SpecError
        If the options or the right-hand sides do not suit the matrix.
    DoesNotFitError
    """
    B = inputs["rhs"]
    A = promoted(inputs["matrix"], B.dtype)
    m = A.shape[0]
    if B.shape[0] != m:
        raise SpecError(f"input.rhs: must have {m} rows like the matrix; got {B.shape[0]}.")
    options.check(m)
    if A.shape[1] == 0 or B.shape[1] == 0:
        raise SpecError(f"input.matrix and input.rhs: must have columns; got {A.shape[1]} and {B.shape[1]}.")
    plan = _plan_wide if m <= A.shape[1] else _plan_tall
    return plan(A, B, options, facts)


def _plan_tall(A: Matrix, B: Matrix, options: RidgeOptions, facts: ClusterFacts) -> Plan:
    (m, n), k, q = A.shape, B.shape[1], len(path_of(options.penalties))
    wide, n_folds = accumulator_dtype(np.result_type(A.dtype, B.dtype)), options.n_folds(m)
    read = A.n_stored_bytes + B.n_stored_bytes
    width = 1 + n + min(k, batch(n))
    rows = min(m, width * max(1, n_folds if n_folds < m else 1))
    layout = lay_out(
        A,
        facts,
        state_bytes=bytes_of(rows, width, dtype=wide),
        operand_bytes=bytes_of(n, 2 * n + (q + 2) * k, dtype=wide),
        block_factor=5.0,
        block_rows=options.block_rows,
        min_block_rows=min(m, 2 * width),
    )
    n_batches = -(-k // batch(n))
    steps = [Step("triangle", 2.0 * m * width**2, A.n_stored_bytes + B.n_stored_bytes // n_batches)] * n_batches
    if n_folds == m:
        steps.append(Step("leave-one-out", 2.0 * m * n * (n + q * (k + 1)), read))
    driver = 20.0 * n**3 + (n_folds * (2.0 * n_folds * width**3 + 20.0 * n**3) if 0 < n_folds < m else 0.0)
    return Plan(
        kind="ridge",
        method="tall",
        words="QR of the matrix and the right-hand sides in one pass (TSQR), singular values of R for all penalties",
        matrix=A.describe(),
        grids=Grids(rows=layout.grid),
        steps=(*steps, Step("singular-values", driver, where="driver"), Step("check", 4.0 * m * n * k, read)),
        memory=layout.memory,
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts, grid=layout.grid),
        notes=(*layout.notes, *A.notes),
    )


def _plan_wide(A: Matrix, B: Matrix, options: RidgeOptions, facts: ClusterFacts) -> Plan:
    (m, n), k, q, read = A.shape, B.shape[1], len(path_of(options.penalties)), A.n_stored_bytes
    T = Contrasts(A.T) if options.fit_intercept else A.T
    wide, n_folds, published = accumulator_dtype(A.dtype), options.n_folds(m), (q if options.path else 1) * k
    layout = lay_out(
        T,
        facts,
        state_bytes=bytes_of(m, m, dtype=wide) + bytes_of(n, published, dtype=wide) // 4,
        operand_bytes=bytes_of(m, 3 * m + published, dtype=wide),
        block_factor=6.0,
        block_rows=options.block_rows,
        min_block_rows=min(n, 2 * m),
    )
    steps = [
        Step("gram", float(n) * m**2, read),
        Step("basis-round-2", 2.0 * n * m**2, read),
        Step("coefficients-0", 2.0 * n * m * (m + published), read),
        Step("check-product", 2.0 * m * n * k, read),
        Step("check-gradient", 2.0 * m * n * k, read),
    ]
    driver = 20.0 * m**3 * (1 + (n_folds if n_folds < m else 0)) + 2.0 * q * m**2 * (1 + k)
    return Plan(
        kind="ridge",
        method="wide",
        words="QR of the transpose in passes (Cholesky QR or TSQR, by the condition), singular values of R for all penalties",
        matrix=A.describe(),
        grids=Grids(rows=layout.grid),
        transposed=True,
        steps=(*steps[:2], Step("singular-values", driver, where="driver"), *steps[2:]),
        memory=layout.memory,
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(T, facts, grid=layout.grid),
        notes=(*layout.notes, *A.notes),
    )


def compute_ridge(run: Run, inputs: Inputs, options: RidgeOptions, plan: Plan) -> Outcome:
    """Regress by a plan.

    Returns
    -------
    Outcome
        With ``coefficients`` (n, k), or (n,) for a right-hand side of one dimension, and ``intercept`` (k,), of the chosen penalty;
        ``path/penalties`` (q,), ``path/errors`` (q, k), mean squares of what rows differ from what the others say of them, and
        on request ``path/coefficients`` (q, n, k).

    Raises
    ------
    NonFiniteError, NumericalError

    Notes
    -----
    2 m (n + k + 1)^2 flops of a tall matrix; 3 reads of it with ``cv: loo``, 4 where leverages are near 1, 2 with folds.

    References
    ----------
    Golub and Van Loan (2013), section 6.1.4; Demmel, Grigori, Hoemmen, Langou (2012) for TSQR; Golub, Heath, Wahba (1979) for
    leaving one out.
    """
    passes, B = Passes(run), inputs["rhs"]
    A = promoted(inputs["matrix"], B.dtype)
    penalties, m = path_of(options.penalties), A.shape[0]
    cutoff = float(np.finfo(A.dtype).eps) * max(A.shape)
    problem = RidgeProblem(passes.watching_range(), A, B, plan, penalties, options.n_folds(m), options.fit_intercept, cutoff)
    try:
        return _solve(problem, options, 0, [0] * B.shape[1])
    except NumericalError as error:
        largest = Largest(), LargestOfColumns(B.shape[1])
        exponent = exponent_of(float(passes.sweep("largest", A.T if plan.transposed else A, largest[0], plan.rows)["largest"][0]))
        rows = RowGrid(m, min(m, _RHS_ROWS), m)
        powers = [exponent_of(size) for size in passes.sweep("largest-rhs", B, largest[1], rows)["largest"].tolist()]
        if not isinstance(error, OutOfRange) and max(map(abs, [exponent, *powers])) <= SAFE_EXPONENT:
            raise
    with np.errstate(over="ignore", under="ignore"):
        moved = np.ldexp(penalties, -2 * exponent)
    if (lost := ~np.isfinite(moved) | ((moved == 0) & (penalties > 0))).any():
        raise NumericalError(
            f"The penalty {penalties[lost][0]:g} is out of range beside the squares of the matrix, whose largest entry is near "
            f"2^{exponent}; scale the matrix."
        )
    there = replace(
        problem,
        passes=passes.apart("scaled-"),
        A=scaled(A, -exponent),
        B=ColumnsTimesPowers(B, [-power for power in powers]),
        penalties=moved,
    )
    return _solve(there, options, exponent, powers)


def _solve(problem: RidgeProblem, options: RidgeOptions, exponent: int, powers: Sequence[int]) -> Outcome:
    """Solve a problem whose entries are in range; the matrix is ``2^exponent`` larger, and each target by its power of two."""
    A, B, penalties = problem.A, problem.B, path_of(options.penalties)
    reduced = Wide(problem) if problem.plan.transposed else Tall(problem)
    errors = reduced.errors() / A.shape[0] if problem.n_folds else np.zeros((1, B.shape[1]))
    best = choose(errors, powers)
    which = range(len(penalties)) if options.path else [best]
    dtype = np.result_type(A.dtype, np.complex64) if B.dtype.kind == "c" else A.dtype
    found = reduced.coefficients(which)
    with np.errstate(over="ignore", invalid="ignore"):
        if not np.isfinite(found.astype(dtype)).all():
            raise NumericalError("The coefficients overflow; raise the penalty, or scale the matrix.")
    W = found[list(which).index(best)].astype(dtype)
    penalty = float(problem.penalties[best])
    measured = measure_tall(problem, reduced, W, penalty) if isinstance(reduced, Tall) else measure_wide(problem, W, penalty)
    certificate = certify(problem, measured, W, penalty)
    back = _Back(exponent, powers, dtype, is_vector=B.is_vector)
    arrays = {"coefficients": back.coefficients(W), "intercept": back.targets(measured.intercept), "path/penalties": penalties}
    if problem.n_folds:
        arrays["path/errors"] = back.squares(errors)
    if options.path:
        arrays["path/coefficients"] = np.stack([back.coefficients(one.astype(dtype)) for one in found])
    told = {"penalty": float(penalties[best]), "degrees_of_freedom": float(reduced.freedom[best])}
    if problem.n_folds:
        told["error"] = float(back.squares(errors)[best].sum())
    told |= _estimates(reduced, measured, penalty, back)
    notes = (reduced.words, *end_of_path(best, penalties), *scale_words(exponent))
    return Outcome(arrays, (), certificate, told, notes)


@dataclass(frozen=True)
class _Back:
    """How answers of a scaled problem are those of the one that was asked."""

    exponent: int
    powers: Sequence[int]
    dtype: np.dtype[Any]
    is_vector: bool

    def coefficients(self, W: Array) -> Array:
        if self.exponent or any(self.powers):
            shifts = [power - self.exponent for power in self.powers]
            words = {"what": "The coefficients", "of": "the right-hand sides"}
            columns = [scaled_back(W[:, j], e, W.dtype, **words) for j, e in enumerate(shifts)]
            W = np.stack(columns, axis=1)
        return W[:, 0] if self.is_vector else W

    def targets(self, values: Array) -> Array:
        pairs = zip(values, self.powers, strict=True)
        words = {"what": "The intercepts", "of": "the right-hand sides"}
        return np.array([scaled_back(value, e, values.dtype, **words) for value, e in pairs])

    def squares(self, values: Array) -> Array:
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(np.ldexp(values, 2 * np.asarray(self.powers)))


def _estimates(reduced: Tall | Wide, measured: Measured, penalty: float, back: _Back) -> dict[str, Any]:
    root = float(np.sqrt(penalty))
    smallest, largest = (float(np.hypot(value, root)) for value in (reduced.s[-1], reduced.s[0]))
    return {
        # Of the matrix with the root of the penalty below it.
        "condition": condition_number(largest, smallest, reduced.problem.A.shape, reduced.problem.precision),
        "residuals": back.squares(measured.residuals).tolist(),
        "r2": [float(1 - r / b**2) if b > 0 else 1.0 for r, b in zip(measured.residuals, measured.rhs, strict=True)],
    }


KIND = Kind(
    name="ridge",
    title="Ridge regression",
    words="Ridge regression: a path of penalties from one factorization, with the error of rows left out, and the best of them.",
    arrays="`coefficients` (n, k) and `intercept` (k) for the chosen penalty; `path/penalties` (q), `path/errors` (q, k); "
    "`path/coefficients` (q, n, k) on request",
    options=RidgeOptions,
    plan=plan_ridge,
    compute=compute_ridge,
    dimensions={"coefficients": ("column",)},
    example="{kind: ridge, input: {matrix: a.zarr, rhs: b.zarr}, params: {penalties: [0.1, 1, 10]}}",
    roles=(Role("matrix"), RHS),
)
