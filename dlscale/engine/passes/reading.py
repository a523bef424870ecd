"""Blocks of rows, each stored unit read once, the next ones being read while one is computed."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import workspace
from dlscale.engine.grids import blocks
from dlscale.storage.matrix import Matrix

#: Strips that are read at the same time: a disk is fastest when it has several things to do.
N_STRIPS = 3

_readers = threading.local()


def read_ahead(
    inputs: Sequence[Matrix], start: int, stop: int, block_rows: int, *, sparse: bool = False
) -> Generator[tuple[int, list[Any]]]:
    """Blocks of the same rows of each input, the next ones being read while the caller works on these.

    Parameters
    ----------
    sparse : bool
        Whether those of sparse matrices are wanted compressed.

    Yields
    ------
    (first_row, blocks)
        Those of matrices that are not in memory are workspaces, overwritten by the one after the next.
    """
    spans = list(blocks(start, stop, block_rows))
    sources = [
        A.sparse_rows if sparse and A.is_sparse else _source(A, start, stop, block_rows, f"{i}") for i, A in enumerate(inputs)
    ]

    def read(span: tuple[int, int]) -> list[Any]:
        return [source(*span) for source in sources]

    # Where there is nothing to read ahead, each change of threads would cost more than a small block.
    if len(spans) == 1 or all(A.in_memory for A in inputs):
        for span in spans:
            yield span[0], read(span)
        return
    reader = _reader("far", 2) if all(A.is_far or A.in_memory for A in inputs) else _reader("read", 1)
    to_read, waiting = iter(spans), deque[Future[list[Any]]]()
    try:
        waiting.extend(reader.submit(read, span) for span in itertools.islice(to_read, 2))
        for first, _ in spans:
            yield first, waiting.popleft().result()
            waiting.extend(reader.submit(read, span) for span in itertools.islice(to_read, 1))
    finally:
        # Nobody may write to the workspaces any more.
        wait(waiting)


def _source(A: Matrix, start: int, stop: int, block_rows: int, name: str) -> Callable[[int, int], Array]:
    """What reads blocks of rows of one input, into two buffers in turn."""
    if A.in_memory:
        return A.read
    shape = (min(block_rows, stop - start), A.shape[1])
    buffers = [workspace(f"read-{name}-{i}", shape, A.dtype) for i in range(2)]
    read: Callable[[int, int, Array], Array] = A.read
    if block_rows % A.row_unit and not A.any_range:
        read = _UnitReader(A, start, stop, name).read
    return lambda first, last: read(first, last, buffers[(first - start) // block_rows % 2][: last - first])


def read_strips(A: Matrix, spans: Sequence[tuple[int, int]], columns: tuple[int, int]) -> Iterator[tuple[int, Array]]:
    """Some columns of each span of rows, in order, the next ones being read while the caller works on one.

    Yields
    ------
    (first_row, strip)
        Of a matrix that is not in memory a workspace, overwritten later.
    """
    strips = read_regions(A, [(span, columns) for span in spans])
    with closing(strips):
        for (first, _), strip in zip(spans, strips, strict=True):
            yield first, strip


def read_regions(
    A: Matrix, regions: Sequence[tuple[tuple[int, int], tuple[int, int]]], *, ahead: int = N_STRIPS, held: int = 0
) -> Generator[Array]:
    """Rectangles (rows, columns), in order, the next few being read while the caller works on one, and on so many before it.

    Yields
    ------
    ndarray
        Of a matrix that is not in memory a workspace, overwritten later.
    """
    if A.in_memory:
        for rows, columns in regions:
            yield A.region(rows, columns)
        return
    reader, waiting = _reader("strips", N_STRIPS), deque[Future[Array]]()
    most = max(((r1 - r0) * (c1 - c0) for (r0, r1), (c0, c1) in regions), default=0)
    buffers = itertools.cycle([workspace(f"strip-{i}", (most,), A.dtype) for i in range(ahead + 1 + held)])
    try:
        for rows, columns in regions:
            shape = (rows[1] - rows[0], columns[1] - columns[0])
            waiting.append(reader.submit(A.region, rows, columns, next(buffers)[: shape[0] * shape[1]].reshape(shape)))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Nobody may write to the workspaces any more.
        wait(waiting)


def _reader(name: str, n_threads: int) -> ThreadPoolExecutor:
    """The reading threads of this name that belong to the calling thread."""
    reader: ThreadPoolExecutor | None = getattr(_readers, name, None)
    if reader is None:
        reader = ThreadPoolExecutor(n_threads, thread_name_prefix=f"dlscale-{name}")
        setattr(_readers, name, reader)
    return reader


class _UnitReader:
    """Serves blocks out of whole stored units, each read once, when blocks and units do not line up."""

    def __init__(self, A: Matrix, start: int, stop: int, name: str) -> None:
        self.A, self.start, self.stop, self.name = A, start, stop, name
        self.unit: tuple[int, Array] = (0, np.empty((0, A.shape[1]), A.dtype))

    def read(self, first: int, last: int, out: Array) -> Array:
        row = first
        while row < last:
            top, unit = self.unit
            if not top <= row < top + len(unit):
                top = max(self.start, row // self.A.row_unit * self.A.row_unit)
                bottom = min(self.stop, (row // self.A.row_unit + 1) * self.A.row_unit)
                buffer = workspace(f"unit-{self.name}", (bottom - top, self.A.shape[1]), self.A.dtype)
                unit = self.A.read(top, bottom, buffer)
                self.unit = (top, unit)
            end = min(last, top + len(unit))
            out[row - first : end - first] = unit[row - top : end - top]
            row = end
        return out
