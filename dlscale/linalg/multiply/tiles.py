"""What the task of some tiles does: strips of A and B are read ahead and multiplied by all threads, then each tile is written.

Nobody waits between two tiles: a piece of the next one begins where that of the last one has been written, by threads of their own,
and its strips are read meanwhile. The pieces that threads multiply belong to the tiling, and each is added to in the order of the
strips: no bit depends on the threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
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
from dlscale.linalg.multiply.tiling import N_SLOTS, Tiling
from dlscale.linalg.scaling import power_words

#: Strips for which products had to wait, from which on they are read through the page cache.
_OFTEN = 3


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
        tiles, n = [self.tiling.tiles[number] for number, _ in slabs], self.n_threads
        with one_blas_thread(), ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(n) as pool, ThreadPoolExecutor(n) as writers:
            return [{"largest": np.array([largest])} for largest in _Stream(self, tiles, reader, pool, writers).run(tell)]


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

    @property
    def is_whole_rows(self) -> bool:
        rows, columns = self.place
        return self.operand.reads_whole_rows([rows], [columns])


class _Slot:
    """Memory for one strip after the other, and who still uses what is in it."""

    strip: _Strip | None = None
    block: Array
    buffer: Array | None = None

    def __init__(self) -> None:
        self.users: list[Future[Any]] = []

    def inner(self, step: Span) -> slice:
        """Where a part of the inner dimension stands in the strip."""
        assert self.strip is not None
        return slice(step[0] - self.strip.inner[0], step[1] - self.strip.inner[0])


@dataclass
class _Tile:
    """One tile while it is computed.

    Parameters
    ----------
    rows, columns : Span
    C : Array
    free : sequence of (rows, future)
        What still reads these rows of C, counted from the first one, for the tile before.
    last : dict
        The last product that was added to each piece.
    """

    rows: Span
    columns: Span
    C: Array
    free: Sequence[tuple[Span, Future[Any]]]
    last: dict[tuple[Span, Span], Future[Any]] = field(default_factory=dict)

    def before(self, place: tuple[Span, Span]) -> list[Future[Any]]:
        """What a product that is added to a piece waits for."""
        if place in self.last:
            return [self.last[place]]
        return [job for rows, job in self.free if rows[0] < place[0][1] and place[0][0] < rows[1]]


class _Stream:
    """The tiles of a task, and the threads that read, multiply and write for them."""

    def __init__(
        self,
        work: Tiles,
        tiles: Sequence[tuple[Span, Span]],
        reader: ThreadPoolExecutor,
        pool: ThreadPoolExecutor,
        writers: ThreadPoolExecutor,
    ) -> None:
        self.work, self.tiling, self.tiles = work, work.tiling, tiles
        self.reader, self.pool, self.writers = reader, pool, writers
        n_strips = {"a": len(self.tiling.strips_a), "b": len(self.tiling.strips_b)}
        self._slots = {name: itertools.cycle([_Slot() for _ in range(min(N_SLOTS, n))]) for name, n in n_strips.items()}
        self._at: dict[str, _Slot] = {}
        self._n_late = 0
        strips = (strip for tile in tiles for step in self.tiling.steps for strip in self._strips(tile, step))
        self._loads = (reader.submit(self._load, strip) for strip in strips)
        self._ahead = next(self._loads, None)
        self._room: Array | None = None

    def run(self, tell: Tell) -> list[float]:
        """Compute and write the tiles; returns the largest entry of each, of ``A B``."""
        found, free = [], list[tuple[Span, Future[Any]]]()
        written = list[Future[float]]()
        for rows, columns in self.tiles:
            tile = _Tile(rows, columns, self._room_of(rows, columns), free)
            for step in self.tiling.steps:
                tell(*self._multiply(tile, step))
            # Of the tile before, which is written by now: an error is told before more is begun.
            found += [max(job.result() for job in written)] if written else []
            written, free = self._finish(tile)
        return [*found, max(job.result() for job in written)]

    def _room_of(self, rows: Span, columns: Span) -> Array:
        """Memory for a tile: its own place where that is in memory, and else that of the tile before."""
        work, shape = self.work, (rows[1] - rows[0], columns[1] - columns[0])
        if work.output.in_memory:
            return work.output.room(rows, columns, work.a.dtype)
        if self._room is None:
            tallest, widest = (max(stop - start for start, stop in spans) for spans in zip(*self.tiles, strict=True))
            self._room = work.output.room((0, tallest), (0, widest), work.a.dtype)
        return self._room[: shape[0], : shape[1]]

    def _strips(self, tile: tuple[Span, Span], step: Span) -> Iterator[_Strip]:
        """What is read for a step of a tile, in order."""
        (rows, columns), work = tile, self.work
        for name, operand, strips in (("a", work.a, self.tiling.strips_a), ("b", work.b, self.tiling.strips_b)):
            # On the diagonal the strip of B is that of A too, where one is the adjoint of the other.
            if name == "a" and work.one_operand and self.tiling.is_diagonal(rows, columns):
                continue
            inner = strips[min(step[0] // (strips[0][1] - strips[0][0]), len(strips) - 1)]
            if inner[0] == step[0]:
                yield _Strip(name, operand, inner, (rows, inner) if name == "a" else (inner, columns))

    def _load(self, strip: _Strip) -> tuple[_Slot, int]:
        """Read a strip into the next memory, once nobody uses that any more; the bytes that were read.

        Whole rows come past the page cache, which takes a tenth of the processor's time, unless products often wait for them:
        where the disk is too slow, the cache may have them.
        """
        slot = next(self._slots[strip.name])
        if slot.strip == strip:
            return slot, 0  # of the tile before, beside this one
        for user in slot.users:
            user.result()
        slot.users, slot.strip = [], strip
        M, before = strip.operand.matrix, self._at.get(strip.name)
        if past_cache := self._n_late < _OFTEN and strip.is_whole_rows:
            M = M.past_the_cache()
        rows, columns = strip.operand.stored(*strip.place)
        shape = (rows[1] - rows[0], columns[1] - columns[0])
        out = None
        if not M.in_memory:
            if slot.buffer is None or slot.buffer.size < shape[0] * shape[1]:
                slot.buffer = empty_pages((shape[0] * shape[1],), M.dtype)
            out = slot.buffer[: shape[0] * shape[1]].reshape(shape)
        slot.block = _by_rows(M.region(rows, columns, out))
        self._n_late += past_cache and before is not None and bool(before.users) and all(user.done() for user in before.users)
        return slot, strip.n_bytes

    def _multiply(self, tile: _Tile, step: Span) -> tuple[float, int]:
        """Begin the products of a step along the inner dimension; returns their flops, and the bytes that were read for them."""
        n_read = 0
        for i, strip in enumerate(self._strips((tile.rows, tile.columns), step)):
            if i:
                self._ahead = next(self._loads, None)
            assert self._ahead is not None
            self._at[strip.name], n_bytes = self._ahead.result()
            n_read += n_bytes
        flops = self._add(tile, step)
        # What comes next may take the place of what these products use.
        self._ahead = next(self._loads, None)
        return flops, n_read

    def _add(self, tile: _Tile, step: Span) -> float:
        flops, of_a, of_b = 0.0, self.work.a.adjoint, self.work.b.adjoint
        both = self.work.one_operand and self.tiling.is_diagonal(tile.rows, tile.columns)
        a, b = self._at["b" if both else "a"], self._at["b"]
        inner_a, inner_b = a.inner(step), b.inner(step)
        for rows in self.tiling.pieces(tile.rows, tile.columns):
            A = a.block[inner_a, slice(*rows)] if of_a else a.block[slice(*rows), inner_a]
            for columns in self.tiling.products(tile.rows, tile.columns, rows):
                B = b.block[slice(*columns), inner_b] if of_b else b.block[inner_b, slice(*columns)]
                place = (rows, columns)
                first, before = place not in tile.last, tile.before(place)
                job = self.pool.submit(self._multiply_piece, A, B, tile.C[slice(*rows), slice(*columns)], before, first=first)
                tile.last[place] = job
                a.users.append(job)
                b.users.append(job)
                flops += 2.0 * (rows[1] - rows[0]) * (columns[1] - columns[0]) * (step[1] - step[0])
        return flops

    def _multiply_piece(self, A: Array, B: Array, C: Array, before: Sequence[Future[Any]], *, first: bool) -> None:
        _await(before)
        multiply_add(A, B, C, alpha=1.0, beta=0.0 if first else 1.0, op_a=self.work.a.op, op_b=self.work.b.op)

    def _finish(self, tile: _Tile) -> tuple[list[Future[float]], list[tuple[Span, Future[Any]]]]:
        """Begin to write a tile, and its adjoint where that is another tile.

        Returns
        -------
        list of Future
            The largest entries of its parts.
        list of (rows, Future)
            After which these rows of its memory are free.
        """
        diagonal, whole = self.tiling.is_diagonal(tile.rows, tile.columns), (0, len(tile.C))
        last = [self.pool.submit(self._complete, tile.C, list(tile.last.values()))] if diagonal else None
        spans = list(self.tiling.written(tile.rows))
        written = [self.writers.submit(self._write_rows, tile, span, last or _over(tile.last, span)) for span in spans]
        if not self.tiling.symmetric or diagonal:
            return written, list(zip(spans, written, strict=True))
        across = self.tiling.written(tile.columns)
        mirrored = [self.writers.submit(self._write_adjoint, tile, span, written) for span in across]
        return [*written, *mirrored], [(whole, job) for job in mirrored]

    def _complete(self, C: Array, before: Sequence[Future[Any]]) -> None:
        """Fill the lower triangle of a tile on the diagonal."""
        _await(before)
        n = np.arange(len(C))
        C[n, n] = C[n, n].real
        mirror_upper(C)

    def _write_rows(self, tile: _Tile, span: Span, before: Iterable[Future[Any]]) -> float:
        _await(before)
        C, exponent = tile.C[slice(*span)], self.work.exponent
        largest: float = largest_part(C)
        if exponent:
            times_power_of_two(C, exponent, out=C)
            if not np.isfinite(largest_part(C)):
                raise NumericalError(
                    f"The product overflows {C.dtype}: its largest entry is about {power_words(largest, exponent)} or more. "
                    "Multiply an operand by a power of two."
                )
        self.work.output.write(tile.rows[0] + span[0], C, tile.columns[0])
        return largest

    def _write_adjoint(self, tile: _Tile, span: Span, before: Iterable[Future[Any]]) -> float:
        _await(before)
        source = tile.C[:, slice(*span)].T
        block = np.conjugate(source, out=empty_pages(source.shape, source.dtype))
        self.work.output.write(tile.columns[0] + span[0], block, tile.rows[0])
        return 0.0


def _await(jobs: Iterable[Future[Any]]) -> None:
    """They were begun earlier than what waits, so that they wait for nobody who comes later."""
    for job in jobs:
        job.result()


def _over(jobs: dict[tuple[Span, Span], Future[Any]], span: Span) -> list[Future[Any]]:
    """The products that some rows of a tile are made of."""
    return [job for (rows, _), job in jobs.items() if rows[0] < span[1] and span[0] < rows[1]]


def _by_rows(block: Array) -> Array:
    """A block whose rows are contiguous and do not overlap, as BLAS wants it."""
    fits = block.strides[1] == block.itemsize and block.strides[0] >= block.shape[1] * block.itemsize
    aligned = block.flags.aligned and block.strides[0] % block.itemsize == 0
    return block if fits and aligned else np.ascontiguousarray(block)
