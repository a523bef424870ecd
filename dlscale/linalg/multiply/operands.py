"""One side of a product: a stored matrix or its adjoint, and how much of the store is read for parts of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.lapack import Op
from dlscale.storage.chunk_files import GAP_BYTES, LONG_BYTES
from dlscale.storage.matrix import Matrix

Span = tuple[int, int]


@dataclass(frozen=True)
class Operand:
    """``op(M)``: a matrix, or its adjoint.

    Parameters
    ----------
    matrix : Matrix
    adjoint : bool
    """

    matrix: Matrix
    adjoint: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.matrix.shape
        return (columns, rows) if self.adjoint else (rows, columns)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.matrix.dtype

    @property
    def op(self) -> Op:
        return "C" if self.adjoint else "N"

    def stored(self, rows: Span, columns: Span) -> tuple[Span, Span]:
        """Where rows and columns of ``op(M)`` stand in M."""
        return (columns, rows) if self.adjoint else (rows, columns)

    def entries_read(self, rows: Iterable[Span], columns: Iterable[Span]) -> tuple[list[int], list[int]]:
        """How far what is read of the store for these rows, and for these columns, reaches along either: whole chunks where
        parts of them cannot be had."""
        M = self.matrix
        down, across = (columns, rows) if self.adjoint else (rows, columns)
        unit = 1 if M.in_memory or M.any_range else M.row_unit
        n_down = [_covered(span, unit, M.shape[0]) for span in down]
        n_across = [_covered_columns(M, span) for span in across]
        return (n_across, n_down) if self.adjoint else (n_down, n_across)

    def reads_whole_rows(self, rows: Iterable[Span], columns: Iterable[Span]) -> bool:
        """Whether these rows and columns of ``op(M)`` are whole rows of chunks on a disk, which are long pieces of files."""
        M, unit = self.matrix, self.matrix.column_unit
        ends = {0, M.shape[1]}
        across = rows if self.adjoint else columns
        whole = all(end % unit == 0 or end in ends for span in across for end in span)
        return M.any_range and not (M.in_memory or M.is_far) and whole

    def bytes_read(self, rows: Iterable[Span], columns: Iterable[Span]) -> int:
        """What is read of the store for the rectangles of all these rows and columns of ``op(M)``."""
        down, across = self.entries_read(rows, columns)
        return sum(down) * sum(across) * self.matrix.stored_dtype.itemsize


def _covered(span: Span, unit: int, length: int) -> int:
    """Entries of an axis in the whole units that a span touches."""
    return min(length, -(-span[1] // unit) * unit) - span[0] // unit * unit


def _covered_columns(M: Matrix, span: Span) -> int:
    """Columns that are read for some of them: all of a chunk where pieces of its rows are short (`read_window`)."""
    if M.in_memory:
        return span[1] - span[0]
    if not M.any_range:
        return _covered(span, M.column_unit, M.shape[1])
    unit, item = M.column_unit, M.stored_dtype.itemsize

    def read(left: int) -> int:
        piece = min(span[1], left + unit) - max(span[0], left)
        apart = piece * item >= LONG_BYTES or (unit - piece) * item >= GAP_BYTES
        return piece if apart else min(unit, M.shape[1] - left)

    first, last = (column // unit * unit for column in (span[0], span[1] - 1))
    # Of the chunks between these two all is read.
    return sum(read(left) for left in {first, last}) + max(0, last - first - unit)
