"""A matrix with what reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlscale.engine.grids import RowGrid
from dlscale.engine.passes.driver import Fold, Passes, RowOutput, State
from dlscale.storage.matrix import Matrix


@dataclass(frozen=True)
class Rows:
    """The rows of a matrix, as passes read them.

    Parameters
    ----------
    passes : Passes
    A : Matrix (m, n)
    grid : RowGrid of m rows
    """

    passes: Passes
    A: Matrix
    grid: RowGrid

    def sweep(self, step: str, fold: Fold, *, outputs: Sequence[RowOutput] = ()) -> State:
        """A pass over them; see `Passes.sweep`."""
        return self.passes.sweep(step, self.A, fold, self.grid, outputs=outputs)
