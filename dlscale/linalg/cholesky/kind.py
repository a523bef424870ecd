"""Cholesky factorization: A = L L^H of a Hermitian positive definite matrix.

A panel is one block of columns (`panels`), or, where it is too tall for one worker, cut in row blocks
(`row_blocks`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from dlscale.arrays import Array
from dlscale.certificates import LAPACK_THRESHOLD, Certificate, Check
from dlscale.declaration.kind import Kind, matrix_compute, matrix_plan
from dlscale.engine.clusters.facts import ClusterFacts
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.engine.tiles.factorizer import Factorizer
from dlscale.engine.tiles.grid import PanelGrid, Ways
from dlscale.engine.tiles.methods import Seen
from dlscale.engine.tiles.products import Part
from dlscale.engine.tiles.row_blocks import RowBlocks
from dlscale.engine.tiles.steps import Steps
from dlscale.engine.tiles.whole import WholePanels
from dlscale.errors import NumericalError, SpecError
from dlscale.linalg.cholesky.panels import Cholesky
from dlscale.linalg.cholesky.row_blocks import TiledCholesky
from dlscale.linalg.panels.plan import ByPanels, FactorOptions, factor_target, plan_panels, require_dense
from dlscale.linalg.panels.products import part_product, probes, scaled_residual
from dlscale.linalg.panels.scaling import panels_at_safe_scale, place_times, require_room
from dlscale.linalg.scaling import scale_words
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import scaled

__all__ = ["STEPS", "Cholesky", "CholeskyOptions", "compute_cholesky", "factor_panels", "plan_cholesky"]

STEPS: Ways[Steps[Any, Any]] = Ways(WholePanels(Cholesky()), RowBlocks(TiledCholesky()))


@dataclass(frozen=True)
class CholeskyOptions(FactorOptions):
    """What to compute (`FactorOptions`)."""


def plan_cholesky(A: Matrix, options: CholeskyOptions, facts: ClusterFacts) -> Plan:
    """Plan a Cholesky factorization.

    Raises
    ------
    SpecError
        If the matrix is not square.
    DoesNotFitError
    """
    n = A.shape[0]
    if A.shape[1] != n:
        raise SpecError(f"input.matrix: must be square for a Cholesky factorization; got {n} x {A.shape[1]}.")
    require_dense(A, "the Cholesky factor", "solve with it by iterations (kind solve with method cg)")
    stored = n * n * A.dtype.itemsize
    what = ByPanels("cholesky", "blocked Cholesky of the lower triangle", STEPS)
    more = (Step("adjoint", 4.0 * n * n, stored), Step("lower", 4.0 * n * n, stored))
    return plan_panels(what, A, options, facts, more=more)


def compute_cholesky(run: Run, A: Matrix, options: CholeskyOptions, plan: Plan) -> Outcome:
    """Factor by the plan; ``l``, with zeros above its diagonal, goes to the outputs of the run.

    Returns
    -------
    Outcome

    Raises
    ------
    NumericalError
        Naming the leading minor that is not positive, or if the matrix is not Hermitian.

    Notes
    -----
    n^3 / 3 flops.

    References
    ----------
    Golub and Van Loan (2013), section 4.2.
    """
    return panels_at_safe_scale(Passes(run), A, partial(_factor, plan=plan))


def _factor(passes: Passes, A: Matrix, exponent: int, *, plan: Plan) -> Outcome:
    """Factor ``A = 2^-exponent`` times the matrix."""
    n, dtype = A.shape[0], A.dtype
    X = probes(n, dtype)
    L, seen = factor_panels(passes, A, plan.panels, probes=X, keep=not exponent)
    if exponent:
        L = place_times(passes, "l-unscaled", L, "l", plan.panels, exponent // 2, upper=False)
    else:
        require_room(seen.largest, dtype)
    back = scaled(L, -(exponent // 2))
    LX, _ = part_product(passes, "adjoint", back, plan, X, part=Part("lower", adjoint=True))
    LLX, _ = part_product(passes, "lower", back, plan, LX, part=Part("lower"))
    check = Check(
        "||(A - LL')x|| / (||Ax|| n eps)",
        scaled_residual(seen.products - LLX, seen.products, n, dtype),
        LAPACK_THRESHOLD,
        "on random vectors, L L' acts as the whole matrix does, above its diagonal too",
    )
    if not check.passed:
        raise NumericalError(
            f"The matrix is not Hermitian: what stands above its diagonal is not the mirror image of what stands below, for which "
            f"L is ({check.name} = {check.value:.1e}). Use kind lu, or kind solve with assume: general."
        )
    return Outcome({}, ("l",), Certificate((check,)), notes=scale_words(exponent))


def factor_panels(
    passes: Passes, A: Matrix, grid: PanelGrid, *, probes: Array, step: str = "cholesky", keep: bool = True
) -> tuple[Matrix, Seen]:
    """Factor a matrix; ``keep`` says whether the factor belongs to the job's result.

    Returns
    -------
    L : Matrix (n, n)
    Seen
    """
    target = factor_target(passes.run, "l" if keep else step, A.shape, A.dtype, grid, scratch=not keep)
    _, seen = Factorizer(passes.run).factor(step, A, STEPS.of(grid), grid, target, probes=probes)
    return target.matrix(), seen


KIND = Kind(
    name="cholesky",
    title="Cholesky factorization",
    words="Cholesky factorization of a Hermitian positive definite matrix: A = L L^H.",
    arrays="`l` (n, n)",
    options=CholeskyOptions,
    plan=matrix_plan(plan_cholesky),
    compute=matrix_compute(compute_cholesky),
    example="{kind: cholesky, input: {matrix: a.zarr}}",
)
