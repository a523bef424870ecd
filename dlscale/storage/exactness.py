"""Numbers that are told of: integers that double precision does not hold, most of those from 2^53 on, and NaN and infinities."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlscale.storage.labels.names import Names

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


class NotFinite:
    """Looks for NaN and infinities in the blocks of an import."""

    def __init__(self) -> None:
        self.n, self._first = 0, ""

    def look(self, block: Any, first_row: int, names: Names | None, *, by_rows: bool) -> None:
        """Count those of the next rows, dense or compressed; where not `by_rows`, these are columns of the matrix."""
        dense = isinstance(block, np.ndarray)
        entries = block if dense else block.data
        if entries.dtype.kind not in "fc" or np.isfinite(entries).all():
            return
        places = np.argwhere(~np.isfinite(block)) if dense else _places(block.tocoo())
        if not self.n:
            i, j = map(int, places[0])
            row, column = (first_row + i, j) if by_rows else (j, first_row + i)
            called = f"{column} ({names[column : column + 1][0]!r})" if names is not None and column < len(names) else column
            self._first = f"{block[i, j]} in row {row}, column {called}, counted from 0"
        self.n += len(places)

    def words(self, source: str) -> list[str]:
        """What is said of them, if there are any."""
        if not self.n:
            return []
        what = "an entry that is not finite," if self.n == 1 else f"{self.n:,} entries that are not finite, the first"
        return [f"{source} holds {what} {self._first}; jobs refuse such matrices."]


def _places(entries: Any) -> np.ndarray[Any, Any]:
    """Row and column of each of a sparse matrix that is not finite."""
    wrong = ~np.isfinite(entries.data)
    return np.column_stack([entries.row[wrong], entries.col[wrong]])
