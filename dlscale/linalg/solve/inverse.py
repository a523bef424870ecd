"""The inverse of a square matrix, by blocks of rows: each row of A^-1 is the adjoint of a column of A^-H."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Certificate, near_singular_words, scaled
from dlscale.declaration.kind import Kind, matrix_compute, matrix_plan
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.columns import SLAB_COPIES, Applied, Columns, Span, Tell, untold
from dlscale.engine.grids import RowGrid
from dlscale.engine.outputs import RowOutput
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Cost, Run, State
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.errors import NumericalError, SpecError
from dlscale.kernels import accumulator_dtype, times_power_of_two
from dlscale.linalg.panels.plan import FactorOptions, factor_chunks
from dlscale.linalg.panels.products import N_PROBES, probes
from dlscale.linalg.scaling import power_words, published, scale_words
from dlscale.linalg.solve.applying import after, plan_columns, plan_residual, planned
from dlscale.linalg.solve.condition import is_sure
from dlscale.linalg.solve.factoring import After, Around, FactoringOptions, is_symmetric, plan_square
from dlscale.linalg.solve.factors import Factorization, inverse_by_cholesky, inverse_by_lu, triangles, triangles_of_symmetric
from dlscale.linalg.solve.options import SolveOptions
from dlscale.linalg.solve.substitution import Substitution
from dlscale.linalg.solve.system import System
from dlscale.linalg.solve.triangular import padding
from dlscale.storage.matrix import ArrayMatrix, Matrix

#: Rows of the inverse that are solved for together: enough for products to run at their rate.
BLOCK_ROWS = 512


class InverseOptions(FactoringOptions):
    """How to invert."""


def plan_inverse(A: Matrix, options: InverseOptions, facts: ClusterFacts) -> Plan:
    """Plan an inverse.

    Raises
    ------
    SpecError
        If the matrix is not square.
    DoesNotFitError
    """
    m, n = A.shape
    if m != n:
        raise SpecError(f"input.matrix: must be square to have an inverse; got {m} x {n}.")
    item = A.dtype.itemsize
    rows = block_rows(n)

    def more(grid: PanelGrid) -> After:
        way = Substitution.of_chunks(n, factor_chunks((n, n), item, grid), item)
        one = triangles(way, alike=options.assume == "pos")
        of_column: Callable[[int], Cost] = partial(inverse_by_lu, way)
        if options.assume == "pos":
            of_column = partial(inverse_by_cholesky, way)
        elif is_symmetric(options.assume):
            one, of_column = triangles_of_symmetric(way), lambda column: triangles_of_symmetric(way)
        cost = partial(cost_of_rows, of_column, row_bytes=n * item)
        return after(
            plan_columns("triangular-1", one, n, N_PROBES, item, facts),
            plan_residual("residual-1", A, N_PROBES),
            planned("inverse", cost, n, facts, width=rows, column_bytes=SLAB_COPIES * n * item),
            plan_residual("residual-2", A, N_PROBES),
        )

    around = Around(before=(Step("norms", 2.0 * n * n, A.n_stored_bytes),), after=more)
    return plan_square("inverse", options.assume, A, FactorOptions(options.panel), facts, around=around)


def block_rows(n: int) -> int:
    """Rows of a block, and of a chunk of the stored inverse."""
    return min(n, BLOCK_ROWS)


def compute_inverse(run: Run, A: Matrix, options: InverseOptions, plan: Plan) -> Outcome:
    """Invert by a plan; ``inverse`` (n, n) goes to the outputs of the run.

    Returns
    -------
    Outcome
        Its condition number is exact up to rounding, in the 1-norm; infinite where rounding hides it.

    Raises
    ------
    NumericalError
        If the matrix is singular to working precision, or not positive definite where that was assumed.

    Notes
    -----
    2 n^3 flops. To solve a system, `dlscale.linalg.solve.kind` needs a third of them and is more accurate.

    References
    ----------
    Higham (2002), section 14.3 (method B, by rows); LAPACK ``dget03`` for the check.
    """
    n, dtype = A.shape[0], A.dtype
    system = System(Passes(run), A, plan, SolveOptions(assume=options.assume, panel=options.panel))
    system.measure()
    W = probes(n, dtype)
    # The probes are solved with before the rest, unrefined as the rest: where LU loses too many digits they choose QR.
    system.solve(ArrayMatrix(W), refined=False)
    factors = system.factors
    assert factors is not None
    rows = block_rows(n)
    output = run.output("inverse", (n, n), dtype, RowGrid(n, rows, rows))
    what = InverseRows(factors, output, system.exponent, W)
    found = Columns(run, plan.cluster).apply(
        "inverse", what, n_columns=n, width=rows, column_bytes=SLAB_COPIES * n * dtype.itemsize, writers=output.writers
    )
    norm_of_inverse = float(sum((part["sums"] for part in found), np.zeros(n)).max())
    lost = float(sum(part["lost"][0] for part in found))
    Y = np.concatenate([part["product"] for part in found], dtype=accumulator_dtype(dtype))
    _require_range(norm_of_inverse if np.isfinite(Y).all() else float("inf"), lost, system.exponent, dtype)
    R = system.residual(Y, ArrayMatrix(W))
    check = scaled(
        "||(I - A A^-1)x|| / (||A|| ||A^-1|| ||x|| n eps)",
        float(np.abs(R).sum(axis=0).max()),
        system.norm,
        norm_of_inverse,
        float(np.abs(W).sum(axis=0).max()),
        size=n,
        dtype=dtype,
        meaning=f"on {N_PROBES} random vectors, A A^-1 acts as the identity does; the norm of I - A A^-1 itself may be larger",
    )
    estimates = _estimates(system, norm_of_inverse)
    return Outcome({}, ("inverse",), Certificate((check,)), estimates, (*system.notes, *scale_words(system.exponent)))


def _require_range(norm: float, lost: float, exponent: int, dtype: np.dtype[Any]) -> None:
    """Raise `NumericalError` if the inverse of ``2^-exponent A`` overflows, or loses more than rounding as that of A."""
    if not np.isfinite(norm):
        raise NumericalError(
            f"No factors of the matrix give an inverse in the range of {dtype}: it is singular to this precision, or the "
            "entries of its inverse are too large. Use kind lstsq for solutions of minimum norm, or correct the matrix."
        )
    if not lost <= float(np.finfo(dtype).eps) * norm:
        raise NumericalError(
            f"The inverse is out of the range of {dtype}: its norm is about {power_words(norm, -exponent)}. "
            "Multiply or divide the matrix by a power of two."
        )


def _estimates(system: System, norm_of_inverse: float) -> dict[str, float | int]:
    """What is reported beside the certificate."""
    n, dtype = system.A.shape[0], system.A.dtype
    number = system.norm * norm_of_inverse
    if not is_sure(number, dtype, n):
        known = system.condition()
        number = max(number, known.number)
        if not known.sure or not is_sure(number, dtype, n):
            system.notes.append(near_singular_words(number, dtype))
    with np.errstate(over="ignore"):
        return {
            "condition": number,
            "norm": float(np.ldexp(system.norm, system.exponent)),
            "norm_of_inverse": float(np.ldexp(norm_of_inverse, -system.exponent)),
            **system.inertia,
        }


@dataclass(frozen=True)
class InverseRows(Applied):
    """Rows of the inverse, written where they belong; what the certificate needs of them is returned.

    Parameters
    ----------
    factors : Factorization
        Of ``2^-exponent A``.
    output : RowOutput
    exponent : int
    W : (n, k)
        Random vectors.
    """

    factors: Factorization
    output: RowOutput
    exponent: int
    W: Array

    def cost(self, slabs: Sequence[Span]) -> Cost:
        return cost_of_rows(self.factors.inverse_cost, slabs, row_bytes=len(self.W) * self.W.dtype.itemsize)

    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        X = adjoint_rows(self.factors, slabs, self.W.dtype, tell=tell)
        ends = np.cumsum([stop - start for start, stop in slabs])
        return [self._finish(start, part) for (start, _), part in zip(slabs, np.split(X, ends[:-1], axis=1), strict=True)]

    def _finish(self, start: int, adjoint: Array) -> State:
        block = np.ascontiguousarray(adjoint.conj().T, self.W.dtype)
        inverse = times_power_of_two(block, -self.exponent)
        self.output.write(start, inverse)
        left, lost = block, 0.0
        if self.exponent:
            left = published(block, -self.exponent, block.dtype)
            lost = float(np.abs(left - block).sum()) if np.isfinite(inverse).all() else float("inf")
        return {"sums": np.abs(block).sum(axis=0), "product": left @ self.W, "lost": np.array([lost])}


def cost_of_rows(of_column: Callable[[int], Cost], slabs: Sequence[Span], *, row_bytes: int) -> Cost:
    """Of blocks of rows of the inverse in one task, from what the rows from one on take (`Factorization.inverse_cost`)."""
    flops = sum(of_column(start).flops * (stop - start) for start, stop in slabs)
    n_rows = sum(stop - start for start, stop in slabs)
    return Cost(flops, of_column(min(slabs)[0]).bytes_read, n_rows * row_bytes)


def adjoint_rows(factors: Factorization, slabs: Sequence[Span], dtype: np.dtype[Any], *, tell: Tell = untold) -> Array:
    """Blocks of rows of the inverse, as columns of its adjoint side by side."""
    E = identity_columns(factors.shape[0], slabs, dtype)
    return factors.solve(E, adjoint=True, width=slabs[0][1] - slabs[0][0], tell=tell)


def identity_columns(n: int, slabs: Sequence[Span], dtype: np.dtype[Any]) -> Array:
    """Columns of the identity (n, n), its rows not a power of two apart, which would make the caches thrash."""
    columns = np.concatenate([np.arange(start, stop) for start, stop in slabs])
    E = np.zeros((n, len(columns) + padding(len(columns), dtype.itemsize)), dtype)[:, : len(columns)]
    E[columns, np.arange(len(columns))] = 1
    return E


KIND = Kind(
    name="inverse",
    title="Inverse",
    words="The inverse of a square matrix.",
    arrays="`inverse` (n, n)",
    options=InverseOptions,
    plan=matrix_plan(plan_inverse),
    compute=matrix_compute(compute_inverse),
    example="{kind: inverse, input: {matrix: a.zarr}}",
)
