"""Row blocks of a matrix that the workers hold, to be multiplied many times: read once, and then no more.

A product is a pass all the same, with the same folds, the same order of sums and so the same bits as one that reads: its leaves
are given blocks instead of reading them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import empty_pages
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.clusters.watching import Watch, Wishes, watchdog
from dlscale.engine.graphs import DataNode, Task, TaskRef
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Fold, Passes, RowOutput, State
from dlscale.engine.run import Cost
from dlscale.sparse_rows import SparseRows
from dlscale.storage.matrix import Matrix

#: Blocks of a matrix: enough for a few workers, few enough that what a task costs (about 1 ms) does not show beside a product.
N_BLOCKS = 16
#: A block of more bytes is cut, so that more workers have something to do.
MAX_BLOCK_BYTES = 2**28


def resident_grid(A: Matrix) -> RowGrid:
    """One block a leaf; it does not depend on who holds them."""
    m = A.shape[0]
    n_blocks = max(N_BLOCKS, -(-A.n_entries * _entry_bytes(A) // MAX_BLOCK_BYTES))
    rows, unit = -(-m // n_blocks), min(A.row_unit, m)
    if unit <= rows:
        rows = rows // unit * unit
    elif not A.any_range:
        # A chunk that is read as a whole is read once.
        rows = unit
    return RowGrid(m, rows, rows)


def resident_bytes(A: Matrix, facts: ClusterFacts) -> int:
    """Bytes of A that one worker holds."""
    grid = resident_grid(A)
    return -(-grid.n_leaves // facts.n_workers) * A.most_entries(grid.leaf_rows) * _entry_bytes(A)


def _entry_bytes(A: Matrix) -> int:
    """Of a block that is held: compressed rows know the column of each entry."""
    return A.dtype.itemsize + (8 if A.is_sparse else 0)


class Resident:
    """A matrix whose row blocks are held on the workers from `load` to `release`.

    Parameters
    ----------
    passes : Passes
    A : Matrix (m, n)
        One that is in memory is used where it is.
    grid : RowGrid, optional
        `resident_grid` by default.
    """

    def __init__(self, passes: Passes, A: Matrix, *, grid: RowGrid | None = None) -> None:
        self.passes, self.A, self.grid = passes, A, grid or resident_grid(A)
        self._held: dict[Any, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def load(self, step: str) -> None:
        """Read the matrix, each worker the blocks that it will hold; nothing where that was done.

        Parameters
        ----------
        step : str
            Under which it is told.
        """
        if self._held:
            return
        run = self.passes.run
        token = run.token(step)
        touch, stalled = watchdog(run.stall_seconds)
        shared = (f"{token}-matrix",)
        keys = [(f"{token}-block", i) for i in range(self.grid.n_leaves)]
        graph: dict[Any, Any] = {shared: DataNode(shared, self.A)}
        graph |= {
            key: Task(key, _read_block, TaskRef(shared), start, stop)
            for key, (start, stop) in zip(keys, self.grid.leaves(), strict=True)
        }
        # Neighbours beside each other: then sums of neighbours stay on one worker.
        n_workers = run.cluster.facts.n_workers
        places = {key: i * n_workers // len(keys) for i, key in enumerate(keys)}
        wishes = Wishes({key: float(i) for i, key in enumerate(keys)}, places)

        def load(_: str) -> State:
            self._held = run.cluster.hold(graph, keys, {}, wishes, Watch(token, touch, stalled))
            return {}

        # A resumed run has to read it again, so nothing is kept of the step.
        run.step(step, Cost(bytes_read=self.A.n_stored_bytes), load, keep="none")

    def sweep(self, step: str, fold: Fold, *, outputs: Sequence[RowOutput] = ()) -> State:
        """Fold all blocks; a product is one of many, and not kept."""
        self.load("resident")
        return self.passes.sweep(step, self.A, fold, self.grid, outputs=outputs, keep="none", held=self._held)

    def release(self) -> None:
        """Let the workers forget the blocks."""
        self.passes.run.cluster.release(self._held.values())
        self._held = {}


def _read_block(A: Matrix, start: int, stop: int) -> Array | SparseRows:
    if A.is_sparse:
        return A.sparse_rows(start, stop)
    if A.in_memory:
        return A.read(start, stop)
    block: Array = empty_pages((stop - start, A.shape[1]), A.dtype)
    return np.asarray(A.read(start, stop, block))
