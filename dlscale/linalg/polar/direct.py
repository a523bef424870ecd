"""By an orthonormal basis and LAPACK: A = Q R, R = X S V^H, U = Q (X V^H), P = V S V^H."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import LAPACK_THRESHOLD, Certificate, Check, orthogonality
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import bytes_of, lay_out, measured_rates
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Grids, Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.kernels import accumulator_dtype, one_blas_thread, safe_norm
from dlscale.lapack import svd
from dlscale.linalg.conditions import condition_number
from dlscale.linalg.folds.orthogonal import find_basis
from dlscale.linalg.folds.products import sweep_gram
from dlscale.linalg.panels.products import probes
from dlscale.linalg.polar.check import Shift, hermitian_check
from dlscale.linalg.polar.options import PolarOptions
from dlscale.linalg.scaling import at_safe_scale, scale_words, scaled_back
from dlscale.linalg.svd.left_factor import LeftFactor
from dlscale.storage.matrix import Matrix

#: Flops of an SVD with both factors, in n^3.
_SVD_FLOPS = 22.0
SINGULAR = (
    "the matrix is singular to working precision: P is determined, and this U is one of several that are all nearest to the matrix"
)


def plan_direct(A: Matrix, options: PolarOptions, facts: ClusterFacts) -> Plan:
    """Plan the passes and the SVD of the triangle in the driver.

    Raises
    ------
    DoesNotFitError
    """
    tall = _oriented(A, options)
    (m, n), item, read = tall.shape, A.dtype.itemsize, A.n_stored_bytes
    layout = lay_out(
        tall,
        facts,
        state_bytes=bytes_of(n, n, dtype=accumulator_dtype(A.dtype)),
        operand_bytes=6 * n * n * item,
        block_factor=5.0,
    )
    return Plan(
        kind="polar",
        method="direct",
        words="orthonormal basis (Cholesky QR, or TSQR where the condition asks for it), then the SVD of R",
        matrix=A.describe(),
        grids=Grids(rows=layout.grid),
        transposed=options.side == "left",
        steps=(
            Step("gram", float(m) * n * n, read),
            Step("basis-round-2", 2.0 * m * n * n, read),
            Step("triangle", _SVD_FLOPS * n**3, where="driver"),
            Step("u", 3.0 * m * n * n, read, m * n * item),
        ),
        memory=layout.memory,
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(tall, facts),
        notes=(*layout.notes, *A.notes),
    )


def compute_direct(run: Run, A: Matrix, options: PolarOptions, plan: Plan) -> Outcome:
    """Compute by the plan; ``u`` goes to the outputs of the run.

    Returns
    -------
    Outcome
        With ``p`` on request.

    Notes
    -----
    2 to 5 reads of the matrix, 6 m n^2 flops in passes.
    """
    found, exponent = at_safe_scale(
        Passes(run), _oriented(A, options), plan.rows, partial(_factor, grid=plan.rows, transposed=plan.transposed)
    )
    arrays = {}
    if options.mode == "both":
        arrays["p"] = scaled_back(found.arrays["p"], exponent, A.dtype, what="The entries of P")
    estimates = found.estimates | {"distance": _distance(found.arrays["s"], exponent)}
    return replace(found, arrays=arrays, estimates=estimates, notes=found.notes + scale_words(exponent))


def _oriented(A: Matrix, options: PolarOptions) -> Matrix:
    """Of A^T, U is the transpose of that of A, and P the conjugate of the left one."""
    return A if options.side == "right" else A.T


def _distance(s: Array, exponent: int) -> float:
    """``||A - U||_F``."""
    with np.errstate(over="ignore", under="ignore"):
        return float(safe_norm(np.ldexp(s.astype(float), exponent) - 1))


def _factor(passes: Passes, A: Matrix, *, grid: RowGrid, transposed: bool) -> Outcome:
    (m, n), dtype = A.shape, A.dtype
    gram = sweep_gram(passes, A, grid)
    basis, how = find_basis(passes, A, grid, gram, step="basis")
    with one_blas_thread():
        X, s, VH = svd(basis.R)
        P = (VH.conj().T * s) @ VH
        P = (P + P.conj().T) / 2
        W, Y = X @ VH, probes(n, dtype)
        PY = np.ascontiguousarray(P @ Y, dtype)
        norm, trace = float(np.linalg.norm(s.astype(float))), float(s.astype(float).sum())
        shift = Shift.of(n, norm, trace, dtype)
        definite = _is_definite(P, shift.size)
    output = passes.run.output("u", (m, n), dtype, grid, transposed=transposed)
    measured = passes.sweep("u", A, LeftFactor(basis.rotated(W), n, Y, PY, met=False), grid, outputs=[output])
    eps, lines = float(np.finfo(dtype).eps), "rows" if transposed else "columns"
    size = max(norm, np.finfo(float).tiny)
    residual = float(np.sqrt(np.trace(measured["residual"]).real) / size / (np.linalg.norm(Y) * n * eps)) * np.sqrt(n)
    difference = float(np.linalg.norm((P - P.conj().T) @ Y))
    certificate = Certificate(
        (
            orthogonality("U", measured["gram"], dtype, f"the {lines} of U are orthonormal to working precision", length=m),
            Check(
                "||(A - UP)x|| / (||A|| ||x|| n eps)",
                residual,
                LAPACK_THRESHOLD,
                "on random vectors, U P acts as the matrix does",
            ),
            hermitian_check(difference, float(np.linalg.norm(PY)), n, dtype),
            shift.check(definite=definite, lines=lines),
        )
    )
    number = condition_number(s[0], s[-1], A.shape, dtype)
    notes = [how] + ([SINGULAR] if np.isinf(number) else [])
    P = P.conj() if transposed else P
    return Outcome({"p": P.astype(dtype), "s": s}, ("u",), certificate, {"condition": number}, tuple(notes))


def _is_definite(P: Array, shift: float) -> bool:
    wide = P.astype(accumulator_dtype(P.dtype)) + shift * np.eye(len(P))
    try:
        np.linalg.cholesky(wide)
    except np.linalg.LinAlgError:
        return False
    return True
