"""Imports of sparse matrices: the group that they become holds what SciPy reads from the source, in bounded memory."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
import zarr
from sparse_matrices import random_sparse

from dlscale.errors import ImportNote, InputError, SpecError
from dlscale.storage.importers import import_matrix, matrix_market
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import Matrix
from dlscale.storage.sparse.matrix import SparseMatrix
from dlscale.storage.verifying import verify


def imported(source: Path, **options: Any) -> Matrix:
    destination = source.parent / "out" / "x.zarr"
    import_matrix(source, destination, overwrite=True, **options)
    assert os.listdir(destination.parent) == ["x.zarr"]
    matrix = open_matrix(destination)
    matrix.check()
    return matrix


@pytest.fixture(params=[False, True])
def small_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So few entries at a time that a small matrix has many pieces, strips and chunks."""
    if request.param:
        monkeypatch.setattr("dlscale.storage.importers.compressed.PIECE_NONZEROS", 16)
        monkeypatch.setattr("dlscale.storage.importers.matrix_market.SPARSE_ENTRIES", 16)
        monkeypatch.setattr("dlscale.storage.sparse.writing.CHUNK_BYTES", 80)


def sample(dtype: str = "f8", form: str = "csr") -> Any:
    A = 1 + 99 * scipy.sparse.random_array((60, 33), density=0.1, rng=0).toarray()
    A[20:40] = 0
    return scipy.sparse.csr_array(np.where(A == 1, 0, A).astype(dtype)).asformat(form)


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "c16", "i2", "bool"])
@pytest.mark.parametrize("compressed", [False, True])
def test_npz(tmp_path: Path, form: str, dtype: str, compressed: bool, small_pieces: None) -> None:
    A = sample(dtype, form)
    scipy.sparse.save_npz(tmp_path / "x.npz", A, compressed=compressed)
    matrix = imported(tmp_path / "x.npz", sparse=True)
    np.testing.assert_array_equal(matrix.read(0, 60), A.toarray())
    assert matrix.stored_dtype == (np.uint8 if dtype == "bool" else np.dtype(dtype))
    assert matrix.describe()["sparse"] == ("CSC" if form == "csc" else "CSR")


@pytest.mark.parametrize("symmetry", ["general", "symmetric", "skew-symmetric", "hermitian"])
@pytest.mark.parametrize("field", ["real", "integer", "complex", "pattern"])
@pytest.mark.parametrize("packed", [False, True])
def test_matrix_market(tmp_path: Path, field: str, symmetry: str, packed: bool, small_pieces: None) -> None:
    if (field, symmetry) == ("pattern", "skew-symmetric"):
        pytest.skip("there are no such files")
    half = scipy.sparse.tril(scipy.sparse.random_array((40, 40), density=0.1, rng=0), k=-1 if "skew" in symmetry else 0).tocoo()
    numbers = {"real": (100 * half.data).round(3), "integer": (100 * half.data).astype(int), "pattern": half.data}[
        "real" if field == "complex" else field
    ]
    words = {"pattern": "", "complex": "{0} {1}"}.get(field, "{0}")
    body = "".join(
        f"{i + 1} {j + 1} {words.format(x, 0.0 if i == j else 2 * x)}\n"
        for i, j, x in zip(half.row, half.col, numbers, strict=True)
    )
    text = f"%%MatrixMarket matrix coordinate {field} {symmetry}\n40 40 {half.nnz}\n{body}".encode()
    path = tmp_path / ("x.mtx.gz" if packed else "x.mtx")
    path.write_bytes(gzip.compress(text) if packed else text)
    matrix = imported(path, sparse=True)
    expected = scipy.io.mmread(path).toarray()
    np.testing.assert_array_equal(matrix.read(0, 40), expected)
    assert isinstance(matrix, SparseMatrix)
    assert matrix.nnz == np.count_nonzero(expected)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("order", ["rows", "by rows but the last", "from the last row", "columns", "no row before 30"])
