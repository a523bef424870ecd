"""By panels, for a triangle that no worker holds: A = Q R, Newton's iteration on R, U = Q X, P = U^H A."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dlscale.certificates import LAPACK_THRESHOLD, Certificate, Check
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.columns import Columns
from dlscale.engine.costs import Layout, bytes_of, lay_out, libraries, measured_rates
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Grids, Need, Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Cost, Run
from dlscale.engine.targets import MemoryTarget, StoreTarget, Target
from dlscale.engine.tiles.factorizer import Factorizer
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.errors import DoesNotFitError, NumericalError
from dlscale.kernels import accumulator_dtype
from dlscale.linalg.cholesky import kind as cholesky
from dlscale.linalg.multiply.operands import Operand
from dlscale.linalg.multiply.tiles import Tiles
from dlscale.linalg.multiply.tiling import Tiling, choose_tiling
from dlscale.linalg.panels.plan import CHUNK_BYTES, ByPanels, FactorOptions, factor_chunks, factor_target, plan_panels
from dlscale.linalg.panels.products import N_PROBES, probes, scaled_residual
from dlscale.linalg.panels.scaling import panels_at_safe_scale, require_safe
from dlscale.linalg.polar.check import HermitianFactor, Shift, Shifted, hermitian_check
from dlscale.linalg.polar.direct import SINGULAR
from dlscale.linalg.polar.newton import (
    COPIES,
    PIECES_BYTES,
    beside,
    beside_panels,
    iterate,
    require_room,
    rotated,
    slab_width,
    step_cost,
)
from dlscale.linalg.polar.options import PolarOptions
from dlscale.linalg.polar.start import AtRest
from dlscale.linalg.qr.panels import Orthonormal
from dlscale.linalg.scaling import scale_words
from dlscale.linalg.solve.applying import planned
from dlscale.linalg.solve.factoring import HOUSEHOLDER, assuming, orthogonally
from dlscale.linalg.solve.factors import QRFactors, inverse_by_lu, rotation
from dlscale.linalg.solve.substitution import Substitution
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import conjugated, scaled

#: Iterations from an ill-conditioned matrix, in single and in double precision.
USUAL_ITERATIONS = {32: 7, 64: 9}
#: Arrays as large as the matrix that there are on the disk at a time: 7, and what a checkpoint has beside them.
DISK_SQUARES = 8
#: Of a worker's memory, what a tile of P and the strips beside it may take.
_TILE_SHARE = 0.5


class Stages(NamedTuple):
    """How each of the computations is cut that come one after the other.

    Parameters
    ----------
    qr, lu, definite : Plan
        Of the factorizations of A, of an iterate, and of ``P + s I``.
    tiling : Tiling
        Of P.
    """

    qr: Plan
    lu: Plan
    definite: Plan
    tiling: Tiling


def plan_newton(A: Matrix, options: PolarOptions, facts: ClusterFacts) -> Plan:
    """Plan the factorizations, the iterations, the products and the proof.

    Raises
    ------
    DoesNotFitError
    """
    tall = options.tall(A)
    m, n = tall.shape
    item, stages = A.dtype.itemsize, _stages(tall, options, facts)
    by_columns = [iteration_columns(n, item, stages.lu.panels, facts), rotation_columns((m, n), item, stages.qr.panels, facts)]
    tiling, layouts = stages.tiling, _layouts(tall, stages.tiling, facts)
    tile, strips = tiling.work_entries
    needs: list[tuple[Need, ...]] = [
        *(plan.memory for plan in stages[:3]),
        *((*needed, *libraries(facts)) for _, needed in by_columns),
        (Need("a tile of P", tile * item), Need("strips that are multiplied", 2 * strips * item), *libraries(facts)),
        *(layout.memory for layout in layouts),
    ]
    peak = max(needs, key=lambda memory: sum(need.n_bytes for need in memory))
    needed = sum(need.n_bytes for need in peak)
    if needed > facts.memory_bytes:
        raise DoesNotFitError(
            f"One worker needs {needed / 1e9:.2f} GB for slabs of {m} rows, and has {facts.memory_bytes / 1e9:.2f} GB; raise "
            "cluster.memory, or choose a smaller panel."
        )
    square, stored = n * n * item, m * n * item
    n_iterations = USUAL_ITERATIONS[int(np.finfo(A.dtype).bits)]
    iterations = iteration_steps(by_columns[0][0], stages.lu.steps, n_iterations)
    return Plan(
        kind="polar",
        method="newton",
        words="Householder QR by panels, Newton's iteration on the triangle with the scaling of Byers and Xu",
        matrix=A.describe(),
        grids=Grids(rows=layouts[1].grid, panels=stages.lu.panels),
        transposed=options.side == "left",
        steps=(
            *stages.qr.steps,
            *iterations,
            by_columns[1][0],
            Step("p", tiling.flops, tiling.bytes_read(*_operands(tall)) + stored, square),
            Step("hermitian", 4.0 * n * n * N_PROBES, square),
            Step("check", 6.0 * m * n * N_PROBES, stored),
            *stages.definite.steps,
        ),
        memory=peak,
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts),
        notes=tuple(A.notes),
        bytes_moved=stages.qr.bytes_moved + n_iterations * stages.lu.bytes_moved + stages.definite.bytes_moved,
        n_tasks=max(plan.n_tasks for plan in stages[:3]),
        disk_bytes=DISK_SQUARES * m * n * item,
        choices={
            "qr": asdict(stages.qr.panels),
            "definite": asdict(stages.definite.panels),
            "tiling": tiling.to_dict(),
            "p_rows": asdict(layouts[0].grid),
        },
    )


def _stages(tall: Matrix, options: PolarOptions, facts: ClusterFacts) -> Stages:
    n, dtype = tall.shape[1], tall.dtype
    # Q is applied from whole panels.
    qr = plan_panels(replace(orthogonally("polar"), step="qr"), tall, FactorOptions(options.panel, row_blocks=1), facts)
    X = AtRest((n, n), dtype)
    lu = plan_panels(replace(assuming("polar", "general"), step="lu"), X, FactorOptions(options.panel), facts)
    P = AtRest((n, n), accumulator_dtype(dtype))
    definite = plan_panels(ByPanels("polar", "", cholesky.STEPS, step="definite"), P, FactorOptions(options.panel), facts)
    room = int(facts.work_bytes * _TILE_SHARE)
    tiling = choose_tiling(*_operands(tall), symmetric=True, room_bytes=room, n_threads=facts.threads_per_worker)
    if tiling is None:
        raise DoesNotFitError(
            f"One worker has {facts.memory_bytes / 1e9:.2f} GB, which do not hold a tile of {n} columns; raise cluster.memory."
        )
    return Stages(qr, lu, definite, tiling)


def _operands(tall: Matrix) -> tuple[Operand, Operand]:
    """Those of ``P = U^H A``, as far as a plan knows them."""
    return Operand(AtRest(tall.shape, tall.dtype), adjoint=True), Operand(tall)


def _layouts(tall: Matrix, tiling: Tiling, facts: ClusterFacts) -> tuple[Layout, Layout]:
    """Of the passes over the rows of P and of U."""
    (m, n), wide = tall.shape, accumulator_dtype(tall.dtype)
    state = bytes_of(2 * n, N_PROBES, dtype=wide)
    return (
        lay_out(AtRest((n, n), tall.dtype, (tiling.chunk_rows, tiling.columns)), facts, state_bytes=state, operand_bytes=state),
        lay_out(AtRest((m, n), tall.dtype), facts, state_bytes=state, operand_bytes=2 * m * N_PROBES * wide.itemsize + state),
    )


def iteration_columns(n: int, item: int, grid: PanelGrid, facts: ClusterFacts) -> tuple[Step, tuple[Need, ...]]:
    """What an iteration takes beside the factors of an iterate (n, n), and what a worker holds."""
    way = Substitution.of_chunks(n, factor_chunks((n, n), item, grid), item)
    facts = beside(facts, PIECES_BYTES)
    cost, width = step_cost(partial(inverse_by_lu, way), n, item), slab_width(n, grid.panel, item, facts)
    step, need = planned("newton", cost, n, facts, width=width, column_bytes=int(COPIES * n * item))
    return step, (need, Need("pieces of factors that are read", PIECES_BYTES))


def rotation_columns(shape: tuple[int, int], item: int, grid: PanelGrid, facts: ClusterFacts) -> tuple[Step, tuple[Need, ...]]:
    """What a product with a stored Q (m, n) takes, and what a worker holds."""
    m, n = shape
    one = rotation(grid, factor_chunks(shape, item, grid)[0], item)

    def cost(slabs: Sequence[tuple[int, int]]) -> Cost:
        k = sum(stop - start for start, stop in slabs)
        return Cost(one.flops * k, one.bytes_read + n * k * item, m * k * item)

    facts = beside_panels(shape, grid.panel, item, facts)
    width = slab_width(m, grid.panel, item, facts)
    step, need = planned("u", cost, n, facts, width=width, column_bytes=int(COPIES * m * item))
    return step, (need, Need("panels that are read", 2 * m * grid.panel * item))


def iteration_steps(step: Step, factors: Sequence[Step], n_iterations: int) -> list[Step]:
    """The norms of the triangle and of its inverse, and the iterations, of which the first needs no factors."""
    steps = [replace(step, id="norms", bytes_written=0), replace(step, id="newton-1")]
    for number in range(2, n_iterations + 1):
        steps += [replace(each, id=f"lu-{number}{each.id.removeprefix('lu')}") for each in factors if each.id != "rows"]
        steps += [replace(each, id=f"lu-{number}-rows") for each in factors if each.id == "rows"]
        steps.append(replace(step, id=f"newton-{number}"))
    return steps


def compute_newton(run: Run, A: Matrix, options: PolarOptions, plan: Plan) -> Outcome:
    """Compute by the plan; ``u``, and ``p`` on request, go to the outputs of the run.

    Returns
    -------
    Outcome

    Raises
    ------
    NumericalError
        If P overflows.
    DoesNotFitError
        If there are no files for what does not fit.

    Notes
    -----
    For a square matrix about 20 n^3 flops: 10/3 n^3 for the QR factorization and the product with Q, 2 n^3 for an iteration,
    n^3 for P and n^3 / 3 for the proof that it is semidefinite.
    """
    m, n = options.tall(A).shape
    # Q, two iterates with the factors of one, U and P.
    require_room(run, (2 * m * n + 4 * n * n) * A.dtype.itemsize, plan.memory_limit_bytes)
    published = "P" if options.mode == "both" else ""
    return panels_at_safe_scale(Passes(run), options.tall(A), partial(_compute, options=options, plan=plan), factor=published)


def _compute(passes: Passes, A: Matrix, exponent: int, *, options: PolarOptions, plan: Plan) -> Outcome:
    """Decompose ``A = 2^-exponent`` times the matrix."""
    run, (m, n), dtype, facts = passes.run, A.shape, A.dtype, plan.cluster
    grid = PanelGrid(**plan.choices["qr"])
    X = probes(n, dtype)
    target = factor_target(run, "qr", (m, n), dtype, grid, scratch=True)
    factored, seen = Factorizer(run).factor("qr", A, HOUSEHOLDER, grid, target, probes=X)
    if not exponent:
        require_safe(seen.largest, dtype)
    factors = QRFactors(factored, facts.threads_per_worker)
    found = iterate(passes, factors, plan.panels, facts)
    output = _u_target(run, (m, n), dtype, grid, facts, adjoint=plan.transposed)
    rotated(run, factors, found.X, output, adjoint=plan.transposed, facts=facts)
    U = conjugated(output.matrix().T) if plan.transposed else output.matrix()
    back = exponent if options.mode == "both" else 0
    P = scaled(_hermitian_factor(run, U, A, back, options, plan), -back)
    checks, distance = _checks(passes, U, P, exponent, plan, X=X, AX=seen.products)
    notes = [*([SINGULAR] if found.singular else []), *scale_words(exponent)]
    estimates = {"iterations": found.n_iterations, "distance": distance}
    stored = ("u", "p") if options.mode == "both" else ("u",)
    return Outcome({}, stored, Certificate(checks), estimates, tuple(notes))


def _u_target(
    run: Run, shape: tuple[int, int], dtype: np.dtype[Any], grid: PanelGrid, facts: ClusterFacts, *, adjoint: bool
) -> Target:
    """Where U goes, (m, n), or its adjoint, (n, m)."""
    if not adjoint:
        return factor_target(run, "u", shape, dtype, grid)
    (m, n), item = shape, dtype.itemsize
    width = slab_width(m, grid.panel, item, beside_panels(shape, grid.panel, item, facts))
    if run.result is None:
        array = run.outputs["u"] = np.empty((n, m), dtype)
        return MemoryTarget(array)
    chunks = (min(width, n), max(1, min(m, CHUNK_BYTES // (width * item))))
    return StoreTarget(run.result.create("u", (n, m), dtype, chunks=chunks))


def _hermitian_factor(run: Run, U: Matrix, A: Matrix, exponent: int, options: PolarOptions, plan: Plan) -> Matrix:
    """``P = 2^exponent U^H A``, of which the tiles on and above the diagonal are computed."""
    n, tiling = U.shape[1], Tiling(**plan.choices["tiling"])
    chunks = (tiling.chunk_rows, tiling.columns)
    output: Target
    if options.mode == "both" and run.result is not None:
        output = StoreTarget(run.result.create("p", (n, n), U.dtype, chunks=chunks))
    elif options.mode == "u" and run.checkpoint is not None:
        output = StoreTarget(run.checkpoint.scratch(run.prefix + "p", (n, n), U.dtype, chunks=chunks))
    else:
        output = MemoryTarget(np.empty((n, n), U.dtype))
        if options.mode == "both":
            run.outputs["p"] = output.array
    run.require_shared(output)
    threads = plan.cluster.threads_per_worker
    work = Tiles(Operand(U, adjoint=True), Operand(A), tiling, output, exponent, threads, one_operand=False)
    Columns(run, plan.cluster).apply("p", work, n_columns=len(tiling.tiles), width=1, writers=output.writers)
    return output.matrix()


def _checks(
    passes: Passes, U: Matrix, P: Matrix, exponent: int, plan: Plan, *, X: np.ndarray[Any, Any], AX: np.ndarray[Any, Any]
) -> tuple[tuple[Check, ...], float]:
    """What U and the stored P are, at the scale of A here, and ``||A - U||_F`` at its own."""
    n, dtype = U.shape[1], U.dtype
    lines = "rows" if plan.transposed else "columns"
    seen = passes.sweep("hermitian", P, HermitianFactor(X), RowGrid(**plan.choices["p_rows"]))
    PX, Y = seen["product"], probes(n, dtype)
    size = float(np.abs(AX).max()) or 1.0
    fold = Orthonormal(AX / size, np.ascontiguousarray(PX / size, dtype), Y)
    measured = passes.sweep("check", U, fold, plan.rows)
    norm, trace = float(seen["squares"][0]) ** 0.5, float(seen["trace"][0])
    shift = Shift.of(n, norm, trace, dtype)
    zeros, definite = np.zeros((n, 1), accumulator_dtype(dtype)), True
    try:
        grid = PanelGrid(**plan.choices["definite"])
        cholesky.factor_panels(passes, Shifted(P, shift.size), grid, probes=zeros, step="definite", keep=False)
    except NumericalError:
        definite = False
    difference = float(np.linalg.norm(PX - seen["adjoint"]))
    residual = np.sqrt(measured["residual"]) * size
    checks = (
        Check(
            "||(U'U - I)y|| / (||y|| n eps)",
            scaled_residual(measured["back"] - Y, Y, n, dtype),
            LAPACK_THRESHOLD,
            f"the {lines} of U are orthonormal to working precision",
        ),
        Check(
            "||(A - UP)x|| / (||Ax|| n eps)",
            scaled_residual(residual, AX, n, dtype),
            LAPACK_THRESHOLD,
            "on random vectors, U P acts as the matrix does",
        ),
        hermitian_check(difference, float(np.linalg.norm(PX)), n, dtype),
        shift.check(definite=definite, lines=lines),
    )
    # Far from 1 all of it is P, or all of it is U.
    with np.errstate(over="ignore"):
        distance = np.hypot(np.ldexp(norm, exponent), n**0.5) if exponent else float(seen["distance"][0]) ** 0.5
    return checks, float(distance)
