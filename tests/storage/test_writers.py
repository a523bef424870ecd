"""Arrays that many threads and processes write: what zarr reads is what was written, or the write is refused."""

from __future__ import annotations

import fcntl
import itertools
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from dlscale.buffers import empty_pages
from dlscale.errors import SpecError
from dlscale.storage import writers
from dlscale.storage.files.nodes import check_name
from dlscale.storage.writers import ArrayWriter, Layout, create_array, put_array

DTYPES = ["f4", "f8", "c8", "c16", "i1", "i4", "u2", "f2", "?"]


def random(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, (*shape, np.dtype(dtype).itemsize), dtype=np.uint8)
    return (values & 1 if dtype == "?" else values).view(dtype).reshape(shape)  # any bit pattern, NaNs too


def chunk_files(path: Path) -> list[str]:
    return [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names if name != "zarr.json"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shards", [None, (8, 6)])
def test_zarr_reads_the_same_bits(tmp_path: Path, dtype: str, order: str, shards: tuple[int, int] | None) -> None:
    A = np.asarray(random((21, 11), dtype), order=order)  # ragged at both edges
    writer = create_array(tmp_path / "a", Layout(A.shape, dtype, (4, 3), shards))
    for i, j in itertools.product(range(0, 21, 8), range(0, 11, 6)):
        writer.write(i, A[i : i + 8, j : j + 6], j)
    array = zarr.open(tmp_path / "a", mode="r")
    assert array[...].tobytes() == A.tobytes()
    assert (array.dtype, array.chunks, array.shards) == (np.dtype(dtype), (4, 3), shards)
    codecs = json.loads((tmp_path / "a" / "zarr.json").read_bytes())["codecs"]
    inner = codecs[0]["configuration"]["codecs"] if shards else codecs
    assert [codec["name"] for codec in inner] == ["bytes", "crc32c"]
    assert len(chunk_files(tmp_path / "a")) == array.metadata.chunk_grid.get_nchunks(A.shape) if not shards else 6


@pytest.mark.parametrize("checksum", [True, False])
def test_writing_past_the_page_cache(on_disk: Path, checksum: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole pages at whole pages of memory; the rest, and other blocks, are written as usual."""
    monkeypatch.setattr(writers, "total_bytes", lambda: 0)
    direct: list[int] = []
    real_write = os.write

    def counting(fd: int, data: memoryview) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            direct.append(len(data))
        return real_write(fd, data)

    monkeypatch.setattr(os, "write", counting)
    A = empty_pages((192, 100), np.dtype("f8"))
    A[...] = np.arange(A.size).reshape(A.shape)
    writer = create_array(on_disk / "a", Layout(A.shape, "f8", (64, 100)), checksum=checksum)
    writer.write(0, A)
    assert direct == [12 * 4096] * 2  # 12.5 pages a chunk: the first and the third begin at one
    np.testing.assert_array_equal(zarr.open(on_disk / "a", mode="r")[...], A)
    writer.write(64, A[:64])
    assert len(direct) == 3
    np.testing.assert_array_equal(zarr.open(on_disk / "a", mode="r")[64:128], A[:64])
    between = empty_pages((A.size + 1,), np.dtype("f8"))[1:].reshape(A.shape)
    between[...] = 0.0
    writer.write(0, between)
    assert len(direct) == 3
    assert not zarr.open(on_disk / "a", mode="r")[...].any()


def test_zarr_finds_a_flipped_bit(tmp_path: Path) -> None:
    writer = create_array(tmp_path / "a", Layout((4, 4), "f8", (4, 4)))
    writer.write(0, np.ones((4, 4)))
    with open(tmp_path / "a" / "c" / "0" / "0", "r+b") as file:
        file.write(b"\x01")
    with pytest.raises(ValueError, match="checksum"):
        zarr.open(tmp_path / "a", mode="r")[...]


@pytest.mark.parametrize("shards", [None, (4, 4)])
def test_chunks_of_zeros_are_written(tmp_path: Path, shards: tuple[int, int] | None) -> None:
    writer = create_array(tmp_path / "a", Layout((8, 4), "f8", (2, 4), shards))
    writer.write(0, np.zeros((8, 4)))
    assert len(chunk_files(tmp_path / "a")) == (2 if shards else 4)


@pytest.mark.parametrize(("shape", "chunks"), [((7,), (3,)), ((), ()), ((5, 4, 3), (2, 3, 3)), ((0, 3), (1, 3)), ((1, 1), (9, 9))])
def test_any_number_of_axes(tmp_path: Path, shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
    A = random(shape, "f8")
    create_array(tmp_path / "a", Layout(shape, "f8", chunks)).write(0, A)
    assert zarr.open_array(tmp_path / "a", mode="r")[...].tobytes() == A.tobytes()
    put_array(tmp_path / "b", A)
    assert zarr.open_array(tmp_path / "b", mode="r")[...].tobytes() == A.tobytes()


def test_put_array_cuts_large_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlscale.storage.writers._CHUNK_BYTES", 100)
    A = random((10, 3), "f8")
    writer, crcs = put_array(tmp_path / "a", A)
    assert writer.chunks == (4, 3)
    assert list(crcs) == ["c/0/0", "c/1/0", "c/2/0"]
    assert zarr.open_array(tmp_path / "a", mode="r")[...].tobytes() == A.tobytes()


def test_a_writer_crosses_processes_with_another_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    writer = create_array("a", Layout((2, 2), "f8", (1, 2)), fsync=True)
    writer.write(0, np.ones((1, 2)))
    copy = pickle.loads(pickle.dumps(writer))
    assert copy == writer
    monkeypatch.chdir("/")
    copy.write(1, np.ones((1, 2)))
    assert set(writer.flush()) == {"zarr.json", "c/0/0", "c/1/0"}
    assert (zarr.open_array(tmp_path / "a", mode="r")[...] == 1).all()


@pytest.mark.parametrize(
    ("start", "shape", "column", "sentence"),
    [
        (1, (4, 6), 0, "from a multiple of 4"),
        (0, (3, 6), 0, "from a multiple of 4"),
        (0, (4, 2), 0, "along axis 1 from a multiple of 3"),
        (0, (4, 3), 1, "along axis 1 from a multiple of 3"),
        (8, (4, 6), 0, "lie inside"),
        (-4, (4, 6), 0, "lie inside"),
        (0, (4,), 0, "must have 2 axes"),
    ],
)
def test_a_block_that_splits_a_chunk_is_refused(
    tmp_path: Path, start: int, shape: tuple[int, ...], column: int, sentence: str
) -> None:
    writer = create_array(tmp_path / "a", Layout((10, 6), "f8", (4, 3)))
    with pytest.raises(SpecError, match=sentence):
        writer.write(start, np.ones(shape), column)
    assert chunk_files(tmp_path / "a") == []


def test_no_digits_are_lost_silently(tmp_path: Path) -> None:
    writer = create_array(tmp_path / "a", Layout((2, 2), "f4", (2, 2)))
    for dtype in ("f8", "c8", "i8"):
        with pytest.raises(SpecError, match="without loss"):
            writer.write(0, np.ones((2, 2), dtype))
    writer.write(0, np.ones((2, 2), "i2"))


def test_an_array_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    writer = create_array(path, Layout((4, 2), "f8", (2, 2)))
    writer.write(0, np.ones((2, 2)))
    create_array(path, Layout((4, 2), "f8", (2, 2))).write(2, np.ones((2, 2)))  # the same layout goes on
    assert (zarr.open_array(path, mode="r")[...] == 1).all()
    for other in (
        {"shape": (5, 2)},
        {"dtype": "f4"},
        {"chunks": (1, 2)},
        {"shards": (4, 2)},
    ):
        layout = {"shape": (4, 2), "dtype": "f8", "chunks": (2, 2), "shards": None} | other
        with pytest.raises(SpecError, match="must be free or hold"):
            create_array(path, Layout(**layout))  # type: ignore[arg-type]
    create_array(path, Layout((5, 2), "f8", (2, 2)), overwrite=True)
    assert chunk_files(path) == []
    assert os.listdir(tmp_path) == ["a"]
    with pytest.raises(SpecError, match="replaced after this writer was made"):
        pickle.loads(pickle.dumps(writer)).write(0, np.ones((2, 2)))


def test_other_files_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    for name in ("photos", "file", "file/below"):
        with pytest.raises(SpecError, match=r"[Cc]hoose another path"):
            create_array(tmp_path / name, Layout((4, 2), "f8", (2, 2)), overwrite=True)
    assert (tmp_path / "photos" / "a.jpg").exists()
    assert (tmp_path / "file").is_file()


def test_impossible_layouts(tmp_path: Path) -> None:
    for layout in (
        {"chunks": (0, 2)},
        {"chunks": (2,)},
        {"chunks": (2, 2), "shards": (3, 2)},
        {"chunks": (2, 2), "dtype": "O"},
        {"chunks": (2, 2), "dtype": "U3"},
        {"chunks": (2, 2), "dtype": "g"},
    ):
        with pytest.raises(SpecError):
            create_array(tmp_path / "a", Layout(**({"shape": (4, 2), "dtype": "f8"} | layout)))  # type: ignore[arg-type]
    for name in ("", "../up", "/root", "a//b", ".hidden", "a/zarr.json", "x.partial", "a b"):
        with pytest.raises(SpecError, match="A name must begin"):
            check_name(name)
    assert check_name("parameters/layer-1.weight") == "parameters/layer-1.weight"


@pytest.fixture(scope="module")
def pools() -> Iterator[list[Executor]]:
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of zarr half
    with ThreadPoolExecutor(3) as threads, ProcessPoolExecutor(2, mp_context=context) as processes:
        yield [threads, processes]


@pytest.mark.parametrize("seed", range(100))
def test_concurrent_writes_are_bit_equal_or_refused(tmp_path: Path, pools: list[Executor], seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 40, 2))
    chunks = tuple(int(n) for n in rng.integers(1, 12, 2))
    shards = tuple(int(c * n) for c, n in zip(chunks, rng.integers(1, 4, 2), strict=True)) if rng.random() < 0.4 else None
    writer = create_array(tmp_path / "a", Layout(shape, DTYPES[seed % len(DTYPES)], chunks, shards))
    # Half of the grids are made of whole units; the others are any.
    aligned = rng.random() < 0.5
    grid = tuple(int(u * n) if aligned else int(n) for u, n in zip(writer.unit, rng.integers(1, 4, 2), strict=True))
    A = random(shape, str(writer.dtype.str[1:] if writer.dtype.kind != "b" else "?"), seed)
    corners = list(itertools.product(range(0, shape[0], grid[0]), range(0, shape[1], grid[1])))
    blocks = [(i, A[i : i + grid[0], j : j + grid[1]], j) for i, j in corners]
    splits = any(
        edge % unit and edge < length
        for axis, (unit, length) in enumerate(zip(writer.unit, shape, strict=True))
        for edge in range(0, length, grid[axis])
    )
    if splits:
        with pytest.raises(SpecError, match="must be whole"):
            writer.check_grid(grid)
        assert chunk_files(writer.path) == []
        return
    writer.check_grid(grid)
    futures = [pools[k % 2].submit(ArrayWriter.write, writer, *block) for k, block in enumerate(blocks)]
    for future in futures:
        future.result()
    assert zarr.open_array(writer.path, mode="r")[...].tobytes() == A.tobytes()
    assert not [name for name in chunk_files(writer.path) if name.endswith(".partial")]


def test_warnings_stay_away_from_users(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np; from dlscale.storage.results import ResultGroup\n"
        "group = ResultGroup(sys.argv[1]); group.put('s', np.ones(3))\n"
        "group.create('u', (8, 2), 'f4', chunks=(2, 2), shards=(4, 2)).write(0, np.ones((8, 2), 'f4')); group.publish({})"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(tmp_path / "r.zarr")],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
