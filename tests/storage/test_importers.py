"""Imports: the same numbers come out for every format, in bounded memory, as a whole or not at all."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import textwrap
import time
from itertools import product
from pathlib import Path

import fsspec
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import scipy.sparse
import zarr
from PIL import Image

from dlscale.errors import InputError, SpecError
from dlscale.storage.importers import import_matrix, strips, tables
from dlscale.storage.importers.strips import default_chunks

DTYPES = ["u1", "i2", "f2", "f4", "f8", "c8", "c16"]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few hundred bytes, so that small matrices have many strips."""
    for module in ("tables", "hdf5", "images"):
        monkeypatch.setattr(f"dlscale.storage.importers.{module}.BLOCK_BYTES", 512)


def matrix(m, n, dtype="f8"):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((m, n)) * 50
    return (A + 1j * rng.standard_normal((m, n)) if np.dtype(dtype).kind == "c" else abs(A)).astype(dtype)


def imported(source, tmp_path, **options):
    """Import, check the store's layout and that nothing else is left, and give back the array."""
    destination = tmp_path / "out" / "x.zarr"
    assert import_matrix(source, destination, **options) == destination
    assert os.listdir(destination.parent) == ["x.zarr"]
    array = zarr.open_array(destination, mode="r")
    assert array.metadata.zarr_format == 3
    assert [codec.to_dict()["name"] for codec in array.metadata.codecs] == ["bytes"]
    n_chunks = sum(1 for path in (destination / "c").rglob("*") if path.is_file())
    assert n_chunks == np.prod([-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)])
    return array


# npy, npz


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [*DTYPES, ">f8"])
def test_npy_keeps_numbers_and_dtype(tmp_path, small_blocks, dtype, order):
    A = np.asarray(matrix(101, 7, dtype), order=order)
    np.save(tmp_path / "a.npy", A)
    array = imported(tmp_path / "a.npy", tmp_path)
    assert array.dtype == A.dtype.newbyteorder("=")
    np.testing.assert_array_equal(array[:], A)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_member(tmp_path, small_blocks, save, order):
    A = np.asarray(matrix(101, 7), order=order)
    save(tmp_path / "one.npz", only=A)
    np.testing.assert_array_equal(imported(tmp_path / "one.npz", tmp_path)[:], A)
    save(tmp_path / "two.npz", a=A, b=2 * A)
    np.testing.assert_array_equal(imported(tmp_path / "two.npz", tmp_path, dataset="b", overwrite=True)[:], 2 * A)
    with pytest.raises(SpecError, match="holds 2 arrays; set dataset to one of: a, b"):
        import_matrix(tmp_path / "two.npz", tmp_path / "y.zarr")
    with pytest.raises(SpecError, match="has no array 'c'"):
        import_matrix(tmp_path / "two.npz", tmp_path / "y.zarr", dataset="c")


def test_chunks_of_zeros_are_written(tmp_path, small_blocks):
    np.save(tmp_path / "a.npy", np.zeros((100, 8)))
    assert not imported(tmp_path / "a.npy", tmp_path)[:].any()


@pytest.mark.parametrize("chunks", [(1, 1), (7, 3), (10, 7), (100, 7), (1000, 1000)])
def test_chunks_as_asked(tmp_path, chunks):
    A = matrix(100, 7)
    np.save(tmp_path / "a.npy", A)
    array = imported(tmp_path / "a.npy", tmp_path, chunks=chunks)
    assert array.chunks == (min(chunks[0], 100), min(chunks[1], 7))
    np.testing.assert_array_equal(array[:], A)


def test_default_chunks():
    for n, itemsize in [(1, 1), (192, 1), (2000, 8), (1_000_000, 8), (100_000_000, 8)]:
        rows, columns = default_chunks(n, itemsize)
        assert rows & (rows - 1) == 0
        assert rows * columns * itemsize <= strips.MAX_CHUNK_BYTES
        if n * itemsize <= tables.BLOCK_BYTES:
            assert columns == n
            assert 8 << 20 < rows * columns * itemsize <= 16 << 20


