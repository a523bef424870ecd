"""QR with column pivoting: A[:, p] = Q R, the diagonal of R not increasing but for rounding, by which a rank is told.

Of a tall matrix A = Q_1 R_1 comes first, without pivoting, and then R_1[:, p] = Q_2 R, which has the same pivots up to rounding and
the same backward error: Q = Q_1 Q_2. Others are factored in the memory of one worker, in one task with all of its threads.

References
----------
Golub and Van Loan (2013), section 5.4.2; Quintana-Orti, Sun, Bischof (1998); LAPACK ``geqp3``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import cython_lapack

from dlscale.arrays import Array
from dlscale.certificates import LAPACK_THRESHOLD, Certificate, Check
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.columns import Applied, Columns, Span, Tell
from dlscale.engine.costs import libraries, measured_rates
from dlscale.engine.grids import RowGrid
from dlscale.engine.outputs import RowOutput
from dlscale.engine.plan import Grids, Need, Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Cost, Run, State
from dlscale.errors import DoesNotFitError
from dlscale.kernels import blas_threads, largest_part, one_blas_thread, safe_exponent, times_power_of_two, unit_phases
from dlscale.lapack import call
from dlscale.linalg.in_memory import WORK_BYTES, n_blas_threads, patiently, read_all
from dlscale.linalg.panels.products import probes, scaled_residual
from dlscale.linalg.panels.scaling import times_back
from dlscale.linalg.scaling import require_digits, scale_words
from dlscale.storage.matrix import Matrix

#: 32-bit LAPACK: an index of the matrix.
LARGEST = 2**31 - 1
#: The part of the rate of a product at which LAPACK factors: half of the work is products with a vector.
EFFICIENCY = 0.4
#: Columns that LAPACK takes at a time.
_BLOCK = 32
_STRIP_ROWS = 512


class Pivoted(NamedTuple):
    """``M[:, p] = q r`` with a diagonal that is not negative."""

    q: Array
    r: Array
    p: Array


def pivoted_qr(F: Array) -> Pivoted:
    """Factor a matrix (m, n) whose transpose F (n, m) is given, in C order; F is overwritten, and q is a view of it."""
    n, m = F.shape
    k, p = min(m, n), np.zeros(n, np.intc)
    tau, work = np.empty(k, F.dtype), np.empty(2 * n + (n + 1) * _BLOCK + k * _BLOCK, F.dtype)
    real = [np.empty(2 * n, F.real.dtype)] if F.dtype.kind == "c" else []
    call(cython_lapack, "geqp3", F.dtype, m, n, F, m, p, tau, work, len(work), *real)
    r = np.triu(F.T[:k])
    name = "ungqr" if F.dtype.kind == "c" else "orgqr"
    call(cython_lapack, name, F.dtype, m, k, k, F, m, tau, work, len(work))
    d = np.diagonal(r)
    size, units = np.abs(d), unit_phases(d)
    r *= units.conj()[:, None]
    np.einsum("ii->i", r[:, :k])[...] = size
    F[:k] *= units[:, None]
    return Pivoted(F[:k].T, r, p.astype(np.intp) - 1)


def pivot_triangle(R: Array) -> Pivoted:
    """`pivoted_qr` of a triangle in memory, with one thread."""
    with one_blas_thread():
        return pivoted_qr(np.ascontiguousarray(R.T))


def rank_of(diagonal: Array, shape: tuple[int, int], dtype: np.dtype[Any]) -> dict[str, float | int]:
    """The rank that a diagonal of R tells, and the part of its first entry up to which the others count as zero."""
    sizes, tolerance = np.abs(diagonal).astype(float), max(shape) * float(np.finfo(dtype).eps)
    return {"rank": int((sizes > tolerance * sizes[0]).sum()), "rank_tolerance": tolerance}


def flops(m: int, n: int) -> float:
    """Of R, and of Q."""
    k = min(m, n)
    return 4.0 * m * n * k - 2.0 * (m + n) * k * k + 4.0 / 3 * k**3 + 2.0 * k * k * (m - k / 3)


def plan_pivoted(A: Matrix, mode: str, facts: ClusterFacts) -> Plan:
    """Plan a factorization in the memory of one worker.

    Raises
    ------
    DoesNotFitError
    """
    (m, n), item = A.shape, A.dtype.itemsize
    k = min(m, n)
    r_bytes, q_bytes = 2 * k * n * item, m * k * item if mode == "reduced" and facts.kind == "threads" else 0
    needed = A.n_bytes + r_bytes + q_bytes + WORK_BYTES
    if needed > facts.work_bytes or m * n > LARGEST:
        has = f"has {facts.memory_bytes / 1e9:.2f} GB" if m * n <= LARGEST else f"LAPACK takes {LARGEST} entries"
        raise DoesNotFitError(
            "params.pivoting: is for a tall matrix, with at least 4 times more rows than columns, or one that the memory of one "
            f"worker holds: {m} x {n} need {(needed + facts.memory_bytes - facts.work_bytes) / 1e9:.2f} GB, and {has}; leave it "
            "out, or raise cluster.memory."
        )
    n_threads = n_blas_threads(max(m, n), facts)
    written = (m * k if mode == "reduced" else 0) + k * n
    return Plan(
        kind="qr",
        method="pivoted",
        words=f"Householder QR with column pivoting in one task with {n_threads} thread{'s' * (n_threads > 1)}",
        matrix=A.describe(),
        grids=Grids(),
        steps=(Step("pivoted", flops(m, n), A.n_stored_bytes, written * item, n_threads=n_threads * EFFICIENCY),),
        memory=(
            Need("the matrix, factored in its place", A.n_bytes),
            Need("R, and Q where it stays in memory", r_bytes + q_bytes),
            Need("what is read", WORK_BYTES),
            *libraries(facts),
        ),
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts),
        notes=tuple(A.notes),
    )


@dataclass(frozen=True)
class FactorPivoted(Applied):
    """Reads a matrix, factors it, measures the factors and writes them.

    Parameters
    ----------
    A : Matrix (m, n)
    outputs : sequence of RowOutput
        Of R, and of Q where it is wanted.
    n_threads : int
        Of BLAS.
    """

    A: Matrix
    outputs: Sequence[RowOutput]
    n_threads: int

    def cost(self, slabs: Sequence[Span]) -> Cost:
        return Cost(flops(*self.A.shape), self.A.n_stored_bytes, sum(output.n_bytes for output in self.outputs))

    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        (m, n), dtype = self.A.shape, self.A.dtype
        F, X, Y = np.empty((n, m), dtype), probes(n, dtype), probes(min(m, n), dtype)
        read_all(self.A, F.T, tell)
        largest = largest_part(F)
        require_digits(largest, 0, dtype, what="The entries of the matrix and of R")
        exponent = safe_exponent(largest, dtype)
        if exponent:
            times_power_of_two(F, -exponent, out=F)
        with blas_threads(self.n_threads):
            AX = F.T @ X
            q, r, p = patiently(tell, lambda: pivoted_qr(F))
            residual = scaled_residual(AX - q @ (r @ X[p]), AX, max(m, n), dtype)
            departure = scaled_residual(q.conj().T @ (q @ Y) - Y, Y, len(Y), dtype)
        for output, factor in zip(self.outputs, (times_back(r, exponent) if exponent else r, q), strict=False):
            for i in range(0, len(factor), _STRIP_ROWS):
                output.write(i, np.ascontiguousarray(factor[i : i + _STRIP_ROWS]))
        tell(flops(m, n), 0)
        measured = {"residual": residual, "departure": departure, "exponent": exponent}
        return [{"p": p, "diagonal": np.diagonal(r).copy()} | {name: np.array([value]) for name, value in measured.items()}]


def compute_pivoted(run: Run, A: Matrix, mode: str, plan: Plan) -> Outcome:
    """Factor by the plan; ``q`` and ``r`` go to the outputs of the run.

    Returns
    -------
    Outcome
        With ``p`` (n,): column j of Q R is column ``p[j]`` of A.
    """
    (m, n), dtype = A.shape, A.dtype
    names = {"r": (min(m, n), n)} | ({"q": (m, min(m, n))} if mode == "reduced" else {})
    outputs = [run.output(name, shape, dtype, _strips(shape[0])) for name, shape in names.items()]
    what = FactorPivoted(A, outputs, n_blas_threads(max(m, n), plan.cluster))
    writers = [writer for output in outputs for writer in output.writers]
    (found,) = Columns(run, plan.cluster).apply("pivoted", what, n_columns=1, width=1, writers=writers)
    certificate = Certificate(
        (
            Check(
                "||(AP - QR)x|| / (||Ax|| max(m, n) eps)",
                float(found["residual"][0]),
                LAPACK_THRESHOLD,
                "on random vectors, Q R acts as the matrix with its columns exchanged does",
            ),
            Check(
                "||(Q'Q - I)y|| / (||y|| k eps)",
                float(found["departure"][0]),
                LAPACK_THRESHOLD,
                "the columns of Q are orthonormal to working precision",
            ),
        )
    )
    estimates = rank_of(found["diagonal"], A.shape, dtype)
    return Outcome({"p": found["p"]}, tuple(names), certificate, estimates, scale_words(int(found["exponent"][0])))


def _strips(n_rows: int) -> RowGrid:
    rows = min(n_rows, _STRIP_ROWS)
    return RowGrid(n_rows, rows, rows)
