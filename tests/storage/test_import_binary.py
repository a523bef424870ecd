"""Parquet, HDF5, NumPy's files and images as other programs write them: read as they are meant, or refused by name."""

from __future__ import annotations

import json
import re
import struct
import warnings
import zlib
from decimal import Decimal
from fractions import Fraction

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from dlscale.errors import ImportNote, InputError, SpecError
from dlscale.storage.importers import import_matrix
from dlscale.storage.importers.folders import parts_of


def imported(source, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportNote)  # the tests of notes read them from the array
        path = import_matrix(source, source.parent / "out.zarr", overwrite=True, **options)
    return zarr.open_array(path, mode="r")


def values(source, **options):
    return imported(source, **options)[...]


def notes(array):
    return " ".join(array.attrs["dlscale"].get("notes", []))


# Folders


@pytest.mark.parametrize(
    "names",
    [
        ["part.0.parquet", "part.1.parquet", "part.2.parquet", "part.10.parquet", "part.11.parquet"],
        ["part-00000-af.parquet", "part-00001-02.parquet", "part-00002-1b.parquet"],
        ["a/2.parquet", "a/10.parquet", "b/1.parquet", "b10/0.parquet"],
        ["9.parquet", "99.parquet", "100.parquet", "x.parquet"],
    ],
)
def test_parts_in_the_order_of_their_numbers(tmp_path, names):
    folder = tmp_path / "table"
    for k in np.random.default_rng(0).permutation(len(names)):
        path = folder / names[k]
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"a": [float(k)]}), path)
    for hidden in (
        ".part.0.parquet.crc",
        "._part.1.parquet",
        "_metadata.parquet",
        "_temporary/0/part.3.parquet",
        ".cache/x.parquet",
    ):
        path = folder / hidden
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"a": [-1.0]}), path)
    (folder / "_SUCCESS").touch()
    np.testing.assert_array_equal(values(folder).ravel(), np.arange(len(names)))


@given(numbers=st.lists(st.integers(0, 10**12), unique=True, min_size=1, max_size=20), width=st.integers(0, 4))
@settings(max_examples=30, deadline=None)
def test_order_of_any_numbers(tmp_path_factory, numbers, width):
    folder = tmp_path_factory.mktemp("parts")
    for number in numbers:
        (folder / f"part.{number:0{width}d}.parquet").touch()
    found = [int(path.rsplit("/", 1)[1].split(".")[1]) for path in parts_of(str(folder), [".parquet"]).paths]
    assert found == sorted(numbers)


# Parquet


def test_parquet_parts_that_differ_in_form_only(tmp_path):
    folder = tmp_path / "x.parquet"
    folder.mkdir()
    pq.write_table(pa.table({"a": pa.array([1], pa.int32()), "b": [0.5]}), folder / "0.parquet")
    never = pa.schema([pa.field("b", pa.float64(), nullable=False), pa.field("a", pa.int64(), nullable=False)])
    pq.write_table(pa.table([[1.5], [2**40]], schema=never, metadata=None), folder / "1.parquet")
    pq.write_table(pa.table({"z": pa.array([], pa.string())}), folder / "2.parquet")  # Spark writes empty parts
    np.testing.assert_array_equal(values(folder), [[1, 0.5], [2**40, 1.5]])
    pq.write_table(pa.table({"a": [1], "c": [0.5]}), folder / "3.parquet")
    with pytest.raises(InputError, match=r"3\.parquet has other columns than .*0\.parquet"):
        imported(folder)


def test_parquet_checksums_of_pages_are_compared(tmp_path):
    path, numbers = tmp_path / "a.parquet", np.arange(1000.0)
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    for checked in (True, False):
        pq.write_table(pa.table({"a": numbers}), path, write_page_checksum=checked, **options)
        data = path.read_bytes()
        path.write_bytes(data.replace(np.float64(500).tobytes(), np.float64(501).tobytes(), 1))
        if checked:
            with pytest.raises(InputError, match="could not verify page integrity, CRC checksum"):
                values(path)
        else:
            assert values(path)[500, 0] == 501


