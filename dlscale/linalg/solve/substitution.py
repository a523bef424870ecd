"""In which order a stored triangle is read and used by a substitution, and what that takes.

    for each panel j, in the order of the substitution:
        X_j = op(T_jj)^-1 (B_j - what the panels before contribute)

A panel is a block of columns of T, or of rows where T is stored so; its length is read in pieces. Both are whole stored chunks,
so that none is read twice by one substitution. They depend on how T is stored alone, not on who computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import workspace
from dlscale.engine.columns import Tell, untold
from dlscale.engine.grids import blocks
from dlscale.engine.passes.reading import N_STRIPS
from dlscale.engine.run import Cost
from dlscale.lapack import Op
from dlscale.storage.matrix import ArrayMatrix, Matrix

#: Unknowns of a panel where T is in memory, or its chunks are narrower.
PANEL = 512
#: Bytes of a piece of a panel: one long read.
PIECE_BYTES = 8 * 2**20
#: Columns that are read at once where all of a matrix is.
LOADED_COLUMNS = 256

Span = tuple[int, int]


class Piece(NamedTuple):
    """A part of a panel that is read at once.

    Parameters
    ----------
    span : (start, stop)
        Along the panel, whole chunks.
    others : (start, stop)
        Unknowns of other panels in it.
    own : (start, stop)
        Unknowns of this panel in it: rows of its triangle, or columns.
    """

    span: Span
    others: Span
    own: Span


@dataclass(frozen=True)
class Substitution:
    """How a triangle is gone through.

    Parameters
    ----------
    n : int
    itemsize : int
    panel, length : int
        Unknowns of a panel, and of a piece.
    by_rows : bool
        Whether a panel is a block of rows.
    whole : bool
        Whether all of a piece is read, used or not: its chunks have a checksum, or are compressed.
    """

    n: int
    itemsize: int
    panel: int
    length: int
    by_rows: bool = False
    whole: bool = True

    @classmethod
    def of(cls, T: Matrix, panel: int = PANEL) -> Substitution:
        """For a triangle (n, n) as it is stored."""
        n = T.shape[0]
        by_rows = T.column_unit >= n > T.row_unit
        across, along = (T.row_unit, T.column_unit) if by_rows else (T.column_unit, T.row_unit)
        return cls.of_chunks(n, (along, across), T.dtype.itemsize, panel=panel, by_rows=by_rows, whole=not T.any_range)

    @classmethod
    def of_chunks(
        cls, n: int, chunks: tuple[int, int], itemsize: int, *, panel: int = PANEL, by_rows: bool = False, whole: bool = True
    ) -> Substitution:
        """For chunks of these sizes along and across the panels."""
        along, across = chunks
        width = max(1, panel // across) * across if across < n else panel
        length = max(1, PIECE_BYTES // (width * itemsize) // along) * along
        return cls(n, itemsize, min(n, width), min(n, length), by_rows, whole)

    def scatters(self, op: Op) -> bool:
        """Whether a panel carries its unknowns to the others, or collects what the others contribute."""
        return self.by_rows == (op != "N")

    def steps(self, *, lower: bool, op: Op, first: int = 0) -> Iterator[tuple[Span, list[Piece]]]:
        """Panels with their pieces, in order, as far as right-hand sides ask for them whose first entries are zero.

        Parameters
        ----------
        lower : bool
        op : str
        first : int
            The first row of the right-hand sides that is not zero.
        """
        forward, scatters, after = lower == (op == "N"), self.scatters(op), lower != self.by_rows
        spans = list(blocks(0, self.n, self.panel))
        for start, stop in spans if forward else reversed(spans):
            if forward and stop <= first:
                continue
            needed = (start, self.n) if after else (0, stop)
            pieces = [
                self._piece(i, needed, (start, stop), after=after)
                for i in range(needed[0] // self.length * self.length, needed[1], self.length)
            ]
            if forward and not scatters:
                pieces = [piece for piece in pieces if piece.others[1] > first or _size(piece.own)]
            # What carries begins with its own triangle, what collects ends with it.
            yield (start, stop), pieces if scatters == after else pieces[::-1]

    def _piece(self, i: int, needed: Span, panel: Span, *, after: bool) -> Piece:
        span = (i, min(i + self.length, self.n))
        others = _both(span, (panel[1], self.n) if after else (0, panel[0]))
        return Piece(span if self.whole else _both(span, needed), others, _both(span, panel))

    def rectangle(self, panel: Span, piece: Piece) -> tuple[Span, Span]:
        """Rows and columns of a piece."""
        return (panel, piece.span) if self.by_rows else (piece.span, panel)

    def cost(self, *, lower: bool, op: Op = "N", first: int = 0) -> Cost:
        """Flops of one column; bytes of any number of them."""
        forward, after = lower == (op == "N"), lower != self.by_rows
        collects = forward and not self.scatters(op)
        skipped = first // self.length * self.length if collects else 0
        flops, n_read = 0.0, 0
        for start, stop in blocks(first // self.panel * self.panel if forward else 0, self.n, self.panel):
            low, high = (start, self.n) if after else (min(skipped, start), stop)
            others = self.n - stop if after else start - (min(first, start) if collects else 0)
            flops += float((stop - start) * (stop - start + 2 * others))
            if self.whole:
                low, high = low // self.length * self.length, min(self.n, -(-high // self.length) * self.length)
            n_read += (stop - start) * (high - low)
        return Cost(flops, n_read * self.itemsize)


def _both(a: Span, b: Span) -> Span:
    start = max(a[0], b[0])
    return start, max(start, min(a[1], b[1]))


def _size(span: Span) -> int:
    return span[1] - span[0]


def loaded(T: Matrix, tell: Tell = untold) -> Matrix:
    """A matrix in memory that is cut as where it is stored, so that what is done with it has the same bits."""
    if T.in_memory:
        return T
    array, n = np.empty(T.shape, T.dtype), T.shape[0]

    def load(span: Span) -> int:
        # The memory of the matrix is touched for the first time, which takes longer than to read it.
        panel = T.region((0, n), span, workspace("panel", (n, _size(span)), T.dtype))
        array[:, slice(*span)] = panel
        return panel.nbytes

    with ThreadPoolExecutor(N_STRIPS) as pool:
        for n_bytes in pool.map(load, blocks(0, T.shape[1], max(T.column_unit, LOADED_COLUMNS))):
            tell(0.0, n_bytes)
    return Loaded(array, T)


class Loaded(ArrayMatrix):
    """A matrix in memory that says of itself what another one does."""

    def __init__(self, array: Array, stored: Matrix) -> None:
        super().__init__(array)
        self.row_unit, self.column_unit, self.any_range = stored.row_unit, stored.column_unit, stored.any_range
