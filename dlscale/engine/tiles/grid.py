"""The grid of a factorization: how its columns are cut in panels, and how many panels are in memory at a time.

Like a row grid it belongs to the job's plan and never depends on how many workers run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

#: Columns of a panel: wide enough that products with it run at the rate of square ones, narrow enough that factoring one
#: panel, which one thread does, is short.
PANEL_COLUMNS = 512
#: Where all panels are in memory at a time: with kernels for AVX-512, products with 512 columns still are 8 percent slower
#: than square ones, and triangular solves and the factoring of a panel a quarter.
WIDE_PANEL_COLUMNS = 1024
#: At least so many panels, so that several threads have work.
MIN_PANELS = 12

#: Columns to rows from which on a matrix has few panels to factor and many that are only updated, and how these are cut.
WIDE = 16
WIDE_PANELS = 64
WIDE_PANEL_BYTES = 8 * 2**20


@dataclass(frozen=True)
class PanelGrid:
    """Columns cut in panels, panels taken in groups, rows cut in blocks.

    Parameters
    ----------
    shape : (m, n)
    panel : int
        Columns of a panel; the last one may have fewer.
    group : int
        Panels that are in memory together; a finished group is a checkpoint.
    row_blocks : int
        Row blocks of a panel; 1 is LAPACK on whole columns.
    streamed : int
        Finished panels that are read for one graph; no bit of a result depends on it.
    """

    shape: tuple[int, int]
    panel: int
    group: int
    row_blocks: int = 1
    streamed: int = 4

    @property
    def n_panels(self) -> int:
        return -(-self.shape[1] // self.panel)

    @property
    def n_steps(self) -> int:
        """Panels that are factored: those that begin above the last row."""
        return -(-min(self.shape) // self.panel)

    def columns(self, k: int) -> tuple[int, int]:
        """Columns (start, stop) of panel k."""
        return k * self.panel, min((k + 1) * self.panel, self.shape[1])

    def width(self, k: int) -> int:
        start, stop = self.columns(k)
        return stop - start

    def n_entries(self, n_panels: int) -> int:
        """Entries of the first panels that are factored, each from the row of its diagonal on."""
        return sum((self.shape[0] - self.columns(j)[0]) * self.width(j) for j in range(min(n_panels, self.n_steps)))

    @property
    def block_rows(self) -> int:
        """Rows of a row block, a multiple of the panel's columns; the last one may have fewer."""
        rows = -(-self.shape[0] // self.row_blocks)
        return -(-rows // self.panel) * self.panel

    def rows(self, i: int) -> tuple[int, int]:
        """Rows (start, stop) of row block i."""
        return min(i * self.block_rows, self.shape[0]), min((i + 1) * self.block_rows, self.shape[0])

    def blocks(self, first: int = 0, stop: int | None = None) -> range:
        """The row blocks that have some of these rows, all rows if absent; rounding up may leave nothing for the last blocks."""
        stop = min(self.shape[0], self.shape[0] if stop is None else stop)
        return range(first // self.block_rows, -(-stop // self.block_rows)) if first < stop else range(0)

    def groups(self) -> list[range]:
        """The panels of each group."""
        return [range(k, min(k + self.group, self.n_panels)) for k in range(0, self.n_panels, self.group)]

    def chunk_rows(self, most: int) -> int:
        """Rows of a stored chunk, at most so many where that can be: tiles are whole chunks."""
        if self.block_rows >= self.shape[0]:
            return max(1, min(self.shape[0], most))
        pieces = self.block_rows // self.panel
        return self.panel * max((d for d in range(1, pieces + 1) if pieces % d == 0 and d * self.panel <= most), default=1)


@dataclass(frozen=True)
class Ways(Generic[T]):
    """What there is twice: for panels that a worker holds as a whole, and for panels in row blocks.

    Parameters
    ----------
    whole, in_row_blocks
    """

    whole: T
    in_row_blocks: T

    def of(self, grid: PanelGrid) -> T:
        """The one for a grid: nowhere else is it asked whether panels are cut."""
        return self.whole if grid.row_blocks == 1 else self.in_row_blocks


def choose_panel(shape: tuple[int, int], itemsize: int = 8, *, most: int = PANEL_COLUMNS) -> int:
    """Columns of a panel for a matrix of this shape: a multiple of 32, or all of its columns."""
    m, n = shape
    width = max(32, min(most, -(-min(shape) // MIN_PANELS // 32) * 32))
    if n > WIDE * m:
        # Most panels are never factored, and each is a task of its own in every step.
        width = max(width, min(-(-n // WIDE_PANELS // 32) * 32, WIDE_PANEL_BYTES // (m * itemsize) // 32 * 32))
    return min(n, width)