def test_parquet_partitions_are_not_dropped(tmp_path):
    for year in (2020, 2021):
        (tmp_path / "t" / f"year={year}").mkdir(parents=True)
        pq.write_table(pa.table({"a": [float(year)]}), tmp_path / "t" / f"year={year}" / "0.parquet")
    with pytest.raises(InputError, match="year=2020 holds a value of a column"):
        imported(tmp_path / "t")
    np.testing.assert_array_equal(values(tmp_path / "t", columns=["a"]), [[2020], [2021]])


@given(
    numbers=st.lists(st.integers(-(10**30), 10**30), min_size=1, max_size=30),
    scale=st.integers(0, 20),
)
@settings(max_examples=60, deadline=None)
def test_parquet_decimals_are_the_nearest_floats(tmp_path_factory, numbers, scale):
    path = tmp_path_factory.mktemp("decimals") / "x.parquet"
    column = pa.array([Decimal(number).scaleb(-scale) for number in numbers], pa.decimal128(38, scale))
    pq.write_table(pa.table({"price": column}), path)
    expected = [float(Fraction(number, 10**scale)) for number in numbers]
    np.testing.assert_array_equal(values(path).ravel(), expected)


@pytest.mark.parametrize("kind", ["fixed", "list", "large"])
def test_parquet_vectors(tmp_path, kind):
    A = np.random.default_rng(0).standard_normal((50, 6)).astype("f4")
    types = {"fixed": pa.list_(pa.float32(), 6), "list": pa.list_(pa.float32()), "large": pa.large_list(pa.float32())}
    table = pa.table({"id": np.arange(50), "e": pa.array(A.tolist(), types[kind])})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=7)
    array = imported(tmp_path / "x.parquet", columns=["e"])
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array[...], A)
    np.testing.assert_array_equal(values(tmp_path / "x.parquet"), np.column_stack([np.arange(50), A]))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[1.0, 2.0], [3.0]], "length 1 in row 1, and of length 2"),
        ([[1.0, 2.0], None], "missing values"),
        ([[1.0, None], [1.0, 2.0]], "missing values"),
        ([None, [1.0]], "no vector in row 0"),
        ([[]], "no vector in row 0"),
    ],
)
def test_parquet_vectors_of_different_lengths(tmp_path, rows, said):
    pq.write_table(pa.table({"e": pa.array(rows, pa.list_(pa.float64()))}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=said):
        imported(tmp_path / "x.parquet")


def test_parquet_index_of_pandas_is_no_column(tmp_path):
    told = {"index_columns": ["__index_level_0__", {"kind": "range", "start": 0, "stop": 3, "step": 1}]}
    table = pa.table({"height": [1.5, 1.6], "__index_level_0__": [12, 400]})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(told)}), tmp_path / "x.parquet")
    array = imported(tmp_path / "x.parquet")
    np.testing.assert_array_equal(array[...], [[1.5], [1.6]])
    assert "'__index_level_0__' is the index that pandas wrote" in notes(array)
    np.testing.assert_array_equal(values(tmp_path / "x.parquet", columns=["__index_level_0__"]), [[12], [400]])


# HDF5


@pytest.mark.parametrize("names", [("r", "i"), ("real", "imag"), ("re", "im"), ("Real", "Imag")])
@pytest.mark.parametrize("part", ["f4", "f8"])
def test_hdf5_complex_pairs(tmp_path, names, part):
    A = np.random.default_rng(0).standard_normal((20, 3, 2)).astype(part)
    pairs = np.empty((20, 3), [(name, part) for name in names])
    pairs[names[0]], pairs[names[1]] = A[..., 0], A[..., 1]
    with h5py.File(tmp_path / "x.h5", "w") as store:
        store["A"] = pairs
    array = imported(tmp_path / "x.h5")
    assert array.dtype == np.dtype(f"c{2 * np.dtype(part).itemsize}")
    np.testing.assert_array_equal(array[...], A[..., 0] + 1j * A[..., 1])


