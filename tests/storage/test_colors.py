"""A column of a table that colours rows is kept beside the matrix, as text, and travels into results."""

from __future__ import annotations

import csv
import io

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dlscale
from dlscale.errors import DlscaleError, ImportNote, SpecError
from dlscale.storage.importers import import_matrix
from dlscale.storage.labels.names import AXES
from dlscale.storage.labels.stored import color_beside
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import RowRange
from dlscale.storage.verifying import verify

pytestmark = pytest.mark.filterwarnings("ignore::dlscale.errors.ImportNote")
TABLE = ",city,a,b\nx,Rome,1,2\ny,NA,3,\nz,Oslo,5,6\n"
CITIES = ("city", ["Rome", "", "Oslo"])
WHOLE = [[1, 2], [3, 0], [5, 6]]


def copied(tmp_path, text, **options):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    return open_matrix(import_matrix(tmp_path / "a.csv", tmp_path / "y.zarr", overwrite=True, **options))


def told(matrix):
    color = matrix.labels.color
    return None if color is None else (color.name, list(color.texts[:]))


@pytest.mark.parametrize("most", [1, 8192], ids=["wide", "narrow"])
@pytest.mark.parametrize(
    ("text", "options", "matrix", "color"),
    [
        (TABLE, {"color": "city"}, WHOLE, CITIES),
        (TABLE, {"color": "city", "numeric": True}, WHOLE, CITIES),
        (TABLE, {"color": "city", "drop": ["city"]}, WHOLE, CITIES),
        (TABLE, {"color": "city", "sparse": True}, WHOLE, CITIES),
        (TABLE.replace("Oslo", '"Oslo; ""N"""'), {"color": "city"}, WHOLE, ("city", ["Rome", "", 'Oslo; "N"'])),
        (TABLE.replace("5", "5d0"), {"color": "city"}, WHOLE, CITIES),
        (TABLE, {"color": "b", "drop": ["city"]}, [[1], [3], [5]], ("b", ["2", "", "6"])),
        (TABLE, {"color": "b", "columns": ["b", "a"]}, [[2, 1], [0, 3], [6, 5]], ("b", ["2", "", "6"])),
        (TABLE, {"color": "city", "missing": ["", "Rome"]}, WHOLE, ("city", ["", "NA", "Oslo"])),
        ("sample;a;b\nu;1,5;2\nv;2,0;3\n", {"color": "sample"}, [[1.5, 2], [2, 3]], ("sample", ["u", "v"])),
        ("sample;a;b\nu;1,5;2\nv;2,0;3\n", {"color": "a", "index": True}, [[2], [3]], ("a", ["1.5", "2.0"])),
        ("g,a,b\nu,1,2\nv,3,4\n", {"color": "g", "index": True}, [[1, 2], [3, 4]], ("g", ["u", "v"])),
        ("1,7,3\n4,8,6\n", {"color": "1"}, [[1, 3], [4, 6]], ("1", ["7", "8"])),
    ],
)
def test_a_column_of_a_text_colours_rows(tmp_path, monkeypatch, most, text, options, matrix, color):
    monkeypatch.setattr("dlscale.storage.importers.delimited.MAX_ARROW_COLUMNS", most)
    monkeypatch.setattr("dlscale.storage.labels.writing.CHUNK", 2)
    found = copied(tmp_path, text, fill=0, **options)
    np.testing.assert_array_equal(found.read(0, len(matrix)), matrix)
    assert told(found) == color
    names = found.labels.row
    assert (None if names is None else list(names[:])) == {",": list("xyz"), "g": list("uv")}.get(text[0], names and list("uv"))
    assert not verify(str(tmp_path / "y.zarr")).damage


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"])), min_size=2, max_size=9), st.booleans())
def test_any_text_colours_a_row(tmp_path, texts, statistic):
    out = io.StringIO()
    rows = [["c", "a", "b"], *([f"c{text}", i, "" if i == 1 else i] for i, text in enumerate(texts))]
    csv.writer(out).writerows(rows)
    found = copied(tmp_path, out.getvalue(), color="c", fill="mean" if statistic else 1)
    assert told(found) == ("c", [f"c{text}" for text in texts])