def test_what_an_array_must_be(tmp_path):
    def save(array):
        np.save(tmp_path / "a.npy", array, allow_pickle=True)
        return tmp_path / "a.npy"

    assert imported(save(np.arange(5.0)), tmp_path).shape == (5, 1)
    assert imported(save(np.array([[True, False]])), tmp_path, overwrite=True).dtype == np.uint8
    for array in (np.zeros((2, 2, 2)), np.float64(3), np.array([[None, "x"]], dtype=object), np.array([["a"]])):
        with pytest.raises(InputError, match=r"must (have|hold)"):
            import_matrix(save(array), tmp_path / "y.zarr")
    for array in (np.zeros((0, 3)), np.zeros((3, 0))):
        with pytest.raises(InputError, match="without entries"):
            import_matrix(save(array), tmp_path / "y.zarr")
    assert sorted(os.listdir(tmp_path)) == ["a.npy", "out"]


def test_dtype_changes_no_value(tmp_path):
    np.save(tmp_path / "a.npy", matrix(10, 3, "i2"))
    assert imported(tmp_path / "a.npy", tmp_path, dtype="f4").dtype == np.float32
    np.save(tmp_path / "f.npy", matrix(10, 3))
    assert imported(tmp_path / "f.npy", tmp_path, dtype="f4", overwrite=True).dtype == np.float32
    for dtype in ("u1", "i1", "M8[s]", "O"):
        with pytest.raises(SpecError, match="dtype"):
            import_matrix(tmp_path / "a.npy", tmp_path / "y.zarr", dtype=dtype)


# CSV


def test_csv_with_and_without_names(tmp_path):
    A = matrix(500, 3)
    np.savetxt(tmp_path / "plain.csv", A, delimiter=",")
    np.savetxt(tmp_path / "named.csv", A, delimiter=",", header="a,b,c")
    np.savetxt(tmp_path / "tabs.tsv", A, delimiter="\t", header="a\tb\tc", comments="")
    np.savetxt(tmp_path / "packed.csv.gz", A, delimiter=",")
    np.savetxt(tmp_path / "semicolons.csv", A, delimiter=";")
    for name in ("plain.csv", "named.csv", "tabs.tsv", "packed.csv.gz", "semicolons.csv"):
        array = imported(tmp_path / name, tmp_path, overwrite=True)
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array[:], A)
    chosen = imported(tmp_path / "named.csv", tmp_path, columns=["c", "a"], overwrite=True)
    np.testing.assert_array_equal(chosen[:], A[:, [2, 0]])
    chosen = imported(tmp_path / "plain.csv", tmp_path, columns=["1"], overwrite=True)
    np.testing.assert_array_equal(chosen[:], A[:, [1]])
    with pytest.raises(SpecError, match="no column 'd'; its columns are: a, b, c"):
        import_matrix(tmp_path / "named.csv", tmp_path / "y.zarr", columns=["d"])


def test_columns_are_listed_so_that_they_can_be_told_apart(tmp_path):
    (tmp_path / "a.csv").write_text('"income, net",age,,"it\'s", left\n1,2,3,4,5\n')
    pq.write_table(pa.table({"income, net": [1.0], "age": [2.0], "": [3.0], "it's": [4.0], " left": [5.0]}), tmp_path / "a.parquet")
    for name, left in (("a.csv", "left"), ("a.parquet", "' left'")):
        for options in ({"columns": ["income"]}, {"drop": ["income"]}):
            with pytest.raises(SpecError) as refused:
                import_matrix(tmp_path / name, tmp_path / "y.zarr", **options)
            assert str(refused.value).endswith(f"""; its columns are: 'income, net', age, '', "it's", {left}.""")


def test_csv_odds_and_ends(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbf\n"x, y", b\r\n 1, 2.5e-3\r\n\r\n"3",-4\r\n')
    np.testing.assert_array_equal(imported(tmp_path / "a.csv", tmp_path)[:], [[1, 2.5e-3], [3, -4]])
    (tmp_path / "a.csv").write_text("label,p0\n7,255\n8,0\n")
    array = imported(tmp_path / "a.csv", tmp_path, dtype="u1", overwrite=True)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array[:], [[7, 255], [8, 0]])