def test_matrix_market_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str, sparse: bool) -> None:
    """By rows nothing is spilled; what turns out of order late is read again."""
    monkeypatch.setattr(matrix_market, "PIECE_BYTES", 100)
    monkeypatch.setattr(matrix_market, "SPARSE_ENTRIES", 64)
    monkeypatch.setattr("dlscale.storage.importers.tables.BLOCK_BYTES", 8 * 9 * 16)
    spilled: list[int] = []
    spill = matrix_market.spill
    monkeypatch.setattr(matrix_market, "spill", lambda *args, **kwargs: (spilled.append(1), spill(*args, **kwargs)))
    A = scipy.sparse.random_array((64, 9), density=0.6, rng=np.random.default_rng(0)).toarray().round(3)
    A[50:60] = 0
    if order == "no row before 30":
        A[:30] = 0
    i, j = np.nonzero(A.T)[::-1] if order == "columns" else np.nonzero(A)
    if order == "from the last row":
        i, j = i[::-1], j[::-1]
    if order == "by rows but the last":
        i, j = np.roll(i, -1), np.roll(j, -1)
    lines = "".join(f"{row + 1} {column + 1} {float(A[row, column])!r}\n" for row, column in zip(i, j, strict=True))
    (tmp_path / "x.mtx").write_text(f"%%MatrixMarket matrix coordinate real general\n64 9 {len(i)}\n{lines}")
    np.testing.assert_array_equal(imported(tmp_path / "x.mtx", sparse=sparse).read(0, 64), A)
    assert bool(spilled) == (order not in ("rows", "no row before 30"))


@pytest.mark.parametrize("lines", ["2 1 5\n1 2 1\n2 1 6\n", "1 2 1\n2 1 5\n2 1 6\n"])
def test_matrix_market_entries_given_twice_are_added(tmp_path: Path, lines: str) -> None:
    (tmp_path / "x.mtx").write_text(f"%%MatrixMarket matrix coordinate integer general\n2 2 3\n{lines}")
    matrix = imported(tmp_path / "x.mtx", sparse=True)
    np.testing.assert_array_equal(matrix.read(0, 2), [[0, 1], [11, 0]])
    assert matrix.describe()["nonzeros"] == 2


def test_matrix_market_integers_that_are_rounded_are_told(tmp_path: Path) -> None:
    (tmp_path / "x.mtx").write_text(f"%%MatrixMarket matrix coordinate integer general\n2 2 2\n1 2 {2**62 + 1}\n2 1 {2**62 + 3}\n")
    with pytest.warns(ImportNote, match="integers beyond 2"):
        matrix = imported(tmp_path / "x.mtx", sparse=True, dtype="f8")
    np.testing.assert_array_equal(matrix.read(0, 2), [[0, 2.0**62], [2.0**62, 0]])


def write_group(path: Path, name: str, A: Any, encoding: str | None = "csr_matrix") -> None:
    with h5py.File(path, "a") as store:
        group = store.require_group(name)
        for part in ("data", "indices", "indptr"):
            group[part] = getattr(A, part)
        if encoding:
            group.attrs.update({"encoding-type": encoding, "encoding-version": "0.1.0", "shape": A.shape})


