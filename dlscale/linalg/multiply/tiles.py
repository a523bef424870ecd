"""What the task of a tile does: strips of A and B are read ahead and multiplied by all threads, then the tile is written.

The pieces that threads multiply belong to the tiling, and each is added to in the order of the strips: no bit depends on the
threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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
from dlscale.linalg.multiply.tiling import N_SLOTS, Tiling
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
    one_operand : bool
        Whether, where C is Hermitian, A is the adjoint of B, so that one strip is both of them on the diagonal.
    """

    a: Operand
    b: Operand
    tiling: Tiling
    output: Target
    exponent: int = 0
    n_threads: int = 1
    one_operand: bool = True

    def cost(self, slabs: Sequence[Span]) -> Cost:
        tiling, share = self.tiling, sum(stop - start for start, stop in slabs) / len(self.tiling.tiles)
        n_bytes = tiling.m * tiling.n * self.a.dtype.itemsize
        n_read = tiling.bytes_read(self.a, self.b)
        if tiling.symmetric and not self.one_operand:
            n_read += self.a.bytes_read(tiling.row_spans, tiling.strips_a)
        return Cost(tiling.flops * share, round(n_read * share), round(n_bytes * share))

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


@dataclass(frozen=True)
class _Strip:
    """A strip of A or of B: which, the part of the inner dimension, and its rows and columns in ``op(M)``."""

    name: str
    operand: Operand
    inner: Span
    place: tuple[Span, Span]

    @property
    def n_bytes(self) -> int:
        rows, columns = self.place
        return self.operand.bytes_read([rows], [columns])


class _Slot:
    """Memory for one strip after the other, and who still uses what is in it."""

    strip: _Strip
    block: Array
    buffer: Array | None = None

    def __init__(self) -> None:
        self.users: list[Future[Any]] = []


class _Tile:
    """One tile while it is computed."""

    def __init__(
        self, work: Tiles, rows: Span, columns: Span, C: Array, reader: ThreadPoolExecutor, pool: ThreadPoolExecutor
    ) -> None:
        self.work, self.tiling, self.rows, self.columns, self.C = work, work.tiling, rows, columns, C
        self.reader, self.pool = reader, pool
        self.diagonal = work.tiling.is_diagonal(rows, columns)
        self._slots = {name: itertools.cycle([_Slot() for _ in range(N_SLOTS)]) for name in "ab"}
        #: The last product that was added to each piece.
        self._last: dict[tuple[Span, Span], Future[Any]] = {}

    def multiply(self, tell: Tell) -> None:
        """Stream the strips; products are still under way when it returns."""
        strips = list(self._strips())
        ahead = [self.reader.submit(self._load, strips[0])]
        at: dict[str, _Slot] = {}
        for step in self.tiling.steps:
            n_bytes = 0
            while strips and strips[0].inner[0] == step[0]:
                slot = ahead.pop().result()
                at[slot.strip.name], n_bytes = slot, n_bytes + slot.strip.n_bytes
                strips.pop(0)
                if strips:
                    ahead = [self.reader.submit(self._load, strips[0])]
            tell(self._add(step, at.get("a", at["b"]), at["b"]), n_bytes)

    def _strips(self) -> Iterator[_Strip]:
        """What is read, in order."""
        tiling, a, b = self.tiling, self.work.a, self.work.b
        begins_a, begins_b = ({strip[0]: strip for strip in strips} for strips in (tiling.strips_a, tiling.strips_b))
        for start, _ in tiling.steps:
            # On the diagonal the strip of B is that of A too, where one is the adjoint of the other.
            if start in begins_a and not (self.diagonal and self.work.one_operand):
                yield _Strip("a", a, begins_a[start], (self.rows, begins_a[start]))
            if start in begins_b:
                yield _Strip("b", b, begins_b[start], (begins_b[start], self.columns))

    def _load(self, strip: _Strip) -> _Slot:
        """Read a strip into the next memory, once nobody uses that any more."""
        slot = next(self._slots[strip.name])
        for user in slot.users:
            user.result()
        slot.users, slot.strip = [], strip
        M = strip.operand.matrix
        rows, columns = strip.operand.stored(*strip.place)
        shape = (rows[1] - rows[0], columns[1] - columns[0])
        out = None
        if not M.in_memory:
            if slot.buffer is None or slot.buffer.size < shape[0] * shape[1]:
                slot.buffer = empty_pages((shape[0] * shape[1],), M.dtype)
            out = slot.buffer[: shape[0] * shape[1]].reshape(shape)
        slot.block = _by_rows(M.region(rows, columns, out))
        return slot

    def _add(self, step: Span, a: _Slot, b: _Slot) -> float:
        """Begin the products of a step along the inner dimension; returns their flops."""
        flops, of_a, of_b = 0.0, self.work.a.adjoint, self.work.b.adjoint
        inner_a, inner_b = (slice(step[0] - slot.strip.inner[0], step[1] - slot.strip.inner[0]) for slot in (a, b))
        for rows in self.tiling.pieces(self.rows):
            A = a.block[inner_a, slice(*rows)] if of_a else a.block[slice(*rows), inner_a]
            for columns in self.tiling.products(self.rows, self.columns, rows):
                B = b.block[slice(*columns), inner_b] if of_b else b.block[inner_b, slice(*columns)]
                before = self._last.get((rows, columns))
                job = self.pool.submit(self._multiply_piece, A, B, (rows, columns), before)
                self._last[rows, columns] = job
                a.users.append(job)
                b.users.append(job)
                flops += 2.0 * (rows[1] - rows[0]) * (columns[1] - columns[0]) * (step[1] - step[0])
        return flops

    def _multiply_piece(self, A: Array, B: Array, place: tuple[Span, Span], before: Future[Any] | None) -> None:
        if before is not None:
            before.result()  # it was begun earlier, so that it waits for nobody who comes later
        C = self.C[slice(*place[0]), slice(*place[1])]
        multiply_add(A, B, C, alpha=1.0, beta=0.0 if before is None else 1.0, op_a=self.work.a.op, op_b=self.work.b.op)

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