def test_csv_much_wider_than_a_block_of_text(tmp_path, monkeypatch):
    monkeypatch.setattr("dlscale.storage.importers.delimited.PIECE_BYTES", 1000)
    A = matrix(30, 400)
    np.savetxt(tmp_path / "a.csv", A, delimiter=",")
    np.testing.assert_array_equal(imported(tmp_path / "a.csv", tmp_path)[:], A)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n", "line 3: every line must have 2 cells like the first; this one has 1"),
        ("a,b\n1,2\n\n3,4,5\n", "line 4: every line must have 2 cells like the first; this one has 3"),
        ("a,b\n1,2\n3,x\n", r"line 3, column 2 \('b'\): 'x' is not a float64 number"),
        ("1,2\n3,\n", r"line 2, column 2 \('1'\): the cell is empty"),
        ("1,,3\n4,5,6\n", r"line 1, column 2 \('1'\): the cell is empty"),
        ("1,x\n3,4\n", "line 1, column 2: 'x' stands in a line with numbers. Set header"),
        (",\n3,4\n", "line 1: all cells are empty"),
        ("", "is empty"),
        ("a,b\n", "holds no rows"),
        ("a,b\n" + "1,2\n" * 300_000 + "1,2,3\n", "line 300002: every line must have 2 cells"),
    ],
)
def test_csv_errors_name_line_and_column(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr("dlscale.storage.importers.delimited.PIECE_BYTES", 1 << 16)
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        import_matrix(tmp_path / "a.csv", tmp_path / "y.zarr")
    assert os.listdir(tmp_path) == ["a.csv"]


def test_csv_number_outside_the_dtype(tmp_path):
    (tmp_path / "a.csv").write_text("1,2\n3,256\n")
    with pytest.raises(InputError, match=r"line 2, column 2 \('1'\): '256' is not a uint8 number"):
        import_matrix(tmp_path / "a.csv", tmp_path / "y.zarr", dtype="u1")


@pytest.mark.parametrize("first", ["0,1,2", ",0,1,2"])
def test_csv_first_line_that_can_be_names_or_numbers(tmp_path, first):
    n = first.count(",") + 1
    (tmp_path / "a.csv").write_text(first + "\n" + ",".join(["5"] * n) + "\n")
    with pytest.raises(SpecError, match=r"can be names or numbers\. Set header"):
        import_matrix(tmp_path / "a.csv", tmp_path / "y.zarr")
    assert imported(tmp_path / "a.csv", tmp_path, header=True, index=False).shape == (1, n)
    if first == "0,1,2":
        assert imported(tmp_path / "a.csv", tmp_path, header=False, overwrite=True).shape == (2, n)


# Parquet, HDF5


def test_parquet(tmp_path, small_blocks):
    table = pa.table(
        {"a": [1, 2, 3] * 50, "b": [0.5, -1.0, 2.0] * 50, "name": ["x", "y", "z"] * 50, "flag": [True, False, True] * 50}
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=40)
    array = imported(tmp_path / "t.parquet", tmp_path, columns=["b", "a", "flag"])
    assert array.dtype == np.float64
    np.testing.assert_array_equal(array[:], np.tile([[0.5, 1, 1], [-1, 2, 0], [2, 3, 1]], (50, 1)))
    assert imported(tmp_path / "t.parquet", tmp_path, columns=["a"], overwrite=True).dtype == np.int64
    with pytest.raises(InputError, match=r"column 'name' holds string, not numbers; .*; numeric: true or --numeric yes leaves out"):
        import_matrix(tmp_path / "t.parquet", tmp_path / "y.zarr")
    with pytest.raises(SpecError, match="column 'q'; its columns are: a, b"):
        import_matrix(tmp_path / "t.parquet", tmp_path / "y.zarr", columns=["q"])


def test_parquet_parts_and_missing_values(tmp_path):
    (tmp_path / "t.parquet").mkdir()
    for part in range(3):
        pq.write_table(pa.table({"a": np.arange(4.0) + 4 * part}), tmp_path / "t.parquet" / f"part.{part}.parquet")
    np.testing.assert_array_equal(imported(tmp_path / "t.parquet", tmp_path)[:, 0], np.arange(12))
    pq.write_table(pa.table({"a": [1.0, None]}), tmp_path / "t.parquet" / "part.3.parquet")
    with pytest.raises(InputError, match=r"part.3.parquet: column 'a' has missing values, the first in row 1"):
        import_matrix(tmp_path / "t.parquet", tmp_path / "y.zarr")
    pq.write_table(pa.table({"b": [1.0]}), tmp_path / "t.parquet" / "part.3.parquet")
    with pytest.raises(InputError, match="other columns"):
        import_matrix(tmp_path / "t.parquet", tmp_path / "y.zarr")


@pytest.mark.parametrize("chunks", [None, (3, 7), (101, 1)])
def test_hdf5(tmp_path, small_blocks, chunks):
    A = matrix(101, 7, "c16")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("deep/x", data=A, chunks=chunks, compression="gzip" if chunks else None)
        file["labels"] = np.arange(101)
    np.testing.assert_array_equal(imported(tmp_path / "a.h5", tmp_path)[:], A)
    labels = imported(tmp_path / "a.h5", tmp_path, dataset="labels", overwrite=True)
    assert (labels.shape, labels.dtype) == ((101, 1), np.int64)
    with pytest.raises(SpecError, match="has no dataset 'y'; it has: deep/x, labels"):
        import_matrix(tmp_path / "a.h5", tmp_path / "y.zarr", dataset="y")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["z"] = A
    with pytest.raises(SpecError, match="set dataset to one of"):
        import_matrix(tmp_path / "a.h5", tmp_path / "y.zarr")


# Matrix Market


@pytest.mark.parametrize("name", ["a.mtx", "a.mtx.gz"])
@pytest.mark.parametrize(
    ("dtype", "symmetry"),
    [*product(["i8", "f8", "c16"], ["general", "symmetric", "skew-symmetric"]), ("c16", "hermitian")],
)
@pytest.mark.parametrize("dense", [True, False])
def test_matrix_market(tmp_path, monkeypatch, small_blocks, name, dtype, symmetry, dense):
    monkeypatch.setattr("dlscale.storage.importers.matrix_market.PIECE_BYTES", 300)
    A = matrix(31, 31 if symmetry != "general" else 9, dtype)
    A *= np.random.default_rng(1).random(A.shape) < 0.3
    if symmetry != "general":
        A = {"symmetric": A + A.T, "skew-symmetric": A - A.T, "hermitian": A + A.conj().T}[symmetry]
    with gzip.open(tmp_path / name, "wb") if name.endswith("gz") else open(tmp_path / name, "wb") as file:
        scipy.io.mmwrite(file, A if dense else scipy.sparse.coo_array(A), symmetry=symmetry, comment="made here", precision=17)
    array = imported(tmp_path / name, tmp_path)
    assert array.dtype == A.dtype
    np.testing.assert_array_equal(array[:], A)


def test_matrix_market_pattern_and_repeated_entries(tmp_path):
    (tmp_path / "p.mtx").write_bytes(b"%%MatrixMarket matrix coordinate pattern general\r\n% c\r\n\r\n3 2 2\r\n1 1\r\n\r\n3 2")
    array = imported(tmp_path / "p.mtx", tmp_path)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array[:], [[1, 0], [0, 0], [0, 1]])
    (tmp_path / "r.mtx").write_text("%%MatrixMarket matrix coordinate real general\n1 1 2\n1 1 2.5\n1 1 1\n")
    assert imported(tmp_path / "r.mtx", tmp_path, overwrite=True)[0, 0] == 3.5
    (tmp_path / "z.mtx").write_text("%%MatrixMarket matrix coordinate real general\n2 2 0\n")
    assert not imported(tmp_path / "z.mtx", tmp_path, overwrite=True)[:].any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3\n", "line 1: a Matrix Market file begins with"),
        ("%%MatrixMarket matrix coordinate odd general\n", "line 1: 'coordinate odd general'"),
        ("%%MatrixMarket matrix coordinate real general\n% c\nx\n", "line 3: the line of sizes"),
        ("%%MatrixMarket matrix array real symmetric\n2 3\n", "line 2: a symmetric matrix must be square"),
        ("%%MatrixMarket matrix coordinate real general\n% c\n2 2 2\n1 1 1\n1 3 1\n", "line 5: .*out of bounds"),
        ("%%MatrixMarket matrix coordinate real general\n2 2 2\n1 1 x\n", "line 3: .x. is not a number"),
        ("%%MatrixMarket matrix coordinate real general\n2 2 2\n1 1 1\n", "promises 2 entries and holds only 1"),
        ("%%MatrixMarket matrix array real general\n1 2\n1\n2\n3\n", "promises 2 entries and holds more"),
    ],
)
def test_matrix_market_errors(tmp_path, text, message):
    (tmp_path / "a.mtx").write_text(text)
    with pytest.raises(InputError, match=message):
        import_matrix(tmp_path / "a.mtx", tmp_path / "y.zarr")
    assert os.listdir(tmp_path) == ["a.mtx"]


