"""A file that is read once gives its bytes, whether the page cache holds all of them, some or none."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest

from dlscale.storage.files import sequential
from dlscale.storage.files.sequential import SequentialFile

PIECE = 3 * 4096


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("n_bytes", [0, 1, 2 * PIECE, 5 * PIECE + 4097])
@pytest.mark.parametrize("cached", ["all", "some", "none", "none, and no way past it"])
def test_all_bytes_in_their_order(n_bytes: int, cached: str, on_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequential, "PIECE_BYTES", PIECE)
    if "no way" in cached:  # but a flag that the system refuses
        monkeypatch.setattr(sequential, "O_DIRECT", os.O_DIRECTORY)
    data = np.random.default_rng(n_bytes).bytes(n_bytes)
    path = on_disk / "a"
    path.write_bytes(data)
    if cached != "all":
        forget(path)
    if cached == "some":
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            file.seek(PIECE)
            file.read(4096)
    with io.BufferedReader(SequentialFile(path), 1000) as file:
        found = [file.read(10), file.readline(), file.read(PIECE)]
        while piece := file.read(777):
            found.append(piece)
    assert b"".join(found) == data


def test_what_is_read_past_the_cache_is_not_kept_there(on_disk: Path) -> None:
    path = on_disk / "a"
    path.write_bytes(bytes(3 * sequential.PIECE_BYTES))
    forget(path)
    with SequentialFile(path) as file:
        assert sum(iter(lambda: file.readinto(bytearray(1 << 20)), 0)) == 3 * sequential.PIECE_BYTES
    with path.open("rb", buffering=0) as file, pytest.raises(BlockingIOError):
        os.preadv(file.fileno(), [bytearray(1)], sequential.PIECE_BYTES + 4096, os.RWF_NOWAIT)
