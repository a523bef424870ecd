"""The block grid of a pass: which rows are read, computed and added up together.

A grid is part of a job's plan and never depends on how many workers run it: the sums of a pass are taken in the grid's
order, so the same grid gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dlscale.storage.chunk_files import PIECE_BYTES
from dlscale.storage.matrix import Matrix

#: Bytes of a block: large enough that reading it is one long disk access, small enough to stay near the caches.
BLOCK_BYTES = 16 * 2**20
#: The same of compressed rows, with what is made of them: the operand is read again for each block.
SPARSE_BLOCK_BYTES = 96 * 2**20
#: Bytes of a chunk of an output. A thread holds several while it gathers, writes and reads them again, so that they decide
#: how memory grows with the matrix.
OUTPUT_BYTES = 4 * 2**20
MAX_OUTPUT_CHUNKS = 8192
#: Leaves of a pass: enough to keep workers busy to the end, few enough that task overhead (about 1 ms each) does not show.
N_LEAVES = 64
MAX_LEAVES = 4096
MIN_LEAF_BYTES = 32 * 2**20
MAX_LEAF_BYTES = 2**30
#: Blocks that a compressed chunk may be as wide as, so that a leaf decodes all of it, once.
_LARGEST_UNIT = 4
#: Blocks that are left for several threads where they are made as wide as a chunk, or wider so that pieces are longer.
_N_UNITS, _N_BLOCKS = 4, 16


@dataclass(frozen=True)
class RowGrid:
    """Rows cut into blocks, and blocks grouped into leaves (one task each).

    Parameters
    ----------
    n_rows, block_rows, leaf_rows : int
        ``leaf_rows`` is a multiple of ``block_rows``; the last block and the last leaf may be shorter.
    """

    n_rows: int
    block_rows: int
    leaf_rows: int

    @property
    def n_leaves(self) -> int:
        return -(-self.n_rows // self.leaf_rows)

    @property
    def n_blocks(self) -> int:
        return -(-self.n_rows // self.block_rows)

    def leaves(self) -> list[tuple[int, int]]:
        """Rows (start, stop) of each leaf."""
        return [(i, min(i + self.leaf_rows, self.n_rows)) for i in range(0, self.n_rows, self.leaf_rows)]

    def output_chunk_rows(self, row_bytes: int) -> int:
        """Rows of an output chunk: a multiple of the block, at most a leaf, `OUTPUT_BYTES` unless that makes many files."""
        target_bytes = min(BLOCK_BYTES, max(OUTPUT_BYTES, self.n_rows * row_bytes // MAX_OUTPUT_CHUNKS))
        n_blocks = max(1, min(self.leaf_rows, target_bytes // row_bytes) // self.block_rows)
        per_leaf = self.leaf_rows // self.block_rows
        return self.block_rows * max(d for d in range(1, n_blocks + 1) if per_leaf % d == 0)

    def coarser(self, row_bytes: int) -> RowGrid:
        """The grid for passes over a narrow matrix that was written on this one: its blocks are whole chunks."""
        n_leaves = max(1, MIN_LEAF_BYTES // (self.leaf_rows * row_bytes))
        return RowGrid(self.n_rows, self.output_chunk_rows(row_bytes), self.leaf_rows * n_leaves)


def blocks(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Cut ``start:stop`` in pieces of ``step``."""
    return ((i, min(i + step, stop)) for i in range(start, stop, step))


def reads_pieces(A: Matrix) -> bool:
    """Whether a block of `BLOCK_BYTES` is a short piece of many stored rows, as strips of columns of a wide matrix are."""
    unit, row_bytes = min(A.row_unit, A.shape[0]), A.shape[1] * A.dtype.itemsize
    return A.by_columns and A.any_range and not A.in_memory and unit > BLOCK_BYTES // row_bytes