@pytest.mark.parametrize("seed", range(0, 200, 8))
def test_h5ad_of_any_order_and_width(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlscale.storage.importers.compressed.PIECE_NONZEROS", 16)
    A, dense = random_sparse(seed)
    write_group(tmp_path / "x.h5ad", "X", A)
    with h5py.File(tmp_path / "x.h5ad", "a") as store:
        store.attrs["encoding-type"] = "anndata"
        store["obs/cells"] = np.arange(3)
    matrix = imported(tmp_path / "x.h5ad")
    np.testing.assert_allclose(matrix.read(0, matrix.shape[0]), dense, rtol=1e-6, atol=1e-6)
    assert matrix.rows(0, matrix.shape[0]).nnz == matrix.describe()["nonzeros"]
    if dense.dtype.kind != "c":
        dense_copy = imported(tmp_path / "x.h5ad", sparse=False, dataset="X")
        np.testing.assert_allclose(dense_copy.read(0, matrix.shape[0]), dense, rtol=1e-6, atol=1e-6)
        assert "sparse" not in dense_copy.describe()


def test_columns_layers_and_several_groups(tmp_path: Path) -> None:
    A = sample(form="csc")
    write_group(tmp_path / "x.h5", "layers/a", A, "csc_matrix")
    write_group(tmp_path / "x.h5", "layers/b", sample("f4"))
    with pytest.raises(SpecError, match="2 sparse matrices; set dataset to one of: layers/a, layers/b"):
        imported(tmp_path / "x.h5")
    matrix = imported(tmp_path / "x.h5", dataset="layers/a")
    np.testing.assert_array_equal(matrix.read(0, 60), A.toarray())
    assert matrix.describe()["sparse"] == "CSC"


def test_genes_by_cells_become_cells_by_genes(tmp_path: Path) -> None:
    A = sample("i4")
    write_group(tmp_path / "x.h5", "matrix", A, None)
    with h5py.File(tmp_path / "x.h5", "a") as store:
        store["matrix/shape"] = np.array(A.shape[::-1])
        store["matrix/barcodes"] = np.arange(A.shape[0])
    with pytest.warns(ImportNote, match="its cells are the rows here"):
        matrix = imported(tmp_path / "x.h5")
    np.testing.assert_array_equal(matrix.read(0, 60), A.toarray())


def test_matlab(tmp_path: Path) -> None:
    A = sample(form="csc")
    with h5py.File(tmp_path / "x.h5", "w") as store:
        group = store.create_group("A")
        group["data"], group["ir"], group["jc"] = A.data, A.indices.astype("u8"), A.indptr.astype("u8")
        group.attrs["MATLAB_sparse"] = A.shape[0]
    np.testing.assert_array_equal(imported(tmp_path / "x.h5").read(0, 60), A.toarray())


def test_a_dense_source_may_become_sparse(tmp_path: Path) -> None:
    A = sample().toarray()
    np.save(tmp_path / "x.npy", A)
    matrix = imported(tmp_path / "x.npy", sparse=True)
    assert matrix.describe()["nonzeros"] == np.count_nonzero(A)
    np.testing.assert_array_equal(matrix.read(0, 60), A)


def test_sums_beyond_the_dtype_and_numbers_beyond_a_narrower_one(tmp_path: Path) -> None:
    twice = scipy.sparse.csr_array((np.full(3, 100, np.uint8), np.array([1, 1, 1]), np.array([0, 0, 3])), shape=(2, 2))
    write_group(tmp_path / "x.h5", "X", twice)
    with pytest.raises(InputError, match="what row 1 holds at one place adds up to 300, which uint8 does not hold"):
        imported(tmp_path / "x.h5")
    scipy.sparse.save_npz(tmp_path / "x.npz", scipy.sparse.csc_array(np.array([[0, 1.0], [1e300, 0]])))
    with pytest.raises(InputError, match=r"row 1, column 0 .*: 1e\+300 is infinite in float32"):
        imported(tmp_path / "x.npz", sparse=True, dtype="f4")


def test_chunks_are_of_dense_copies(tmp_path: Path) -> None:
    scipy.sparse.save_npz(tmp_path / "x.npz", sample())
    with pytest.raises(SpecError, match="chunks are of dense copies"):
        imported(tmp_path / "x.npz", sparse=True, chunks=(3, 3))


def test_a_truncated_part_is_named(tmp_path: Path) -> None:
    A = sample()
    np.savez(tmp_path / "x.npz", format=b"csr", shape=A.shape, data=A.data, indices=A.indices[:-1], indptr=A.indptr)
    with pytest.raises(InputError, match=r"has .* indices and .* values"):
        imported(tmp_path / "x.npz", sparse=True)


@pytest.mark.parametrize("dtype", ["f4", "i4", "c16"])
def test_the_group_has_the_names_of_anndata_and_of_binsparse(tmp_path: Path, dtype: str) -> None:
    A = sample(dtype)
    scipy.sparse.save_npz(tmp_path / "x.npz", A)
    imported(tmp_path / "x.npz", sparse=True)
    group = zarr.open_group(tmp_path / "out" / "x.zarr", mode="r")
    assert (group.attrs["encoding-type"], group.attrs["shape"]) == ("csr_matrix", [60, 33])
    ours = scipy.sparse.csr_array(tuple(group[name][...] for name in ("data", "indices", "indptr")), shape=(60, 33))
    np.testing.assert_array_equal(ours.toarray(), A.toarray())
    assert verify(str(tmp_path / "out" / "x.zarr")).n_arrays == 3  # second names are no arrays of their own
    assert ("binsparse" in group.attrs) == (dtype != "c16")
    if dtype != "c16":
        header = group.attrs["binsparse"]["binsparse"]
        assert (header["format"], header["number_of_stored_values"]) == ("CSR", A.nnz)
        for name, part in (("values", "data"), ("indices_1", "indices"), ("pointers_to_1", "indptr")):
            np.testing.assert_array_equal(group[name][...], group[part][...])
            assert header["data_types"][name] == str(group[name].dtype)