def test_a_column_of_parquet_colours_rows(tmp_path):
    kinds, b = pa.array(["u", "v", "u"]).dictionary_encode(), [2.0, float("nan"), 6]
    table = pa.table({"city": ["Rome", None, "Oslo"], "kind": kinds, "b": b, "n": [1, None, 3], "a": [1.0, 3, 5]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for options, color in (
        ({"color": "city", "columns": ["a"]}, CITIES),
        ({"color": "kind", "drop": ["city", "b", "n"]}, ("kind", ["u", "v", "u"])),
        ({"color": "b", "columns": ["a"]}, ("b", ["2.0", "", "6.0"])),
        ({"color": "n", "columns": ["a", "n"]}, ("n", ["1", "", "3"])),
        ({"color": "a", "columns": ["a"]}, ("a", ["1.0", "3.0", "5.0"])),
    ):
        found = open_matrix(import_matrix(tmp_path / "a.parquet", tmp_path / "y.zarr", overwrite=True, fill=0, **options))
        assert told(found) == color
        np.testing.assert_array_equal(found.read(0, 3)[:, 0], [1, 3, 5])
    with pytest.raises(SpecError, match="has not exactly one column 'x'"):
        import_matrix(tmp_path / "a.parquet", tmp_path / "z.zarr", color="x")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"color": "x"}, "has no column 'x'; its columns are: g, a, a, b"),
        ({"color": "a"}, "has more than one column 'a'"),
        ({"color": "a", "drop": ["a"]}, "has more than one column 'a'"),
        ({"color": ""}, "color: got ''; allowed: text"),
        ({"color": "g", "triplets": ["a", "b"]}, "leave color out"),
        ({"color": "b", "columns": ["b"], "drop": ["b"]}, "no column is left"),
    ],
)
def test_what_cannot_colour_rows_is_refused(tmp_path, options, words):
    with pytest.raises(SpecError, match=words):
        copied(tmp_path, "g,a,a,b\n1,1,1,5\n2,2,2,3\n", **options)
    assert not (tmp_path / "y.zarr").exists()


def test_it_is_told_and_belongs_to_the_content(tmp_path):
    contents = set()
    for name in ("city", "town"):
        with pytest.warns(ImportNote, match=f"'{name}' colours the rows, and is no column of the matrix"):
            found = copied(tmp_path, TABLE.replace("city", name), color=name, fill=0)
        contents.add(found.attributes["content"])
    assert len(contents) == 2
    assert found.labels.describe()["colors_of_rows"] == CITIES[1]
    assert (told(RowRange(found, 0, 2)), told(found.T), told(RowRange(found, 0, 3))) == (None, None, ("town", CITIES[1]))


@pytest.mark.parametrize("columns", [2, 5], ids=["tall", "wide"])
def test_a_result_has_it_along_its_rows(tmp_path, columns):
    rows = [[f"g{i % 2}", *np.random.default_rng(i).standard_normal(columns)] for i in range(4)]
    text = "\n".join(",".join(map(str, row)) for row in [["city", *(f"x{j}" for j in range(columns))], *rows])
    copied(tmp_path, text, color="city")
    spec = {"kind": "pca", "input": {"matrix": str(tmp_path / "y.zarr")}, "params": {"n_components": 1}, "cluster": "threads"}
    for scores in (True, False):
        result = dlscale.run({**spec, "params": {"n_components": 1, "scores": scores}}, workspace=tmp_path / "w").result
        group = zarr.open_group(result, mode="r")
        assert ("color" in group) == scores
        assert set(AXES) & set(group) == {"column"}
    result = dlscale.run({**spec, "params": {"n_components": 1, "scores": True}}, workspace=tmp_path / "w")
    color = zarr.open_array(f"{result.result}/color", mode="r")
    assert (color.metadata.dimension_names, color[:].tolist()) == (("row",), ["g0", "g1", "g0", "g1"])
    assert dict(color.attrs) == {"long_name": "city"}
    assert not verify(str(result.result)).damage


