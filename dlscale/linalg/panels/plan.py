"""Plans of factorizations by panels: grid, memory, flops and bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from dlscale.declaration.options import Options
from dlscale.declaration.sections import Panel, RowBlocks
from dlscale.engine.clusters.facts import ClusterFacts
from dlscale.engine.costs import libraries, measured_rates
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes.reading import N_STRIPS
from dlscale.engine.plan import NOMINAL_FLOPS_PER_SECOND, Grids, Need, Plan, Step
from dlscale.engine.run import Run
from dlscale.engine.targets import MemoryTarget, StoreTarget, Target
from dlscale.engine.tiles.factorizer import group_bytes, panel_bytes
from dlscale.engine.tiles.grid import WIDE_PANEL_COLUMNS, PanelGrid, Ways, choose_panel
from dlscale.engine.tiles.methods import Method
from dlscale.engine.tiles.steps import Steps
from dlscale.engine.tiles.whole_tasks import STRIP_BYTES
from dlscale.errors import DoesNotFitError, SpecError
from dlscale.storage.matrix import Matrix

#: A group takes at most about so long, so that this much work is repeated at most after a kill.
CHECKPOINT_SECONDS = 600.0
#: Bytes of finished panels that are read for one graph.
FETCH_BYTES = 2**29
#: Bytes of a chunk of a stored factor.
CHUNK_BYTES = 16 * 2**20
#: The facts of all panels are with the driver, in what it sends to a worker, and there.
_COPIES_OF_FACTS = 3


@dataclass(frozen=True)
class FactorOptions(Options):
    """How to cut a matrix for a factorization."""

    panel: Panel = None
    row_blocks: RowBlocks = None


def require_dense(A: Matrix, factors: str, instead: str) -> None:
    """Refuse a sparse matrix, whose factors would be dense ones (SpecError, which says what to use)."""
    if "sparse" in A.describe():
        raise SpecError(
            f"input.matrix: is sparse, and {factors} of it would fill with nonzeros; {instead}, or give it as a dense matrix "
            "(import it with sparse: false, or call .toarray())."
        )


@dataclass(frozen=True)
class ByPanels:
    """A factorization, as plans know it.

    Parameters
    ----------
    kind : str
    words : str
        The method as people are told.
    steps : Ways of Steps
    cut_words : str
        What is said where panels are cut in ``{row_blocks}`` row blocks.
    step : str, optional
        How its steps are called, if not as the kind.
    copied : bool
        Whether finished groups are kept apart until the last one is done, and then copied to their final place.
    """

    kind: str
    words: str
    steps: Ways[Steps[Any, Any]]
    cut_words: str = "{words}; panels in {row_blocks} row blocks"
    step: str | None = None
    copied: bool = False


def plan_panels(what: ByPanels, A: Matrix, options: FactorOptions, facts: ClusterFacts, *, more: Sequence[Step] = ()) -> Plan:
    """Plan a factorization.

    Parameters
    ----------
    what : ByPanels
    A : Matrix (m, n)
    options : FactorOptions
    facts : ClusterFacts
    more : sequence of Step
        What comes after the panels.

    Raises
    ------
    SpecError
        If an option does not suit the matrix.
    DoesNotFitError
        Saying what would fit.
    """
    (m, n), item, method = A.shape, A.dtype.itemsize, what.steps.whole.costs
    grid = _cut(A, options, facts)
    flops, memory = _panel_flops(method, grid), _beside_tiles(grid, method, item, facts)
    grid = _grouped(grid, flops, memory, item, facts)
    groups = grid.groups()
    name = what.step or what.kind
    steps = [
        Step(f"{name}-{i + 1}", sum(flops[g.start : g.stop]), group_bytes(A, grid, g), panel_bytes(grid, g, A))
        for i, g in enumerate(groups)
    ]
    copies = [Step("rows", 0.0, m * n * item, m * n * item)] if what.copied and len(groups) > 1 else []
    memory.append(Need("tiles of a group", -(-grid.group * grid.row_blocks // facts.n_workers) * _tile_bytes(grid, item)))
    if len(groups) > 1:
        memory.append(Need("finished tiles that are read", (grid.streamed + 1) * _tile_bytes(grid, item)))
    chosen = what.steps.of(grid)
    return Plan(
        kind=what.kind,
        method="panels",
        words=Ways(what.words, what.cut_words).of(grid).format(words=what.words, row_blocks=grid.row_blocks),
        matrix=A.describe(),
        grids=Grids(columns=RowGrid(n, grid.panel, grid.panel * max(1, grid.n_panels // 16)), panels=grid),
        steps=(*steps, *copies, *more),
        memory=tuple(memory),
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts),
        notes=tuple(A.notes),
        bytes_moved=chosen.n_moved(grid, facts.n_workers) * item,
        n_tasks=chosen.n_tasks(grid),
    )


def _cut(A: Matrix, options: FactorOptions, facts: ClusterFacts) -> PanelGrid:
    """The panels and row blocks of a matrix, all panels in one group."""
    m, n = A.shape
    panel = options.panel or _panel(A, options, facts)
    if not 1 <= panel <= n:
        raise SpecError(f"params.panel must be from 1 to the {n} columns of the matrix; got {panel}.")
    row_blocks, tall = _row_blocks(A, options, panel, facts), -(-m // panel)
    if row_blocks > tall:
        raise SpecError(
            f"params.row_blocks must be at most {tall}, the rows of the matrix over those of a panel; got {row_blocks}."
        )
    return PanelGrid((m, n), panel, -(-n // panel), row_blocks)


def _beside_tiles(grid: PanelGrid, method: Method, itemsize: int, facts: ClusterFacts) -> list[Need]:
    """Memory beside the tiles of a group: what each thread factors or reads, and the facts of panels."""
    strips = _tile_bytes(grid, itemsize) + (N_STRIPS + 1) * STRIP_BYTES
    n_facts = grid.n_steps * method.n_facts(min(grid.panel, grid.shape[0]))
    return [
        Need("tiles and strips in the hands of threads", facts.threads_per_worker * strips),
        Need("facts of panels", _COPIES_OF_FACTS * n_facts * itemsize),
        *libraries(facts),
    ]


def _tile_bytes(grid: PanelGrid, itemsize: int) -> int:
    return -(-grid.shape[0] // grid.row_blocks) * grid.panel * itemsize


def _grouped(grid: PanelGrid, flops: Sequence[float], beside: Sequence[Need], itemsize: int, facts: ClusterFacts) -> PanelGrid:
    """Panels in groups for which there is memory and time, beside finished tiles that are streamed."""
    fixed, tile_bytes = sum(need.n_bytes for need in beside), _tile_bytes(grid, itemsize)
    room, group = facts.memory_bytes - fixed, grid.group
    streamed = max(2, min(FETCH_BYTES, room // 5) // tile_bytes)
    if grid.n_panels * grid.row_blocks * tile_bytes > room * facts.n_workers:
        group = int(room // tile_bytes - streamed - 1) * facts.n_workers // grid.row_blocks
    if group < 1:
        needed = fixed + (streamed + 2) * tile_bytes
        raise DoesNotFitError(
            f"One worker needs {needed / 1e9:.2f} GB for panels of {grid.shape[0] // grid.row_blocks} rows x {grid.panel} columns, "
            f"and has {facts.memory_bytes / 1e9:.2f} GB; raise cluster.memory, use fewer threads, or choose a smaller panel."
        )
    return replace(grid, group=_by_time(flops, group, facts), streamed=streamed)


#: A panel is cut in row blocks where it would take more than this part of a worker's memory.
MAX_PANEL_SHARE = 1 / 32


def _panel(A: Matrix, options: FactorOptions, facts: ClusterFacts) -> int:
    """Columns of a panel: wide ones where all of them are in memory at a time, and are not cut in row blocks for it."""
    narrow, wide = choose_panel(A.shape), choose_panel(A.shape, most=WIDE_PANEL_COLUMNS)
    if 2 * A.shape[0] * A.shape[1] * A.dtype.itemsize > facts.n_workers * facts.work_bytes:
        return narrow
    return Ways(wide, narrow).of(PanelGrid(A.shape, wide, 1, _row_blocks(A, options, wide, facts)))


def _row_blocks(A: Matrix, options: FactorOptions, panel: int, facts: ClusterFacts) -> int:
    """The row blocks of a panel: as asked for, or so many that a tile is a small part of a worker's memory."""
    m, tall = A.shape[0], -(-A.shape[0] // panel)
    if options.row_blocks is not None:
        return options.row_blocks
    if facts.n_workers == 1:
        return 1
    needed = -(-m * panel * A.dtype.itemsize // int(facts.work_bytes * MAX_PANEL_SHARE))
    # Workers in a square move the least.
    return 1 if needed == 1 else max(1, min(tall, facts.n_workers, max(needed, math.isqrt(facts.n_workers))))


def _panel_flops(method: Method, grid: PanelGrid) -> list[float]:
    """Flops of bringing each panel up to date and factoring it."""
    m, apply_flops = grid.shape[0], cache(method.apply_flops)
    tops = [grid.columns(k)[0] for k in range(grid.n_panels)]
    flops = []
    for k, top in enumerate(tops):
        first, width = method.first_row(top), grid.width(k)
        updates = sum(apply_flops(m - max(j_top, first), grid.panel, width) for j_top in tops[: min(k, grid.n_steps)])
        flops.append(updates + (method.factor_flops(m - top, width) if k < grid.n_steps else 0.0))
    return flops


def _by_time(flops: Sequence[float], group: int, facts: ClusterFacts) -> int:
    """The largest group, at most the one given, of which none takes much longer than the checkpoint distance."""
    limit = CHECKPOINT_SECONDS * NOMINAL_FLOPS_PER_SECOND * facts.n_threads
    while group > 1 and max(sum(flops[k : k + group]) for k in range(0, len(flops), group)) > limit:
        group = group * 3 // 4
    return group


def factor_target(
    run: Run,
    name: str,
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    grid: PanelGrid,
    *,
    scratch: bool = False,
    over: Target | None = None,
) -> Target:
    """Where panels go: an array of the result, or scratch space; in memory where the job has no files.

    An array in memory of the same shape that is done with may be given in ``over``: memory that has been touched is faster.

    The chunks of a stored factor are as wide as a panel. An array in memory whose rows are a power of two apart would make
    the caches thrash, so its rows are padded.
    """
    if run.result is None or (scratch and run.checkpoint is None):
        if over is not None and over.array is not None and over.shape == shape:
            run.outputs[name] = over.array
            return over
        pad = 64 if shape[1] * dtype.itemsize % 4096 == 0 else 0
        array = np.empty((shape[0], shape[1] + pad), dtype)[:, : shape[1]]
        if not scratch:
            run.outputs[name] = array
        return MemoryTarget(array)
    chunks = factor_chunks(shape, dtype.itemsize, grid)
    if scratch and run.checkpoint is not None:
        return StoreTarget(run.checkpoint.scratch(run.prefix + name, shape, dtype, chunks=chunks))
    return StoreTarget(run.result.create(name, shape, dtype, chunks=chunks))


def factor_chunks(shape: tuple[int, int], itemsize: int, grid: PanelGrid) -> tuple[int, int]:
    """Rows and columns of a chunk of a stored factor."""
    rows = grid.chunk_rows(CHUNK_BYTES // (grid.panel * itemsize))
    return min(rows, shape[0]), min(grid.panel, shape[1])
