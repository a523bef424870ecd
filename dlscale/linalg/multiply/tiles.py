"""What the task of a tile does: strips of A and B are read ahead and multiplied by all threads, then the tile is written.

The pieces that threads multiply belong to the tiling, and each is added to in the order of the strips: no bit depends on the
threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import empty_pages
from dlscale.engine.columns import Applied, Tell
from dlscale.engine.run import Cost, State
from dlscale.engine.targets import Target
from dlscale.errors import NumericalError
from dlscale.kernels import largest_part, mirror_upper, one_blas_thread, times_power_of_two
from dlscale.lapack import multiply_add
from dlscale.linalg.multiply.operands import Operand, Span
from dlscale.linalg.multiply.tiling import A_SLOTS, B_SLOTS, Tiling
from dlscale.linalg.scaling import power_words


@dataclass(frozen=True)
class Tiles(Applied):
    """Tiles of ``2^exponent A B``, by their numbers.

    Parameters
    ----------
    a : Operand (m, k)
    b : Operand (k, n)
    tiling : Tiling
    output : Target (m, n)
    exponent : int
    n_threads : int
        That multiply.
    """

    a: Operand
    b: Operand
    tiling: Tiling
    output: Target
    exponent: int = 0
    n_threads: int = 1

    def cost(self, slabs: Sequence[Span]) -> Cost:
        tiling, share = self.tiling, sum(stop - start for start, stop in slabs) / len(self.tiling.tiles)
        n_bytes = tiling.m * tiling.n * self.a.dtype.itemsize
        return Cost(tiling.flops * share, round(tiling.bytes_read(self.a, self.b) * share), round(n_bytes * share))

    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        return [self._apply(number, tell) for number, _ in slabs]

    def _apply(self, number: int, tell: Tell) -> State:
        """Compute and write a tile; returns the largest entry, of ``A B``."""
        rows, across = self.tiling.tiles[number]
        C = self.output.room(rows, across, self.a.dtype)
        with one_blas_thread(), ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(self.n_threads) as pool:
            tile = _Tile(self, rows, across, C, reader, pool)
            tile.multiply(tell)
            return {"largest": np.array([tile.finish()])}


@dataclass
class _Slot:
    """Memory for one piece after the other, and who still uses what is in it."""

    block: Array
    buffer: Array | None = None
    users: list[Future[Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Region:
    """A piece of A or a strip of B, as rows and columns of ``op(M)``."""

    operand: Operand
    rows: Span
    columns: Span

    @property
    def n_bytes(self) -> int:
        return self.operand.bytes_read([self.rows], [self.columns])


class _Tile:
    """One tile while it is computed."""

    def __init__(
        self, work: Tiles, rows: Span, columns: Span, C: Array, reader: ThreadPoolExecutor, pool: ThreadPoolExecutor
    ) -> None:
        self.work, self.tiling, self.rows, self.columns, self.C = work, work.tiling, rows, columns, C
        self.reader, self.pool = reader, pool
        self.diagonal = work.tiling.is_diagonal(rows, columns)
        empty = np.empty((0, 0), work.a.dtype)
        self._slots = {"a": itertools.cycle([_Slot(empty) for _ in range(B_SLOTS if work.a.adjoint else A_SLOTS)])}
        self._slots["b"] = itertools.cycle([_Slot(empty) for _ in range(B_SLOTS)])
        #: The last product that was added to each piece.
        self._last: dict[tuple[Span, Span], Future[Any]] = {}

    def multiply(self, tell: Tell) -> None:
        """Stream the strips; products are still under way when it returns."""
        regions = list(self._regions())
        ahead = self.reader.submit(self._load, *regions[0])
        strip = _Slot(np.empty((0, 0)))
        for i, (name, region) in enumerate(regions):
            slot = ahead.result()
            if i + 1 < len(regions):
                ahead = self.reader.submit(self._load, *regions[i + 1])
            flops = 0.0
            if name == "b":
                strip = slot
            if name == "a" or self.diagonal:
                flops = self._add(region, slot, strip)
            tell(flops, region.n_bytes)

    def _regions(self) -> Iterator[tuple[str, _Region]]:
        """What is read, in order: a strip of B, and the pieces of A that are multiplied with it."""
        a, b, first = self.work.a, self.work.b, self.rows[0]
        for strip in self.tiling.strips:
            yield "b", _Region(b, strip, self.columns)
            if self.diagonal:
                continue  # the adjoint of the strip is the piece of A
            if a.adjoint:
                yield "a", _Region(a, self.rows, strip)
            else:
                yield from (("a", _Region(a, (first + top, first + stop), strip)) for top, stop in self.tiling.pieces(self.rows))

    def _load(self, name: str, region: _Region) -> _Slot:
        """Read a region into the next memory, once nobody uses that any more."""
        slot = next(self._slots[name])
        for user in slot.users:
            user.result()
        slot.users = []
        M = region.operand.matrix
        rows, columns = region.operand.stored(region.rows, region.columns)
        shape = (rows[1] - rows[0], columns[1] - columns[0])
        out = None
        if not M.in_memory:
            if slot.buffer is None or slot.buffer.size < shape[0] * shape[1]:
                slot.buffer = empty_pages((shape[0] * shape[1],), M.dtype)
            out = slot.buffer[: shape[0] * shape[1]].reshape(shape)
        slot.block = _by_rows(M.region(rows, columns, out))
        return slot

    def _add(self, region: _Region, piece: _Slot, strip: _Slot) -> float:
        """Begin the products of a piece of A and a strip of B; returns their flops."""
        a = self.work.a
        inner = region.rows if self.diagonal else region.columns
        first = inner[0] == 0
        top = 0 if self.diagonal else region.rows[0] - self.rows[0]
        height = (self.rows if self.diagonal else region.rows)[1] - (self.rows if self.diagonal else region.rows)[0]
        flops = 0.0
        for rows in self.tiling.pieces((0, height)):
            A = piece.block[:, slice(*rows)] if a.adjoint else piece.block[slice(*rows)]
            rows = (rows[0] + top, rows[1] + top)
            for columns in self.tiling.products(self.rows, self.columns, rows):
                B = strip.block[slice(*columns)] if self.work.b.adjoint else strip.block[:, slice(*columns)]
                before = self._last.get((rows, columns))
                job = self.pool.submit(self._multiply_piece, A, B, (rows, columns), first, before)
                self._last[rows, columns] = job
                piece.users.append(job)
                strip.users.append(job)
                flops += 2.0 * (rows[1] - rows[0]) * (columns[1] - columns[0]) * (inner[1] - inner[0])
        return flops

    def _multiply_piece(self, A: Array, B: Array, place: tuple[Span, Span], first: bool, before: Future[Any] | None) -> None:
        if before is not None:
            before.result()  # it was begun earlier, so that it waits for nobody who comes later
        C = self.C[slice(*place[0]), slice(*place[1])]
        multiply_add(A, B, C, alpha=1.0, beta=0.0 if first else 1.0, op_a=self.work.a.op, op_b=self.work.b.op)

    def finish(self) -> float:
        """Write the tile, and its adjoint where that is another tile; returns the largest entry."""
        if self.diagonal:
            for job in self._last.values():
                job.result()
            n = len(self.C)
            self.C[np.arange(n), np.arange(n)] = self.C[np.arange(n), np.arange(n)].real
            mirror_upper(self.C)
        pieces = list(self.tiling.pieces(self.rows))
        largest = max(self.pool.map(self._finish_rows, pieces))
        if self.tiling.symmetric and not self.diagonal:
            list(self.pool.map(self._mirror_rows, self.tiling.pieces(self.columns)))
        return largest

    def _finish_rows(self, piece: Span) -> float:
        for (rows, _), job in self._last.items():
            if rows == piece:
                job.result()
        C, exponent = self.C[slice(*piece)], self.work.exponent
        largest = largest_part(C)
        if exponent:
            times_power_of_two(C, exponent, out=C)
            if not np.isfinite(largest_part(C)):
                raise NumericalError(
                    f"The product overflows {C.dtype}: its largest entry is about {power_words(largest, exponent)} or more. "
                    "Multiply an operand by a power of two."
                )
        self.work.output.write(self.rows[0] + piece[0], C, self.columns[0])
        return largest

    def _mirror_rows(self, piece: Span) -> None:
        block = np.ascontiguousarray(self.C[:, slice(*piece)].conj().T)
        self.work.output.write(self.columns[0] + piece[0], block, self.rows[0])


def _by_rows(block: Array) -> Array:
    """A block whose rows are contiguous and do not overlap, as BLAS wants it."""
    fits = block.strides[1] == block.itemsize and block.strides[0] >= block.shape[1] * block.itemsize
    aligned = block.flags.aligned and block.strides[0] % block.itemsize == 0
    return block if fits and aligned else np.ascontiguousarray(block)
