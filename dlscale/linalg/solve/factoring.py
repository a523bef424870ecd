"""Factoring a square matrix for solves: which factorization, what it takes, and its factors where solves find them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from dlscale.arrays import Array
from dlscale.declaration.options import Options
from dlscale.declaration.sections import Panel
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import lay_out, libraries, measured_rates
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Grids, Need, Plan, Step
from dlscale.engine.tiles.factorizer import Factorizer
from dlscale.engine.tiles.grid import PanelGrid, Ways, choose_panel
from dlscale.engine.tiles.whole import WholePanels
from dlscale.errors import DoesNotFitError, NumericalError, SpecError
from dlscale.lapack import interchanges
from dlscale.linalg.cholesky import kind as cholesky
from dlscale.linalg.in_memory import WORK_BYTES, n_blas_threads
from dlscale.linalg.lu import kind as lu
from dlscale.linalg.panels.plan import ByPanels, FactorOptions, factor_target, plan_panels
from dlscale.linalg.panels.products import TriangularProduct, triangular_product
from dlscale.linalg.panels.reflectors import Householder
from dlscale.linalg.solve import symmetric
from dlscale.linalg.solve.factors import CholeskyFactors, LUFactors, QRFactors
from dlscale.linalg.solve.stored import singular_words
from dlscale.linalg.solve.symmetric import LDLFactors, factor_symmetric, require_nonsingular
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import scaled

#: The name of the factorization's steps.
FACTORS = "factors"
HOUSEHOLDER = WholePanels(Householder())

Assume = Annotated[
    Literal["general", "pos", "sym", "her"],
    Field(description="general, pos (Hermitian positive definite), sym or her (symmetric, Hermitian where it is complex)"),
]


@dataclass(frozen=True)
class FactoringOptions(Options):
    """How to factor a square matrix for what follows from its factors."""

    assume: Assume = "general"
    panel: Panel = None


class After(NamedTuple):
    """What comes after a factorization, and what a worker holds for it."""

    steps: Sequence[Step]
    memory: Sequence[Need] = ()


@dataclass(frozen=True)
class Around:
    """What surrounds a factorization in a job.

    Parameters
    ----------
    before : sequence of Step
        What comes before it.
    after : callable
        What comes after it, by its grid.
    driver_bytes : int
        What the driver holds beside, such as right-hand sides.
    state_bytes : int
        Partial results of a pass.
    given : bool
        Whether the factors are there already.
    """

    before: Sequence[Step] = ()
    after: Callable[[PanelGrid], After] = lambda grid: After(())
    driver_bytes: int = 0
    state_bytes: int = 0
    given: bool = False


def plan_square(kind: str, assume: Assume, A: Matrix, options: FactorOptions, facts: ClusterFacts, *, around: Around) -> Plan:
    """Plan what is known of a square matrix: LU or Cholesky by panels, or LDL^T in the memory of one worker.

    Raises
    ------
    SpecError, DoesNotFitError
    """
    if not is_symmetric(assume):
        return plan_factoring(assuming(kind, assume), A, options, facts, around=around)
    n, panel = A.shape[0], options.panel or choose_panel(A.shape)
    if not 1 <= panel <= n:
        raise SpecError(f"params.panel must be from 1 to the {n} columns of the matrix; got {panel}.")
    needed = A.n_bytes + WORK_BYTES + around.driver_bytes
    if n > symmetric.LARGEST or needed > facts.work_bytes:
        has = f"has {facts.memory_bytes / 1e9:.2f} GB" if n <= symmetric.LARGEST else f"LAPACK takes {symmetric.LARGEST} rows"
        raise DoesNotFitError(
            f"params.assume: {assume} is for a matrix that the memory of one worker holds: {n} rows need "
            f"{(needed + facts.memory_bytes - facts.work_bytes) / 1e9:.2f} GB, and {has}; use assume: general, which is LU by "
            "panels, of any size, or raise cluster.memory."
        )
    grid = PanelGrid((n, n), panel, -(-n // panel))
    after = around.after(grid)
    layout = lay_out(A, facts, state_bytes=around.state_bytes, operand_bytes=around.state_bytes)
    needs = (
        (Need("the matrix, factored in its place", A.n_bytes), Need("what is read", WORK_BYTES), *libraries(facts)),
        (*after.memory, *libraries(facts)),
        layout.memory,
    )
    n_threads = n_blas_threads(n, facts)
    factoring = Step(f"{FACTORS}-1", symmetric.flops(n), A.n_stored_bytes, A.n_bytes, n_threads=n_threads * symmetric.EFFICIENCY)
    return Plan(
        kind=kind,
        method="symmetric",
        words=f"LDL^T with Bunch-Kaufman pivoting in one task with {n_threads} thread{'s' * (n_threads > 1)}",
        matrix=A.describe(),
        grids=Grids(rows=layout.grid, columns=RowGrid(n, panel, panel * max(1, grid.n_panels // 16)), panels=grid),
        steps=(*around.before, factoring, *after.steps),
        memory=(
            *max(needs, key=lambda memory: sum(need.n_bytes for need in memory)),
            *([Need("right-hand sides and solutions", around.driver_bytes)] if around.driver_bytes else []),
        ),
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts),
        notes=(*layout.notes, *A.notes),
    )


def is_symmetric(assume: Assume) -> bool:
    """Whether LDL^T is the factorization."""
    return assume in ("sym", "her")


def reason_for_qr(assume: Assume) -> str:
    """Why the factors were not good enough, for a note."""
    if assume == "pos":
        return "the matrix is not Hermitian"
    return f"the entries of {'LDL^T' if is_symmetric(assume) else 'LU'} grew too much"


def plan_factoring(what: ByPanels, A: Matrix, options: FactorOptions, facts: ClusterFacts, *, around: Around) -> Plan:
    """Plan the factorization of a matrix and passes over its rows.

    Parameters
    ----------
    what : ByPanels
        `assuming`, or `orthogonally`.
    A : Matrix (m, n)
        As it is factored, in its own precision: there must be room for that where rounded factors are not good enough.
    options : FactorOptions
    facts : ClusterFacts
    around : Around

    Raises
    ------
    SpecError, DoesNotFitError
    """
    driver_bytes, state_bytes = around.driver_bytes, around.state_bytes
    left = replace(facts, memory_bytes=max(1, facts.memory_bytes - driver_bytes))
    plan = plan_panels(what, A, options, left)
    held = (Need("right-hand sides and solutions", driver_bytes),) if driver_bytes else ()
    after = around.after(plan.panels)
    layout = lay_out(A, left, state_bytes=state_bytes, operand_bytes=state_bytes)
    # One after the other.
    needs = (plan.memory, layout.memory, (*after.memory, layout.blocks, *libraries(facts)))
    return replace(
        plan,
        grids=replace(plan.grids, rows=layout.grid),
        steps=(*around.before, *(() if around.given else plan.steps), *after.steps),
        memory=(*max(needs, key=lambda memory: sum(need.n_bytes for need in memory)), *held),
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        notes=(*layout.notes, *plan.notes),
    )


def assuming(kind: str, assume: Assume) -> ByPanels:
    """The factorization for what is known of a square matrix."""
    if assume == "pos":
        return ByPanels(kind, "Cholesky", cholesky.STEPS, step=FACTORS)
    return ByPanels(kind, "LU with partial pivoting", lu.STEPS, step=FACTORS, copied=True)


def orthogonally(kind: str) -> ByPanels:
    """Householder QR of whole panels, which solves by QR read (`QRFactors`)."""
    return ByPanels(kind, "Householder QR by panels", Ways(HOUSEHOLDER, HOUSEHOLDER), step=FACTORS)


def factor(passes: Passes, A: Matrix, plan: Plan, assume: Assume, *, name: str) -> LUFactors | CholeskyFactors | LDLFactors:
    """Factor a matrix by its plan; the factors are kept in memory or in the job's scratch space.

    Parameters
    ----------
    passes : Passes
    A : Matrix (n, n)
    plan : Plan
    assume : str
    name : str
        Of the factors, unique in the job.

    Raises
    ------
    NumericalError
        If the matrix is singular to working precision, or not positive definite where that was assumed.
    InputError
        If it is not symmetric where that was assumed.
    """
    threads = plan.cluster.threads_per_worker
    probes = np.zeros((A.shape[1], 1), A.dtype)
    if is_symmetric(assume):
        found = factor_symmetric(passes, A, plan, probes=probes, name=name)
        require_nonsingular(found)
        return found.factors
    if assume == "pos":
        L, _ = cholesky.factor_panels(passes, A, plan.panels, probes=probes, step=name, keep=False)
        return CholeskyFactors(L, threads)
    packed, pivots, facts, *_ = lu.factor_panels(passes, A, plan.panels, probes=probes, step=name, keep=False)
    zeros = [int(fact["singular"][0]) - 1 for fact in facts if fact["singular"][0]]
    # Where the entries have grown out of range, a zero says nothing of the matrix.
    if zeros and np.isfinite([fact["largest"][0] for fact in facts]).all():
        raise NumericalError(f"The matrix is {singular_words(min(zeros))}")
    return LUFactors(packed, pivots, threads)


def factor_orthogonally(passes: Passes, A: Matrix, plan: Plan, *, name: str) -> QRFactors:
    """Householder QR, which is stable whatever the growth of LU is, at twice the work."""
    target = factor_target(passes.run, name, A.shape, A.dtype, plan.panels, scratch=True)
    probes = np.zeros((A.shape[1], 1), A.dtype)
    factored, _ = Factorizer(passes.run).factor(name, A, HOUSEHOLDER, plan.panels, target, probes=probes)
    return QRFactors(factored, plan.cluster.threads_per_worker)


def reproduced(passes: Passes, factors: LUFactors | CholeskyFactors, X: Array, AX: Array, exponent: int) -> tuple[Array, Array]:
    """How far stored factors of ``2^exponent A`` are from being those of A, on random vectors.

    Parameters
    ----------
    passes : Passes
    factors : LUFactors or CholeskyFactors, of order n
    X, AX : (n, k)
    exponent : int
        Even.

    Returns
    -------
    difference : (n, k)
        ``P A X - L U X``, or ``A X - L L^H X``.
    size : (n, k)
        The larger of ``A X`` and ``U X``, beside which it is to be judged.
    """
    n, stored = len(X), factors.lu if isinstance(factors, LUFactors) else factors.l
    unit = stored.column_unit if 1 < stored.column_unit < n else min(n, 512)
    grid = RowGrid(n, unit, unit * max(1, n // unit // 16))
    if isinstance(factors, CholeskyFactors):
        L = scaled(stored, -(exponent // 2))
        LX = triangular_product(passes, "factors-adjoint", L, grid, TriangularProduct(X, n, lower=True, adjoint=True, n_columns=n))
        return AX - triangular_product(passes, "factors-lower", L, grid, TriangularProduct(LX, n, lower=True)), AX
    UX = triangular_product(passes, "factors-upper", scaled(stored, -exponent), grid, TriangularProduct(X, n, lower=False))
    LUX = triangular_product(passes, "factors-lower", stored, grid, TriangularProduct(UX, n, lower=True, unit=True))
    targets, sources = interchanges(factors.pivots)
    PAX = AX.copy()
    PAX[targets] = AX[sources]
    return PAX - LUX, max(AX, UX, key=lambda product: float(np.abs(product).max()))