def test_hdf5_pairs_that_are_not_complex_are_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as store:
        store["A"] = np.zeros((2, 2), [("x", "f8"), ("y", "f8")])
    with pytest.raises(InputError, match="must hold integers, floats or complex"):
        imported(tmp_path / "x.h5")


def test_hdf5_links(tmp_path):
    (tmp_path / "data").mkdir()
    with h5py.File(tmp_path / "data" / "run.h5", "w") as other:
        other["entry/A"] = np.eye(3)
        other["up"] = h5py.ExternalLink("../../outside.h5", "/A")
    with h5py.File(tmp_path / "x.h5", "w") as store:
        store["entry/data"] = np.eye(2)
        store["default"] = h5py.SoftLink("/entry/data")
        store["entry/first"] = h5py.SoftLink("data")
        store["group"] = h5py.SoftLink("entry")
        store["run"] = h5py.ExternalLink("data/run.h5", "/entry")
        store["outside"] = h5py.ExternalLink("data/run.h5", "/up")
        store["absolute"] = h5py.ExternalLink("/etc/hostname", "/A")
        store["nowhere"] = h5py.SoftLink("/lost")
        store["circle"] = h5py.SoftLink("circle")
    for name in ("default", "entry/first", "group/data", "/group/first"):
        np.testing.assert_array_equal(values(tmp_path / "x.h5", dataset=name), np.eye(2))
    np.testing.assert_array_equal(values(tmp_path / "x.h5", dataset="run/A"), np.eye(3))
    for name, said in (
        ("outside", "link"),
        ("absolute", "does not lie beside it"),
        ("nowhere", "has no dataset"),
        ("circle", "circles"),
    ):
        with pytest.raises((InputError, SpecError), match=said):
            imported(tmp_path / "x.h5", dataset=name)
    with pytest.raises(SpecError, match="'group' is a group"):
        imported(tmp_path / "x.h5", dataset="group")


def save_virtual(path, sources, shape):
    layout = h5py.VirtualLayout(shape=shape, dtype="f8")
    for rows, source in sources:
        layout[rows] = source
    with h5py.File(path, "w") as store:
        store.create_virtual_dataset("v", layout)


def test_hdf5_virtual_datasets(tmp_path):
    A = np.random.default_rng(0).standard_normal((30, 4))
    for k in range(3):
        with h5py.File(tmp_path / f"part{k}.h5", "w") as store:
            store["s"] = A[10 * k : 10 * k + 10]
    parts = [(slice(10 * k, 10 * k + 10), h5py.VirtualSource(f"part{k}.h5", "s", shape=(10, 4))) for k in range(3)]
    save_virtual(tmp_path / "all.h5", parts, (30, 4))
    array = imported(tmp_path / "all.h5")
    np.testing.assert_array_equal(array[...], A)
    assert list(array.attrs["dlscale"]["read_also"]) == [str(tmp_path / f"part{k}.h5") for k in range(3)]
    save_virtual(tmp_path / "gap.h5", parts[:2], (30, 4))
    with pytest.raises(InputError, match="its sources give 80 of its 120 entries"):
        imported(tmp_path / "gap.h5")
    with h5py.File(tmp_path / "part1.h5", "w") as store:
        store["s"] = A[:7]
    with pytest.raises(InputError, match=r"needs more than the \(7, 4\) entries of 's'"):
        imported(tmp_path / "all.h5")
    (tmp_path / "part1.h5").unlink()
    with pytest.raises(InputError, match=r"part1\.h5, which is not there"):
        imported(tmp_path / "all.h5")


def test_hdf5_external_storage_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(b"12345678")
    with h5py.File(tmp_path / "x.h5", "w") as store:
        store.create_dataset("x", shape=(8, 1), dtype="u1", external=[(str(tmp_path / "secret"), 0, 8)])
    with pytest.raises(InputError, match="secret, as plain bytes"):
        imported(tmp_path / "x.h5")


