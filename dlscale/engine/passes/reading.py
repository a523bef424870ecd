"""Blocks of rows, each stored unit read once, the next ones being read while one is computed."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import workspace
from dlscale.engine.grids import blocks
from dlscale.storage.matrix import Matrix

#: Strips that are read at the same time: a disk is fastest when it has several things to do.
N_STRIPS = 3

_readers = threading.local()


def read_ahead(A: Matrix, start: int, stop: int, block_rows: int) -> Iterator[tuple[int, Array]]:
    """Blocks of rows, the next one being read while the caller works on this one."""
    if A.in_memory:
        for first, last in blocks(start, stop, block_rows):
            yield first, A.read(first, last)
        return
    reader = _reader("read", 1)
    shape = (min(block_rows, stop - start), A.shape[1])
    buffers = itertools.cycle([workspace("read-0", shape, A.dtype), workspace("read-1", shape, A.dtype)])
    source: Callable[[int, int, Array], Array] = A.read
    if block_rows % A.row_unit and not A.any_range:
        source = _UnitReader(A, start, stop).read
    spans = list(blocks(start, stop, block_rows))
    if len(spans) == 1:  # there is nothing to read ahead, and each change of threads costs more than a small block
        yield start, source(start, stop, next(buffers)[: stop - start])
        return
    ahead = reader.submit(source, *spans[0], next(buffers)[: spans[0][1] - spans[0][0]])
    for i, (first, _) in enumerate(spans):
        block = ahead.result()
        if i + 1 < len(spans):
            following = spans[i + 1]
            ahead = reader.submit(source, *following, next(buffers)[: following[1] - following[0]])
        yield first, block


def read_strips(A: Matrix, spans: Sequence[tuple[int, int]], columns: tuple[int, int]) -> Iterator[tuple[int, Array]]:
    """Some columns of each span of rows, in order, the next ones being read while the caller works on one.

    Yields
    ------
    (first_row, strip)
        Of a matrix that is not in memory a workspace, overwritten later.
    """
    if A.in_memory:
        for first, last in spans:
            yield first, A.region((first, last), columns)
        return
    reader, waiting = _reader("strips", N_STRIPS), deque[tuple[int, Future[Array]]]()
    shape = (max(last - first for first, last in spans), columns[1] - columns[0])
    buffers = itertools.cycle([workspace(f"strip-{i}", shape, A.dtype) for i in range(N_STRIPS + 1)])
    try:
        for first, last in spans:
            waiting.append((first, reader.submit(A.region, (first, last), columns, next(buffers)[: last - first])))
            if len(waiting) > N_STRIPS:
                row, ahead = waiting.popleft()
                yield row, ahead.result()
        while waiting:
            row, ahead = waiting.popleft()
            yield row, ahead.result()
    finally:
        # Nobody may write to the workspaces any more.
        wait([ahead for _, ahead in waiting])


def _reader(name: str, n_threads: int) -> ThreadPoolExecutor:
    """The reading threads of this name that belong to the calling thread."""
    reader: ThreadPoolExecutor | None = getattr(_readers, name, None)
    if reader is None:
        reader = ThreadPoolExecutor(n_threads, thread_name_prefix=f"dlscale-{name}")
        setattr(_readers, name, reader)
    return reader


class _UnitReader:
    """Serves blocks out of whole stored units, each read once, when blocks and units do not line up."""

    def __init__(self, A: Matrix, start: int, stop: int) -> None:
        self.A, self.start, self.stop = A, start, stop
        self.unit: tuple[int, Array] = (0, np.empty((0, A.shape[1]), A.dtype))

    def read(self, first: int, last: int, out: Array) -> Array:
        row = first
        while row < last:
            top, unit = self.unit
            if not top <= row < top + len(unit):
                top = max(self.start, row // self.A.row_unit * self.A.row_unit)
                bottom = min(self.stop, (row // self.A.row_unit + 1) * self.A.row_unit)
                buffer = workspace("unit", (bottom - top, self.A.shape[1]), self.A.dtype)
                unit = self.A.read(top, bottom, buffer)
                self.unit = (top, unit)
            end = min(last, top + len(unit))
            out[row - first : end - first] = unit[row - top : end - top]
            row = end
        return out
