"""Packed vectors are what the libraries that wrote them read, and damage in them is told."""

from __future__ import annotations

import threading
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse

from dlscale.errors import InputError
from dlscale.storage.files.ahead import ahead, worked_ahead
from dlscale.storage.importers import import_matrix
from dlscale.storage.sparse.packed import Chunked, Member, unpacked_together

RANGES = [(0, 7), (7, 20), (20, 20), (20, 21), (21, 90), (3, 95), (90, 95)]


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<i4", ">u2", "u1", "f2"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_chunks_as_hdf5_reads_them(tmp_path: Path, dtype: str, shuffle: bool) -> None:
    numbers = (1000 * np.random.default_rng(0).random(95)).astype(dtype)
    with h5py.File(tmp_path / "x.h5", "w") as store:
        found = unpacked_together(store.create_dataset("x", data=numbers, chunks=(20,), compression="gzip", shuffle=shuffle))
        assert isinstance(found, Chunked)
        assert (len(found), found.dtype) == (95, numbers.dtype)
        for start, stop in RANGES:
            np.testing.assert_array_equal(found[start:stop], numbers[start:stop])


@pytest.mark.parametrize(
    "options",
    [{}, {"chunks": (20,)}, {"compression": "lzf"}, {"compression": "gzip", "fletcher32": True}, {"scaleoffset": 0}],
)
def test_other_vectors_are_read_by_hdf5(tmp_path: Path, options: dict[str, Any]) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as store:
        dataset = store.create_dataset("x", data=np.arange(95), **options)
        assert unpacked_together(dataset) is dataset
        truths = store.create_dataset("b", data=np.arange(95) > 3, chunks=(20,), compression="gzip")
        assert unpacked_together(truths) is truths


def test_chunks_that_are_not_as_the_others(tmp_path: Path) -> None:
    """One was never written, one is not packed, one is damaged."""
    with h5py.File(tmp_path / "x.h5", "w") as store:
        dataset = store.create_dataset("x", (100,), "f8", chunks=(20,), compression="gzip", fillvalue=7.0)
        dataset[:20] = np.arange(20)
        dataset.id.write_direct_chunk((40,), np.arange(20.0).tobytes(), filter_mask=1)
        dataset.id.write_direct_chunk((60,), b"no deflated bytes")
        found = unpacked_together(dataset)
        assert isinstance(found, Chunked)
        np.testing.assert_array_equal(found[0:60], [*range(20), *[7] * 20, *range(20)])
        with pytest.raises(OSError, match="filter"):
            found[60:80]
        np.testing.assert_array_equal(found[80:100], 7)


def test_members_from_the_first_number_to_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlscale.storage.sparse.packed._PIECE_BYTES", 100)
    np.savez_compressed(tmp_path / "x.npz", x=np.arange(95.0))
    with zipfile.ZipFile(tmp_path / "x.npz") as archive, closing(Member(archive, "x.npy", 128, np.dtype("f8"), 95)) as found:
        for start, stop in [(0, 7), (7, 20), (20, 20), (20, 95)]:
            np.testing.assert_array_equal(found[start:stop], np.arange(start, stop))
    with (
        zipfile.ZipFile(tmp_path / "x.npz") as archive,
        closing(Member(archive, "x.npy", 128, np.dtype("f8"), 99)) as found,
        pytest.raises(InputError, match=r"x\.npy ends before its last number"),
    ):
        found[0:99]


def test_a_wrong_checksum_of_a_member_is_told_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    scipy.sparse.save_npz(path, scipy.sparse.random_array((500, 400), density=0.5, rng=0).tocsr())
    with zipfile.ZipFile(path) as archive:
        crc = archive.getinfo("data.npy").CRC.to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(crc, b"abcd"))
    with pytest.raises(InputError, match=r"x\.npz cannot be read: Bad CRC-32 for file 'data\.npy'"):
        import_matrix(path, tmp_path / "y.zarr", sparse=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.npz"]


def test_a_damaged_member_is_told_by_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlscale.storage.importers.compressed.PIECE_NONZEROS", 1000)
    monkeypatch.setattr("dlscale.storage.sparse.packed._PIECE_BYTES", 1000)  # so that the end is not read with the damage
    A = scipy.sparse.random_array((500, 400), density=0.5, rng=0).tocsr()
    scipy.sparse.save_npz(tmp_path / "x.npz", A, compressed=False)
    text = (tmp_path / "x.npz").read_bytes()
    columns = A.indices[:100].astype("i4").tobytes()
    (tmp_path / "x.npz").write_bytes(text.replace(columns, b"\x7f" + columns[1:3] + b"\x7f" + columns[4:]))
    with pytest.raises(InputError, match=r"x\.npz cannot be read: Bad CRC-32 for file 'indices\.npy'"):
        import_matrix(tmp_path / "x.npz", tmp_path / "y.zarr", sparse=True)


def numbers(n: int, fault: int = -1) -> Any:
    for k in range(n):
        if k == fault:
            raise OSError(f"no {k}")
        yield k


@pytest.mark.parametrize("n", [0, 1, 5])
def test_ahead(n: int) -> None:
    assert list(ahead(numbers(n), 3)) == list(range(n))
    assert list(worked_ahead(numbers(n), lambda k: k * k, n_threads=2)) == [k * k for k in range(n)]


def test_an_error_comes_behind_what_comes_before_it() -> None:
    for found in (ahead(numbers(9, fault=5), 3), worked_ahead(numbers(9, fault=5), lambda k: k, n_threads=3)):
        assert [next(found) for _ in range(5)] == list(range(5))
        with pytest.raises(OSError, match="no 5"):
            next(found)
    found = worked_ahead(numbers(9, fault=5), lambda k: 1 // (k - 3), n_threads=3)
    assert [next(found) for _ in range(3)] == [-1, -1, -1]
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_no_thread_is_left_of_what_is_not_used() -> None:
    before = set(threading.enumerate())
    for found in (ahead(numbers(9), 3), worked_ahead(numbers(9), lambda k: k, n_threads=3)):
        assert next(found) == 0
        found.close()
    assert set(threading.enumerate()) <= before
