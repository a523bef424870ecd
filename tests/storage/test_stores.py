"""Where a Zarr array lies, whether all of it is there, what its numbers mean, and whether it is still the same."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from dlscale.errors import InputError, MissingChunkError, SpecError
from dlscale.storage.files.locations import local_path, named
from dlscale.storage.groups import open_arrays
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix
from dlscale.storage.signatures import Signature, Stamp, source_version
from dlscale.storage.verifying import verify

A = np.random.default_rng(0).standard_normal((50, 8))
LAYOUTS: list[dict[str, Any]] = [
    {"chunks": (20, 3), "compressors": None},
    {"chunks": (20, 8)},
    {"chunks": (5, 4), "shards": (20, 8)},
    {"chunks": (20, 3), "zarr_format": 2},
]


def put(path: Path | str, array: np.ndarray[Any, Any], **layout: Any) -> Any:
    layout = {"chunks": (20, 8), "compressors": None, **layout}
    store = zarr.create_array(path, shape=array.shape, dtype=array.dtype, config={"write_empty_chunks": True}, **layout)
    store[...] = array
    return store


# Chunks that are not there


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_chunk_behind_a_url_that_is_gone_while_it_is_read(layout: dict[str, Any]) -> None:
    put("memory://gone/a.zarr", A, overwrite=True, **layout)
    matrix = open_matrix("memory://gone/a.zarr")
    matrix.check()
    files = fsspec.filesystem("memory")
    chunk = sorted(path for path in files.find("/gone/a.zarr") if not path.rpartition("/")[2].startswith((".", "zarr")))[1]
    files.rm(chunk)
    for copy in (matrix, pickle.loads(pickle.dumps(matrix))):
        with pytest.raises(MissingChunkError, match=chunk.removeprefix("/gone/a.zarr/")):
            copy.read(0, 50)


def test_a_vector_whose_chunk_is_gone(tmp_path: Path) -> None:
    put(tmp_path / "v.zarr", A[:, 0].copy(), chunks=(20,))
    vector = open_matrix(tmp_path / "v.zarr", vectors=True)
    (tmp_path / "v.zarr" / "c" / "1").unlink()
    np.testing.assert_array_equal(vector.read(0, 20)[:, 0], A[:20, 0])
    with pytest.raises(MissingChunkError, match="c/1"):
        vector.read(10, 30)


def test_an_array_of_a_result_whose_chunk_is_gone(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "r.zarr")
    put(tmp_path / "r.zarr" / "u", A)
    (tmp_path / "r.zarr" / "u" / "c" / "1" / "0").unlink()
    u = open_arrays(str(tmp_path / "r.zarr"))["u"]
    np.testing.assert_array_equal(u[:20], A[:20])
    with pytest.raises(MissingChunkError, match="c/1/0"):
        u[...]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("fill_value", [0, 2.5])
def test_chunks_that_were_left_out_are_meant(tmp_path: Path, layout: dict[str, Any], fill_value: float) -> None:
    expected = A.copy()
    expected[:40] = fill_value
    array = zarr.create_array(tmp_path / "a.zarr", shape=A.shape, dtype="f8", fill_value=fill_value, **layout)
    array[40:] = A[40:]
    with pytest.raises(MissingChunkError, match="missing_chunks: fill"):
        open_matrix(tmp_path / "a.zarr").check()
    matrix = open_matrix(tmp_path / "a.zarr", missing_chunks="fill")
    matrix.check()
    assert f"chunks that are not there are read as {float(fill_value)}" in matrix.notes
    for copy in (matrix, pickle.loads(pickle.dumps(matrix))):
        np.testing.assert_array_equal(copy.read(3, 47), expected[3:47])
        np.testing.assert_array_equal(copy.region((35, 45), (1, 7)), expected[35:45, 1:7])
    for path in (tmp_path / "a.zarr").rglob("[0-9]*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(MissingChunkError, match="truncated"):
        matrix.check()


@pytest.mark.parametrize("rows", [10**9, 10**15, 10**18])
@pytest.mark.parametrize("chunks", [(1, 1), (20, 8)])
def test_a_shape_that_promises_more_chunks_than_there_are(tmp_path: Path, rows: int, chunks: tuple[int, int]) -> None:
    put(tmp_path / "a.zarr", A, chunks=chunks)
    described = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps(described | {"shape": [rows, 8]}))
    n_absent = -(-rows // chunks[0]) * (8 // chunks[1]) - -(-50 // chunks[0]) * (8 // chunks[1])
    code = f"from dlscale.storage.matrices import open_matrix; open_matrix({str(tmp_path / 'a.zarr')!r}).check()"
    limited = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
    )
    first = "c/50/0" if chunks == (1, 1) else "c/3/0"
    assert f"chunk {first} is missing (and {n_absent - 1:,} more)" in limited.stderr, limited.stderr


# Places


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_an_array_in_a_zip_file(tmp_path: Path, layout: dict[str, Any]) -> None:
    with zarr.storage.ZipStore(tmp_path / "a.zarr.zip", mode="w") as store:
        zarr.create_group(store, zarr_format=layout.get("zarr_format", 3))
        options = {key: value for key, value in layout.items() if key != "zarr_format"}
        zarr.open_group(store, mode="a").create_array("inner/A", shape=A.shape, dtype="f8", **options)[...] = A
    matrix = open_matrix(tmp_path / "a.zarr.zip" / "inner" / "A")
    before = matrix.check()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(matrix)).read(10, 47), A[10:47])
    assert before is not None
    assert before.n_files == (9 if layout["chunks"] == (20, 3) else 3)
    with pytest.raises(InputError, match=r"a\.zarr\.zip is a Zarr group"):
        open_matrix(tmp_path / "a.zarr.zip")
    (tmp_path / "b.zip").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"no Zarr array at .*b\.zip"):
        open_matrix(tmp_path / "b.zip")


def test_dlscale_writes_to_paths_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("s3://bucket/a", "s3:/bucket/a", "https://host/a", "memory://a", "GS://a", "simplecache::http://h/a"):
        for location in (url, Path(url)):
            with pytest.raises(SpecError, match="The place must be a path on a file system of this machine"):
                local_path(location, "The place")
    assert local_path("file:///a/b", "") == local_path(Path("file:///a/b"), "") == Path("/a/b")
    assert local_path("x:/b", "") == Path("x:/b")
    assert not list(tmp_path.iterdir())


def test_the_name_of_a_url_ends_before_its_query() -> None:
    assert named("https://b/X.CSV.gz?X-Amz-Signature=a.npy#f") == "https://b/x.csv.gz"
    assert named("/data/What?.npy") == "/data/what?.npy"


# Packed numbers


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("dtype", ["i2", "u1", "i4", "f4", "f8"])
def test_packed_numbers_are_unpacked(tmp_path: Path, raw: bool, dtype: str) -> None:
    stored = np.random.default_rng(0).integers(0, 100, (50, 8)).astype(dtype)
    stored[7, 3] = 111
    array = put(tmp_path / "t.zarr", stored, compressors=None if raw else "auto")
    array.attrs.update({"scale_factor": 0.01, "add_offset": 273.15, "_FillValue": 111, "units": "K"})
    matrix = open_matrix(tmp_path / "t.zarr")
    kind = np.float32 if dtype == "f4" else np.float64
    expected = stored.astype(kind) * kind(0.01) + kind(273.15)
    expected[7, 3] = np.nan
    for copy in (matrix, pickle.loads(pickle.dumps(matrix))):
        np.testing.assert_array_equal(copy.read(0, 50), expected)
        np.testing.assert_array_equal(copy.T.read(1, 7), expected.T[1:7])
    assert "packed numbers are unpacked as they are read: scale_factor 0.01, add_offset 273.15, missing where 111" in " ".join(
        matrix.notes
    )
    assert matrix.describe()["dtype"] == np.dtype(kind).name


def test_what_xarray_calls_missing(tmp_path: Path) -> None:
    stored = np.array([[1.0, 1e20], [2.0, 3.0]])
    array = put(tmp_path / "t.zarr", stored)
    array.attrs["_FillValue"] = base64.standard_b64encode(struct.pack("<d", 1e20)).decode()
    np.testing.assert_array_equal(open_matrix(tmp_path / "t.zarr").read(0, 2), [[1, np.nan], [2, 3]])
    array.attrs["_FillValue"] = "NaN"
    assert not open_matrix(tmp_path / "t.zarr").notes
    old = put(tmp_path / "old.zarr", stored, zarr_format=2, fill_value=1e20)
    np.testing.assert_array_equal(open_matrix(tmp_path / "old.zarr").read(0, 2), stored)
    old.attrs["_ARRAY_DIMENSIONS"] = ["y", "x"]
    np.testing.assert_array_equal(open_matrix(tmp_path / "old.zarr").read(0, 2), [[1, np.nan], [2, 3]])


@pytest.mark.parametrize("told", [{"scale_factor": "much"}, {"scale_factor": [1, 2]}, {"_FillValue": {}}, {"_Unsigned": "true"}])
def test_packing_that_is_not_understood_is_refused(tmp_path: Path, told: dict[str, Any]) -> None:
    put(tmp_path / "t.zarr", np.ones((3, 3), "i2")).attrs.update(told)
    with pytest.raises(InputError, match=r"t\.zarr (is packed in a way that is not understood|holds int16)"):
        open_matrix(tmp_path / "t.zarr")


# Signatures


def until_the_clock_of_files_moves(folder: Path) -> None:
    """It moves in steps of some milliseconds; what is written in one of them has one time."""
    (probe := folder / "probe").touch()
    written = probe.stat().st_mtime_ns
    while probe.stat().st_mtime_ns == written:
        probe.touch()
    probe.unlink()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_signature_finds_every_change(tmp_path: Path, layout: dict[str, Any]) -> None:
    path = tmp_path / "a.zarr"
    array = put(path, A, **layout)
    before = open_matrix(path).check()
    assert before is not None
    assert open_matrix(path).check() == before
    array.attrs["unit"] = "m"
    assert open_matrix(path).check() == before  # what is said of the numbers is none of them
    chunk = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith((".", "zarr")))[1]
    times, data = chunk.stat(), chunk.read_bytes()

    def written() -> None:
        chunk.write_bytes(data)

    def kept_time() -> None:
        chunk.write_bytes(data)
        os.utime(chunk, ns=(times.st_atime_ns, times.st_mtime_ns))

    def copied_over() -> None:
        shutil.copy2(chunk, tmp_path / "copy")
        os.replace(tmp_path / "copy", chunk)

    def meant_otherwise() -> None:
        array.attrs["scale_factor"] = 2.0

    for change in (written, kept_time, copied_over, meant_otherwise):
        until_the_clock_of_files_moves(tmp_path)
        change()
        after = open_matrix(path).check()
        assert after is not None
        assert not before.same_as(after), change.__name__
        assert before.changed(after)
        before = after


def test_a_signature_of_what_is_behind_a_url() -> None:
    put("memory://signed/a.zarr", A, overwrite=True)
    before = open_matrix("memory://signed/a.zarr").check()
    assert before == open_matrix("memory://signed/a.zarr").check()
    put("memory://signed/a.zarr", A + 1, overwrite=True)
    after = open_matrix("memory://signed/a.zarr").check()
    assert before is not None
    assert after is not None
    assert not before.same_as(after)


def test_a_signature_says_what_changed(tmp_path: Path) -> None:
    array = put(tmp_path / "a.zarr", A)
    matrix = open_matrix(tmp_path / "a.zarr")
    inputs = Inputs({"matrix": matrix}, signatures={"matrix": matrix.check()})  # type: ignore[dict-item]
    inputs.require_unchanged()
    until_the_clock_of_files_moves(tmp_path)
    array[20:40] = 0
    with pytest.raises(
        InputError, match=r"input\.matrix: .*a\.zarr was changed while the job read it \(its file c/1/0 was written at "
    ):
        inputs.require_unchanged()


@given(
    st.dictionaries(st.text(min_size=1), st.tuples(st.integers(0), st.text(), st.integers(0)), min_size=1, max_size=5), st.data()
)
@settings(max_examples=100, deadline=None)
def test_signatures_are_equal_only_of_equal_stamps(stamps: dict[str, tuple[int, str, int]], data: st.DataObject) -> None:
    files = {name: Stamp(*stamp) for name, stamp in stamps.items()}
    name = data.draw(st.sampled_from(sorted(files)))
    other = {**files, name: files[name]._replace(version=files[name].version + "x")}
    assert Signature.of(files).same_as(Signature.of(dict(reversed(files.items()))))
    assert not Signature.of(files).same_as(Signature.of(other))
    assert not Signature.of(files).same_as(Signature.of(files, beside="x"))
    assert not Signature.of(files).same_as(Signature.of({n: s for n, s in files.items() if n != name}))


def test_versions_of_sources(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.npy").write_bytes(b"1")
    files = fsspec.filesystem("memory")
    files.pipe("/versions/a.npy", b"1")
    sources = [str(tmp_path / "folder"), str(tmp_path / "folder" / "a.npy"), f"file://{tmp_path}/folder", "memory://versions/a.npy"]
    before = [source_version(source) for source in sources]
    assert before == [source_version(source) for source in sources]
    assert all(before)
    until_the_clock_of_files_moves(tmp_path)
    (tmp_path / "folder" / "a.npy").write_bytes(b"2")
    files.pipe("/versions/a.npy", b"2")
    assert not set(before) & {source_version(source) for source in sources}


def test_a_server_that_says_nothing_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/mute/a.npy", b"1")
    monkeypatch.setattr(type(files), "info", lambda *_: {"name": "/mute/a.npy", "size": 1, "type": "file"})
    assert source_version("memory://mute/a.npy") is None


@pytest.mark.parametrize("name", ["zarr.json", "c/0/0"])
def test_a_pipe_or_a_device_in_a_store_is_named_and_not_waited_for(name: str, tmp_path: Path) -> None:
    for plant in (os.mkfifo, lambda place: os.symlink("/dev/zero", place)):
        path = tmp_path / plant.__name__ / "a.zarr"
        zarr.create_array(path, data=np.ones((4, 2)), chunks=(4, 2))
        (path / name).unlink()
        plant(path / name)
        with pytest.raises(InputError, match=re.escape(name)):
            open_matrix(str(path)).check()


@pytest.mark.parametrize(
    ("zarr_format", "key", "value", "told"), [(2, "chunks", [0, 2], r"chunks are \(0, 2\)"), (3, "attributes", [1], "no mapping")]
)
def test_a_description_that_zarr_accepts_and_nothing_can_use(
    zarr_format: Any, key: str, value: Any, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.zarr"
    zarr.create_array(path, data=np.ones((4, 2)), chunks=(4, 2), zarr_format=zarr_format)
    described = path / (".zarray" if zarr_format == 2 else "zarr.json")
    described.write_text(json.dumps(json.loads(described.read_text()) | {key: value}))
    for read in (open_matrix, verify):
        with pytest.raises(InputError, match=told):
            read(str(path))