def test_hdf5_packed_numbers(tmp_path):
    stored = np.array([[100, 200], [-7, 50]], "i2")
    with h5py.File(tmp_path / "x.nc.h5", "w") as store:
        store["t"] = stored
        store["t"].attrs.update({"scale_factor": np.array([0.01]), "add_offset": 273.15, "_FillValue": np.int16(-32768)})
    array = imported(tmp_path / "x.nc.h5")
    assert array.dtype == np.float64
    np.testing.assert_array_equal(array[...], stored * 0.01 + 273.15)
    with h5py.File(tmp_path / "x.nc.h5", "a") as store:
        store["t"][1, 0] = -32768
    with pytest.raises(InputError, match="missing value in row 1, column 0"):
        imported(tmp_path / "x.nc.h5")


def test_hdf5_sparse_groups_are_refused_by_name(tmp_path):
    A = scipy.sparse.random(6, 4, density=0.5, format="csr", random_state=0)
    with h5py.File(tmp_path / "x.h5", "w") as store:
        for part in ("data", "indices", "indptr"):
            store[f"X/{part}"] = getattr(A, part)
    for options in ({}, {"dataset": "X"}):
        with pytest.raises(InputError, match="'/X' is a sparse matrix in three arrays"):
            imported(tmp_path / "x.h5", **options)
    np.testing.assert_array_equal(values(tmp_path / "x.h5", dataset="X/data").ravel(), A.data)


# NumPy and SciPy


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_versions(tmp_path, version):
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, np.eye(3), version=version)
    np.testing.assert_array_equal(values(tmp_path / "x.npy"), np.eye(3))


@pytest.mark.parametrize("shape", ["(-5, 4)", "(4, 1000000000000)", "(10000000000000000, 4)"])
@pytest.mark.parametrize("fortran", [False, True])
def test_npy_shapes_that_the_file_does_not_hold(tmp_path, shape, fortran):
    header = f"{{'descr': '<f8', 'fortran_order': {fortran}, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 160)
    with pytest.raises(InputError, match=r"x\.npy (has shape|ends before its last row)"):
        imported(tmp_path / "x.npy")


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "c16", "i2", "bool"])
def test_sparse_npz(tmp_path, form, dtype):
    A = scipy.sparse.random(60, 12, density=0.3, random_state=0).toarray()
    A = (A * 100).astype(dtype)
    scipy.sparse.save_npz(tmp_path / "x.npz", scipy.sparse.coo_array(A).asformat(form))
    array = imported(tmp_path / "x.npz")
    assert array.dtype == (np.uint8 if dtype == "bool" else np.dtype(dtype))
    np.testing.assert_array_equal(array[...], A)


def test_sparse_npz_sums_and_damage(tmp_path):
    twice = scipy.sparse.coo_array((np.full(3, 100, np.uint8), ([0, 0, 0], [1, 1, 1])), shape=(2, 2))
    scipy.sparse.save_npz(tmp_path / "x.npz", twice)
    np.testing.assert_array_equal(values(tmp_path / "x.npz"), [[0, 300], [0, 0]])
    large = np.full(2, 3e38, "f4")
    in_rows = scipy.sparse.csr_array((large, [0, 0], [0, 0, 2]), shape=(2, 2))
    for entries in (scipy.sparse.coo_array((large, ([1, 1], [0, 0])), shape=(2, 2)), in_rows):
        scipy.sparse.save_npz(tmp_path / "x.npz", entries)
        with pytest.raises(InputError, match=r"row 1, column 0 .* add up to inf, which float32 does not hold"):
            imported(tmp_path / "x.npz")
    broken = scipy.sparse.csr_array(np.eye(3))
    broken.indices[1] = 10**9
    scipy.sparse.save_npz(tmp_path / "x.npz", broken)
    with pytest.raises(InputError, match="not a sparse matrix"):
        imported(tmp_path / "x.npz")


