"""How each rank gets its share of a batch: by units of rows, the next window of them being read while one is used."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy

from dlscale.arrays import Array
from dlscale.buffers import PAGE_BYTES
from dlscale.engine.ranks import Communicator
from dlscale.learn.training.data import Column, Order, Piece, is_compressed
from dlscale.sparse_rows import SparseRows, stacked
from dlscale.storage.matrix import Matrix


@dataclass(frozen=True)
class Share:
    """A rank's rows of a batch.

    Parameters
    ----------
    X : (b, n)
        Or compressed, `dlscale.sparse_rows.SparseRows`.
    y : (b,) or (b, k)
    weights : (b,) or None
    normalizer : float
        Rows of the whole batch, on all ranks, times the mean weight of all rows.
    rows : (b,)
        Their row numbers in the matrix.
    """

    X: Any
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
        self.dtype, self.reads_features, self.compressed = dtype, reads_features, is_compressed(features)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="dlscale-read")
        self._free: list[Array] = []
        self._held: dict[tuple[int, int], tuple[Array | None, Future[Any]]] = {}

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
            slot, copies = number % 2, self.reads_features and not self.compressed
            if copies and len(buffers[slot]) < n_rows:
                buffers[slot] = np.empty((n_rows, self.features.shape[1]), self.dtype)
            X, filled = buffers[slot][:n_rows], 0
            pieces: list[SparseRows] = []
            for part in parts if self.reads_features else []:
                if part.window > current:
                    current = part.window
                    self._let_go(current)
                    self._fetch(current, windows)
                    self._fetch(current + 1, windows)
                if self.compressed:
                    pieces += [unit[mine].astype(self.dtype) for _, unit, mine in self._from_units(part)]
                else:
                    self._copy(part, X[filled : filled + len(part.rows)])
                    filled += len(part.rows)
            rows = np.concatenate([self.order.row_ids(part) for part in parts])
            targets = np.concatenate([self._targets_of(self.order.row_ids(part)) for part in parts])
            whole = (stacked(pieces) if pieces else self._no_rows()) if self.compressed and self.reads_features else X
            yield Share(whole, targets, *self._weigh(sum(len(piece.rows) for piece in batch), rows), rows)
        self._let_go(len(windows))

    def _no_rows(self) -> SparseRows:
        return SparseRows(scipy.sparse.csr_array((0, self.features.shape[1]), dtype=self.dtype))

    def _weigh(self, n_rows: int, mine: Array) -> tuple[Array | None, float]:
        if self.weights is None:
            return None, float(n_rows)
        assert self.weights.whole is not None
        return self.weights.whole[mine], n_rows * self._mean_weight

    @cached_property
    def _mean_weight(self) -> float:
        return self.total_weight() / self.order.n_rows

    def _from_units(self, part: Piece) -> Iterator[tuple[slice, Any, Array]]:
        """Where some rows of a share are, the unit that they come from, and which they are in there."""
        bounds = np.searchsorted(part.lanes, np.arange(len(part.units) + 1))
        for lane in range(len(part.units)):
            place = slice(bounds[lane], bounds[lane + 1])
            if place.start < place.stop:
                yield place, self._unit(part.window, int(part.units[lane])).result(), part.rows[place]

    def _copy(self, part: Piece, X: Array) -> None:
        for place, unit, rows in self._from_units(part):
            if unit.dtype == X.dtype:
                np.take(unit, rows, axis=0, out=X[place], mode="clip")
            else:
                X[place] = unit[rows]

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

    def _unit(self, window: int, unit: int) -> Future[Any]:
        key = (window, unit)
        if key not in self._held:
            needs_none = self.features.in_memory or self.compressed
            buffer = None if needs_none else self._free.pop() if self._free else self._buffer()
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

    def _read(self, unit: int, buffer: Array | None) -> Any:
        start, stop = self._bounds(unit)
        if self.compressed:
            return self.features.sparse_rows(start, stop)
        return self.features.read(start, stop, None if buffer is None else buffer[: stop - start])

    def _let_go(self, window: int) -> None:
        """Keep the buffers of windows before this one for the next units."""
        for key in [key for key in self._held if key[0] < window]:
            buffer, reading = self._held.pop(key)
            reading.result()
            if buffer is not None:
                self._free.append(buffer)
