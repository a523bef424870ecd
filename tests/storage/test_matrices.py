"""Matrices at rest: every layout reads back, each chunk is looked up, and what is wrong is named."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import zarr
from helpers import DTYPES, LAYOUTS, M, N, gaussian, store

from dlscale.buffers import workspace
from dlscale.errors import CorruptionError, InputError, MissingChunkError
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import Matrix

RANGES = [((0, M), (0, N)), ((13, 501), (0, N)), ((0, 1), (0, 1)), ((M - 1, M), (N - 1, N)), ((99, 101), (3, 38))]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One matrix in every layout."""
    folder = tmp_path_factory.mktemp("layouts")
    return {name: store(folder / f"{i}.zarr", gaussian(M, N), **layout) for i, (name, layout) in enumerate(LAYOUTS.items())}


def chunk_files(path: Path) -> list[Path]:
    return sorted(f for f in path.rglob("*") if f.is_file() and f.name not in ("zarr.json", ".zarray", ".zattrs"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_rectangle_of_any_layout(stored: dict[str, Path], name: str) -> None:
    expected, A = gaussian(M, N), open_matrix(stored[name])
    A.check()
    for rows, columns in RANGES:
        np.testing.assert_array_equal(A.region(rows, columns), expected[slice(*rows), slice(*columns)])
        np.testing.assert_array_equal(A.T.region(columns, rows), expected[slice(*rows), slice(*columns)].T)
    out = np.empty((9, N))
    assert A.read(95, 104, out) is out
    np.testing.assert_array_equal(out, expected[95:104])
    out = np.empty((5, M))
    np.testing.assert_array_equal(A.T.read(1, 6, out), expected.T[1:6])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name", ["squares", "crc32c squares", "zstd squares", "sharded", "big-endian", "v2 compressed column major"]
)
def test_dtypes(tmp_path: Path, name: str, dtype: str) -> None:
    expected = gaussian(M, N, dtype)
    A = open_matrix(store(tmp_path / "A.zarr", expected, **LAYOUTS[name]))
    assert A.dtype == np.dtype(dtype)
    block = A.read(30, 170)
    assert block.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(block, expected[30:170])


@pytest.mark.parametrize(
    ("stored_dtype", "dtype"),
    [("i1", "f8"), ("u2", "f8"), ("i4", "f8"), ("i8", "f8"), ("bool", "f8"), ("f2", "f4"), (">f8", "f8"), (">i4", "f8")],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_other_numbers_are_converted_and_it_is_said(tmp_path: Path, stored_dtype: str, dtype: str, compressed: bool) -> None:
    expected = np.random.default_rng(0).integers(0, 2 if stored_dtype == "bool" else 100, (50, 7)).astype(stored_dtype)
    more: dict[str, Any] = {"zarr_format": 2} if stored_dtype.startswith(">") else {}
    path = store(tmp_path / "A.zarr", expected, chunks=(13, 7), **({} if compressed else {"compressors": None}), **more)
    for source in (path, expected):
        A = open_matrix(source)
        assert A.dtype == np.dtype(dtype)
        block = A.read(3, 40)
        assert block.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(block, expected[3:40].astype(dtype))
        if not stored_dtype.startswith(">"):
            assert any("on the fly" in note for note in A.describe()["notes"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_pickling(stored: dict[str, Path], name: str) -> None:
    """A task gets the place, not the data, and reads the same."""
    A = open_matrix(stored[name])
    A.read(0, 1)
    for matrix in (A, A.T):
        data = pickle.dumps(matrix)
        assert len(data) < 4096
        again = pickle.loads(data)
        assert (again.shape, again.dtype, again.row_unit, again.any_range) == (
            matrix.shape, matrix.dtype, matrix.row_unit, matrix.any_range,
        )  # fmt: skip
        np.testing.assert_array_equal(again.read(3, 20), matrix.read(3, 20))


class Opened:
    """Counts what is read of every file, below everything else."""

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Opened files and bytes of positioned reads in this process, by path."""
    counts, paths = Opened(), dict[int, str]()
    real_open, real_preadv = os.open, os.preadv

    def counted_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        fd = real_open(path, flags, *args, **kwargs)
        paths[fd] = os.fspath(path)
        counts.files[paths[fd]] += 1
        return fd

    def counted_preadv(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        n = real_preadv(fd, buffers, offset, flags)
        counts.bytes[paths[fd]] += n
        return n

    monkeypatch.setattr(os, "open", counted_open)
    monkeypatch.setattr(os, "preadv", counted_preadv)
    return counts


@pytest.mark.parametrize(
    "name", ["row strips", "column strips", "squares", "tiny chunks", "crc32c row strips", "crc32c squares", "v2"]
)
def test_whole_units_read_every_byte_once(stored: dict[str, Path], opened: Opened, name: str) -> None:
    """Blocks of `row_unit` rows: each chunk file is opened once, and its bytes are read once."""
    A = open_matrix(stored[name])
    for start in range(0, M, A.row_unit):
        A.read(start, min(start + A.row_unit, M))
    files = [str(f) for f in chunk_files(stored[name])]
    assert all(opened.files[f] == 1 for f in files)
    assert all(opened.bytes[f] <= os.path.getsize(f) for f in files)
    whole = sum(opened.bytes[f] for f in files)
    assert M * N * 8 <= whole <= sum(os.path.getsize(f) for f in files)


@pytest.mark.parametrize("name", ["row strips", "column strips", "squares", "one chunk"])
def test_plain_chunks_give_any_rows_without_reading_others(stored: dict[str, Path], opened: Opened, name: str) -> None:
    """Uncompressed chunks are never read twice, whatever the block height (rows of a chunk are read at full width)."""
    A = open_matrix(stored[name])
    assert A.any_range
    for start in range(0, M, 17):
        A.read(start, min(start + 17, M))
    for f in map(str, chunk_files(stored[name])):
        assert opened.bytes[f] <= os.path.getsize(f)


@pytest.mark.parametrize("n", [512, 500, 37])
def test_reading_past_the_page_cache(on_disk: Path, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What memory cannot keep is read in whole pages where rows are, and completed by ordinary reads; damage is found too."""
    expected = gaussian(300, n)
    path = store(on_disk / "A.zarr", expected, chunks=(64, n), compressors=None)
    A = open_matrix(path)
    assert not A.past_cache  # type: ignore[attr-defined]
    A.past_cache = True  # type: ignore[attr-defined]
    flags, real_open = [], os.open
    monkeypatch.setattr(os, "open", lambda path, mode, *more, **named: flags.append(mode) or real_open(path, mode, *more, **named))
    for start, stop in [(0, 64), (0, 300), (64, 128), (3, 60), (250, 300)]:
        np.testing.assert_array_equal(A.read(start, stop, workspace("test", (stop - start, n), A.dtype)), expected[start:stop])
        np.testing.assert_array_equal(A.read(start, stop), expected[start:stop])
    assert any(mode & os.O_DIRECT for mode in flags)
    chunk = chunk_files(path)[0]
    os.truncate(chunk, 9000)
    with pytest.raises(MissingChunkError, match="truncated"):
        A.read(0, 64, workspace("test", (64, n), A.dtype))
    chunk.unlink()
    with pytest.raises(MissingChunkError, match="missing"):
        A.read(0, 64, workspace("test", (64, n), A.dtype))


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="of Linux")
@pytest.mark.parametrize("answer", [None, errno.EAGAIN, errno.EOPNOTSUPP])
@pytest.mark.parametrize(("n", "columns"), [(20_000, (1000, 2000)), (6_000, (0, 5_000)), (600, (7, 300))])
def test_pieces_of_rows_that_are_in_the_page_cache_are_read_by_one_thread(
    on_disk: Path, n: int, columns: tuple[int, int], answer: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a call, for which several would wait for each other; what has to be waited for is read by several."""
    expected = gaussian(100, n)
    A = open_matrix(store(on_disk / "A.zarr", expected, chunks=(8, n), compressors=None))
    here, threads, real_read = threading.current_thread(), set(), os.preadv

    def reading(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags and answer is not None:
            raise OSError(answer, os.strerror(answer))
        threads.add(threading.current_thread())
        return real_read(fd, buffers, offset)  # whatever the file system says

    monkeypatch.setattr(os, "preadv", reading)
    np.testing.assert_array_equal(A.region((3, 99), columns), expected[3:99, slice(*columns)])
    assert threads == {here} if answer is None else here not in threads


@pytest.mark.parametrize(("n", "width"), [(20_000, 20_000), (20_001, 20_001), (20_001, 1500)])
def test_reading_pieces_of_rows_past_the_page_cache(on_disk: Path, n: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gaussian(40, n)
    path = store(on_disk / "A.zarr", expected, chunks=(16, width), compressors=None)
    A = open_matrix(path)
    A.past_cache = True  # type: ignore[attr-defined]
    ordinary: list[int] = []
    real_read = os.preadv

    def reading(fd: int, *arguments: Any) -> int:
        if not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            ordinary.append(fd)
        return real_read(fd, *arguments)

    monkeypatch.setattr(os, "preadv", reading)
    for rows, columns in [((0, 40), (0, 10_000)), ((3, 18), (101, 9_000)), ((14, 40), (n - 9_000, n))]:
        np.testing.assert_array_equal(A.region(rows, columns), expected[slice(*rows), slice(*columns)])
    assert not ordinary
    os.truncate(chunk_files(path)[0], 50_000)
    with pytest.raises(MissingChunkError, match="truncated"):
        A.region((0, 40), (0, 10_000))


@pytest.mark.parametrize("past_cache", [False, True])
@pytest.mark.parametrize("chunks", [(1, 6000), (3, 512), (7, 999)])
def test_strips_of_many_short_chunks_are_read_side_by_side(on_disk: Path, chunks: tuple[int, int], past_cache: bool) -> None:
    expected = gaussian(101, 6000)
    path = store(on_disk / "A.zarr", expected, chunks=chunks, compressors=None, fill_value=7)
    A = open_matrix(path)
    A.past_cache = past_cache  # type: ignore[attr-defined]
    for columns in [(0, 512), (512, 1024), (999, 1998), (5120, 6000), (0, 6000)]:
        np.testing.assert_array_equal(A.T.read(*columns), expected[:, slice(*columns)].T)
    chunk = path / "c" / "10" / "0"
    os.truncate(chunk, 100)
    with pytest.raises(MissingChunkError, match=r"c/10/0 is truncated"):
        A.T.read(0, 512)
    chunk.unlink()
    with pytest.raises(MissingChunkError, match=r"c/10/0 is missing"):
        A.T.read(0, 512)
    filled, rows = open_matrix(path, missing_chunks="fill").T.read(0, 512), slice(10 * chunks[0], 11 * chunks[0])
    assert (filled[: min(512, chunks[1]), rows] == 7).all()
    np.testing.assert_array_equal(np.delete(filled, rows, axis=1), np.delete(expected[:, :512].T, rows, axis=1))


def test_reading_past_the_page_cache_compares_checksums(on_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gaussian(64, 500)
    path = store(on_disk / "A.zarr", expected, **LAYOUTS["crc32c row strips"] | {"chunks": (64, 500)})
    A = open_matrix(path)
    A.past_cache = True  # type: ignore[attr-defined]
    flags, real_open = [], os.open
    monkeypatch.setattr(os, "open", lambda path, mode, *more, **named: flags.append(mode) or real_open(path, mode, *more, **named))
    np.testing.assert_array_equal(A.read(0, 64, workspace("test", (64, 500), A.dtype)), expected)
    assert any(mode & os.O_DIRECT for mode in flags)
    [chunk] = chunk_files(path)
    data = bytearray(chunk.read_bytes())
    data[5000] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(CorruptionError, match="checksum"):
        A.read(0, 64, workspace("test", (64, 500), A.dtype))


def test_a_file_system_without_direct_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, real_open = gaussian(64, 512), os.open
    A = open_matrix(store(tmp_path / "A.zarr", expected, chunks=(64, 512), compressors=None))
    A.past_cache = True  # type: ignore[attr-defined]

    def refusing(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refusing)
    np.testing.assert_array_equal(A.read(0, 64, workspace("test", (64, 512), A.dtype)), expected)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_missing_chunk_is_named(tmp_path: Path, name: str) -> None:
    path = store(tmp_path / "A.zarr", gaussian(M, N), **LAYOUTS[name])
    files = chunk_files(path)
    files[len(files) // 2].unlink()
    with pytest.raises(MissingChunkError, match="is missing") as caught:
        open_matrix(path).check()
    assert files[len(files) // 2].relative_to(path).as_posix() in str(caught.value)


@pytest.mark.parametrize(
    "layout", [{"chunks": (7, 5)}, {"chunks": (7, 5), "shards": (14, 10)}, {"chunks": (7, 5), "zarr_format": 2}]
)
def test_chunks_that_zarr_left_out(tmp_path: Path, layout: dict[str, Any]) -> None:
    """A chunk of zeros is not written by default and looks like a lost one; the lines of the documentation write it."""
    expected = gaussian(30, 12)
    expected[:28] = 0
    path = tmp_path / "x.zarr"
    zarr.create_array(path, data=expected, **layout)
    with pytest.raises(MissingChunkError, match=r"missing_chunks: fill.*write_empty_chunks.*docs/importing\.md"):
        open_matrix(path).check()
    section = (Path(__file__).parents[2] / "docs" / "importing.md").read_text().split("## Chunks that are not there")[1]
    exec(section.split("```python\n")[1].split("```")[0].replace("x.zarr", str(path)))
    A = open_matrix(path)
    A.check()
    np.testing.assert_array_equal(A.read(0, 30), expected)


@pytest.mark.parametrize("keep", [0.0, 0.5, -1], ids=["emptied", "half", "last byte"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_truncated_chunk_is_named(tmp_path: Path, name: str, keep: float) -> None:
    path = store(tmp_path / "A.zarr", gaussian(M, N), **LAYOUTS[name])
    files = chunk_files(path)
    chunk = files[len(files) // 2]
    size = chunk.stat().st_size
    os.truncate(chunk, size - 1 if keep == -1 else int(keep * size))
    with pytest.raises(MissingChunkError, match="truncated") as caught:
        open_matrix(path).check()
    assert chunk.relative_to(path).as_posix() in str(caught.value)


@pytest.mark.parametrize(
    "name", ["row strips", "squares", "zstd squares", "blosc", "gzip", "crc32c squares", "sharded", "v2 compressed"]
)
def test_reading_what_was_truncated_after_the_check(tmp_path: Path, name: str) -> None:
    """Never zeros, never garbage: an error that names the place."""
    path = store(tmp_path / "A.zarr", gaussian(M, N), **LAYOUTS[name])
    A = open_matrix(path)
    A.check()
    chunk = chunk_files(path)[-1]
    os.truncate(chunk, chunk.stat().st_size // 2)
    with pytest.raises((MissingChunkError, CorruptionError)):
        A.read(0, M)


@pytest.mark.parametrize("name", ["row strips", "squares", "crc32c squares"])
def test_reading_what_was_removed_after_the_check(tmp_path: Path, name: str) -> None:
    path = store(tmp_path / "A.zarr", gaussian(M, N), **LAYOUTS[name])
    A = open_matrix(path)
    A.check()
    chunk_files(path)[-1].unlink()
    with pytest.raises((MissingChunkError, CorruptionError)):
        A.read(0, M)


@pytest.mark.parametrize("name", ["crc32c row strips", "crc32c squares", "zstd squares"])
def test_changed_bytes_are_noticed_where_there_is_a_checksum(tmp_path: Path, name: str) -> None:
    layout = dict(LAYOUTS[name])
    if "zstd" in name:
        layout["compressors"] = zarr.codecs.ZstdCodec(level=1, checksum=True)
    path = store(tmp_path / "A.zarr", gaussian(M, N), **layout)
    chunk = chunk_files(path)[1]
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 0x10
    chunk.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"checksum|decoded"):
        open_matrix(path).read(0, M)


def test_what_cannot_be_a_matrix(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "group.zarr").create_array("inside", shape=(3, 3), dtype="f8")
    store(tmp_path / "cube.zarr", np.ones((2, 3, 4)), chunks=(1, 3, 4))
    zarr.create_array(tmp_path / "empty.zarr", shape=(0, 3), dtype="f8")
    (tmp_path / "table.csv").write_text("1,2\n")
    for source, words in [
        (tmp_path / "nothing.zarr", "no such file"),
        (tmp_path / "group.zarr", "group.zarr/inside"),
        (tmp_path / "cube.zarr", "two dimensions"),
        (tmp_path / "empty.zarr", "at least one row"),
        (tmp_path / "table.csv", "dlscale import"),
        (tmp_path, "no Zarr array"),
        (np.ones(3), "two dimensions"),
        (np.ones((0, 3)), "at least one row"),
        (np.array([["a"]]), "numbers"),
        (np.array([[object()]]), "numbers"),
        (dask.array.ones((2, 3, 4)), "two dimensions"),
    ]:
        with pytest.raises(InputError, match=words):
            open_matrix(source)
    with pytest.raises(InputError, match=r"group\.zarr/inside"):
        open_matrix(zarr.open_group(tmp_path / "group.zarr", mode="r"))


def test_sources(tmp_path: Path) -> None:
    expected = gaussian(M, N)
    path = store(tmp_path / "A.zarr", expected, chunks=(100, N))
    inside = zarr.open_group(tmp_path / "group.zarr", mode="w").create_array("A", data=expected, chunks=(99, 9))
    memory = zarr.create_array(zarr.storage.MemoryStore(), data=expected, chunks=(99, 9))
    sources: list[Any] = [
        expected,
        np.asfortranarray(expected),
        expected[::-1][::-1],
        path,
        str(path),
        f"file://{path}",
        inside,
        memory,
    ]
    sources += [dask.array.from_array(expected, chunks=(64, 11)), zarr.open_array(path, mode="r"), open_matrix(path)]
    for source in sources:
        A = open_matrix(source)
        assert isinstance(A, Matrix)
        A.check()
        np.testing.assert_array_equal(A.read(10, 300), expected[10:300])
        np.testing.assert_array_equal(A.T.T.T.read(3, 9), expected.T[3:9])
        assert A.describe()["shape"] == [M, N]
    assert open_matrix(expected).read(0, M).base is expected or np.shares_memory(open_matrix(expected).read(0, M), expected)


def test_the_home_folder_is_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = gaussian(30, 4)
    store(tmp_path / "A.zarr", expected, chunks=(10, 4))
    for source in ("~/A.zarr", Path("~/A.zarr")):
        np.testing.assert_array_equal(open_matrix(source).read(0, 30), expected)
    with pytest.raises(InputError, match=str(tmp_path / "B.zarr")):
        open_matrix("~/B.zarr")
    with pytest.raises(InputError, match=r"~nobody-of-this-name/A\.zarr"):
        open_matrix("~nobody-of-this-name/A.zarr")


def test_url_of_another_file_system() -> None:
    """Any URL that fsspec opens, here its memory file system; a missing chunk is found by its listing."""
    import fsspec

    expected = gaussian(50, 8)
    url = "memory://bucket/A.zarr"
    store(url, expected, chunks=(20, 8))  # type: ignore[arg-type]
    A = open_matrix(url)
    A.check()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(A)).read(5, 45), expected[5:45])
    fsspec.filesystem("memory").rm("/bucket/A.zarr/c/1/0")
    with pytest.raises(MissingChunkError, match="c/1/0"):
        open_matrix(url).check()


def test_description(stored: dict[str, Path]) -> None:
    sharded, compressed = open_matrix(stored["sharded"]).describe(), open_matrix(stored["zstd squares"]).describe()
    assert (sharded["chunks"], sharded["shards"]) == ([32, 10], [128, 20])
    assert "zstd" in compressed["compression"]
    assert compressed["reader"] == "zarr-python"
    assert open_matrix(stored["row strips"]).describe()["reader"] == "positioned reads"
