"""Results that have a row, or a few, for each block of a matrix, and go to the driver: pieces that are put together once a leaf."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.passes.fold import Fold
from dlscale.engine.run import State

_PIECE = "piece-"


def add_rows(state: State, rows: Array) -> None:
    """Put rows below those that are there; they are kept as they are, so no workspaces."""
    state[f"{_PIECE}{len(state):06d}"] = rows


class RowsFold(Fold):
    """A fold one of whose results is rows, in the order of the blocks; the others are sums.

    Attributes
    ----------
    rows_name : str
        Of the rows in the state; ``start`` gives none of them, and ``update`` adds some by `add_rows`.
    """

    rows_name: ClassVar[str]

    def finish(self, state: State) -> State:
        pieces = [state.pop(key) for key in sorted(key for key in state if key.startswith(_PIECE))]
        return state | {self.rows_name: np.concatenate([state[self.rows_name], *pieces])}

    def merge(self, left: State, right: State) -> State:
        rows = np.concatenate([left.pop(self.rows_name), right[self.rows_name]])
        return {name: left[name] + right[name] for name in left} | {self.rows_name: rows}
