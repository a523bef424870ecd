"""Atomic files, chunk files that zarr accepts, free space."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from dlscale.errors import CorruptionError, DoesNotFitError
from dlscale.storage.files import durable
from dlscale.storage.files.durable import (
    PARTIAL,
    begin_flush,
    crc32c,
    fsync_path,
    fsync_tree,
    read_chunk,
    require_free_space,
    write_atomically,
    write_chunk,
)


def test_crc32c_takes_any_contiguous_buffer() -> None:
    data = bytes(range(256)) * 8
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C (RFC 3720, B.4)
    assert crc32c(data) == crc32c(memoryview(data)) == crc32c(np.frombuffer(data, "f8")) == google_crc32c.value(data)
    assert crc32c(b"") == 0


def test_write_atomically_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["state.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(durable.os, "fsync", fail)
    with pytest.raises(OSError if code == errno.EIO else DoesNotFitError, match=os.strerror(code)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state.json"]


@pytest.mark.parametrize("has_call", [True, False])
def test_a_flush_that_is_begun_early_changes_nothing(has_call: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_call:
        monkeypatch.setattr(durable, "_sync_file_range", lambda: None)
    (tmp_path / "0").write_bytes(b"12345")
    for name in ("0", "replaced by nobody"):
        begin_flush(tmp_path / name)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("0", b"12345")]


@pytest.mark.parametrize("n_files", [1, 20])
def test_fsync_tree_flushes_every_file_once(n_files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c" / "0").mkdir(parents=True)
    (tmp_path / "zarr.json").write_bytes(b"{}")
    chunks = [f"c/0/{i}" for i in range(1, n_files + 1)]
    for chunk in chunks:
        (tmp_path / chunk).write_bytes(b"12345")
    (tmp_path / "c" / "0" / f".2.x{PARTIAL}").write_bytes(b"half")
    flushed: list[str] = []

    def recorded(path: str | Path) -> None:
        flushed.append(os.path.relpath(path, tmp_path))
        fsync_path(path)

    monkeypatch.setattr(durable, "fsync_path", recorded)
    synced: dict[str, durable.Stamp] = {}
    assert fsync_tree(tmp_path, synced) == {"zarr.json": 2} | dict.fromkeys(chunks, 5)
    assert sorted(flushed[:-3]) == sorted([*chunks, "zarr.json"])
    assert flushed[-3:] == ["c/0", "c", "."]  # a folder after what it names

    flushed.clear()
    write_atomically(tmp_path / "c" / "0" / "1", b"54321", fsync=False)
    fsync_tree(tmp_path, synced)
    assert flushed == ["c/0/1", "c/0", "c", "."]


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16", "i2", "u1", "?"])
def test_chunks_are_read_back_and_damage_is_found(tmp_path: Path, dtype: str) -> None:
    block = np.random.default_rng(0).integers(0, 100, (3, 4)).astype(dtype)
    path = tmp_path / "c" / "0" / "0"
    crc = write_chunk(path, np.asfortranarray(block), (4, 4), fsync=True)
    back = read_chunk(path, block.dtype, (4, 4), crc)
    assert np.array_equal(back[:3], block)
    assert not back[3].any()

    data = path.read_bytes()
    for damaged, sentence in [
        (data[:-1], "torn: it must have"),
        (bytes([data[0] ^ 1]) + data[1:], "corrupted"),
        (data[:-1] + bytes([data[-1] ^ 1]), "corrupted"),
    ]:
        path.write_bytes(damaged)
        with pytest.raises(CorruptionError, match=sentence):
            read_chunk(path, block.dtype, (4, 4), crc)
    other = write_chunk(path, np.zeros_like(block), (4, 4))  # whole, but another version
    assert other != crc
    with pytest.raises(CorruptionError, match="corrupted"):
        read_chunk(path, block.dtype, (4, 4), crc)
    path.unlink()
    with pytest.raises(CorruptionError, match="missing"):
        read_chunk(path, block.dtype, (4, 4), crc)


def test_require_free_space(tmp_path: Path) -> None:
    require_free_space(tmp_path / "not" / "there", 1)
    with pytest.raises(DoesNotFitError, match=r"there requires 1000000000\.000 GB .* of free disk, got .* GB"):
        require_free_space(tmp_path / "not" / "there", 10**18)