def _piece_rows(A: Matrix, target: int, most: int) -> int:
    """Rows of a block that is read in pieces, each of `PIECE_BYTES` or a whole chunk, as far as memory for ``most`` rows allows."""
    m, rows = A.shape[0], PIECE_BYTES // A.dtype.itemsize
    if A.row_unit <= min(rows, most, m // _N_UNITS):
        return A.row_unit
    return int(2 ** int(math.log2(max(target, min(rows, most, m // _N_BLOCKS)))))


def plan_sparse_grid(
    A: Matrix, *, entry_bytes: int, row_bytes: int, max_block_bytes: int, block_rows: int | None = None
) -> RowGrid:
    """Choose the grid of a pass over compressed rows, by how many entries blocks have.

    Parameters
    ----------
    A : Matrix (m, n)
        One that `is_sparse`.
    entry_bytes, row_bytes : int
        That an entry takes, and that a row takes beside its entries.
    max_block_bytes : int
        What memory allows one block to take.
    block_rows : int, optional
        A block height to use as it is.
    """
    m = A.shape[0]
    average = A.n_entries / m * entry_bytes + row_bytes
    if block_rows is None:
        target = min(SPARSE_BLOCK_BYTES, max_block_bytes, max(BLOCK_BYTES, 2 * m * average / N_LEAVES))
        block_rows = 2 ** int(math.log2(min(max(1, target / average), m)))
        # Some blocks have more entries than others.
        while block_rows > 1 and A.most_entries(block_rows) * entry_bytes + block_rows * row_bytes > max_block_bytes:
            block_rows //= 2
    block_rows = min(block_rows, m)
    n_leaves = min(N_LEAVES, max(1, int(m * average / MIN_LEAF_BYTES)))
    per_leaf = max(1, -(-m // (block_rows * n_leaves)))
    return RowGrid(m, block_rows, block_rows * per_leaf)


def plan_grid(A: Matrix, *, max_block_bytes: int, block_rows: int | None = None) -> RowGrid:
    """Choose the grid of a pass.

    Parameters
    ----------
    A : Matrix (m, n)
        Blocks are made of its whole chunks where ``max_block_bytes`` allows.
    max_block_bytes : int
        What memory allows one block to take.
    block_rows : int, optional
        A block height to use as it is, such as the one in a finished job's plan.

    Returns
    -------
    RowGrid
    """
    m, n = A.shape
    unit, row_bytes = min(A.row_unit, m), n * A.dtype.itemsize
    if block_rows is None:
        target = max(1, min(BLOCK_BYTES, max_block_bytes) // row_bytes)
        if 1 < unit <= target:
            block_rows = unit * (target // unit)
        elif unit > target and not A.any_range and unit * row_bytes <= max_block_bytes:
            block_rows = unit
        else:
            block_rows = 2 ** int(math.log2(target))
            most = max(1, max_block_bytes // row_bytes)
            if A.by_columns and not A.any_range and unit > _LARGEST_UNIT * 2 ** int(math.log2(most)):
                # Each block decodes all chunks that it touches.
                block_rows = 2 ** int(math.log2(most))
            elif reads_pieces(A):
                block_rows = _piece_rows(A, target, most)
    block_rows = min(block_rows, m)
    leaf_bytes = min(max(m * row_bytes // N_LEAVES, MIN_LEAF_BYTES), max(MAX_LEAF_BYTES, m * row_bytes // MAX_LEAVES))
    per_leaf = max(1, min(-(-m // block_rows), leaf_bytes // (block_rows * row_bytes)))
    decoded = A.by_columns and not A.any_range and unit > _LARGEST_UNIT * block_rows
    if decoded or (reads_pieces(A) and block_rows * row_bytes > BLOCK_BYTES):
        # What a leaf needs of such chunks is decoded at once, so that it must not be more than a block; and where blocks are large,
        # there is memory for longer ones if none is read ahead.
        per_leaf = 1
    elif unit > block_rows and unit % block_rows == 0 and not (A.by_columns and A.any_range):
        # Leaves of whole units: a chunk is then read by one leaf alone.
        per_leaf = -(-per_leaf * block_rows // unit) * unit // block_rows
    return RowGrid(m, block_rows, block_rows * per_leaf)
