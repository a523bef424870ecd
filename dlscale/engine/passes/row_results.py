"""Results that have a row for each row of the matrix, in the state of a fold: pieces that are put together once a leaf."""

from __future__ import annotations

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.run import State

_PIECE = "piece-"


def add_rows(state: State, rows: Array) -> None:
    """Put rows below those that are there; they are kept as they are, so no workspaces."""
    state[f"{_PIECE}{len(state):06d}"] = rows


def join_rows(state: State, name: str) -> State:
    """All pieces as one array of this name; in ``finish``."""
    pieces = [state.pop(key) for key in sorted(key for key in state if key.startswith(_PIECE))]
    return state | {name: np.concatenate([state[name], *pieces])}


def merge_rows(left: State, right: State, name: str) -> Array:
    """The rows of both, left above right."""
    return np.concatenate([left[name], right[name]])
