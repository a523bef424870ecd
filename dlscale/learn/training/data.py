"""Which rows a step uses.

The rows of an epoch are in an order that depends on the seed and the epoch alone. The matrix is cut into units of rows; units
are shuffled and taken some at a time, a window; inside a window the rows of every unit are shuffled and the units are merged
evenly, so that each batch has rows of all of them. A batch is the next ``batch_size`` rows of that order. The ranks divide
every batch between them, by whole units where that comes out even, so that each rank reads its own units and none is read
twice; else by rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import PAGE_BYTES
from dlscale.storage.matrix import ArrayMatrix, Matrix

#: Units merged in a window, where there are so many: it divides evenly by 1, 2, 3, 4, 6 and 12 ranks.
N_LANES = 12
#: Bytes of a unit: so many of several chunks together, or of a part of a large one; a chunk between these is a unit.
UNIT_BYTES, LARGEST_UNIT_BYTES = 8 * 2**20, 32 * 2**20
#: Targets up to so many bytes are kept in memory.
SMALL_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Piece:
    """Some rows of a batch, all from one window.

    Parameters
    ----------
    window : int
        Number of the window in its epoch.
    units : (n_lanes,)
        The window's units.
    lanes, rows : (b,)
        For each row its unit, as an index of ``units``, and its number in the unit; in the order of the lanes.
    """

    window: int
    units: Array
    lanes: Array
    rows: Array

    def share(self, rank: int, size: int) -> Piece:
        """What one of so many ranks takes of these rows."""
        if size == 1:
            return self
        n_lanes = len(self.units)
        if n_lanes % size == 0:
            mine = self.lanes * size // n_lanes == rank
            return Piece(self.window, self.units, self.lanes[mine], self.rows[mine])
        mine_slice = slice(len(self.rows) * rank // size, len(self.rows) * (rank + 1) // size)
        return Piece(self.window, self.units, self.lanes[mine_slice], self.rows[mine_slice])


@dataclass(frozen=True)
class Order:
    """The order of rows in every epoch, whatever the number of ranks.

    Parameters
    ----------
    n_rows, unit_rows, n_lanes, batch_size : int
    seed : int
    shuffle : bool
        False is the stored order.
    """

    n_rows: int
    unit_rows: int
    n_lanes: int
    batch_size: int
    seed: int = 0
    shuffle: bool = True

    @property
    def n_units(self) -> int:
        return -(-self.n_rows // self.unit_rows)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.n_rows // self.batch_size)

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[list[Piece]]:
        """The batches of an epoch from a step on, each in pieces of one window; rows are numbered in `unit_rows`."""
        position, wanted = 0, first_step * self.batch_size
        batch: list[Piece] = []
        missing = self.batch_size
        for window, units in enumerate(self.windows(epoch)):
            n_rows = int(self.lengths[units].sum())
            if position + n_rows <= wanted:
                position += n_rows
                continue
            lanes, rows = self._merged(epoch, window, units)
            start = max(0, wanted - position)
            position += n_rows
            while start < n_rows:
                stop = min(n_rows, start + missing)
                batch.append(_piece(window, units, lanes[start:stop], rows[start:stop]))
                missing -= stop - start
                start = stop
                if missing == 0:
                    yield batch
                    batch, missing = [], self.batch_size
        if batch:
            yield batch

    def windows(self, epoch: int) -> list[Array]:
        """The units of an epoch in their order, cut into windows."""
        units = np.arange(self.n_units)
        if self.shuffle:
            units = self._generator(epoch, 0).permutation(self.n_units)
        return [units[i : i + self.n_lanes] for i in range(0, self.n_units, self.n_lanes)]

    def row_ids(self, piece: Piece) -> Array:
        """The rows of a piece as row numbers of the matrix."""
        return np.asarray(piece.units[piece.lanes] * self.unit_rows + piece.rows)

    @cached_property
    def lengths(self) -> Array:
        """Rows of each unit."""
        lengths = np.full(self.n_units, self.unit_rows)
        lengths[-1] = self.n_rows - (self.n_units - 1) * self.unit_rows
        return lengths

    def _merged(self, epoch: int, window: int, units: Array) -> tuple[Array, Array]:
        """Lane and row of every row of a window: each unit shuffled, all of them spread evenly."""
        lengths = self.lengths[units]
        lanes = np.repeat(np.arange(len(units)), lengths)
        if not self.shuffle:
            return lanes, np.concatenate([np.arange(length) for length in lengths])
        generator = self._generator(epoch, 1 + window)
        rows = np.concatenate([generator.permutation(length) for length in lengths])
        # Row i of n stands at (i + 1/2) / n of the window, in every unit.
        places = np.concatenate([(np.arange(length) + 0.5) / length for length in lengths])
        order = np.argsort(places, kind="stable")
        return lanes[order], rows[order]

    def _generator(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, stream])


def _piece(window: int, units: Array, lanes: Array, rows: Array) -> Piece:
    order = np.lexsort((rows, lanes))
    return Piece(window, units, lanes[order], rows[order])


def plan_order(features: Matrix, *, batch_size: int | None, seed: int, memory_bytes: int, shuffle: bool = True) -> Order:
    """Cut a matrix into units and windows.

    Parameters
    ----------
    features : Matrix (m, n)
    batch_size : int, optional
        None is all rows.
    memory_bytes : int
        What two windows may take, on one rank alone.
    """
    n_rows, row_bytes = features.shape[0], bytes_of_row(features)
    rows_of_unit = max(1, min(UNIT_BYTES, memory_bytes // (2 * N_LANES)) // row_bytes)
    chunk_bytes = features.row_unit * row_bytes
    if features.in_memory:
        unit_rows = rows_of_unit
    elif features.any_range and chunk_bytes > min(LARGEST_UNIT_BYTES, memory_bytes // (2 * N_LANES)):
        unit_rows = _part_of_chunk(features.row_unit, rows_of_unit, row_bytes)
    else:
        unit_rows = features.row_unit * max(1, rows_of_unit // features.row_unit)
    unit_rows = min(unit_rows, n_rows)
    n_lanes = max(1, min(N_LANES, memory_bytes // (2 * unit_rows * row_bytes)))
    return Order(n_rows, unit_rows, n_lanes, min(batch_size or n_rows, n_rows), seed, shuffle)


def _part_of_chunk(chunk_rows: int, most_rows: int, row_bytes: int) -> int:
    """So many rows or less: an equal part of a chunk, of whole pages if there is one; disks read these best."""
    fewest = -(-chunk_rows // most_rows)
    parts = [chunk_rows // n for n in range(fewest, min(4 * fewest, chunk_rows) + 1) if chunk_rows % n == 0] or [most_rows]
    return next((part for part in parts if part * row_bytes % PAGE_BYTES == 0), parts[0])


class Column:
    """Targets or weights: in memory when they are small, else read with the units."""

    def __init__(self, matrix: Matrix, *, keep: bool = False) -> None:
        self.matrix, self.is_vector = matrix, matrix.is_vector or matrix.shape[1] == 1
        self.whole: Array | None = None
        if keep or matrix.n_bytes <= SMALL_BYTES:
            self.whole = self._read(0, matrix.shape[0])

    def rows(self, start: int, stop: int) -> Array:
        return self._read(start, stop) if self.whole is None else self.whole[start:stop]

    def _read(self, start: int, stop: int) -> Array:
        array = self.matrix.read(start, stop)
        return np.ascontiguousarray(array[:, 0] if self.is_vector else array)


def is_compressed(matrix: Matrix) -> bool:
    """Whether rows of a matrix are used as compressed ones; those of a small matrix are kept in memory with their zeros."""
    return matrix.is_sparse and not is_kept(matrix)


def bytes_of_row(matrix: Matrix) -> int:
    """What a row takes where it is used: of compressed ones the mean, with a column of 4 bytes for each entry."""
    m, n = matrix.shape
    if not is_compressed(matrix):
        return n * matrix.dtype.itemsize
    return max(1, -(-matrix.n_entries * (matrix.dtype.itemsize + 4) // m))


def is_kept(matrix: Matrix) -> bool:
    """Whether a matrix is small enough to be read once and kept in memory."""
    return not matrix.in_memory and matrix.n_bytes <= SMALL_BYTES


def in_memory_if_small(matrix: Matrix) -> Matrix:
    """The matrix itself, or a copy in memory where that costs little: an epoch then reads nothing."""
    if not is_kept(matrix):
        return matrix
    return ArrayMatrix(np.ascontiguousarray(matrix.read(0, matrix.shape[0])))
