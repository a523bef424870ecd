"""Generalized eigenpairs ``A X = B X L`` with a positive definite B, in the memory of a worker: by ``B = L L^H`` and LAPACK.

    C = L^-1 A L^-H,    C Y = Y L,    X = L^-H Y

All pairs are found and measured, on A and B as they are stored, and those that are wanted are written. Where B is so ill
conditioned that some are not exact up to rounding, all are found again, more slowly (`graded`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Check, scaled
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.columns import Applied, Columns, Span, Tell
from dlscale.engine.costs import libraries, measured_rates
from dlscale.engine.grids import RowGrid
from dlscale.engine.outputs import RowOutput
from dlscale.engine.plan import Grids, Need, Plan, Step
from dlscale.engine.run import Cost, Run, State
from dlscale.errors import DoesNotFitError, NumericalError
from dlscale.kernels import accumulator_dtype, blas_threads, times_power_of_two
from dlscale.lapack import factor_cholesky, solve_lower, solve_right
from dlscale.linalg.eigen import direct
from dlscale.linalg.eigen.direct import EFFICIENCY, N_PROBES, SAFETY, Choice
from dlscale.linalg.eigen.graded import graded_eigenpairs, pivoted_cholesky
from dlscale.linalg.eigen.pairs import Pairs, Which, indefinite_words, rank
from dlscale.linalg.eigen.tridiagonal import evd, evr
from dlscale.linalg.in_memory import patiently
from dlscale.linalg.svd.subspace import gaussian
from dlscale.linalg.symmetry import require_symmetric
from dlscale.storage.matrix import Matrix


@dataclass(frozen=True)
class Generalized(Applied):
    """Finds all pairs of a pencil, measures them, and writes those that are wanted.

    Parameters
    ----------
    A, B : Matrix (n, n), of one dtype
    output : RowOutput (n, k)
    which : str
    choice : Choice
    seed : int
    """

    A: Matrix
    B: Matrix
    output: RowOutput
    which: Which
    choice: Choice
    seed: int

    def cost(self, slabs: Sequence[Span]) -> Cost:
        n, k = self.A.shape[0], slabs[0][1]
        return Cost(flops(n, self.choice.routine), n_bytes_read(self.A, self.B), n * k * self.A.dtype.itemsize)

    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        n, k = self.A.shape[0], slabs[0][1]
        with blas_threads(self.choice.n_threads):
            found = self._found(tell, graded=False)
            if not residual_check(found, n, self.A.dtype).passed:
                del found["vectors"]
                found = self._found(tell, graded=True)
        order = rank(found["values"], self.which)
        chosen = np.sort(order[:k])
        tell(self.cost(slabs).flops, 0)
        direct.write_columns(self.output, times_power_of_two(found.pop("vectors")[chosen], -int(found["e"][0]) // 2))
        nearest = found["values"][order[k : k + 1]].astype(float)
        return [found | {name: found[name][chosen] for name in ("values", "bars", "hidden")} | {"nearest": nearest}]

    def _found(self, tell: Tell, *, graded: bool) -> State:
        """All pairs, ``vectors`` as rows and conjugated, of A and B near 1; ``graded`` where B is ill conditioned."""
        n, dtype = self.A.shape[0], self.A.dtype
        L, e = direct.read_near_one(self.B, tell, even=True)
        require_symmetric(L, "input.b")
        p = factor_b(L, graded=graded)
        C, exponent = direct.read_near_one(self.A, tell)
        require_symmetric(C)
        P = np.empty((n, 2 * N_PROBES), dtype)
        P[:, :N_PROBES] = gaussian(n, N_PROBES, self.seed, dtype)
        P[p, N_PROBES:] = solve_lower(L, P[p, :N_PROBES].copy(), op="C")
        products = C @ P, direct.times(self.B, P, -e, tell)
        if graded:
            C = C[np.ix_(p, p)]
        solve_right(solve_lower(L, C), L, uplo="L", op="C")
        routine = "ev" if graded else self.choice.routine
        find = {"ev": partial(graded_eigenpairs, C), "evd": partial(evd, C), "evr": partial(evr, C, 0, n)}[routine]
        values, XH, info = patiently(tell, find)
        if info:
            raise NumericalError(f"LAPACK {routine} did not converge (info = {info}).")
        solve_right(XH, L, uplo="L")
        if graded:
            XH[:, p] = XH.copy()
        U = (gaussian(n, N_PROBES, self.seed + 1, dtype).astype(dtype).conj().T @ XH).conj().T
        measured = self._measure(values, XH, products, P[:, N_PROBES:], U, direct.times(self.B, U, -e, tell))
        return measured | {"values": values, "vectors": XH, "exponent": np.array([exponent - e]), "e": np.array([e])}

    def _measure(self, values: Array, XH: Array, products: tuple[Array, Array], lifted: Array, U: Array, BU: Array) -> State:
        """Residuals ``r = A x - lambda B x`` of all pairs on random vectors, and of ``L^-1 r``, the error of lambda.

        The products are those of random vectors and, behind them, of ``lifted``, which are ``L^-H`` times these.
        """
        wide, (AP, BP), p = accumulator_dtype(XH.dtype), products, N_PROBES
        left = (XH @ AP).astype(wide) - values[:, None] * (XH @ BP).astype(wide)
        # Of a complex normal vector the two parts have unit variance each.
        parts = 2 if XH.dtype.kind == "c" else 1
        squares = np.abs(left) ** 2 / (p * parts)
        residuals, bars = (SAFETY * np.sqrt(squares[:, part].sum(axis=1)) for part in (slice(0, p), slice(p, None)))
        n = len(XH)
        norms = [np.linalg.norm(M[:, :p].astype(wide), axis=0).max() / np.sqrt(n * parts) for M in products]
        lengths = np.linalg.norm(XH.astype(wide), axis=1)
        size = (norms[0] + np.abs(values) * norms[1]) * lengths
        errors = np.divide(residuals, size, out=np.where(residuals > 0, np.inf, 0.0), where=size > 0)
        inverse = SAFETY * float(np.linalg.norm(lifted)) / np.sqrt(p * parts)
        given = gaussian(n, p, self.seed + 1, XH.dtype)
        lost = SAFETY * np.linalg.norm((XH @ BU).astype(wide) - given) / np.sqrt(p * parts)
        return {
            "bars": bars,
            "hidden": float(np.finfo(XH.dtype).eps) / np.sqrt(n) * inverse * size,
            "error": np.array([errors.max()]),
            "departure": np.array([lost]),
            "size": np.array([norms[1] * lengths.max() ** 2]),
        }


def factor_b(B: Array, *, graded: bool) -> Any:
    """Leave L in B, the places of whose rows in B are returned."""
    if not graded:
        if minor := factor_cholesky(B):
            raise NumericalError(indefinite_words(minor))
        return slice(None)
    p, steps = pivoted_cholesky(B)
    if steps < len(B):
        raise NumericalError(
            f"input.b: is singular to working precision, of rank {steps} of {len(B)}; multiply both matrices from both sides by "
            "the eigenvectors of b whose eigenvalues are not negligible."
        )
    return p


def residual_check(found: State, n: int, dtype: np.dtype[Any]) -> Check:
    """What all pairs leave."""
    return scaled(
        "||Ax - l Bx|| / ((||A|| + |l| ||B||) ||x|| n eps)",
        float(found["error"][0]),
        size=n,
        dtype=dtype,
        meaning="each of all n pairs is an exact one of matrices that differ from A and B by rounding only: none was missed",
    )


def find_generalized(
    run: Run, A: Matrix, B: Matrix, *, k: int, which: Which, choice: Choice, seed: int
) -> tuple[Pairs, tuple[Check, ...]]:
    """The wanted pairs of a pencil with their checks; ``eigenvectors`` (n, k) go to the outputs of the run."""
    n, dtype = A.shape[0], A.dtype
    rows = min(n, 512)
    output = run.output("eigenvectors", (n, k), dtype, RowGrid(n, rows, rows))
    what = Generalized(A, B, output, which, choice, seed)
    (found,) = Columns(run, run.cluster.facts).apply("eigenpairs", what, n_columns=k, width=k, writers=output.writers)
    nearest = float(found["nearest"][0]) if len(found["nearest"]) else None
    largest = float(np.abs(found["values"]).max())
    departure, exponent = float(found["departure"][0]), int(found["exponent"][0])
    pairs = Pairs(found["values"], found["bars"], found["hidden"], largest, departure, nearest, exponent)
    checks = (
        residual_check(found, n, dtype),
        scaled(
            "||I - X'BX|| / (||B|| ||X||^2 n eps)",
            pairs.departure,
            float(found["size"][0]),
            size=n,
            dtype=dtype,
            meaning="the eigenvectors are orthonormal with respect to B, to working precision",
        ),
    )
    return pairs, checks


def plan_generalized(A: Matrix, B: Matrix, k: int, facts: ClusterFacts) -> Plan:
    """Plan k pairs of a pencil.

    Raises
    ------
    DoesNotFitError
    """
    n = A.shape[0]
    choice = choose(n, A.dtype, facts)
    square = n * n * A.dtype.itemsize
    if choice is None:
        needed = (3 * square + facts.memory_bytes - facts.work_bytes) / 1e9
        raise DoesNotFitError(
            f"One worker needs {needed:.2f} GB for two matrices of {n} rows and the eigenvectors, and has "
            f"{facts.memory_bytes / 1e9:.2f} GB; raise cluster.memory, or use fewer workers."
        )
    return Plan(
        kind="eigh",
        method="generalized",
        words=f"Cholesky of B, then LAPACK ({choice.routine}), in one task; BLAS threads: {choice.n_threads}",
        matrix=A.describe(),
        grids=Grids(),
        steps=(
            Step(
                "eigenpairs",
                flops(n, choice.routine),
                n_bytes_read(A, B),
                n * k * A.dtype.itemsize,
                n_threads=choice.n_threads * EFFICIENCY,
            ),
        ),
        memory=(
            Need("both matrices, read and overwritten", 2 * square),
            Need("vectors, and what LAPACK works in", choice.n_bytes - 2 * square),
            *libraries(facts),
        ),
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts),
        notes=tuple(A.notes),
        choices=asdict(choice),
    )


def choose(n: int, dtype: np.dtype[np.generic], facts: ClusterFacts) -> Choice | None:
    """How to call LAPACK, which finds all pairs; None where nothing fits."""
    n_threads = 1 if n < direct.MANY_THREADS_FROM else facts.threads_per_worker
    square = n * n * dtype.itemsize
    if n <= direct.LARGEST_EVD and 4 * square <= facts.work_bytes:
        return Choice("evd", 4 * square, False, n_threads)
    return Choice("evr", 3 * square, False, n_threads) if n <= direct.LARGEST and 3 * square <= facts.work_bytes else None


def flops(n: int, routine: direct.Routine) -> float:
    """Cholesky, the reduction to C, its eigenpairs, and these brought back."""
    return n**3 / 3 + 2.0 * n**3 + direct.flops(n, n, "largest", routine) + float(n) ** 3


def n_bytes_read(A: Matrix, B: Matrix) -> int:
    """A once; B to be factored and for two products."""
    return A.n_stored_bytes + 3 * B.n_stored_bytes
