"""The contract of a pass: what an algorithm does with a block of rows, and how two partial results merge."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from dlscale.arrays import Array
from dlscale.engine.outputs import RowOutput
from dlscale.engine.run import State


class Squares(NamedTuple):
    """A sum of squares of entries, and the binary exponents between which it is safe.

    Parameters
    ----------
    value : float
    low, high : int
        Products of the pass neither lose digits nor overflow, and LAPACK rescales nothing, while ``2^low < value < 2^high``.
    """

    value: float
    low: int
    high: int

    @property
    def safe(self) -> bool:
        return math.ldexp(1.0, self.low) < self.value < math.ldexp(1.0, self.high)


class Fold(ABC):
    """What a pass does with each block; picklable, and the same for all tasks.

    Attributes
    ----------
    takes_sparse : bool
        Whether `update` takes compressed rows too (`dlscale.sparse_rows.SparseRows`), which it then gets of a sparse matrix.
    """

    takes_sparse = False

    @property
    def flops_per_row(self) -> float:
        """Floating point operations for one row of the matrix."""
        return 0.0

    @abstractmethod
    def start(self) -> State:
        """The partial result of no rows."""

    @abstractmethod
    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        """Add a block of rows to a partial result, in place.

        Parameters
        ----------
        state : State
        A : (b, n)
            Of a pass over several matrices, a list with the same rows of each.
        first_row : int

        Returns
        -------
        One block of rows for each output of the pass; may be workspaces.
        """

    def finish(self, state: State) -> State:
        """Complete the partial result of a leaf."""
        return state

    def squares_in(self, state: State) -> Squares | None:
        """The sum of squares that tells whether the pass was in range; None where it tells nothing."""
        return None

    def conclude(self, state: State) -> State:
        """What of the result of all rows goes to the driver; the worker that has it writes the rest to where it belongs."""
        return state

    def concluded(self) -> Sequence[RowOutput]:
        """Arrays that `conclude` writes."""
        return ()

    def merge(self, left: State, right: State) -> State:
        """Combine the partial results of neighbouring rows, left above right; may reuse either."""
        for name, value in right.items():
            left[name] += value
        return left
