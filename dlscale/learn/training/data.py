"""Which rows a step uses, and how each rank gets its share of them.

The rows of an epoch are in an order that depends on the seed and the epoch alone. The matrix is cut into units of rows; units
are shuffled and taken some at a time, a window; inside a window the rows of every unit are shuffled and the units are merged
evenly, so that each batch has rows of all of them. A batch is the next ``batch_size`` rows of that order. The ranks divide
every batch between them, by whole units where that comes out even, so that each rank reads its own units and none is read
twice; else by rows. The next window is read while this one is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import PAGE_BYTES
from dlscale.engine.ranks import Communicator
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
    n_rows = features.shape[0]
    row_bytes = features.shape[1] * features.dtype.itemsize
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


def is_kept(matrix: Matrix) -> bool:
    """Whether a matrix is small enough to be read once and kept in memory."""
    return not matrix.in_memory and matrix.n_bytes <= SMALL_BYTES


def in_memory_if_small(matrix: Matrix) -> Matrix:
    """The matrix itself, or a copy in memory where that costs little: an epoch then reads nothing."""
    if not is_kept(matrix):
        return matrix
    return ArrayMatrix(np.ascontiguousarray(matrix.read(0, matrix.shape[0])))


@dataclass(frozen=True)
class Share:
    """A rank's rows of a batch.

    Parameters
    ----------
    X : (b, n)
    y : (b,) or (b, k)
    weights : (b,) or None
    normalizer : float
        Rows of the whole batch, on all ranks, times the mean weight of all rows.
    rows : (b,)
        Their row numbers in the matrix.
    """

    X: Array
    y: Array
    weights: Array | None
    normalizer: float
    rows: Array


class Shard:
    """What one rank reads: its shares of the batches, in order, the next window being read meanwhile.

    Parameters
    ----------
    features : Matrix (m, n)
    targets, weights : Column
    order : Order
    communicator : Communicator
        For the rank, and how many there are.
    dtype : dtype
        Of the shares.
    reads_features : bool
        False leaves the rows of the shares out.
    """

    def __init__(
        self,
        features: Matrix,
        targets: Column,
        *,
        weights: Column | None,
        order: Order,
        communicator: Communicator,
        dtype: np.dtype[Any],
        reads_features: bool = True,
    ) -> None:
        self.features, self.targets, self.weights, self.order = features, targets, weights, order
        self.rank, self.size = communicator.rank, communicator.size
        self.dtype, self.reads_features = dtype, reads_features
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="dlscale-read")
        self._free: list[Array] = []
        self._held: dict[tuple[int, int], tuple[Array | None, Future[Array]]] = {}

    def close(self) -> None:
        self._reader.shutdown(cancel_futures=True)

    def reorder(self, order: Order, dtype: np.dtype[Any]) -> None:
        """Go through the rows in another order, of the same units, with shares of another dtype."""
        self.order, self.dtype = order, dtype

    def total_weight(self) -> float:
        """The sum of the weights of all rows."""
        if self.weights is None:
            return float(self.order.n_rows)
        assert self.weights.whole is not None
        return float(self.weights.whole.sum(dtype=np.float64))

    def shares(self, epoch: int, first_step: int = 0) -> Iterator[Share]:
        """This rank's share of each batch of an epoch; each is overwritten by the one after the next."""
        windows = self.order.windows(epoch)
        current = -1
        buffers = [np.empty((0, self.features.shape[1]), self.dtype)] * 2
        for number, batch in enumerate(self.order.batches(epoch, first_step)):
            parts = [piece.share(self.rank, self.size) for piece in batch]
            n_rows = sum(len(part.rows) for part in parts)
            slot = number % 2
            if self.reads_features and len(buffers[slot]) < n_rows:
                buffers[slot] = np.empty((n_rows, self.features.shape[1]), self.dtype)
            X, filled = buffers[slot][:n_rows], 0
            targets = []
            for part in parts:
                if not self.reads_features:
                    targets.append(self._targets_of(self.order.row_ids(part)))
                    continue
                if part.window > current:
                    current = part.window
                    self._let_go(current)
                    self._fetch(current, windows)
                    self._fetch(current + 1, windows)
                targets.append(self._gather(part, X[filled : filled + len(part.rows)]))
                filled += len(part.rows)
            rows = np.concatenate([self.order.row_ids(part) for part in parts])
            yield Share(X, np.concatenate(targets), *self._weigh(sum(len(piece.rows) for piece in batch), rows), rows)
        self._let_go(len(windows))

    def _weigh(self, n_rows: int, mine: Array) -> tuple[Array | None, float]:
        if self.weights is None:
            return None, float(n_rows)
        assert self.weights.whole is not None
        return self.weights.whole[mine], n_rows * self._mean_weight

    @cached_property
    def _mean_weight(self) -> float:
        return self.total_weight() / self.order.n_rows

    def _gather(self, part: Piece, X: Array) -> Array:
        """Copy the rows of a share; returns their targets."""
        bounds = np.searchsorted(part.lanes, np.arange(len(part.units) + 1))
        for lane in range(len(part.units)):
            a, b = bounds[lane], bounds[lane + 1]
            if a == b:
                continue
            unit = self._unit(part.window, int(part.units[lane])).result()
            if unit.dtype == X.dtype:
                np.take(unit, part.rows[a:b], axis=0, out=X[a:b], mode="clip")
            else:
                X[a:b] = unit[part.rows[a:b]]
        return self._targets_of(self.order.row_ids(part))

    def _targets_of(self, rows: Array) -> Array:
        if self.targets.whole is not None:
            return self.targets.whole[rows]
        units = rows // self.order.unit_rows
        parts = []
        for unit in dict.fromkeys(units.tolist()):
            start = unit * self.order.unit_rows
            parts.append(
                self.targets.rows(start, min(self.order.n_rows, start + self.order.unit_rows))[rows[units == unit] - start]
            )
        return np.concatenate(parts) if parts else self.targets.rows(0, 1)[:0]

    def _fetch(self, window: int, windows: list[Array]) -> None:
        """Start reading what this rank will need of a window."""
        if window >= len(windows):
            return
        n_lanes = len(windows[window])
        first, last = n_lanes * self.rank // self.size, -(-n_lanes * (self.rank + 1) // self.size)
        wanted = [unit for unit in windows[window][first:last] if (window, int(unit)) not in self._held]
        for unit in wanted:
            # The disk works on its own then, also while the computing thread has the core that the reading one needs.
            self._reader.submit(self.features.expect, *self._bounds(int(unit)))
        for unit in wanted:
            self._unit(window, int(unit))

    def _unit(self, window: int, unit: int) -> Future[Array]:
        key = (window, unit)
        if key not in self._held:
            buffer = None if self.features.in_memory else self._free.pop() if self._free else self._buffer()
            self._held[key] = buffer, self._reader.submit(self._read, unit, buffer)
        return self._held[key][1]

    def _bounds(self, unit: int) -> tuple[int, int]:
        start = unit * self.order.unit_rows
        return start, min(self.order.n_rows, start + self.order.unit_rows)

    def _buffer(self) -> Array:
        """Room for a unit, at the start of a page, so that a disk can fill it past the page cache."""
        shape, dtype = (self.order.unit_rows, self.features.shape[1]), self.features.dtype
        room = np.empty(shape[0] * shape[1] * dtype.itemsize + PAGE_BYTES, np.uint8)
        first = -room.ctypes.data % PAGE_BYTES
        return room[first : first + len(room) - PAGE_BYTES].view(dtype).reshape(shape)

    def _read(self, unit: int, buffer: Array | None) -> Array:
        start, stop = self._bounds(unit)
        return self.features.read(start, stop, None if buffer is None else buffer[: stop - start])

    def _let_go(self, window: int) -> None:
        """Keep the buffers of windows before this one for the next units."""
        for key in [key for key in self._held if key[0] < window]:
            buffer, reading = self._held.pop(key)
            reading.result()
            if buffer is not None:
                self._free.append(buffer)
