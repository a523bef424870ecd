"""Grids: blocks of whole chunks where they fit, leaves of whole blocks, output chunks that divide leaves."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import lay_out
from dlscale.engine.grids import BLOCK_BYTES, RowGrid, blocks, plan_grid
from dlscale.errors import DoesNotFitError
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
    ("room", "unit", "block_rows", "per_leaf"),
    [
        (2**30, 2_000_000, 32_768, 1),
        (280 * 10**6, 2_000_000, 16_384, 1),
        (2**30, 16_384, 16_384, 1),
        (2**30, 20_000, 20_000, 1),
        (280 * 10**6, 20_000, 16_384, 1),
        (2**30, 100, 1000, 31),
        (10**6, 2_000_000, 32, 976),
    ],
    ids=["much memory", "less memory", "whole chunks", "no power of two", "not whole", "small chunks", "little memory"],
)
def test_strips_of_a_wide_stored_matrix_are_as_wide_as_memory_allows(room: int, unit: int, block_rows: int, per_leaf: int) -> None:
    """A strip of columns is a piece of each stored row; of 256 KiB they are read nearly as fast as a whole file."""
    A = Shape((2_000, 2_000_000))
    A.column_unit = unit
    grid = plan_grid(A.T, max_block_bytes=room)
    assert (grid.block_rows, grid.leaf_rows // block_rows) == (block_rows, per_leaf)
    assert plan_grid(A.T, max_block_bytes=2**31, block_rows=block_rows) == grid


@given(
    m=st.integers(1, 5000),
    n=st.integers(1, 10**7),
    height=st.integers(1, 5000),
    width=st.integers(1, 10**7),
    memory=st.integers(2**29, 2**34),
    threads=st.integers(1, 8),
)
@settings(max_examples=300, deadline=None)
def test_strips_of_any_wide_matrix_fit_and_leave_work_for_several(
    m: int, n: int, height: int, width: int, memory: int, threads: int
) -> None:
    A = Shape((m, n), height)
    A.column_unit = width
    facts = ClusterFacts("local", 1, threads, memory)
    try:
        layout = lay_out(A.T, facts, state_bytes=8)
    except DoesNotFitError:
        return
    grid = layout.grid
    n_buffers = 1 if grid.block_rows == grid.leaf_rows else 2
    assert threads * n_buffers * grid.block_rows * 8 * m <= facts.work_bytes
    assert layout.peak_bytes <= memory
    assert grid.n_leaves >= 4 or grid.block_rows * 8 * m <= BLOCK_BYTES or grid.n_rows < 64


def test_wide_compressed_chunks_are_decoded_no_more_at_once_than_a_block() -> None:
    A = Shape((2_000, 2_000_000), any_range=False)
    A.column_unit = 2_000_000
    room = 2**28
    grid = plan_grid(A.T, max_block_bytes=room)
    assert grid.leaf_rows == grid.block_rows
    assert room / 2 < grid.leaf_rows * 16_000 <= room
    assert plan_grid(A.T, max_block_bytes=2**31, block_rows=grid.block_rows) == grid
