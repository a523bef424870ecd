"""LU factorization with pivoting: P A = L U.

A panel is one block of columns and pivoted like LAPACK's (`panels`), or, where it is too tall for one worker, cut in row
blocks that choose their pivots by a tournament (`row_blocks`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

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
from dlscale.engine.tiles.methods import Facts, Seen
from dlscale.engine.tiles.products import Part
from dlscale.engine.tiles.row_blocks import RowBlocks
from dlscale.engine.tiles.steps import Steps
from dlscale.engine.tiles.whole import WholePanels
from dlscale.errors import NumericalError, OutOfRange
from dlscale.kernels import largest_part
from dlscale.linalg.lu.panels import LU, Exchanges, RowOrder, row_move
from dlscale.linalg.lu.row_blocks import Places, TournamentLU
from dlscale.linalg.panels.plan import ByPanels, FactorOptions, factor_target, plan_panels, require_dense
from dlscale.linalg.panels.products import part_product, probes, scaled_residual
from dlscale.linalg.panels.scaling import panels_at_safe_scale, place_times, require_room, require_safe
from dlscale.linalg.scaling import scale_words
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import scaled

__all__ = ["LU", "STEPS", "LUOptions", "LUPanels", "compute_lu", "factor_panels", "plan_lu", "row_move"]

#: Pivoted like LAPACK, or by a tournament of row blocks.
STEPS: Ways[Steps[Any, Any]] = Ways(WholePanels(LU()), RowBlocks(TournamentLU()))
ROWS: Ways[RowOrder] = Ways(Exchanges(), Places())

#: Growth times eps from which on a factorization says that digits may be lost, and growth that costs none to speak of.
GROWTH_EPS, LITTLE_GROWTH = 1e-10, 100.0


class LUPanels(NamedTuple):
    """A matrix that was factored by panels.

    Parameters
    ----------
    lu : Matrix (m, n)
    pivots : (min(m, n),)
    facts : list
        Of the panels.
    seen : Seen
    """

    lu: Matrix
    pivots: Array
    facts: list[Facts]
    seen: Seen


@dataclass(frozen=True)
class LUOptions(FactorOptions):
    """What to compute (`FactorOptions`)."""


def plan_lu(A: Matrix, options: LUOptions, facts: ClusterFacts) -> Plan:
    """Plan an LU factorization.

    Raises
    ------
    SpecError, DoesNotFitError
    """
    require_dense(A, "the LU factors", "solve with it by iterations (kind solve with method cg, minres or gmres)")
    m, n = A.shape
    stored = m * n * A.dtype.itemsize
    what = ByPanels(
        "lu",
        "blocked LU with partial pivoting (the pivots of LAPACK)",
        STEPS,
        cut_words="blocked LU with tournament pivoting over {row_blocks} row blocks",
        copied=True,
    )
    more = (Step("upper", 4.0 * m * n, stored), Step("lower", 4.0 * m * n, stored))
    return plan_panels(what, A, options, facts, more=more)


def compute_lu(run: Run, A: Matrix, options: LUOptions, plan: Plan) -> Outcome:
    """Factor by the plan; ``lu`` goes to the outputs of the run.

    Returns
    -------
    Outcome
        With ``piv`` (min(m, n),), exactly as LAPACK and `scipy.linalg.lu_factor` give both.

    Notes
    -----
    m n k - (m + n) k^2 / 2 + k^3 / 3 multiplications and additions, k = min(m, n). A matrix that does not fit in memory is
    read once, and its factors once for each group behind them.

    References
    ----------
    Golub and Van Loan (2013), section 3.4; Toledo (1997) for left-looking factorization out of memory.
    """
    return panels_at_safe_scale(Passes(run), A, partial(_factor, plan=plan), factor="U")


def _factor(passes: Passes, A: Matrix, exponent: int, *, plan: Plan) -> Outcome:
    """Factor ``A = 2^-exponent`` times the matrix."""
    n, dtype = A.shape[1], A.dtype
    X = probes(n, dtype)
    lu, pivots, facts, seen = factor_panels(passes, A, plan.panels, probes=X, keep=not exponent)
    if not exponent:
        require_room(seen.largest, dtype)
    largest = float(np.max([fact["largest"][0] for fact in facts]))
    overflow = f"The matrix is finite, but its factors overflow {dtype}; divide it by its largest entry, or use kind qr."
    if not np.isfinite(largest):
        raise NumericalError(overflow)
    if exponent:
        lu = place_times(passes, "lu-unscaled", lu, "lu", plan.panels, exponent, upper=True)
    try:
        UX, LUX, largest_in_tiles = _products(passes, scaled(lu, -exponent), lu, plan, X)
    except OutOfRange:
        raise NumericalError(overflow) from None
    AX = seen.products
    PAX = AX.copy()
    move = row_move(0, pivots)
    PAX[move.targets] = AX[move.sources]
    singular = [int(fact["singular"][0]) for fact in facts if fact["singular"][0]]
    growth = max(largest, largest_in_tiles) / max(seen.largest, float(np.finfo(float).tiny))
    # Where U has grown, computing L (U x) rounds to its size: the check cannot see more than that.
    larger = max(AX, UX, key=largest_part)
    check = Check(
        "||(PA - LU)x|| / (max(||Ax||, ||Ux||) n eps)",
        scaled_residual(PAX - LUX, larger, n, dtype),
        LAPACK_THRESHOLD,
        "on random vectors, L U acts as the matrix with its rows exchanged does",
    )
    if not (check.passed or exponent):
        require_safe(seen.largest, dtype)
    if not np.isfinite(check.value):
        raise NumericalError(overflow)
    lost = growth * float(np.finfo(dtype).eps)
    digits = Check("max|U| / max|A| eps", lost, 1.0, "the growth of the entries in U leaves correct digits")
    notes = [_zero_pivot_words(A.shape, singular[0])] if singular else []
    notes += scale_words(exponent)
    if lost > GROWTH_EPS and growth > LITTLE_GROWTH:
        notes.append(
            f"the entries of U grew to {growth:.1e} times those of the matrix, and as many digits may be lost: use kind qr"
        )
    certificate = Certificate((check, digits))
    return Outcome({"piv": pivots.astype(np.int32)}, ("lu",), certificate, {"growth_factor": growth}, tuple(notes))


def _zero_pivot_words(shape: tuple[int, int], pivot: int) -> str:
    """What the first zero pivot, counted from 1, says of a matrix: columns that have none may still make its rank full."""
    dependent = f"column {pivot} of the matrix is a combination of those before it"
    return f"{'the matrix is singular' if shape[0] == shape[1] else dependent} to working precision: pivot {pivot} is zero"


def factor_panels(passes: Passes, A: Matrix, grid: PanelGrid, *, probes: Array, step: str = "lu", keep: bool = True) -> LUPanels:
    """Factor a matrix.

    Parameters
    ----------
    passes : Passes
    A : Matrix (m, n)
    grid : PanelGrid
    probes : (n, k)
    step : str
        Name of the step, and of the array.
    keep : bool
        Whether it belongs to the job's result.
    """
    run, rows, factorizer = passes.run, ROWS.of(grid), Factorizer(passes.run)
    apart = rows.apart(grid)
    target = factor_target(run, step, A.shape, A.dtype, grid, scratch=apart or not keep)
    factored, seen = factorizer.factor(step, A, STEPS.of(grid), grid, target, probes=probes)
    if apart:
        target = factor_target(run, step if keep else f"{step}-rows", A.shape, A.dtype, grid, scratch=not keep)
    pivots = rows.settle(factorizer, f"{step}-rows", factored, target)
    return LUPanels(target.matrix(), pivots, factored.facts, seen)


def _products(passes: Passes, upper: Matrix, lu: Matrix, plan: Plan, X: Array) -> tuple[Array, Array, float]:
    """``U X`` and ``L U X`` with U from ``upper`` and L from ``lu``; the largest modulus in U of what no panel measured."""
    UX, largest = part_product(passes, "upper", upper, plan, X, part=Part("upper"))
    k = min(lu.shape)
    padded = np.zeros_like(X)
    padded[:k] = UX[:k]
    return UX[:k], part_product(passes, "lower", lu, plan, padded, part=Part("lower", unit=True)).product, largest


KIND = Kind(
    name="lu",
    title="LU factorization",
    words="LU factorization with partial pivoting: P A = L U.",
    arrays="`lu` (m, n), `piv`, as `scipy.linalg.lu_factor` returns them",
    options=LUOptions,
    plan=matrix_plan(plan_lu),
    compute=matrix_compute(compute_lu),
    example="{kind: lu, input: {matrix: a.zarr}}",
)
