"""Plans of factorizations by panels: grid, memory, flops and bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from dlscale.declaration.options import Options
from dlscale.declaration.sections import Panel, RowBlocks
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import libraries, measured_rates
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes.reading import N_STRIPS
from dlscale.engine.plan import NOMINAL_FLOPS_PER_SECOND, Grids, Need, Plan, Step
from dlscale.engine.run import Run
from dlscale.engine.targets import MemoryTarget, StoreTarget, Target
from dlscale.engine.tiles.factorizer import group_bytes
from dlscale.engine.tiles.grid import WIDE_PANEL_COLUMNS, PanelGrid, choose_panel
from dlscale.engine.tiles.groups import MAX_TASKS
from dlscale.engine.tiles.methods import Method
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


def plan_panels(
    kind: str,
    words: str,
    A: Matrix,
    method: Method,
    options: FactorOptions,
    facts: ClusterFacts,
    *,
    step: str | None = None,
    more: Sequence[Step] = (),
    copied: bool = False,
) -> Plan:
    """Plan a factorization.

    Parameters
    ----------
    kind, words : str
    A : Matrix (m, n)
    method : Method
    options : FactorOptions
    facts : ClusterFacts
    step : str, optional
        How the steps of the factorization are called, if not as the kind.
    more : sequence of Step
        What comes after the panels.
    copied : bool
        Whether finished groups are kept apart until the last one is done, and then copied to their final place.

    Raises
    ------
    SpecError
        If an option does not suit the matrix.
    DoesNotFitError
        Saying what would fit.
    """
    m, n = A.shape
    panel = options.panel or _panel(A, options, facts)
    if not 1 <= panel <= n:
        raise SpecError(f"params.panel must be from 1 to the {n} columns of the matrix; got {panel}.")
    item = A.dtype.itemsize
    row_blocks = _row_blocks(A, options, panel, facts)
    tile_bytes = -(-m // row_blocks) * panel * item
    # Beside the tiles of a group: what each thread factors or reads, and the finished tiles that are streamed.
    memory = [
        Need("tiles and strips in the hands of threads", facts.threads_per_worker * (tile_bytes + (N_STRIPS + 1) * STRIP_BYTES)),
        Need("facts of panels", _COPIES_OF_FACTS * -(-min(m, n) // panel) * method.n_facts(min(panel, m)) * item),
        *libraries(facts),
    ]
    fixed = sum(need.n_bytes for need in memory)
    n_panels = -(-n // panel)
    room = facts.memory_bytes - fixed
    streamed = max(2, min(FETCH_BYTES, room // 5) // tile_bytes)
    group = n_panels
    if n_panels * row_blocks * tile_bytes > room * facts.n_workers:
        group = int(room // tile_bytes - streamed - 1) * facts.n_workers // row_blocks
    if group < 1:
        needed = fixed + (streamed + 2) * tile_bytes
        raise DoesNotFitError(
            f"One worker needs {needed / 1e9:.2f} GB for panels of {m // row_blocks} rows x {panel} columns, and has "
            f"{facts.memory_bytes / 1e9:.2f} GB; raise cluster.memory, use fewer threads, or choose a smaller panel."
        )
    flops = _panel_flops(method, PanelGrid((m, n), panel, group))
    group = _by_time(flops, group, facts)
    grid = PanelGrid((m, n), panel, group, row_blocks, streamed)
    groups = grid.groups()
    steps = [
        Step(
            f"{step or kind}-{i + 1}",
            sum(flops[g.start : g.stop]),
            group_bytes(A, grid, g),
            m * sum(map(grid.width, g)) * item,
        )
        for i, g in enumerate(groups)
    ]
    copies = [Step("rows", 0.0, m * n * item, m * n * item)] if copied and len(groups) > 1 else []
    memory.append(Need("tiles of a group", -(-group * row_blocks // facts.n_workers) * tile_bytes))
    if len(groups) > 1:
        memory.append(Need("finished tiles that are read", (streamed + 1) * tile_bytes))
    return Plan(
        kind=kind,
        method="panels",
        words=words if row_blocks == 1 else f"{words}; panels in {row_blocks} row blocks",
        matrix=A.describe(),
        grids=Grids(columns=RowGrid(n, panel, panel * max(1, n_panels // 16)), panels=grid),
        steps=(*steps, *copies, *more),
        memory=tuple(memory),
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts),
        notes=tuple(A.notes),
        bytes_moved=_bytes_moved(grid, method, item, facts.n_workers),
        n_tasks=_n_tasks(grid),
    )


def _n_tasks(grid: PanelGrid) -> int:
    """Tasks of the largest graph."""
    group = min(grid.group, grid.n_panels)
    if grid.row_blocks == 1:
        return group * max(1, min(MAX_TASKS // group, grid.n_steps))
    steps = max(1, min(MAX_TASKS // group // (2 * grid.row_blocks), grid.n_steps))
    return steps * group * (2 * grid.row_blocks + 1)


def _bytes_moved(grid: PanelGrid, method: Method, itemsize: int, n_workers: int) -> float:
    """Bytes between workers: factored tiles to the workers of their row block, and for each column of a later panel b rows from
    the row blocks that offer some and b rows to each."""
    triangle = sum((grid.shape[0] - grid.columns(j)[0]) * grid.width(j) for j in range(grid.n_steps)) * itemsize
    if grid.row_blocks == 1:
        return float(triangle * (n_workers - 1))
    offered = grid.row_blocks if method.all_row_blocks_offer else 1
    return float(triangle * (max(1, n_workers // grid.row_blocks) - 1 + min(n_workers - 1, offered + grid.row_blocks)))


#: A panel is cut in row blocks where it would take more than this part of a worker's memory.
MAX_PANEL_SHARE = 1 / 32


def _panel(A: Matrix, options: FactorOptions, facts: ClusterFacts) -> int:
    """Columns of a panel: wide ones where all of them are in memory at a time, and are not cut in row blocks for it."""
    wide = choose_panel(A.shape, most=WIDE_PANEL_COLUMNS)
    in_memory = 2 * A.shape[0] * A.shape[1] * A.dtype.itemsize <= facts.n_workers * facts.work_bytes
    return wide if in_memory and _row_blocks(A, options, wide, facts) == 1 else choose_panel(A.shape)


def _row_blocks(A: Matrix, options: FactorOptions, panel: int, facts: ClusterFacts) -> int:
    """The row blocks of a panel: as asked for, or so many that a tile is a small part of a worker's memory."""
    m, tall = A.shape[0], -(-A.shape[0] // panel)
    if options.row_blocks is not None:
        if options.row_blocks > tall:
            raise SpecError(
                f"params.row_blocks must be at most {tall}, the rows of the matrix over those of a panel; got {options.row_blocks}."
            )
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
    rows = max(1, min(shape[0], CHUNK_BYTES // (grid.panel * dtype.itemsize)))
    if grid.row_blocks > 1:
        # Tiles are whole chunks.
        pieces = grid.block_rows // grid.panel
        rows = grid.panel * max((d for d in range(1, pieces + 1) if pieces % d == 0 and d * grid.panel <= rows), default=1)
    chunks = (min(rows, shape[0]), min(grid.panel, shape[1]))
    if scratch and run.checkpoint is not None:
        return StoreTarget(run.checkpoint.scratch(run.prefix + name, shape, dtype, chunks=chunks))
    return StoreTarget(run.result.create(name, shape, dtype, chunks=chunks))
