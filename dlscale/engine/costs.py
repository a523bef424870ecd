"""The cost model: from sizes to grids, memory and rates, before anything runs.

Pure functions of shapes, dtypes and a cluster's facts; only the rates are measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.clusters.facts import BASELINE_BYTES
from dlscale.engine.grids import RowGrid, plan_grid, plan_sparse_grid, reads_pieces
from dlscale.engine.machine import matmul_rate, read_rate, sparse_rate, sparse_read_rate
from dlscale.engine.plan import Need
from dlscale.errors import DoesNotFitError
from dlscale.host import n_cores
from dlscale.storage.matrix import Matrix

#: Partial results that wait to be merged, beside one for each thread.
N_WAITING_STATES = 6
#: What blocks of a matrix are called in the memory of a plan.
BLOCKS = "blocks"


@dataclass(frozen=True)
class Layout:
    """A grid with the memory it takes on a worker."""

    grid: RowGrid
    memory: tuple[Need, ...]
    notes: tuple[str, ...]

    @property
    def blocks(self) -> Need:
        """What threads hold of the matrix, and keep for later passes."""
        return next(need for need in self.memory if need.what == BLOCKS)

    @property
    def peak_bytes(self) -> int:
        return sum(need.n_bytes for need in self.memory)


def lay_out(
    A: Matrix,
    facts: ClusterFacts,
    *,
    state_bytes: int,
    operand_bytes: int = 0,
    block_factor: float = 3.0,
    block_rows: int | None = None,
    min_block_rows: int = 1,
) -> Layout:
    """Choose a grid for the passes over a matrix that fits in a worker's memory.

    Parameters
    ----------
    A : Matrix
        As the passes read it (transposed if they go over columns).
    state_bytes, operand_bytes : int
        Bytes of a fold's partial result, and of what it multiplies by.
    block_factor : float
        Blocks that a thread holds: two being read and used, and temporaries of the same size.
    block_rows : int, optional
        A block height to use as it is.
    min_block_rows : int
        What the algorithm needs of a block (a QR of a block wants it tall).

    Raises
    ------
    DoesNotFitError
        Saying what would fit.
    """
    if not A.in_memory and not (A.any_range and A.dtype == A.stored_dtype):
        block_factor += 2.0
    if A.in_memory:
        # Blocks are views; only tiles of them are copied.
        block_factor = 0.25
    held = _Held(2 * facts.threads_per_worker + N_WAITING_STATES, state_bytes, operand_bytes)
    fitting = partial(_fitting_grid, A, facts, held, block_rows=block_rows, min_block_rows=min_block_rows)
    if reads_pieces(A) and (grid := fitting(block_factor - 1.0)).leaf_rows == grid.block_rows:
        # A block is all of a leaf, so that none is read ahead.
        block_factor -= 1.0
    else:
        grid = fitting(block_factor)
    blocks = facts.threads_per_worker * block_factor * grid.block_rows * A.shape[1] * A.dtype.itemsize
    memory = (
        Need(f"{held.n_states} partial results", held.n_states * state_bytes),
        Need("what blocks are multiplied by", operand_bytes),
        Need(BLOCKS, int(blocks)),
        *libraries(facts),
    )
    return Layout(grid, memory, _notes(A, grid))


def lay_out_sparse(
    A: Matrix, facts: ClusterFacts, *, state_bytes: int, operand_bytes: int = 0, width: int = 0, block_rows: int | None = None
) -> Layout:
    """As `lay_out`, for passes all of which take compressed rows.

    Parameters
    ----------
    A : Matrix
        One that `is_sparse`.
    width : int
        Columns of the product that is made of a block.
    """
    if not A.is_sparse:
        raise ValueError("Only a sparse matrix is laid out by its entries.")
    threads, wide = facts.threads_per_worker, max(8, np.result_type(A.dtype, np.float64).itemsize)
    # Two blocks being read and used, in the matrix's own precision, and one in double precision twice; the product and its sum.
    entry_bytes, row_bytes = 2 * (A.dtype.itemsize + 8) + 3 * wide, 16 + 3 * width * wide
    held = _Held(2 * threads + N_WAITING_STATES, state_bytes, operand_bytes + 2 * threads * state_bytes)
    room = facts.work_bytes - held.n_states * state_bytes - held.operand_bytes
    most = max(room, 0) // threads
    grid = plan_sparse_grid(A, entry_bytes=entry_bytes, row_bytes=row_bytes, max_block_bytes=max(most, 1), block_rows=block_rows)
    largest = A.most_entries(grid.block_rows) * entry_bytes + grid.block_rows * row_bytes
    if largest > most:
        needed = facts.memory_bytes - room + threads * largest
        raise DoesNotFitError(
            f"One worker needs {needed / 1e9:.2f} GB ({held.n_states} partial results of {state_bytes / 1e6:.0f} MB, and {threads} "
            f"threads with blocks of {grid.block_rows} rows), and has {facts.memory_bytes / 1e9:.2f} GB; raise cluster.memory, use "
            "fewer threads, or ask for fewer components."
        )
    memory = (
        Need(f"{held.n_states} partial results", held.n_states * state_bytes),
        Need("what blocks are multiplied by", held.operand_bytes),
        Need("blocks", int(threads * largest)),
        *libraries(facts),
    )
    return Layout(grid, memory, ())


class _Held(NamedTuple):
    """What a worker holds during a pass beside blocks."""

    n_states: int
    state_bytes: int
    operand_bytes: int


def _fitting_grid(
    A: Matrix, facts: ClusterFacts, held: _Held, block_factor: float, *, block_rows: int | None, min_block_rows: int
) -> RowGrid:
    """The grid of the largest blocks for which there is room (DoesNotFitError)."""
    row_bytes, fixed = A.shape[1] * A.dtype.itemsize, held.n_states * held.state_bytes + held.operand_bytes
    room, needed_rows = facts.work_bytes - fixed, min(min_block_rows, A.shape[0])
    max_block_bytes = int(room / (facts.threads_per_worker * block_factor)) if room > 0 else 0
    if max_block_bytes < needed_rows * row_bytes:
        needed = fixed + facts.threads_per_worker * block_factor * needed_rows * row_bytes + BASELINE_BYTES
        raise DoesNotFitError(
            f"One worker needs {needed / 1e9:.2f} GB ({held.n_states} partial results of {held.state_bytes / 1e6:.0f} MB, and "
            f"{facts.threads_per_worker} threads with blocks of {needed_rows} rows x {A.shape[1]}), and has "
            f"{facts.memory_bytes / 1e9:.2f} GB; raise cluster.memory, use fewer threads, or ask for fewer components."
        )
    grid = plan_grid(A, max_block_bytes=max_block_bytes, block_rows=block_rows)
    if block_rows is None and grid.block_rows < min_block_rows and grid.n_leaves > 1:
        taller = -(-min_block_rows // grid.block_rows) * grid.block_rows
        grid = plan_grid(A, max_block_bytes=max_block_bytes, block_rows=taller)
    return grid


def _notes(A: Matrix, grid: RowGrid) -> tuple[str, ...]:
    """What a grid costs beside the layout of what is stored."""
    if A.in_memory or grid.n_leaves == 1:
        return ()
    if not A.any_range and grid.leaf_rows % A.row_unit:
        times, length = A.row_unit / grid.leaf_rows + 1, "columns wide" if A.by_columns else "rows high"
        return (
            f"chunks are {A.row_unit} {length} and do not line up with the blocks: each is read about {times:.1f} times a pass",
        )
    if A.by_columns and A.any_range and A.row_unit > grid.block_rows:
        piece = grid.block_rows * A.stored_dtype.itemsize / 2**10
        return (f"chunks are {A.row_unit} columns wide: strips of columns are read in pieces of {piece:.0f} KiB",)
    return ()


def libraries(facts: ClusterFacts) -> list[Need]:
    """What a process takes before it reads anything; in this process it is taken already."""
    return [Need("the program and its libraries", BASELINE_BYTES)] if facts.kind != "threads" else []


def measured_rates(A: Matrix, facts: ClusterFacts, *, grid: RowGrid | None = None, sparse: bool = False) -> dict[str, float | None]:
    """Rates of all threads of the cluster together, from short measurements on this machine.

    Parameters
    ----------
    A : Matrix
        As the passes read it.
    facts : ClusterFacts
    grid : RowGrid, optional
        Of the passes.
    sparse : bool
        Whether they take compressed rows, which have other rates.
    """
    # Threads of one machine share its disk.
    together = facts.n_threads if facts.one_host else facts.threads_per_worker
    if sparse and A.is_sparse and grid:
        read, rate = sparse_read_rate(A, grid.block_rows), sparse_rate()
    else:
        read = read_rate(A, n_threads=min(together, n_cores()), block_rows=grid.block_rows if grid else None)
        rate = matmul_rate(str(A.dtype))
    return {
        "matmul_flops_per_second": rate * facts.n_threads,
        "read_bytes_per_second": read * facts.n_threads / together,
    }


def bytes_of(*shape: int, dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape)) * dtype.itemsize