# Images


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png"])
def test_every_frame_is_a_row(tmp_path, suffix):
    frames = np.random.default_rng(0).integers(0, 2, (4, 5, 6), np.uint8) * 255
    images = [Image.fromarray(frame).convert("RGB") for frame in frames]
    images[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=images[1:], lossless=True)
    np.testing.assert_array_equal(values(tmp_path / f"x.{suffix}"), np.repeat(frames.reshape(4, -1), 3, axis=1))
    patches = values(tmp_path / f"x.{suffix}", patches=5)
    np.testing.assert_array_equal(patches[2], np.repeat(frames[1, :, :5].ravel(), 3))


def test_frames_of_different_sizes_are_refused(tmp_path):
    images = [Image.new("L", (4, 4)), Image.new("L", (2, 2))]
    images[0].save(tmp_path / "x.tif", save_all=True, append_images=images[1:])
    with pytest.raises(InputError, match=r"x\.tif, frame 1 has 2 x 2 pixels and .*x\.tif has 4 x 4"):
        imported(tmp_path / "x.tif")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_the_camera_says(tmp_path, suffix, orientation):
    pixels = np.arange(8 * 16 * 3, dtype=np.uint8).reshape(8, 16, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {"quality": 95} if suffix == "jpg" else {}
    Image.fromarray(pixels).save(tmp_path / f"x.{suffix}", exif=exif, **options)
    with Image.open(tmp_path / f"x.{suffix}") as image:
        image.load()
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert upright.shape == ((8, 16, 3) if orientation < 5 else (16, 8, 3))
    array = imported(tmp_path / f"x.{suffix}")
    assert array.attrs["dlscale"]["image_shape"] == list(upright.shape)
    np.testing.assert_array_equal(array[...].ravel(), upright.ravel())


def test_images_by_the_order_of_their_numbers(tmp_path):
    (tmp_path / "photos").mkdir()
    for k in range(12):
        Image.new("L", (2, 2), k).save(tmp_path / "photos" / f"img{k}.png")
    np.testing.assert_array_equal(values(tmp_path / "photos")[:, 0], np.arange(12))


@pytest.mark.parametrize(
    ("mode", "said"), [("RGBA", "transparency is dropped"), ("LA", "transparency is dropped"), ("CMYK", "converted"), ("RGB", "")]
)
def test_what_an_image_loses_is_said(tmp_path, mode, said):
    Image.new(mode, (3, 2)).save(tmp_path / "x.tif")
    assert said in notes(imported(tmp_path / "x.tif")) if said else not notes(imported(tmp_path / "x.tif"))


def test_an_image_of_too_many_pixels(tmp_path):
    Image.new("1", (18, 10)).save(tmp_path / "x.png")
    data = bytearray((tmp_path / "x.png").read_bytes())
    # The header, of which the type and 13 bytes have a checksum, says that it is a thousand times as large.
    data[16:24] = struct.pack(">II", 18_000, 10_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.png has more than 178,956,970 pixels"):
        imported(tmp_path / "x.png", patches=1000)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_whose_strips_do_not_reach_its_end(tmp_path, compression):
    Image.new("L", (5, 7), 3).save(tmp_path / "x.tif", compression=compression)
    # The tag ImageLength (257), one number of 16 or 32 bits.
    data, n_found = re.subn(rb"(\x01\x01[\x03\x04]\x00\x01\x00\x00\x00)\x07", rb"\g<1>p", (tmp_path / "x.tif").read_bytes())
    assert n_found == 1
    (tmp_path / "x.tif").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.tif (is a damaged TIFF|cannot be read)"):
        imported(tmp_path / "x.tif")


def test_tiffs_in_tiles_and_planes(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.tif", tiffinfo={322: 32, 323: 32}, compression="tiff_deflate")
    np.testing.assert_array_equal(values(tmp_path / "x.tif").ravel(), pixels.ravel())


@pytest.mark.parametrize("text", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", b"%PDF-1.4\n", b"/* XPM */\n"])
def test_programs_are_no_images(tmp_path, monkeypatch, text):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "x.png").write_bytes(text)
    with pytest.raises(InputError, match=r"x\.png cannot be read as an image"):
        imported(tmp_path / "x.png")
