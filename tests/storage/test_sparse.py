"""Sparse matrices at rest: whatever order, width or twice their entries have, they read as SciPy and a dense matrix say."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import zarr
from sparse_matrices import anndata_group, random_sparse

from dlscale.errors import InputError, MissingChunkError
from dlscale.storage.matrices import open_matrix

LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "zstd": {"compressors": zarr.codecs.ZstdCodec()},
    "checksums": {"compressors": zarr.codecs.Crc32cCodec()},
    "format 2": {"zarr_format": 2},
    "one chunk": {"chunks": 10_000},
}


def small() -> Any:
    """[[1, 0, 2], [0, 0, 0], [0, 3, 0]]"""
    return scipy.sparse.csr_array(np.array([[1.0, 0, 2], [0, 0, 0], [0, 3, 0]]))


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_any_sparse_matrix_reads_as_the_dense_one(tmp_path: Path, first: int) -> None:
    for seed in range(first, first + 20):
        check_reading(tmp_path / str(seed), seed)


def check_reading(folder: Path, seed: int) -> None:
    A, dense = random_sparse(seed)
    m, n = A.shape
    layout = list(LAYOUTS)[seed % len(LAYOUTS)]
    stored = seed % 4 == 0
    matrix = open_matrix(anndata_group(folder / "A.zarr", A, **LAYOUTS[layout]) if stored else A)
    matrix.check()
    assert (matrix.shape, matrix.stored_dtype) == ((m, n), A.dtype)
    expected = dense.astype(matrix.dtype)
    rng = np.random.default_rng(seed)
    for _ in range(3):
        (r0, r1), (c0, c1) = (sorted(rng.integers(0, size + 1, 2).tolist()) for size in (m, n))
        np.testing.assert_allclose(
            matrix.region((r0, r1), (c0, c1)), expected[r0:r1, c0:c1], rtol=1e-6, atol=1e-6, err_msg=f"seed {seed}"
        )
    out = np.full((n, m), np.nan, matrix.dtype)
    np.testing.assert_allclose(matrix.T.read(0, n, out), expected.T, rtol=1e-6, atol=1e-6, err_msg=f"seed {seed}")
    for start, stop in ((0, m), (m // 2, m)):
        block = matrix.rows(start, stop)
        assert block.has_canonical_format
        np.testing.assert_allclose(block.toarray(), expected[start:stop], rtol=1e-6, atol=1e-6, err_msg=f"seed {seed}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_are_the_rows_of_the_transpose(tmp_path: Path, layout: str) -> None:
    A = scipy.sparse.random_array((30, 20), density=0.2, rng=0, format="csc")
    path = anndata_group(tmp_path / "A.zarr", A, encoding="csc_matrix", **LAYOUTS[layout])
    matrix = open_matrix(path)
    np.testing.assert_array_equal(matrix.region((3, 29), (2, 20)), A.toarray()[3:29, 2:])
    described = matrix.describe()
    assert (described["shape"], described["sparse"], described["nonzeros"]) == ([30, 20], "CSC", 120)
    again = pickle.loads(pickle.dumps(matrix))
    np.testing.assert_array_equal(again.read(0, 30), A.toarray())


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "bsr"])
@pytest.mark.parametrize("kind", [scipy.sparse.csr_array, scipy.sparse.csr_matrix])
def test_sparse_arrays_in_memory(form: str, kind: Any) -> None:
    A = kind(scipy.sparse.random_array((30, 20), density=0.2, rng=0)).asformat(form)
    matrix = open_matrix(A)
    np.testing.assert_array_equal(matrix.read(0, 30), A.toarray())
    assert matrix.describe()["nonzeros"] == 120


def test_what_is_in_memory_is_not_changed() -> None:
    indices, data = np.array([2, 0, 2, 1]), np.array([1.0, 2.0, 3.0, 4.0])
    A = scipy.sparse.csr_array((data, indices, np.array([0, 3, 4])), shape=(2, 3))
    np.testing.assert_array_equal(open_matrix(A).read(0, 2), [[2, 0, 4], [0, 4, 0]])
    np.testing.assert_array_equal(A.indices, [2, 0, 2, 1])
    np.testing.assert_array_equal(A.data, [1, 2, 3, 4])


def test_a_process_is_given_the_place_and_not_the_data(tmp_path: Path) -> None:
    A = scipy.sparse.random_array((3000, 50), density=0.2, rng=0, format="csr")
    matrix = open_matrix(anndata_group(tmp_path / "A.zarr", A, chunks=1000))
    matrix.read(0, 1)
    data = pickle.dumps(matrix)
    assert len(data) < 4096
    np.testing.assert_array_equal(pickle.loads(data).read(7, 90), A.toarray()[7:90])


def test_an_open_group_is_taken_too(tmp_path: Path) -> None:
    path = anndata_group(tmp_path / "A.zarr", small())
    np.testing.assert_array_equal(open_matrix(zarr.open_group(path, mode="r")).read(0, 3), small().toarray())


@pytest.mark.parametrize("values", ["float64", "iso[float64]", "complex[float64]", "iso[complex[float64]]"])
@pytest.mark.parametrize("form", ["CSR", "CSC"])
def test_binsparse(tmp_path: Path, values: str, form: str) -> None:
    A = small().asformat(form.lower())
    stored, expected = A.data, A.toarray()
    if values.startswith("iso"):
        stored, expected = np.array([5.0]), np.where(expected != 0, 5.0, 0)
    if "complex" in values:
        stored, expected = (stored * (1 + 2j)).view(np.float64), expected * (1 + 2j)
    group = zarr.open_group(tmp_path / "A.zarr", mode="w")
    types = {"values": values, "indices_1": "int32", "pointers_to_1": "int32"}
    header = {"version": "0.1", "format": form, "shape": [3, 3], "number_of_stored_values": 3, "data_types": types}
    group.attrs["binsparse"] = {"binsparse": header}
    for name, part in (("values", stored), ("indices_1", A.indices), ("pointers_to_1", A.indptr)):
        group.create_array(name, data=part, config={"write_empty_chunks": True})
    matrix = open_matrix(tmp_path / "A.zarr")
    matrix.check()
    np.testing.assert_array_equal(matrix.read(0, 3), expected)
    assert matrix.dtype == expected.dtype
    by_rows = matrix if form == "CSR" else matrix.T
    stored_rows = by_rows.stored_rows(0, 3).toarray()
    np.testing.assert_array_equal(stored_rows if form == "CSR" else stored_rows.T, expected)


def read_all(path: Path) -> None:
    matrix = open_matrix(path)
    matrix.check()
    matrix.read(0, 3)


def damaged(path: Path, name: str, values: Any) -> None:
    group = zarr.open_group(path, mode="r+")
    group.create_array(name, data=np.asarray(values), overwrite=True, config={"write_empty_chunks": True})


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("indptr", [0, 2, 2], "3 rows and 3 pointers"),
        ("indptr", [0, 2, 1, 3], "row 1 ends before it begins"),
        ("indptr", [0, 2, 2, 4], "pointers go from 0 to 4, and there are 3 entries"),
        ("indptr", [1, 2, 2, 3], "pointers go from 1 to 3"),
        ("indptr", [0.0, 2.0, 2.0, 3.0], "must hold integers"),
        ("indices", [0, 2], "2 indices and 3 values"),
        ("indices", [0, 2, 3], "row 2 has an entry in column 3, and there are 3 columns"),
        ("indices", [0, -1, 1], "row 0 has an entry in column -1"),
        ("data", [[1.0, 2.0, 3.0]], "must have one dimension"),
        ("data", ["a", "b", "c"], "must hold numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore:The data type")
def test_damage_is_named(tmp_path: Path, name: str, values: Any, said: str) -> None:
    path = anndata_group(tmp_path / "A.zarr", small())
    damaged(path, name, values)
    with pytest.raises(InputError, match=said):
        read_all(path)


def test_lost_chunks_and_arrays_are_named(tmp_path: Path) -> None:
    path = anndata_group(tmp_path / "A.zarr", scipy.sparse.random_array((30, 20), density=0.2, rng=0, format="csr"))
    lost = path / "indices" / "c" / "3"
    lost.unlink()
    matrix = open_matrix(path)
    with pytest.raises(MissingChunkError, match="indices: chunk c/3 is missing"):
        matrix.check()
    with pytest.raises(MissingChunkError):
        matrix.read(0, 30)
    shutil.rmtree(path / "indices")
    with pytest.raises(InputError, match="lost its array 'indices'"):
        open_matrix(path)


@pytest.mark.parametrize("shape", ["3", [3], [3, -1], [3, 3, 3], None])
def test_shapes_that_make_no_sense(tmp_path: Path, shape: Any) -> None:
    path = anndata_group(tmp_path / "A.zarr", small())
    description = json.loads((path / "zarr.json").read_text())
    description["attributes"]["shape"] = shape
    (path / "zarr.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match="whose shape must be two numbers"):
        open_matrix(path)


def test_other_groups_name_the_sparse_matrices_in_them(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "a.zarr", mode="w").create_group("layers")
    for name in ("X", "layers/counts"):
        anndata_group(tmp_path / "a.zarr" / name, small())
    with pytest.raises(InputError, match=r"a\.zarr/X, .*a\.zarr/layers/counts"):
        open_matrix(tmp_path / "a.zarr")


def test_the_signature_tells_a_change(tmp_path: Path) -> None:
    path = anndata_group(tmp_path / "A.zarr", small())
    before = open_matrix(path).check()
    assert before.same_as(open_matrix(path).check())
    damaged(path, "data", [1.0, 2.0, 4.0])
    assert not before.same_as(open_matrix(path).check())


def test_a_dense_block_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many entries only some are held beside the block that they fill."""
    monkeypatch.setattr("dlscale.storage.sparse.matrix.PIECE_NONZEROS", 10)
    A = scipy.sparse.random_array((30, 20), density=0.2, rng=0, format="csr")
    matrix = open_matrix(A)
    spans = list(matrix.spans(0, 30, 10))
    assert [start for start, _ in spans[1:]] == [stop for _, stop in spans[:-1]]
    assert (spans[0][0], spans[-1][1]) == (0, 30)
    assert all(stop - start == 1 or A.indptr[stop] - A.indptr[start] <= 10 for start, stop in spans)
    np.testing.assert_array_equal(matrix.read(0, 30), A.toarray())