# Images


def save_images(folder, *arrays):
    folder.mkdir(exist_ok=True)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i}.png")


def test_images_as_rows(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)
    save_images(tmp_path / "photos", *images)
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    array = imported(tmp_path / "photos", tmp_path)
    assert array.dtype == np.uint8
    assert array.attrs["dlscale"]["image_shape"] == [6, 4, 3]
    np.testing.assert_array_equal(array[:], images.reshape(5, -1))
    one = imported(tmp_path / "photos" / "2.png", tmp_path, overwrite=True)
    np.testing.assert_array_equal(one[:], images[2].reshape(1, -1))
    save_images(tmp_path / "photos", images[0], images[1, :3])
    with pytest.raises(InputError, match=r"1.png has 3 x 4 pixels .* cut them into patches"):
        import_matrix(tmp_path / "photos", tmp_path / "y.zarr")


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_grey_images_keep_their_depth(tmp_path, dtype):
    images = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (2, 3, 4), dtype=dtype)
    save_images(tmp_path / "photos", *images)
    array = imported(tmp_path / "photos", tmp_path)
    assert array.dtype == np.dtype(dtype)
    assert array.attrs["dlscale"]["image_shape"] == [3, 4, 1]
    np.testing.assert_array_equal(array[:], images.reshape(2, -1))


