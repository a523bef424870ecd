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


def inexact_words(uri: str) -> str:
    """What is said of a matrix that holds such integers."""
    return f"{uri} holds integers beyond 2^53 that double precision does not hold exactly; they were rounded to 53 binary digits."
