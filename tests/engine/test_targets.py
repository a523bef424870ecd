"""Where blocks go: the same array comes of memory and of a store."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlscale.engine.targets import MemoryTarget, StoreTarget, TransposedTarget
from dlscale.storage.writers import Layout, create_array


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 9), blocks=st.integers(1, 3), n_zeros=st.integers(0, 20), n_rows=st.integers(0, 20))
def test_zeros_and_the_block_below_them_fill_whole_columns(height, blocks, n_zeros, n_rows, tmp_path):
    start, m = 0 if blocks == 1 else height * (blocks - 1), n_zeros + n_rows
    if m == 0:
        return
    block = np.arange(3.0 * n_rows).reshape(n_rows, 3) + 1
    writer = create_array(tmp_path / "a", Layout((start + m, 6), np.dtype(float), (height, 3)), overwrite=True, name="a")
    memory = np.full((start + m, 6), np.nan)
    for target in (StoreTarget(writer), MemoryTarget(memory)):
        target.finish(start, n_zeros, block, 3)
        found = target.matrix().region((start, start + m), (3, 6))
        np.testing.assert_array_equal(found, np.vstack([np.zeros((n_zeros, 3)), block]))


def test_a_block_in_its_room_is_not_copied():
    target = MemoryTarget(np.zeros((8, 6)))
    room = target.room((2, 8), (0, 3), np.dtype(float))
    room[...] = 7
    assert target.take(2, room, 0, own=True) is not None
    target.write(2, room)
    np.testing.assert_array_equal(target.array[2:, :3], 7)
    # Another place of the same memory is another place.
    target.write(2, room, 3)
    np.testing.assert_array_equal(target.array[2:], 7)


@pytest.mark.parametrize("own", [True, False])
def test_a_block_of_somebody_else_is_copied_before_it_is_changed(own, tmp_path):
    writer = create_array(tmp_path / "a", Layout((4, 4), np.dtype(float), (2, 2)), name="a")
    block = np.ones((4, 2))
    mine = StoreTarget(writer).take(0, block, 0, own=own)
    mine[...] = 5
    assert block[0, 0] == (5 if own else 1)
    assert np.may_share_memory(mine, block) == own


def test_what_stands_behind_a_target_is_known(tmp_path):
    writer = create_array(tmp_path / "a", Layout((4, 6), np.dtype(float), (2, 2)), name="a")
    assert StoreTarget(writer).writers == TransposedTarget(writer).writers == (writer,)
    assert MemoryTarget(np.zeros((2, 2))).writers == ()
    assert TransposedTarget(writer).shape == (6, 4)
    assert [target.in_memory for target in (StoreTarget(writer), TransposedTarget(writer), MemoryTarget(np.zeros(1)))] == [
        False,
        False,
        True,
    ]