@pytest.mark.parametrize(("side", "stride"), [(3, 1), (3, 2), (4, 4), (1, 5)])
def test_patches_of_images_of_any_size(tmp_path, small_blocks, side, stride):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((9, 7), (4, 12), (4, 4))]
    save_images(tmp_path / "photos", *images)
    array = imported(tmp_path / "photos", tmp_path, patches=side, stride=stride)
    expected = [
        image[y : y + side, x : x + side].ravel()
        for image in images
        for y in range(0, image.shape[0] - side + 1, stride)
        for x in range(0, image.shape[1] - side + 1, stride)
    ]
    np.testing.assert_array_equal(array[:], expected)
    assert array.attrs["dlscale"]["image_shape"] == [side, side, 3]


def test_image_errors(tmp_path):
    save_images(tmp_path / "photos", np.zeros((4, 4), np.uint8))
    with pytest.raises(InputError, match="too small for patches of 5 x 5"):
        import_matrix(tmp_path / "photos", tmp_path / "y.zarr", patches=5)
    (tmp_path / "photos" / "bad.png").write_bytes(b"no")
    with pytest.raises(InputError, match=r"bad\.png cannot be read as an image"):
        import_matrix(tmp_path / "photos", tmp_path / "y.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        import_matrix(tmp_path / "empty", tmp_path / "y.zarr")


def test_sample_photos(tmp_path):
    array = imported("sample:photos", tmp_path, patches=16, stride=16)
    assert array.shape == (2 * (427 // 16) * (640 // 16), 16 * 16 * 3)
    told = array.attrs["dlscale"]
    assert (told["image_shape"], told["source"]) == ([16, 16, 3], "sample:photos")
    assert imported("sample:photos", tmp_path, stride=8, overwrite=True).shape[1] == 192


# The edge


def test_urls(tmp_path):
    A = matrix(50, 3)
    np.save(tmp_path / "a.npy", A)
    np.savetxt(tmp_path / "a.csv", A, delimiter=",")
    np.savez(tmp_path / "a.npz", A)
    pq.write_table(pa.table({"x": A[:, 0], "y": A[:, 1], "z": A[:, 2]}), tmp_path / "a.parquet")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = A
    scipy.io.mmwrite(tmp_path / "a.mtx", A, precision=17)
    memory = fsspec.filesystem("memory")
    for suffix in ("npy", "npz", "csv", "parquet", "h5", "mtx"):
        memory.pipe(f"/imports/a.{suffix}", (tmp_path / f"a.{suffix}").read_bytes())
        array = imported(f"memory://imports/a.{suffix}", tmp_path, overwrite=True)
        np.testing.assert_array_equal(array[:], A)
    with pytest.raises(InputError, match="no file"):
        import_matrix("memory://imports/b.npy", tmp_path / "y.zarr")
    with pytest.raises(SpecError, match="cannot be opened"):
        import_matrix("nosuch://imports/b.npy", tmp_path / "y.zarr")


def test_source_and_option_errors(tmp_path):
    np.save(tmp_path / "a.npy", matrix(4, 3))
    to = tmp_path / "y.zarr"
    with pytest.raises(InputError, match="There is no file or folder"):
        import_matrix(tmp_path / "b.npy", to)
    (tmp_path / "a.xyz").touch()
    with pytest.raises(SpecError, match=r"known are \.npy .*\.csv\.gz .* and folders of images"):
        import_matrix(tmp_path / "a.xyz", to)
    with pytest.raises(SpecError, match=r"columns does not apply .*; it is for \.csv"):
        import_matrix(tmp_path / "a.npy", to, columns=["a"])
    with pytest.raises(SpecError, match=r"stride does not apply"):
        import_matrix(tmp_path / "a.npy", to, stride=2)
    with pytest.raises(SpecError, match="patches: got 0; allowed: an integer of at least 1"):
        import_matrix("sample:photos", to, patches=0)
    with pytest.raises(SpecError, match=r"colums is not an option of imports; known are .* columns"):
        import_matrix(tmp_path / "a.npy", to, colums=["a"])
    with pytest.raises(SpecError, match="chunks must be two positive numbers"):
        import_matrix(tmp_path / "a.npy", to, chunks=(0, 1))
    with pytest.raises(SpecError, match="Zarr array already"):
        import_matrix(import_matrix(tmp_path / "a.npy", tmp_path / "z.zarr"), to)


@pytest.mark.parametrize("suffix", ["npy", "npz", "parquet", "h5", "csv.gz", "mtx.gz", "png"])
@pytest.mark.parametrize("content", [b"", b"this is not what the name says"])
def test_damaged_files(tmp_path, suffix, content):
    (tmp_path / f"a.{suffix}").write_bytes(content)
    with pytest.raises(InputError, match=f"a.{suffix}"):
        import_matrix(tmp_path / f"a.{suffix}", tmp_path / "y.zarr")
    assert os.listdir(tmp_path) == [f"a.{suffix}"]


@pytest.mark.parametrize("order", ["C", "F"])
def test_truncated_npy(tmp_path, small_blocks, order):
    np.save(tmp_path / "a.npy", np.asarray(matrix(100, 4), order=order))
    os.truncate(tmp_path / "a.npy", 2000)
    with pytest.raises(InputError, match="truncated"):
        import_matrix(tmp_path / "a.npy", tmp_path / "y.zarr")
    assert os.listdir(tmp_path) == ["a.npy"]


@pytest.mark.parametrize(("module", "name"), [("pyarrow.csv", "a.csv"), ("pyarrow.parquet", "a.parquet"), ("h5py", "a.h5")])
def test_missing_package(tmp_path, monkeypatch, module, name):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).touch()
    with pytest.raises(SpecError, match=f"pip install {module.partition('.')[0]}"):
        import_matrix(tmp_path / name, tmp_path / "y.zarr")


def test_existing_destination(tmp_path):
    np.save(tmp_path / "a.npy", matrix(4, 3))
    imported(tmp_path / "a.npy", tmp_path)
    with pytest.raises(SpecError, match="exists"):
        import_matrix(tmp_path / "a.npy", tmp_path / "out" / "x.zarr")
    np.save(tmp_path / "a.npy", matrix(5, 2))
    assert imported(tmp_path / "a.npy", tmp_path, overwrite=True).shape == (5, 2)
    np.save(tmp_path / "a.npy", np.zeros((2, 2, 2)))
    with pytest.raises(InputError):
        import_matrix(tmp_path / "a.npy", tmp_path / "out" / "x.zarr", overwrite=True)
    assert zarr.open_array(tmp_path / "out" / "x.zarr", mode="r").shape == (5, 2)
    (tmp_path / "precious").mkdir()
    with pytest.raises(SpecError, match="not a Zarr v3 array and is not overwritten"):
        import_matrix(tmp_path / "a.npy", tmp_path / "precious", overwrite=True)


def test_progress_reaches_the_end(tmp_path, small_blocks):
    A = matrix(200, 4)
    np.save(tmp_path / "a.npy", A)
    np.savetxt(tmp_path / "a.csv.gz", A, delimiter=",")
    for name, total in (("a.npy", A.nbytes), ("a.csv.gz", (tmp_path / "a.csv.gz").stat().st_size)):
        calls = []
        imported(tmp_path / name, tmp_path, progress=lambda *call, calls=calls: calls.append(call), overwrite=True)
        assert calls == sorted(calls)
        assert calls[-1] == (total, total)


def test_an_error_in_the_callback_leaves_nothing_behind(tmp_path):
    def stop(done, total):
        raise ZeroDivisionError

    np.savetxt(tmp_path / "a.csv", matrix(200, 4), delimiter=",")
    with pytest.raises(ZeroDivisionError):
        import_matrix(tmp_path / "a.csv", tmp_path / "y.zarr", progress=stop)
    assert os.listdir(tmp_path) == ["a.csv"]


def run(code, *args):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        env=environment,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ctrl_c_leaves_nothing_behind(tmp_path):
    np.save(tmp_path / "a.npy", matrix(1000, 100))
    code = """
        import signal, sys, time
        from dlscale.storage.importers import import_matrix
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
        def slow(done, total):
            print("running", flush=True)
            time.sleep(60)
        import_matrix(sys.argv[1], sys.argv[2], chunks=(10, 100), progress=slow)
    """
    with run(code, tmp_path / "a.npy", tmp_path / "y.zarr") as process:
        assert process.stdout.readline() == "running\n"
        assert len(os.listdir(tmp_path)) == 2
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert "KeyboardInterrupt" in errors
    assert os.listdir(tmp_path) == ["a.npy"]


def write_large_npy(path):
    np.lib.format.open_memmap(path, mode="w+", dtype="u1", shape=(100_000, 2000))  # 200 MB, a hole on the disk


def write_large_fortran_npy(path):
    np.lib.format.open_memmap(path, mode="w+", dtype="f4", shape=(30_000, 2000), fortran_order=True)  # 240 MB


def write_large_csv(path):
    line = ",".join(f"{x:.15f}" for x in np.random.default_rng(0).random(200)) + "\n"
    with path.open("w") as file:
        for _ in range(70):
            file.write(line * 1000)  # 250 MB of text


def write_large_mtx(path):
    with path.open("w") as file:
        file.write("%%MatrixMarket matrix array real general\n18000 1000\n")
        for _ in range(18):
            file.write("0.1234567890123\n" * 1_000_000)  # 288 MB of text, 144 MB of numbers


@pytest.mark.parametrize(
    ("name", "write", "bound_mb"),
    [
        ("c.npy", write_large_npy, 80),
        ("f.npy", write_large_fortran_npy, 160),
        ("a.csv", write_large_csv, 180),
        ("a.mtx", write_large_mtx, 140),
    ],
)
def test_memory_is_bounded(tmp_path, name, write, bound_mb):
    write(tmp_path / name)
    # VmHWM is the peak of this process alone; ru_maxrss would begin with that of the process that started it.
    code = """
        import re, sys
        import numpy as np, pyarrow.csv, scipy.io
        from dlscale.storage.importers import import_matrix
        def peak_mb():
            return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
        np.save(sys.argv[1] + ".small.npy", np.ones((4, 4)))
        import_matrix(sys.argv[1] + ".small.npy", sys.argv[2] + ".small")
        before = peak_mb()
        import_matrix(sys.argv[1], sys.argv[2])
        print(peak_mb() - before)
    """
    with run(code, tmp_path / name, tmp_path / "y.zarr") as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert int(output) < bound_mb
