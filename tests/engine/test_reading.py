"""Blocks that are read ahead: of a matrix on another machine two at a time, each into a buffer that nobody uses."""

from __future__ import annotations

import threading
from contextlib import closing

import numpy as np
from helpers import Array, M, N, gaussian

from dlscale.engine.passes.reading import read_ahead
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import View

BLOCK = 100
N_BLOCKS = -(-M // BLOCK)


class FarMatrix(View):
    """Blocks arrive in pairs, the later one of a pair first."""

    is_far, in_memory = True, False

    def __init__(self, A: Array) -> None:
        super().__init__(open_matrix(A))
        self.both = threading.Barrier(2, timeout=300)
        self.later = threading.Event()
        self.n_read = 0

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        assert out is not None
        i = rows[0] // BLOCK
        if i < N_BLOCKS // 2 * 2:
            self.both.wait()  # for as long as only one is asked for
            if i % 2 == 0:
                assert self.later.wait(300)
                self.later.clear()
        out[...] = self.base.region(rows, columns)
        self.n_read += 1
        if i % 2:
            self.later.set()
        return out


def test_two_blocks_come_at_a_time_each_whole() -> None:
    expected = gaussian(M, N)
    A = FarMatrix(expected)
    for first, (block,) in read_ahead([A], 0, M, BLOCK):
        np.testing.assert_array_equal(block, expected[first : first + BLOCK])
    assert A.n_read == N_BLOCKS


def test_nobody_writes_when_the_caller_has_stopped() -> None:
    A = FarMatrix(gaussian(M, N))
    with closing(read_ahead([A], 0, 2 * BLOCK, BLOCK)) as found:
        next(found)
    assert A.n_read == 2
