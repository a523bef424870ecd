"""The pass: one sweep over the rows of a matrix.

    total = tree-reduce(merge, map(fold, row blocks)),   optionally with one output block per row block

An algorithm supplies a `Fold` (what to do with a block, how two partial results merge) and gets from here: blocks read
inside the task that uses them, the next block read while this one is computed, memory bounded by threads times blocks in
flight, sums in an order that the grid alone decides, retry of the leaves that a dead worker held, progress, and a
checkpoint after each pass. A pass whose result is in the checkpoint is not run again: it returns what was stored, so an
algorithm resumes by simply being run once more.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

from dlscale.engine.clusters.watching import Watch, Wishes
from dlscale.engine.grids import RowGrid
from dlscale.engine.outputs import RowOutput
from dlscale.engine.passes.fold import Fold
from dlscale.engine.passes.parcels import opened
from dlscale.engine.passes.sweep import ADVICE, Sweep, all_finite, bytes_read, flops_per_row, held_graph, reduction_tree
from dlscale.engine.run import Cost, Keep, Run, State
from dlscale.errors import OutOfRange
from dlscale.storage.matrix import Matrix

__all__ = ["Fold", "Held", "Passes", "RowOutput", "State"]

#: Keys of blocks that the workers hold, with their handles, in the order of the rows.
Held = Mapping[Any, Any]


class Passes:
    """Runs passes on the cluster of a run.

    Parameters
    ----------
    run : Run
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.watches_range = False

    def apart(self, prefix: str) -> Self:
        """The same passes, their steps and scratch arrays under other names."""
        other = copy.copy(self)
        other.run = self.run.apart(prefix)
        return other

    def watching_range(self) -> Self:
        """The same passes, which raise `OutOfRange` where the squares of a fold are not safe."""
        other = copy.copy(self)
        other.watches_range = True
        return other

    def sweep(
        self,
        step: str,
        A: Matrix | Sequence[Matrix],
        fold: Fold,
        grid: RowGrid,
        *,
        outputs: Sequence[RowOutput] = (),
        keep: Keep = "all",
        held: Held | None = None,
    ) -> State:
        """Run one pass, or return its result if the checkpoint has it.

        Parameters
        ----------
        step : str
            The name of the pass, unique in the job.
        A : Matrix (m, n), or a sequence of such with the same rows
            Several are read ahead together, and ``fold.update`` gets a block of each.
        fold : Fold
        grid : RowGrid of m rows
        outputs : sequence of RowOutput
            Filled with the row blocks that ``fold.update`` returns, in this order.
        keep : str
            As for `Run.step`.
        held : mapping, optional
            Keys and handles of the leaves of A, one block each in the order of the rows, which the workers hold already
            (`dlscale.engine.resident`).

        Returns
        -------
        State
            The merged partial results.

        Raises
        ------
        NonFiniteError
            If the matrix holds a NaN or an infinity.
        OutOfRange
            If finite entries overflowed, or, on request, if their squares are not safe (`watching_range`).
        StalledError
        """
        inputs = (A,) if isinstance(A, Matrix) else tuple(A)
        n_bytes = 0 if held else bytes_read(inputs)
        cost = Cost(flops_per_row(fold, inputs) * grid.n_rows, n_bytes, sum(output.n_bytes for output in outputs))
        written = (*outputs, *fold.concluded())
        writers = [writer for output in written for writer in output.writers]
        state = self.run.step(
            step, cost, lambda name: self._compute(name, inputs, fold, grid, outputs, held), writers=writers, keep=keep
        )
        squares = fold.squares_in(state) if self.watches_range else None
        if squares and not squares.safe:
            raise OutOfRange(f"The squares of the entries sum to {squares.value:.1e}, which is not safe.", squares.value)
        return state

    def _compute(
        self,
        step: str,
        inputs: tuple[Matrix, ...],
        fold: Fold,
        grid: RowGrid,
        outputs: Sequence[RowOutput],
        held: Held | None = None,
    ) -> State:
        token = self.run.token(step)
        self.run.require_shared(*outputs, *fold.concluded())
        with self.run.parcels() as folder:
            sweep = Sweep(token, step, inputs, fold, grid.block_rows, tuple(outputs), folder and folder / step)
            state: State = opened(self._root(sweep, grid, held, self.run.watch(token)))
        if not all_finite(state):
            raise OutOfRange(f"The entries are finite, but sums of their products overflow; {ADVICE}")
        return state

    def _root(self, sweep: Sweep, grid: RowGrid, held: Held | None, watch: Watch) -> Any:
        cluster = self.run.cluster
        if held is None:
            return cluster.compute(*reduction_tree(sweep, grid), watch)
        graph, root, places = held_graph(sweep, grid, list(held), cluster.facts)
        handles = cluster.hold(graph, [root], held, Wishes({}, places), watch)
        try:
            return cluster.gather([handles[root]])[0]
        finally:
            cluster.release(handles.values())
