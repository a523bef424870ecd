"""Integers that double precision does not hold: from 2^53 on most of them are rounded."""

from __future__ import annotations

from typing import Any

import numpy as np

_EXACT = 2**53


def has_inexact(block: np.ndarray[Any, np.dtype[Any]]) -> bool:
    """Whether a block holds an integer that double precision rounds."""
    if block.dtype.kind not in "iu" or block.dtype.itemsize < 8 or block.size == 0:
        return False
    if block.max() <= _EXACT and block.min() >= -_EXACT:
        return False
    rounded = block.astype(np.float64)
    beyond = rounded >= 2.0 ** (63 if block.dtype.kind == "i" else 64)  # which converted back would be undefined
    return bool(beyond.any() or (np.where(beyond, 0, rounded).astype(block.dtype) != block).any())


def whole_and_large(block: np.ndarray[Any, np.dtype[np.float64]], fill: float | None = None) -> list[int]:
    """The columns of whole numbers, NaN and `fill` alone, some of them so large that they may have been rounded."""
    if not block.size:
        return []
    large = (np.fmax.reduce(block, axis=0) >= _EXACT) | (np.fmin.reduce(block, axis=0) <= -_EXACT)
    columns = [(j, block[:, j]) for j in np.flatnonzero(large).tolist()]
    return [j for j, column in columns if not ((np.floor(column) < column) & (column != fill)).any()]


def inexact_words(uri: str) -> str:
    """What is said of a matrix that holds such integers."""
    return f"{uri} holds integers beyond 2^53 that double precision does not hold exactly; they were rounded to 53 binary digits."
