"""Cholesky factorization: A = L L^H of a Hermitian positive definite matrix.

A panel is one block of columns (`cholesky_panels`), or, where it is too tall for one worker, cut in row blocks
(`tiled_cholesky`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from dlscale.arrays import Array
from dlscale.certificates import LAPACK_THRESHOLD, Certificate, Check
from dlscale.declaration.kind import Kind, matrix_compute, matrix_plan
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.methods import Seen
from dlscale.engine.tiles.products import tile_product
from dlscale.engine.tiles.row_blocks import Tiles
from dlscale.errors import NumericalError, SpecError
from dlscale.linalg.cholesky import panels as cholesky_panels
from dlscale.linalg.cholesky import row_blocks as tiled_cholesky
from dlscale.linalg.cholesky.panels import Cholesky
from dlscale.linalg.panels.plan import FactorOptions, plan_panels
from dlscale.linalg.panels.products import TriangularProduct, probes, scaled_residual, triangular_product
from dlscale.linalg.panels.scaling import panels_at_safe_scale, place_times, require_safe
from dlscale.linalg.scaling import scale_words
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import scaled

__all__ = ["Cholesky", "CholeskyOptions", "compute_cholesky", "factor_panels", "plan_cholesky"]


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
    stored = n * n * A.dtype.itemsize
    return plan_panels(
        "cholesky",
        "blocked Cholesky of the lower triangle",
        A,
        Cholesky(),
        options,
        facts,
        more=(Step("adjoint", 4.0 * n * n, stored), Step("lower", 4.0 * n * n, stored)),
    )


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
        require_safe(seen.largest, dtype)
    LLX = _product_with_adjoint(passes, scaled(L, -(exponent // 2)), plan, X)
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
    """Factor a matrix by panels, or by panels in row blocks; see `cholesky_panels.factor_panels`."""
    factor = cholesky_panels.factor_panels if grid.row_blocks == 1 else tiled_cholesky.factor_tiles
    return factor(passes, A, grid, probes=probes, step=step, keep=keep)


def _product_with_adjoint(passes: Passes, L: Matrix, plan: Plan, X: Array) -> Array:
    """``L L^H X`` with the stored factor."""
    n, grid = L.shape[0], plan.panels
    if grid.row_blocks == 1:
        LX = triangular_product(passes, "adjoint", L, plan.columns, TriangularProduct(X, n, lower=True, adjoint=True, n_columns=n))
        return triangular_product(passes, "lower", L, plan.columns, TriangularProduct(LX, n, lower=True))
    tiles = Tiles(passes.run)
    LX, _ = tile_product(tiles, "adjoint", L, grid, X, part="lower", adjoint=True)
    return tile_product(tiles, "lower", L, grid, LX, part="lower")[0]


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
