"""All eigenpairs of a matrix that no worker holds, planned and computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np

from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.columns import SLAB_SHARE, Columns
from dlscale.engine.costs import libraries, measured_rates
from dlscale.engine.grids import blocks
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Grids, Need, Plan, Step
from dlscale.engine.run import Run
from dlscale.errors import DoesNotFitError
from dlscale.linalg.eigen import direct
from dlscale.linalg.eigen.division.check import measure
from dlscale.linalg.eigen.division.cutting import N_PROBES, Cutting, cut_division, largest_at_once
from dlscale.linalg.eigen.division.density import N_READS, N_VECTORS
from dlscale.linalg.eigen.division.recursion import Recursion
from dlscale.linalg.eigen.division.splitting import AGAIN
from dlscale.linalg.eigen.division.tasks import Symmetrized, symmetrized_cost
from dlscale.linalg.eigen.pairs import Pairs
from dlscale.linalg.multiply.operands import Operand
from dlscale.linalg.panels.plan import factor_target
from dlscale.linalg.panels.scaling import largest_entry
from dlscale.linalg.polar.by_panels import DISK_SQUARES, USUAL_ITERATIONS, iteration_columns, iteration_steps, rotation_columns
from dlscale.linalg.polar.newton import require_room
from dlscale.linalg.polar.start import AtRest
from dlscale.linalg.scaling import exponent_of
from dlscale.linalg.symmetry import limit, refuse
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import scaled

#: Slabs that a task holds when it symmetrizes one: its columns, its rows, what is made of them, and the same as it is written.
_SLABS = 4


def plan_divided(A: Matrix, facts: ClusterFacts) -> Plan:
    """Plan divisions in halves, until a worker holds a part.

    Raises
    ------
    DoesNotFitError
    """
    n, item, dtype = A.shape[0], A.dtype.itemsize, A.dtype
    largest, cut = largest_at_once(n, dtype, facts), cut_division(n, dtype, facts)
    stored, n_threads = A.n_stored_bytes, facts.threads_per_worker
    tile, strips = cut.tiling.work_entries
    slabs = [
        iteration_columns(n, item, cut.lu.panels, facts)[1],
        rotation_columns((n, n), item, cut.qr.panels, facts)[1],
    ]
    symmetric = symmetrized_cost(A, list(blocks(0, n, _symmetric_width(n, cut, item, facts))))
    choice = direct.choose(largest, largest, "largest", dtype, facts) if largest else None
    if choice is None:
        raise DoesNotFitError("One worker has no room for any eigenvectors; raise cluster.memory.")
    needs = [
        cut.qr.memory,
        cut.lu.memory,
        cut.rows.memory,
        *((*needed, *libraries(facts)) for needed in slabs),
        (Need("a tile of a product, and strips that are multiplied", (tile + 2 * strips) * item), *libraries(facts)),
        (Need("a part, read and overwritten, its vectors, and what LAPACK works in", choice.n_bytes), *libraries(facts)),
    ]
    peak = max(needs, key=lambda memory: sum(need.n_bytes for need in memory))
    if (needed := sum(need.n_bytes for need in peak)) > facts.memory_bytes:
        raise DoesNotFitError(
            f"One worker needs {needed / 1e9:.2f} GB for slabs of {n} rows, and has {facts.memory_bytes / 1e9:.2f} GB; raise "
            "cluster.memory."
        )
    return Plan(
        kind="eigh",
        method="divided",
        words=f"spectral divide and conquer by polar factors; parts of at most {largest} rows by LAPACK in one task with "
        f"{n_threads} thread{'s' * (n_threads > 1)}",
        matrix=A.describe(),
        grids=Grids(rows=cut.rows.grid),
        steps=(
            Step("largest", 0.0, stored),
            Step("symmetric", symmetric.flops, symmetric.bytes_read, symmetric.bytes_written),
            *_steps("", n, A.dtype, largest, facts),
            Step("images", 2.0 * n * n * N_PROBES, stored),
            Step("residuals", 8.0 * n * n * N_PROBES, n * n * item),
        ),
        memory=peak,
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts),
        notes=(*_beyond(n, dtype, facts), *A.notes),
        choices={"largest": largest},
        # The Hermitian part of A is beside the others.
        disk_bytes=(DISK_SQUARES + 1) * n * n * item,
    )


def _beyond(n: int, dtype: np.dtype[Any], facts: ClusterFacts) -> list[str]:
    """What would spare the division."""
    if n > direct.LARGEST:
        return []
    needed = direct.least_bytes(n, n, "largest", dtype) + facts.memory_bytes - facts.work_bytes
    return [f"a worker with {needed / 1e9:.2f} GB would find all pairs at once, with about a fourth of the flops"]


def _steps(prefix: str, n: int, dtype: np.dtype[Any], largest: int, facts: ClusterFacts) -> Iterator[Step]:
    """Of a part of n rows, as if it fell in halves."""
    square = n * n * dtype.itemsize
    if n <= largest:
        choice = direct.choose(n, n, "largest", dtype, facts)
        n_threads = direct.EFFICIENCY * (choice.n_threads if choice else 1)
        yield Step(
            f"{prefix}eigenpairs",
            direct.flops(n, n, "largest", choice.routine if choice else "evd"),
            2 * square,
            square,
            n_threads=n_threads,
        )
        return
    cut: Cutting = cut_division(n, dtype, facts)
    yield Step(f"{prefix}identity", 2.0 * n * n, square)
    yield Step(f"{prefix}density", 2.0 * n * n * N_VECTORS * N_READS, square * N_READS)
    iteration, _ = iteration_columns(n, dtype.itemsize, cut.lu.panels, facts)
    rotation, _ = rotation_columns((n, n), dtype.itemsize, cut.qr.panels, facts)
    operand = Operand(AtRest((n, n), dtype))
    n_iterations = USUAL_ITERATIONS[int(np.finfo(dtype).bits)]
    own = [
        *cut.qr.steps,
        *iteration_steps(iteration, cut.lu.steps, n_iterations),
        rotation,
        Step("z", cut.tiling.flops, cut.tiling.bytes_read(operand, operand), square),
        *(replace(step, id=step.id.replace("qr", "basis")) for step in cut.qr.steps),
        replace(rotation, id="aq"),
        replace(rotation, id="blocks"),
    ]
    # A basis of random vectors is hardly ever as sharp as it has to be.
    again = [replace(rotation, id="uq"), replace(rotation, id="y"), *own[-len(cut.qr.steps) - 2 :]]
    own += [replace(step, id=f"{AGAIN}{step.id}") for step in again]
    yield from (replace(step, id=f"{prefix}0-{step.id}") for step in own)
    for side, size in (("a", n // 2), ("b", n - n // 2)):
        yield from _steps(f"{prefix}{side}-", size, dtype, largest, facts)
    yield replace(rotation, id=f"{prefix}v")


def _symmetric(run: Run, A: Matrix, cut: Cutting, facts: ClusterFacts) -> Matrix:
    """``(A + A^H) / 2`` of a matrix near 1 in size that is Hermitian up to rounding, where both its rows and its columns are near.

    Raises
    ------
    InputError
        If it is not.
    """
    n, item = A.shape[0], A.dtype.itemsize
    output = factor_target(run, "symmetric", A.shape, A.dtype, cut.qr.panels, scratch=True)
    width, held = _symmetric_width(n, cut, item, facts), _SLABS * n * item
    what, writers = Symmetrized(A, output), output.writers
    states = Columns(run, facts).apply("symmetric", what, n_columns=n, width=width, column_bytes=held, writers=writers)
    skew, size = (sum(float(state[name][0]) for state in states) ** 0.5 for name in ("skew", "squares"))
    if not skew <= limit(A.dtype) * size:
        raise refuse(skew / size, A.dtype)
    return output.matrix()


def _symmetric_width(n: int, cut: Cutting, itemsize: int, facts: ClusterFacts) -> int:
    """Columns that are symmetrized at a time, whole panels: of a matrix stored by rows, each slab may read all."""
    panel, room = cut.qr.panels.panel, int(facts.work_bytes * SLAB_SHARE)
    return panel * max(1, min(n, room // (_SLABS * n * itemsize)) // panel)


def find_divided(run: Run, A: Matrix, plan: Plan, *, seed: int) -> tuple[Pairs, Matrix]:
    """All eigenpairs by their plan; ``eigenvectors`` (n, n) go to the outputs of the run.

    Raises
    ------
    InputError
        If the matrix is not Hermitian.
    NumericalError
        If the spectrum cannot be divided.
    DoesNotFitError
        If there are no files for what does not fit.

    Notes
    -----
    About 40 n^3 flops for a division, and a fourth of them for those of both halves. Each group of panels or of columns is a
    checkpoint.

    References
    ----------
    Nakatsukasa and Higham (2013), Stable and efficient spectral divide and conquer algorithms for the symmetric eigenvalue
    decomposition and the SVD.
    """
    passes, n, dtype, facts = Passes(run), A.shape[0], A.dtype, plan.cluster
    # A, Q of A - sigma I, two iterates with the factors of one, and the vectors; then another Q, A Q and both halves beside them.
    require_room(run, 7 * n * n * dtype.itemsize, plan.memory_limit_bytes)
    exponent = exponent_of(largest_entry(passes, "largest", A))
    near_one = scaled(A, -exponent)
    cut = cut_division(n, dtype, facts)
    output = factor_target(run, "eigenvectors", (n, n), dtype, cut.qr.panels)
    recursion = Recursion(dtype, facts, int(plan.choices["largest"]), seed)
    found = recursion.pairs(run, cache(partial(_symmetric, run, near_one, cut, facts)), n, norm=None, output=output)
    run.forget("symmetric")
    pairs = measure(passes, near_one, found.values, found.V, grid=plan.rows, exponent=exponent, seed=seed)
    return pairs, output.matrix()
