"""Where finished blocks go: memory of this process, or an array in a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import empty_pages
from dlscale.engine.outputs import RowOutput
from dlscale.storage.matrix import ArrayMatrix, Matrix
from dlscale.storage.results import ArrayWriter

Span = tuple[int, int]


class Target(RowOutput, Protocol):
    """Where blocks of rows and columns go; tasks that work in a block ask for its room first."""

    @property
    def array(self) -> Array | None:
        """What is filled, where that is memory of this process."""
        ...

    def room(self, rows: Span, columns: Span, dtype: np.dtype[Any]) -> Array:
        """Memory for a block: its final place where that is in memory, which is touched only once so."""
        ...

    def take(self, start_row: int, block: Array, start_column: int, *, own: bool) -> Array:
        """A block that may be changed, in its room; the block itself where it is the caller's own and there is no other."""
        ...

    def write(self, start_row: int, block: Array, start_column: int = 0) -> None:
        """Put a block of whole chunks where it belongs."""
        ...

    def finish(self, start_row: int, n_zeros: int, block: Array, start_column: int) -> None:
        """Put rows of zeros there, and below them a block that is in its room."""
        ...


@dataclass
class MemoryTarget:
    """A NumPy array that tasks of this process fill."""

    array: Array

    in_memory = True
    writers: tuple[ArrayWriter, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def n_bytes(self) -> int:
        return int(self.array.nbytes)

    def room(self, rows: Span, columns: Span, dtype: np.dtype[Any]) -> Array:
        return self.array[slice(*rows), slice(*columns)]

    def take(self, start_row: int, block: Array, start_column: int, *, own: bool) -> Array:
        place = self.array[start_row : start_row + len(block), start_column : start_column + block.shape[1]]
        if (place.ctypes.data, place.strides) != (block.ctypes.data, block.strides):
            place[...] = block
        return place

    def write(self, start_row: int, block: Array, start_column: int = 0) -> None:
        self.take(start_row, block, start_column, own=False)

    def finish(self, start_row: int, n_zeros: int, block: Array, start_column: int) -> None:
        self.array[start_row : start_row + n_zeros, start_column : start_column + block.shape[1]] = 0
        self.write(start_row + n_zeros, block, start_column)

    def matrix(self) -> Matrix:
        return ArrayMatrix(self.array)


@dataclass
class StoreTarget:
    """An array in a store, which tasks anywhere write."""

    writer: ArrayWriter

    array = None
    in_memory = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.writer.shape

    @property
    def chunks(self) -> tuple[int, ...]:
        return self.writer.chunks

    @property
    def n_bytes(self) -> int:
        return self.writer.n_bytes

    @property
    def writers(self) -> tuple[ArrayWriter, ...]:
        return (self.writer,)

    def room(self, rows: Span, columns: Span, dtype: np.dtype[Any]) -> Array:
        return empty_pages((rows[1] - rows[0], columns[1] - columns[0]), dtype)

    def take(self, start_row: int, block: Array, start_column: int, *, own: bool) -> Array:
        return writable(block if own else block.copy())

    def write(self, start_row: int, block: Array, start_column: int = 0) -> None:
        self.writer.write(start_row, block, start_column)

    def finish(self, start_row: int, n_zeros: int, block: Array, start_column: int) -> None:
        """Chunk by chunk where zeros and the block meet, so that no copy of the whole is made."""
        top, stop, height = start_row + n_zeros, start_row + n_zeros + len(block), self.writer.chunks[0]
        below = min(stop, -(-top // height) * height)
        for row in range(start_row, below, height):
            strip = empty_pages((min(row + height, below) - row, block.shape[1]), block.dtype)
            n_above = min(max(0, top - row), len(strip))
            strip[:n_above] = 0
            strip[n_above:] = block[row + n_above - top : row + len(strip) - top] if n_above < len(strip) else 0
            self.writer.write(row, strip, start_column)
        if below < stop:
            self.writer.write(below, np.ascontiguousarray(block[below - top :]), start_column)

    def matrix(self) -> Matrix:
        return self.writer.matrix()


@dataclass
class TransposedTarget:
    """Writes row blocks as column blocks of the array that holds the transpose."""

    writer: ArrayWriter

    in_memory = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.writer.shape[::-1]

    @property
    def n_bytes(self) -> int:
        return self.writer.n_bytes

    @property
    def chunks(self) -> tuple[int, ...]:
        return self.writer.chunks[::-1]

    @property
    def writers(self) -> tuple[ArrayWriter, ...]:
        return (self.writer,)

    def write(self, start_row: int, block: Array) -> None:
        self.writer.write(0, np.ascontiguousarray(block.T), start_row)

    def matrix(self) -> Matrix:
        return self.writer.matrix().T


def writable(block: Array) -> Array:
    """An array that came from another worker may be read-only, or lie at an odd address."""
    return np.require(block, requirements=["A", "W"])
