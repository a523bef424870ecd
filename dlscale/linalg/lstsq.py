"""Least squares: the X of minimum norm among those that minimize ||B - A X||, and the numerical rank of A.

Three ways, by the shape of A (m x n):

- tall: one pass reduces ``[A B]`` to a triangle, ``Q^H [A B] = [R C; 0 *]``; then ``X = R^+ C``;
- wide: the same of the adjoint, ``A^H = Q R``; then ``X = Q (R^H)^+ B``;
- neither, and too large for the small side to fit beside a block: Householder QR by panels.

The pseudo-inverse of R is by its singular values, of which those up to ``rcond`` times the largest count as zero, as in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlscale.certificates import Certificate, scaled
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import Layout, PassCost, Plan, bytes_of, lay_out, measured_rates
from dlscale.engine.outcome import Outcome
from dlscale.engine.passes import Passes
from dlscale.errors import DoesNotFitError, NumericalError, SpecError
from dlscale.kernels import accumulator_dtype, one_blas_thread
from dlscale.linalg.condition import condition
from dlscale.linalg.factor_plan import PanelPlan
from dlscale.linalg.factoring import FACTORS, factor_orthogonally, plan_factoring
from dlscale.linalg.factors import QRFactors, TopRows
from dlscale.linalg.least_squares_folds import AugmentedQR, NormalResidual, Rotation, WideGradient, WideProduct, read_rhs
from dlscale.linalg.orthogonal import find_basis
from dlscale.linalg.products import sweep_gram
from dlscale.linalg.triangular import solve_triangular
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import Array, Matrix

#: Beyond so many columns on its small side, a matrix that is not clearly long is factored by panels.
PASS_COLUMNS = 2048
CLEARLY_LONG = 4


@dataclass(frozen=True)
class LstsqOptions:
    """How to solve a least squares problem.

    Parameters
    ----------
    rcond : float, optional
        Singular values up to this part of the largest count as zero; eps max(m, n) when absent, as in NumPy.
    panel : int, optional
        Columns of a panel, where panels are used.
    block_rows : int, optional
        Rows of a block of a pass, instead of the planner's choice.
    """

    rcond: float | None = None
    panel: int | None = None
    block_rows: int | None = None

    def cutoff(self, A: Matrix) -> float:
        """The relative size at which a singular value counts as zero."""
        return float(np.finfo(A.dtype).eps) * max(A.shape) if self.rcond is None else self.rcond


def plan_lstsq(inputs: Inputs, options: LstsqOptions, facts: ClusterFacts) -> Plan:
    """Plan a least squares problem.

    Raises
    ------
    SpecError
        If the right-hand sides do not suit the matrix.
    DoesNotFitError
    """
    A, B = inputs["matrix"], inputs["rhs"]
    (m, n), k = A.shape, B.shape[1]
    if B.shape[0] != m:
        raise SpecError(f"input.rhs: must have {m} rows like the matrix; got {B.shape[0]}.")
    if options.rcond is not None and not 0 <= options.rcond < 1:
        raise SpecError(f"params.rcond: must be at least 0 and less than 1; got {options.rcond}.")
    long, transposed = (A.T, True) if m < n else (A, False)
    check = PassCost("check", 4.0 * m * n * k, A.n_stored_bytes)
    layout = _lay_out_passes(long, k, transposed, options, facts)
    if layout is None:
        factored = A.T if transposed else A
        driver_bytes = (4 * max(m, n) * k) * accumulator_dtype(A.dtype).itemsize
        plan = plan_factoring(
            "lstsq", factored, facts, orthogonal=True, panel=options.panel, driver_bytes=driver_bytes, more=(check,)
        )
        return replace(plan, matrix=A.describe(), transposed=transposed)
    long_m, long_n = long.shape
    if transposed:
        words = "QR of the adjoint in passes (Cholesky QR or TSQR, by the measured condition), singular values of R"
        costs = [
            PassCost("gram", float(long_m) * long_n**2, A.n_stored_bytes),
            PassCost("basis-round-2", 2.0 * long_m * long_n**2, A.n_stored_bytes),
            PassCost("solution", 2.0 * long_m * long_n * (long_n + k), A.n_stored_bytes),
        ]
    else:
        words = "QR of the matrix and the right-hand sides in one pass (TSQR), singular values of R"
        width = long_n + min(k, _batch(long_n))
        costs = [PassCost("triangle", 2.0 * long_m * width**2, A.n_stored_bytes)] * -(-k // _batch(long_n))
    return Plan(
        kind="lstsq",
        algorithm=words,
        matrix=A.describe(),
        grid=layout.grid,
        transposed=transposed,
        passes=(*costs, check),
        peak_bytes_per_worker=layout.peak_bytes,
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts),
        notes=(*layout.notes, *A.notes),
        driver_flops=20.0 * long_n**3,
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


def compute_lstsq(passes: Passes, inputs: Inputs, options: LstsqOptions, plan: Plan) -> Outcome:
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
    A, B = inputs["matrix"], inputs["rhs"]
    cutoff = options.cutoff(A)
    if isinstance(plan, PanelPlan):
        found = _by_panels(passes, A, B, plan, cutoff)
    elif plan.transposed:
        found = _wide(passes, A, B, plan, cutoff)
    else:
        found = _tall(passes, A, B, plan, cutoff)
    dtype = np.result_type(A.dtype, np.complex64) if B.dtype.kind == "c" else A.dtype
    X = found.X.astype(dtype)
    certificate, estimates = _check(passes, A, B, X, plan)
    arrays = {"x": X[:, 0] if B.is_vector else X} | ({} if found.s is None else {"s": found.s})
    return Outcome(arrays, (), certificate, {"rank": found.rank, "condition": found.condition} | estimates, (found.words,))


@dataclass(frozen=True)
class Solution:
    """A least squares solution of minimum norm.

    Parameters
    ----------
    X : (n, k)
    rank : int
    s : (min(m, n),), optional
    condition : float
        Ratio of the largest to the smallest singular value, or an estimate of it.
    words : str
    """

    X: Array
    rank: int
    s: Array | None
    condition: float
    words: str


@dataclass(frozen=True)
class PseudoInverse:
    """``R^+`` of a small matrix by its singular values."""

    U: Array
    s: Array
    VH: Array
    rank: int

    @classmethod
    def of(cls, R: Array, cutoff: float) -> PseudoInverse:
        with one_blas_thread():
            U, s, VH = np.linalg.svd(R, full_matrices=False)
        return cls(U, s, VH, int((s > cutoff * s[0]).sum()) if s.size else 0)

    def apply(self, C: Array) -> Array:
        """``R^+ C``."""
        r = self.rank
        return np.asarray(self.VH[:r].conj().T @ ((self.U[:, :r].conj().T @ C) / self.s[:r, None]))

    def apply_adjoint(self, C: Array) -> Array:
        """``(R^H)^+ C``."""
        r = self.rank
        return np.asarray(self.U[:, :r] @ ((self.VH[:r] @ C) / self.s[:r, None]))

    @property
    def condition(self) -> float:
        return float(self.s[0] / self.s[-1]) if self.s[-1] > 0 else float("inf")


def _tall(passes: Passes, A: Matrix, B: Matrix, plan: Plan, cutoff: float) -> Solution:
    n, k = A.shape[1], B.shape[1]
    inverse, parts = None, []
    for first in range(0, k, _batch(n)):
        columns = (first, min(first + _batch(n), k))
        triangle = passes.sweep(f"triangle-{first}", A, AugmentedQR(n, B, columns, A.dtype), plan.grid)["triangle"]
        inverse = inverse or PseudoInverse.of(triangle[:n, :n], cutoff)
        parts.append(inverse.apply(triangle[:n, n:]))
    assert inverse is not None
    words = "TSQR with the right-hand sides reduced in the same pass"
    return Solution(np.hstack(parts), inverse.rank, inverse.s, inverse.condition, words)


def _wide(passes: Passes, A: Matrix, B: Matrix, plan: Plan, cutoff: float) -> Solution:
    # The transpose is what can be read by columns of A: A^T = Q R, so A = R^T Q^T and X = conj(Q) (R^T)^+ B.
    T = A.T
    gram = sweep_gram(passes, T, plan.grid)
    basis, how = find_basis(passes, T, plan.grid, gram, step="basis")
    inverse = PseudoInverse.of(np.triu(basis.R), cutoff)
    Z = inverse.apply_adjoint(read_rhs(B, 0, B.shape[0]).conj())
    parts = [Z] if A.dtype.kind == "c" or Z.dtype.kind != "c" else [Z.real, Z.imag]
    rotated = []
    for i, part in enumerate(parts):
        rotation = Rotation(basis.rotated(part), part)
        rotated.append(passes.sweep(f"solution-{i}", T, rotation, plan.grid)["rows"])
    X = rotated[0] if len(parts) == 1 else rotated[0] + 1j * rotated[1]
    return Solution(X.conj(), inverse.rank, inverse.s, inverse.condition, f"of the transpose: {how}")


def _by_panels(passes: Passes, A: Matrix, B: Matrix, plan: PanelPlan, cutoff: float) -> Solution:
    long = A.T if plan.transposed else A
    factors = factor_orthogonally(passes, long, plan, name=FACTORS)
    n, rhs = long.shape[1], read_rhs(B, 0, B.shape[0])
    R = TopRows(factors.factored.matrix, n)
    number = _triangle_condition(R, factors)
    small = n * n * A.dtype.itemsize * 6 <= plan.cluster.memory_bytes // 2
    words = "Householder QR by panels"
    # ||.||_2 is at most sqrt(n) ||.||_1, and the estimate within a factor of 3.
    if 3 * n * number < 1 / cutoff or (not small and 3 * number < 1 / cutoff):
        if not plan.transposed:
            return Solution(factors.solve(rhs), n, None, number, f"{words}; full rank")
        return Solution(factors.solve(rhs.conj(), adjoint=True).conj(), n, None, number, f"{words} of the transpose; full rank")
    if not small:
        raise NumericalError(
            f"The matrix has no full rank (condition about {number:.1e}), and its numerical rank needs the singular values of a "
            f"triangle of order {n}, for which there is no room; raise cluster.memory."
        )
    inverse = PseudoInverse.of(np.triu(R.region((0, n), (0, n))), cutoff)
    if not plan.transposed:
        X = inverse.apply(factors.rotated(rhs)[:n])
    else:
        Z = inverse.apply_adjoint(rhs.conj())
        X = factors.unrotated(np.concatenate([Z, np.zeros((long.shape[0] - n, Z.shape[1]), Z.dtype)])).conj()
    return Solution(X, inverse.rank, inverse.s, inverse.condition, f"{words}, singular values of R")


def _triangle_condition(R: Matrix, factors: QRFactors) -> float:
    n = R.shape[0]
    sums = np.zeros(n)
    for i in range(0, n, 512):
        rows = R.region((i, min(i + 512, n)), (0, n))
        sums += np.abs(np.triu(rows, i)).sum(axis=0)
    threads = factors.n_threads
    return condition(
        float(sums.max()),
        lambda X: solve_triangular(R, X, lower=False, n_threads=threads),
        lambda X: solve_triangular(R, X, lower=False, op="C", n_threads=threads),
        n,
        complex_valued=R.dtype.kind == "c",
    )


def _check(passes: Passes, A: Matrix, B: Matrix, X: Array, plan: Plan) -> tuple[Certificate, dict[str, Any]]:
    """Measure the solution in one read of A.

    References
    ----------
    LAPACK ``dqrt16`` (the residual of what can be solved) and ``dqrt17`` (it is orthogonal to the columns of A).
    """
    m, n = A.shape
    X = X.astype(accumulator_dtype(X.dtype), copy=False)
    if plan.transposed:
        rhs = read_rhs(B, 0, m)
        seen = passes.sweep("check-product", A.T, WideProduct(X, m), plan.grid)
        R = rhs - seen["product"]
        gradient = float(np.sqrt(passes.sweep("check-gradient", A.T, WideGradient(R), plan.grid)["gradient"][0]))
        residuals, rhs_square = (np.abs(R) ** 2).sum(axis=0), float(np.linalg.norm(rhs) ** 2)
    else:
        seen = passes.sweep("check", A, NormalResidual(X, B), plan.grid)
        gradient = float(np.linalg.norm(seen["gradient"]))
        residuals, rhs_square = seen["residuals"], float(seen["rhs"][0])
    size = float(np.sqrt(seen["matrix"][0]))
    check = scaled(
        "||A'(b - Ax)|| / (||A|| (||b|| + ||A|| ||x||) max(m, n) eps)",
        gradient,
        size,
        float(np.sqrt(rhs_square) + size * np.linalg.norm(X)),
        size=max(m, n),
        dtype=A.dtype,
        meaning="the residual is orthogonal to the columns of A: no other x comes closer",
    )
    return Certificate((check,)), {"residuals": residuals.tolist(), "norm_of_x": np.linalg.norm(X, axis=0).tolist()}