COLUMNS = {
    "kind": ["B", "T", "", "B"],
    "older": ["T", "B", "", "T"],
    "grade": ["2.5", "1.0", "2.5", "1.0"],
    "text": ["é", "x", "", "y"],
    "depth": ["1.5", "", "3.0", "4.0"],
    "single": ["0.0", "0.1", "0.2", "0.3"],
    "n": ["1", "2", "3", "4"],
    "alive": ["True", "False", "True", "True"],
    "maybe": ["7", "", "8", "9"],
}
MATRICES = {"dense": np.arange(8.0).reshape(4, 2), "rows": sp.csr_matrix(np.eye(4, 2)), "columns": sp.csc_matrix(np.eye(4, 2))}


def write_anndata(root, matrix):
    """What AnnData writes into HDF5 and Zarr: a matrix, and a column of every encoding in obs."""

    def put(group, name, values):
        array = np.asarray(values)
        if array.dtype.kind != "U":
            return group.create_dataset(name, data=array) if is_hdf5 else group.create_array(name, data=array)
        if is_hdf5:
            return group.create_dataset(name, data=array.astype(object), dtype=h5py.string_dtype())
        found = group.create_array(name, shape=array.shape, dtype="string")
        found[:] = array.astype(np.dtypes.StringDType())
        return found

    def encoded(name, encoding, **arrays):
        group = obs.create_group(name)
        group.attrs["encoding-type"] = encoding
        for each, values in arrays.items():
            put(group, each, values)

    is_hdf5 = isinstance(root, h5py.File)
    root.attrs["encoding-type"] = "anndata"
    if isinstance(matrix, np.ndarray):
        put(root, "X", matrix)
    else:
        group = root.create_group("X")
        group.attrs.update({"encoding-type": f"{matrix.format}_matrix", "encoding-version": "0.1.0", "shape": list(matrix.shape)})
        for name in ("data", "indices", "indptr"):
            put(group, name, getattr(matrix, name))
    obs = root.create_group("obs")
    obs.attrs["_index"] = "_index"
    put(obs, "_index", [f"c{i}" for i in range(4)])
    encoded("kind", "categorical", codes=np.array([0, 1, -1, 0], "i1"), categories=["B", "T"])
    encoded("grade", "categorical", codes=np.array([1, 0, 1, 0], "i1"), categories=[1.0, 2.5])
    encoded("maybe", "nullable-integer", values=[7, 1, 8, 9], mask=[False, True, False, False])
    categories = put(obs.create_group("__categories"), "older", ["T", "B"])
    put(obs, "older", np.array([0, 1, -1, 0], "i1")).attrs["categories"] = categories.ref if is_hdf5 else "__categories/older"
    put(obs, "text", ["é", "x", "", "y"])
    put(obs, "depth", [1.5, np.nan, 3, 4])
    put(obs, "single", np.arange(4, dtype="f4") / np.float32(10))
    put(obs, "n", [1, 2, 3, 4])
    put(obs, "alive", [True, False, True, True])
    put(obs, "short", [1, 2, 3])
    encoded("broken", "categorical", codes=np.array([0, 1, 5, 0], "i1"), categories=["B", "T"])


