"""Grids: blocks of whole chunks where they fit, leaves of whole blocks, output chunks that divide leaves."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlscale.engine.grids import BLOCK_BYTES, RowGrid, blocks, plan_grid
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import Matrix


class Shape(Matrix):
    """A matrix of which only the shape is asked."""

    def __init__(self, shape: tuple[int, int], row_unit: int = 1, any_range: bool = True) -> None:
        self.shape, self.row_unit, self.any_range = shape, row_unit, any_range
        self.stored_dtype, self.uri = np.dtype("f8"), "shape"

    def region(self, rows: Any, columns: Any, out: Any = None) -> Any:
        raise AssertionError("a plan reads nothing")


@given(
    m=st.integers(1, 10**7),
    n=st.integers(1, 5000),
    unit=st.integers(1, 10**5),
    any_range=st.booleans(),
    room=st.integers(10**4, 2**30),
)
@settings(max_examples=300, deadline=None)
def test_any_plan_covers_the_rows_in_order(m: int, n: int, unit: int, any_range: bool, room: int) -> None:
    A = Shape((m, n), unit, any_range)
    grid = plan_grid(A, max_block_bytes=max(room, 8 * n))
    # The height of its blocks gives the same grid where there is another memory, and so the same bits.
    assert plan_grid(A, max_block_bytes=2**31, block_rows=grid.block_rows) == grid
    assert 1 <= grid.block_rows <= m
    assert grid.leaf_rows % grid.block_rows == 0
    assert grid.block_rows * 8 * n <= max(room, 8 * n)
    leaves = grid.leaves()
    assert leaves[0][0] == 0
    assert leaves[-1][1] == m
    assert all(a[1] == b[0] for a, b in itertools.pairwise(leaves))
    assert len(leaves) == grid.n_leaves
    for row_bytes in (8, 8 * n):
        chunk = grid.output_chunk_rows(row_bytes)
        assert chunk % grid.block_rows == 0
        assert grid.leaf_rows % chunk == 0


@pytest.mark.parametrize("make", [lambda: open_matrix(np.ones((50_000, 100))), lambda: open_matrix(np.ones((100, 50_000))).T])
def test_blocks_of_a_matrix_in_memory_are_large(make: Any) -> None:
    grid = plan_grid(make(), max_block_bytes=2**30)
    assert grid.block_rows * 800 > BLOCK_BYTES // 4


@pytest.mark.parametrize("unit", [1, 3, 100, 4096])
def test_blocks_are_whole_chunks_where_they_fit(unit: int) -> None:
    grid = plan_grid(Shape((100_000, 100), unit, any_range=False), max_block_bytes=2**30)
    assert grid.block_rows % unit == 0
    assert grid.leaf_rows % unit == 0


def test_chunks_taller_than_memory_allows_stay_within_one_leaf() -> None:
    grid = plan_grid(Shape((1 << 20, 100), 1 << 18, any_range=False), max_block_bytes=2**22)
    assert grid.block_rows * 800 <= 2**22
    assert grid.leaf_rows % (1 << 18) == 0


def test_a_given_height_is_used() -> None:
    assert plan_grid(Shape((1000, 10)), max_block_bytes=2**30, block_rows=77).block_rows == 77
    assert plan_grid(Shape((50, 10)), max_block_bytes=2**30, block_rows=77).block_rows == 50


def test_blocks() -> None:
    assert list(blocks(3, 10, 4)) == [(3, 7), (7, 10)]
    assert list(blocks(3, 3, 4)) == []
    assert RowGrid(10, 2, 4).leaves() == [(0, 4), (4, 8), (8, 10)]


@pytest.mark.parametrize(
    ("room", "block_rows"),
    [(2**30, 8192), (70 * 10**6, 4096), (10**6, 32)],
    ids=["much memory", "half of it", "little memory"],
)
def test_strips_of_a_wide_stored_matrix_are_as_wide_as_memory_allows(room: int, block_rows: int) -> None:
    """A strip of columns is a piece of each stored row; of 64 KiB they are read about as fast as a whole file."""
    A = Shape((2_000, 2_000_000))
    A.column_unit = 2_000_000
    grid = plan_grid(A.T, max_block_bytes=room)
    assert grid.block_rows == block_rows
    assert plan_grid(A.T, max_block_bytes=2**31, block_rows=block_rows) == grid


def test_wide_compressed_chunks_are_decoded_no_more_at_once_than_a_block() -> None:
    A = Shape((2_000, 2_000_000), any_range=False)
    A.column_unit = 2_000_000
    room = 2**28
    grid = plan_grid(A.T, max_block_bytes=room)
    assert grid.leaf_rows == grid.block_rows
    assert room / 2 < grid.leaf_rows * 16_000 <= room
    assert plan_grid(A.T, max_block_bytes=2**31, block_rows=grid.block_rows) == grid
