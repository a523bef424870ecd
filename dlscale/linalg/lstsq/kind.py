"""Least squares: the X of minimum norm among those that minimize ||B - A X||, and the numerical rank of A.

Three ways, by the shape of A (m x n):

- tall: one pass reduces ``[A B]`` to a triangle, ``Q^H [A B] = [R C; 0 *]``; then ``X = R^+ C``;
- wide: the same of the adjoint, ``A^H = Q R``; then ``X = Q (R^H)^+ B``;
- neither, and too large for the small side to fit beside a block: Householder QR by panels.

The pseudo-inverse of R is by its singular values, of which those up to ``rcond`` times the largest count as zero, as in NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dlscale.declaration.kind import RHS, Kind, Role
from dlscale.declaration.sections import BlockRows, Panel
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import Layout, bytes_of, lay_out, measured_rates
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Grids, Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.errors import DoesNotFitError, NumericalError, OutOfRange, SpecError
from dlscale.kernels import SAFE_EXPONENTS, accumulator_dtype, largest_part, safe_norm, times_power_of_two
from dlscale.linalg.folds.least_squares import AugmentedQR, ColumnsTimesPowers, LargestOfColumns, Rotation, read_rhs
from dlscale.linalg.folds.orthogonal import find_basis
from dlscale.linalg.folds.products import sweep_gram
from dlscale.linalg.iterative.choice import is_iterative, sooner_done
from dlscale.linalg.iterative.least_squares import compute_least_squares, plan_least_squares
from dlscale.linalg.iterative.options import Iterations, LeastSquaresMethod
from dlscale.linalg.iterative.sketched import plan_sketched
from dlscale.linalg.lstsq.check import check
from dlscale.linalg.lstsq.panels import by_panels, plan_applying
from dlscale.linalg.lstsq.pseudo_inverse import PseudoInverse, Solution
from dlscale.linalg.panels.plan import FactorOptions
from dlscale.linalg.scaling import Largest, exponent_of, scale_words, scaled_back
from dlscale.linalg.solve.applying import Planned, after
from dlscale.linalg.solve.factoring import After, Around, orthogonally, plan_factoring
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrix import Matrix, RowRange
from dlscale.storage.scaled import promoted, scaled

#: Beyond so many columns on its small side, a matrix that is not clearly long is factored by panels.
PASS_COLUMNS = 2048
CLEARLY_LONG = 4
#: Binary exponents up to which the squares of residuals, and their products with the matrix, keep their digits.
SAFE_EXPONENT = 150
#: Right-hand sides are looked at by so many rows where they are out of range.
RHS_ROWS = 8192


@dataclass(frozen=True)
class LstsqOptions(Iterations):
    """How to solve a least squares problem. Without ``rcond``, singular values up to eps max(m, n) of the largest count as zero.

    Notes
    -----
    ``cgls`` multiplies with ``A^H A``, in one read an iteration, until ``||A^H r|| / (||A|| ||r||)`` or ``||r|| / ||b||`` is at
    most ``tolerance``; it finds no rank. With preconditioner ``jacobi`` columns count as of the same length; where they
    are dependent the solution is not that of minimum norm.
    """

    method: Annotated[
        Literal["auto", "direct"] | LeastSquaresMethod,
        Field(description="auto, direct (orthogonal), cgls (iterations), or sketch (for many rows; backward stable)"),
    ] = "auto"
    rcond: Annotated[
        float | None,
        Field(
            ge=0,
            lt=1,
            description="a number from 0 to below 1: relative size at which a singular value counts as zero; absent: as NumPy",
        ),
    ] = None
    panel: Panel = None
    block_rows: BlockRows = None

    def check(self) -> None:
        """Check what goes together (SpecError)."""
        if self.method == "direct":
            self.require_direct()
        if self.method in ("cgls", "sketch"):
            for name in ("rcond", "panel", "block_rows"):
                if getattr(self, name) is not None:
                    raise SpecError(f"params.{name}: goes with method direct; got method {self.method}.")

    def cutoff(self, A: Matrix) -> float:
        """The relative size at which a singular value counts as zero."""
        return float(np.finfo(A.dtype).eps) * max(A.shape) if self.rcond is None else self.rcond


def plan_lstsq(inputs: Inputs, options: LstsqOptions, facts: ClusterFacts) -> Plan:
    """Plan a least squares problem, by orthogonal transformations or by iterations.

    Raises
    ------
    SpecError
        If the right-hand sides do not suit the matrix.
    DoesNotFitError
    """
    options.check()
    B = inputs["rhs"]
    A = promoted(inputs["matrix"], B.dtype)
    direct = partial(_plan_direct, A, B, options, facts)
    iterated = partial(plan_least_squares, A, B, options, facts)
    if options.method == "sketch":
        return plan_sketched(A, B, options, facts)
    if options.method == "cgls":
        return iterated()
    return direct() if options.method == "direct" else sooner_done(direct, iterated, options, min(A.shape))


def _plan_direct(A: Matrix, B: Matrix, options: LstsqOptions, facts: ClusterFacts) -> Plan:
    (m, n), k = A.shape, B.shape[1]
    if B.shape[0] != m:
        raise SpecError(f"input.rhs: must have {m} rows like the matrix; got {B.shape[0]}.")
    long, transposed = (A.T, True) if m < n else (A, False)
    if transposed:
        checks = [
            Step("check-product", 2.0 * m * n * k, A.n_stored_bytes),
            Step("check-gradient", 4.0 * m * n * k, A.n_stored_bytes),
        ]
    else:
        checks = [Step("check", 4.0 * m * n * k, A.n_stored_bytes + B.n_stored_bytes)]
    layout = _lay_out_passes(long, k, transposed, options, facts)
    if layout is None:
        factored = A.T if transposed else A
        shape, item = (max(m, n), min(m, n)), A.dtype.itemsize

        def more(grid: PanelGrid) -> After:
            return after(*plan_applying(shape, k, item, facts, grid, transposed=transposed), *map(Planned, checks))

        driver_bytes = (4 * max(m, n) * k) * accumulator_dtype(A.dtype).itemsize
        cut, around = FactorOptions(options.panel, row_blocks=1), Around(after=more, driver_bytes=driver_bytes)
        plan = plan_factoring(orthogonally("lstsq"), factored, cut, facts, around=around)
        return replace(plan, matrix=A.describe(), transposed=transposed)
    long_m, long_n = long.shape
    if transposed:
        words = "QR of the adjoint in passes (Cholesky QR or TSQR, by the measured condition), singular values of R"
        costs = [
            Step("gram", float(long_m) * long_n**2, A.n_stored_bytes),
            Step("basis-round-2", 2.0 * long_m * long_n**2, A.n_stored_bytes),
            Step("solution", 2.0 * long_m * long_n * (long_n + k), A.n_stored_bytes),
        ]
    else:
        words = "QR of the matrix and the right-hand sides in one pass (TSQR), singular values of R"
        width, n_batches = long_n + min(k, _batch(long_n)), -(-k // _batch(long_n))
        costs = [Step("triangle", 2.0 * long_m * width**2, A.n_stored_bytes + B.n_stored_bytes // n_batches)] * n_batches
    return Plan(
        kind="lstsq",
        method="wide" if transposed else "tall",
        words=words,
        matrix=A.describe(),
        grids=Grids(rows=layout.grid),
        transposed=transposed,
        steps=(*costs, Step("singular-values", 20.0 * long_n**3, where="driver"), *checks),
        memory=layout.memory,
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(long, facts, grid=layout.grid),
        notes=(*layout.notes, *A.notes),
    )


def _lay_out_passes(long: Matrix, k: int, transposed: bool, options: LstsqOptions, facts: ClusterFacts) -> Layout | None:
    """A grid for the passes over the long side, or None where panels do better."""
    m, n = long.shape
    if n > PASS_COLUMNS and m < CLEARLY_LONG * n:
        return None
    wide = accumulator_dtype(long.dtype)
    columns = n if transposed else n + min(k, _batch(n))
    state_bytes = bytes_of(columns, columns, dtype=wide) + bytes_of(m, min(k, _batch(n)), dtype=wide) // 4
    try:
        return lay_out(
            long,
            facts,
            state_bytes=state_bytes,
            operand_bytes=3 * bytes_of(columns, columns, dtype=wide),
            block_factor=5.0,
            block_rows=options.block_rows,
            min_block_rows=min(m, 2 * columns),
        )
    except DoesNotFitError:
        if m >= CLEARLY_LONG * n:
            raise
        return None


def _batch(n: int) -> int:
    """Right-hand sides that are reduced in one pass."""
    return max(n, 256)


def compute_lstsq(run: Run, inputs: Inputs, options: LstsqOptions, plan: Plan) -> Outcome:
    """Solve by a plan.

    Returns
    -------
    Outcome
        With ``x``: (n, k), or (n,) for a right-hand side of one dimension; ``s``: the singular values of A, where they were
        needed.

    Raises
    ------
    NonFiniteError, NumericalError

    Notes
    -----
    2 m n^2 flops of a tall matrix, and 2 reads of it.

    References
    ----------
    Golub and Van Loan (2013), sections 5.3 and 5.5; Demmel, Grigori, Hoemmen, Langou (2012) for TSQR; LAPACK ``dgelsd`` for the
    rank.
    """
    passes = Passes(run)
    B = inputs["rhs"]
    A = promoted(inputs["matrix"], B.dtype)
    if is_iterative(plan):
        return compute_least_squares(run, A, B, options, plan)
    cutoff, shifts, exponent = options.cutoff(A), [0] * B.shape[1], 0
    try:
        outcome = _solve(passes.watching_range(), A, B, plan, cutoff, shifts, watched=True)
    except NumericalError as error:
        largest = Largest(), LargestOfColumns(B.shape[1])
        exponent = exponent_of(float(passes.sweep("largest", A.T if plan.transposed else A, largest[0], plan.rows)["largest"][0]))
        rows = RowGrid(B.shape[0], min(B.shape[0], RHS_ROWS), B.shape[0])
        powers = [exponent_of(size) for size in passes.sweep("largest-rhs", B, largest[1], rows)["largest"].tolist()]
        if not isinstance(error, OutOfRange) and max(map(abs, [exponent, *powers])) <= _safe_exponent(A, plan):
            raise
        shifts = [power - exponent for power in powers]
        near_one = scaled(A, -exponent), ColumnsTimesPowers(B, [-power for power in powers])
        try:
            outcome = _solve(passes.apart("scaled-"), *near_one, plan, cutoff, shifts)
        except OutOfRange:
            raise NumericalError(
                f"What the smallest singular values make of the right-hand sides overflows {A.dtype}: raise rcond, the part of the "
                f"largest one up to which they count as zero, which is {cutoff:.1e}."
            ) from None
    return _unscaled(outcome, exponent, shifts, A.dtype, is_vector=B.is_vector)


def _solve(
    passes: Passes, A: Matrix, B: Matrix, plan: Plan, cutoff: float, shifts: Sequence[int], *, watched: bool = False
) -> Outcome:
    """Solve a problem whose entries are in the range of squares; `OutOfRange` where they are not, if that is watched.

    The columns of ``x`` are ``2^shifts`` larger than the solution, whose digits are those that they have.
    """
    if plan.method == "panels":
        found = by_panels(passes, A, B, plan, cutoff)
    elif plan.method == "wide":
        found = _wide(passes, A, B, plan, cutoff)
    else:
        found = _tall(passes, A, B, plan, cutoff)
    if watched and any(size and abs(exponent_of(size)) > _safe_exponent(A, plan) for size in found.sizes):
        raise OutOfRange("Squares of the entries are not safe.")
    dtype = np.result_type(A.dtype, np.complex64) if B.dtype.kind == "c" else A.dtype
    words = {"what": "The entries of x", "of": "the right-hand sides"}
    columns = [scaled_back(found.X[:, j], shift, dtype, **words) for j, shift in enumerate(shifts)]
    wide = accumulator_dtype(dtype)
    X = np.stack([times_power_of_two(x.astype(wide), -shift) for x, shift in zip(columns, shifts, strict=True)], axis=1)
    kept = found.kept if cutoff > LstsqOptions().cutoff(A) else None
    certificate, estimates = check(passes, A, B, X, found.Y, plan, kept=kept)
    if watched and not certificate.passed:
        raise OutOfRange("Digits may have been lost below the smallest normal number.")
    arrays = {"x": np.stack(columns, axis=1)}
    if found.s is not None:
        arrays["s"] = scaled_back(found.s, 0, arrays["x"].real.dtype, what="The singular values")
    return Outcome(arrays, (), certificate, {"rank": found.rank, "condition": found.condition} | estimates, (found.words,))


def _safe_exponent(A: Matrix, plan: Plan) -> int:
    """Passes compute in double precision, panels in that of the matrix."""
    return min(SAFE_EXPONENT, SAFE_EXPONENTS[np.finfo(A.dtype).bits]) if plan.method == "panels" else SAFE_EXPONENT


def _unscaled(outcome: Outcome, exponent: int, shifts: Sequence[int], dtype: np.dtype[Any], *, is_vector: bool) -> Outcome:
    """What is told of a solution whose columns are ``2^shifts`` larger, for a matrix that is ``2^exponent`` larger."""
    arrays, estimates, X = dict(outcome.arrays), dict(outcome.estimates), outcome.arrays["x"]
    if exponent or any(shifts):
        if "s" in arrays:
            arrays["s"] = scaled_back(arrays["s"], exponent, arrays["s"].dtype, what="The singular values")
        with np.errstate(over="ignore", under="ignore"):
            # A residual is as large as its right-hand side, and squared.
            squares = [2 * (shift + exponent) for shift in shifts]
            estimates["residuals"] = np.ldexp(estimates["residuals"], squares).tolist()
            estimates["norm_of_x"] = np.ldexp(estimates["norm_of_x"], shifts).tolist()
    arrays["x"] = X[:, 0] if is_vector else X
    return replace(outcome, arrays=arrays, estimates=estimates, notes=outcome.notes + scale_words(exponent))


def _tall(passes: Passes, A: Matrix, B: Matrix, plan: Plan, cutoff: float) -> Solution:
    n, k = A.shape[1], B.shape[1]
    inverse, parts, sizes = None, [], []
    for first in range(0, k, _batch(n)):
        some = B if k <= _batch(n) else RowRange(B.T, first, min(first + _batch(n), k)).T
        fold = AugmentedQR(n, some.shape[1], np.result_type(A.dtype, B.dtype), first)
        triangle = passes.sweep(f"triangle-{first}", [A, some], fold, plan.rows)["triangle"]
        inverse = inverse or PseudoInverse.of(triangle[:n, :n], cutoff)
        parts.append(inverse.apply(triangle[:n, n:]))
        sizes += safe_norm(triangle[:, n:], axis=0).tolist()
    assert inverse is not None
    words, number = "TSQR with the right-hand sides reduced in the same pass", inverse.condition(A.shape, inverse.s.dtype)
    sizes = [inverse.largest, *sizes]
    return Solution(np.hstack(parts), inverse.rank, inverse.s, number, words, sizes, kept=inverse.kept)


def _wide(passes: Passes, A: Matrix, B: Matrix, plan: Plan, cutoff: float) -> Solution:
    # The transpose is what can be read by columns of A: A^T = Q R, so A = R^T Q^T and X = conj(Q) (R^T)^+ B.
    T = A.T
    gram = sweep_gram(passes, T, plan.rows)
    basis, how = find_basis(passes, T, plan.rows, gram, step="basis")
    inverse = PseudoInverse.of(np.triu(basis.R), cutoff)
    rhs = read_rhs(B, 0, B.shape[0])
    Z = inverse.apply_adjoint(rhs.conj())
    if not largest_part(Z) <= float(np.finfo(A.dtype).max) / 2**8:
        raise OutOfRange(f"Coefficients of the solution overflow {A.dtype}.")
    parts = [Z] if A.dtype.kind == "c" or Z.dtype.kind != "c" else [Z.real, Z.imag]
    rotated = []
    for i, part in enumerate(parts):
        rotation = Rotation(basis.rotated(part), part)
        rotated.append(passes.sweep(f"solution-{i}", T, rotation, plan.rows)["rows"])
    X = rotated[0] if len(parts) == 1 else rotated[0] + 1j * rotated[1]
    sizes = [inverse.largest, *safe_norm(rhs, axis=0).tolist()]
    Y = inverse.apply(Z).conj()
    kept = None if inverse.kept is None else inverse.kept.conj()
    # The triangle may be held in a precision that the products which it was made of do not have.
    number = inverse.condition(A.shape, A.dtype)
    return Solution(X.conj(), inverse.rank, inverse.s, number, f"of the transpose: {how}", sizes, Y, kept)


KIND = Kind(
    name="lstsq",
    title="Least squares",
    words="Least squares: the solution of minimum norm, and the numerical rank.",
    arrays="`x` (n, k), of minimum norm; `s` where it was needed",
    options=LstsqOptions,
    plan=plan_lstsq,
    compute=compute_lstsq,
    dimensions={"x": ("column",)},
    example="{kind: lstsq, input: {matrix: a.zarr, rhs: b.zarr}}",
    roles=(Role("matrix"), RHS),
)