@pytest.mark.parametrize("form", MATRICES)
def test_a_column_of_anndata_colours_rows_in_hdf5(tmp_path, form):
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        write_anndata(file, MATRICES[form])
    for name, texts in (COLUMNS if form == "dense" else {"kind": COLUMNS["kind"]}).items():
        copy = import_matrix(tmp_path / "a.h5ad", tmp_path / "y.zarr", overwrite=True, color=name)
        assert told(open_matrix(copy)) == (name, texts)
        assert list(open_matrix(copy).labels.row[:]) == [f"c{i}" for i in range(4)]
    for name, words in (
        ("nothing", "has no column 'nothing' of text or numbers in obs .* there are: alive, broken, depth"),
        ("short", "'short' has 3 values, and the matrix 4 rows"),
        ("broken", "says category 5 of 2"),
    ):
        with pytest.raises(DlscaleError, match=words):
            import_matrix(tmp_path / "a.h5ad", tmp_path / "z.zarr", color=name)
    assert not (tmp_path / "z.zarr").exists()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_column_of_anndata_colours_rows_in_zarr(tmp_path, zarr_format):
    write_anndata(zarr.create_group(tmp_path / "a.zarr", zarr_format=zarr_format), MATRICES["dense"])
    place = str(tmp_path / "a.zarr" / "X")
    for name, texts in COLUMNS.items():
        color = color_beside(place, 4, name)
        assert (color.name, color.texts[0:4]) == (name, texts)


def test_a_job_names_the_column_of_a_matrix_in_zarr(tmp_path):
    write_anndata(zarr.create_group(tmp_path / "a.zarr"), MATRICES["columns"] + sp.csc_matrix([[0, 0], [3, 1], [0, 2], [1, 1]]))
    place, params = str(tmp_path / "a.zarr" / "X"), {"n_components": 1, "scores": True}
    spec = {"kind": "pca", "input": {"matrix": place, "color": "kind"}, "params": params, "cluster": "threads"}
    result = dlscale.run(spec, workspace=tmp_path / "w").result
    color = zarr.open_array(f"{result}/color", mode="r")
    assert (color[:].tolist(), dict(color.attrs)) == (COLUMNS["kind"], {"long_name": "kind"})
    csv = {"import": str(tmp_path / "a.csv")}
    (tmp_path / "a.csv").write_text(TABLE)
    for changed, words in (
        ({"input": {"matrix": place, "color": "x"}}, "input.color: there is no column or array 'x' of text or numbers in"),
        ({"input": {"matrix": place, "color": "../X"}}, "input.color: there is no column"),
        ({"input": {"matrix": place, "color": "short"}}, "input.color: .* has 3 values, and the matrix 4 rows"),
        ({"input": {"matrix": {**csv, "numeric": True, "fill": 0}, "color": "a"}}, "set color in the section of input.matrix"),
        ({"kind": "slogdet", "params": {}}, "input.color: colours rows of a result, and that of kind slogdet has none"),
    ):
        with pytest.raises(SpecError, match=words):
            dlscale.run({**spec, **changed}, workspace=tmp_path / "w")


@pytest.mark.parametrize("name", ["groups", "table/group", "deep/groups"])
def test_a_dataset_of_hdf5_colours_rows(tmp_path, name):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["groups"], file["wide"] = MATRICES["dense"], np.array([b"u", b"v", b"u", b"w"]), np.eye(4)
        file["table"] = np.array([(b"u", 1), (b"v", 2), (b"u", 3), (b"w", 4)], [("group", "S1"), ("n", "i4")])
        file["deep/groups"] = h5py.SoftLink("/groups")
        file["far"] = h5py.ExternalLink("/etc/b.h5", "groups")
    found = open_matrix(import_matrix(tmp_path / "a.h5", tmp_path / "y.zarr", dataset="x", color=name))
    assert told(found) == (name.rpartition("/")[2], list("uvuw"))
    for wrong, words in (("wide", "no dataset 'wide' of one dimension"), ("nothing", "no dataset 'nothing'"), ("far", "not there")):
        with pytest.raises(DlscaleError, match=words):
            import_matrix(tmp_path / "a.h5", tmp_path / "z.zarr", dataset="x", color=wrong)
    np.save(tmp_path / "a.npy", np.eye(2))
    with pytest.raises(SpecError, match=r"color does not apply to .*npy; it is for \.csv"):
        import_matrix(tmp_path / "a.npy", tmp_path / "z.zarr", color="x")
