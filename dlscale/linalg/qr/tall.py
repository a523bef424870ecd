"""QR of a tall matrix: A = Q R with Q (m, n) orthonormal and R (n, n) upper triangular, its diagonal not negative."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dlscale.certificates import LAPACK_THRESHOLD, Certificate, Check, orthogonality
from dlscale.declaration.options import Options
from dlscale.declaration.sections import BlockRows
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import bytes_of, lay_out, measured_rates
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Grids, Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import SpecError
from dlscale.kernels import accumulator_dtype, one_blas_thread
from dlscale.linalg.conditions import condition_number
from dlscale.linalg.folds.orthogonal import find_basis
from dlscale.linalg.folds.products import sweep_gram
from dlscale.linalg.qr import pivoted
from dlscale.linalg.scaling import at_safe_scale, scale_words, scaled_back
from dlscale.linalg.svd.left_factor import LeftFactor
from dlscale.linalg.svd.subspace import gaussian
from dlscale.storage.matrix import Matrix

Mode = Literal["reduced", "r"]
_N_PROBES = 4


@dataclass(frozen=True)
class TallQROptions(Options):
    """What to compute. R alone also takes Q, block by block, which certifies it."""

    mode: Annotated[Mode, Field(description="reduced (Q and R) or r (R alone)")] = "reduced"
    pivoting: Annotated[bool, Field(description="true or false: whether columns are exchanged so that R tells the rank")] = False
    block_rows: BlockRows = None

    def check(self, shape: tuple[int, int]) -> None:
        """Check the options against the matrix.

        Raises
        ------
        SpecError
        """
        if shape[0] < shape[1]:
            raise SpecError(f"input.matrix: must be a tall matrix (rows >= columns) for passes; got {shape[0]} x {shape[1]}.")


def plan_tall_qr(A: Matrix, options: TallQROptions, facts: ClusterFacts) -> Plan:
    """Plan a QR factorization.

    Raises
    ------
    SpecError
        If the matrix is wide.
    DoesNotFitError
    """
    options.check(A.shape)
    m, n = A.shape
    item, read = A.dtype.itemsize, A.n_stored_bytes
    layout = lay_out(
        A,
        facts,
        state_bytes=bytes_of(n, n, dtype=accumulator_dtype(A.dtype)),
        operand_bytes=3 * n * n * item,
        block_factor=5.0,
        block_rows=options.block_rows,
    )
    written = m * n * item if options.mode == "reduced" else 0
    pivoting = (Step("pivoting", pivoted.flops(n, n), where="driver"),) if options.pivoting else ()
    return Plan(
        kind="qr",
        method="passes",
        words="Cholesky QR in as many rounds as the measured condition asks for, or TSQR where it is too large"
        + ("; then R by column pivoting" if options.pivoting else ""),
        matrix=A.describe(),
        grids=Grids(rows=layout.grid),
        steps=(
            Step("gram", float(m) * n * n, read),
            Step("basis-round-2", 2.0 * m * n * n, read),
            *pivoting,
            Step("q", 3.0 * m * n * n, read, written),
        ),
        memory=layout.memory,
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts),
        notes=(*layout.notes, *A.notes),
    )


def compute_tall_qr(run: Run, A: Matrix, options: TallQROptions, plan: Plan) -> Outcome:
    """Compute a QR factorization by its plan; Q goes to the outputs of the run as ``q``.

    Returns
    -------
    Outcome
        With ``r`` (n, n), and with pivoting ``p`` (n,).

    Notes
    -----
    2 to 4 reads of A, or 3 with TSQR; each round of Cholesky QR costs 2 m n^2 flops.
    """
    passes = Passes(run)
    found, exponent = at_safe_scale(passes, A, plan.rows, partial(_factor, grid=plan.rows, options=options))
    r = scaled_back(found.arrays["r"], exponent, A.dtype, what="The entries of R")
    return replace(found, arrays=found.arrays | {"r": r}, notes=found.notes + scale_words(exponent))


def _factor(passes: Passes, A: Matrix, *, grid: RowGrid, options: TallQROptions) -> Outcome:
    m, n = A.shape
    dtype, keep = A.dtype, options.mode == "reduced"
    gram = sweep_gram(passes, A, grid)
    basis, how = find_basis(passes, A, grid, gram, step="basis")
    probes = gaussian(n, _N_PROBES, 0, dtype).astype(dtype)
    with one_blas_thread():
        R = np.triu(basis.R)
    Q, R, p = pivoted.pivot_triangle(R) if options.pivoting else pivoted.Pivoted(np.eye(n), R, np.arange(n))
    with one_blas_thread():
        expected = R @ probes[p]
    fold = LeftFactor(basis.rotated(Q), n, probes, np.ascontiguousarray(expected, dtype), keep_U=keep, met=False)
    outputs = [passes.run.output("q", (m, n), dtype, grid)] if keep else []
    measured = passes.sweep("q", A, fold, grid, outputs=outputs)
    eps = float(np.finfo(dtype).eps)
    size = np.sqrt(max(float(np.trace(gram).real), np.finfo(float).tiny))
    certificate = Certificate(
        (
            orthogonality("Q", measured["gram"], dtype, "the columns of Q are orthonormal to working precision", length=m),
            Check(
                "||(A - QR)x|| / (||A|| ||x|| n eps)",
                float(np.sqrt(np.trace(measured["residual"]).real) / (size * np.linalg.norm(probes) * n * eps)) * np.sqrt(n),
                LAPACK_THRESHOLD,
                "on random vectors, Q R acts as the matrix does",
            ),
        )
    )
    s = np.linalg.svd(R, compute_uv=False)
    estimates: dict[str, Any] = {"condition": condition_number(s[0], s[-1], A.shape, dtype)}
    if options.pivoting:
        estimates |= pivoted.rank_of(np.diagonal(R), A.shape, dtype)
    return Outcome({"r": R} | ({"p": p} if options.pivoting else {}), ("q",) if keep else (), certificate, estimates, (how,))
