"""Names of rows and columns travel with a matrix: from files of others into copies, views, results and Python."""

from __future__ import annotations

import csv
import io
import json
from contextlib import nullcontext

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import zarr
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dlscale
from dlscale.cli.main import commands
from dlscale.errors import ImportNote, InputError, SpecError
from dlscale.service.routes import slices
from dlscale.storage.importers import import_matrix
from dlscale.storage.labels import names
from dlscale.storage.labels.names import Labels, Text
from dlscale.storage.labels.writing import write_labels, write_text
from dlscale.storage.matrices import open_matrix
from dlscale.storage.verifying import verify

pytestmark = pytest.mark.filterwarnings("ignore::dlscale.errors.ImportNote")
ROWS, COLUMNS = ["r 1", "ré", "r,3"], ["height", "weight"]
A = np.arange(6.0).reshape(3, 2)


def told(source) -> tuple:
    return tuple(None if names is None else list(names[:]) for names in open_matrix(source).labels[:2])


def copied(tmp_path, name, **options) -> tuple:
    copy = import_matrix(tmp_path / name, tmp_path / "copy.zarr", overwrite=True, **options)
    np.testing.assert_array_equal(open_matrix(copy).read(0, 3), A)
    return told(copy)


def write_csv(path, columns, rows=None):
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow([*([""] if rows else []), *columns])
        out.writerows([*([rows[i]] if rows else []), *map(repr, row)] for i, row in enumerate(A.tolist()))


def test_a_table_keeps_its_names(tmp_path):
    write_csv(tmp_path / "a.csv", COLUMNS, ROWS)
    assert copied(tmp_path, "a.csv") == (ROWS, COLUMNS)
    assert zarr.open_array(tmp_path / "copy.zarr", mode="r").metadata.dimension_names == ("row", "column")
    assert copied(tmp_path, "a.csv", columns=COLUMNS) == (ROWS, COLUMNS)
    write_csv(tmp_path / "b.csv", COLUMNS)
    assert copied(tmp_path, "b.csv") == (None, COLUMNS)
    np.savetxt(tmp_path / "c.csv", A, delimiter=",")
    assert copied(tmp_path, "c.csv") == (None, None)


@pytest.mark.parametrize("word", ["id", "Sample", "index"])
def test_words_under_the_name_of_an_index_name_rows(tmp_path, word):
    write_csv(tmp_path / "a.csv", COLUMNS, ROWS)
    text = (tmp_path / "a.csv").read_text()
    (tmp_path / "a.csv").write_text(word + text)
    with pytest.warns(ImportNote, match=f"the first column \\('{word}'\\) holds the rows' names"):
        assert copied(tmp_path, "a.csv") == (ROWS, COLUMNS)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs"]), min_size=1), min_size=1, max_size=7))
def test_any_text_is_a_name(tmp_path, rows):
    out = io.StringIO()
    csv.writer(out).writerows([["", "a", "b"], *([f"n{name}", i, i] for i, name in enumerate(rows))])
    (tmp_path / "a.csv").write_text(out.getvalue(), encoding="utf-8")
    copy = import_matrix(tmp_path / "a.csv", tmp_path / "y.zarr", overwrite=True)
    assert told(copy) == ([f"n{name}" for name in rows], ["a", "b"])


def test_names_of_wide_tables_and_of_cells_that_arrow_does_not_know(tmp_path, monkeypatch):
    monkeypatch.setattr("dlscale.storage.importers.delimited.MAX_ARROW_COLUMNS", 1)
    monkeypatch.setattr("dlscale.storage.labels.writing.CHUNK", 2)
    (tmp_path / "a.csv").write_text(",height,weight\nr1,0,1\nr2,2,3\nr3,4,5\n")
    assert copied(tmp_path, "a.csv") == (["r1", "r2", "r3"], COLUMNS)
    monkeypatch.undo()
    (tmp_path / "a.csv").write_text(",height,weight\nr1,0d0,1\nr2,2,3\nr3,4,5\n")
    assert copied(tmp_path, "a.csv") == (["r1", "r2", "r3"], COLUMNS)


def test_parquet(tmp_path):
    table = pa.table({"height": A[:, 0], "weight": A[:, 1], "who": ROWS})
    table = table.replace_schema_metadata({"pandas": json.dumps({"index_columns": ["who"]})})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert copied(tmp_path, "a.parquet") == (ROWS, COLUMNS)
    pairs = pa.table({"pair": pa.FixedSizeListArray.from_arrays(A.ravel(), 2)})
    pyarrow.parquet.write_table(pairs, tmp_path / "b.parquet")
    assert copied(tmp_path, "b.parquet") == (None, ["pair[0]", "pair[1]"])


def test_hdf5_of_pandas_of_netcdf_and_of_anndata(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        frame = file.create_group("frame")
        frame["axis0"], frame["block0_items"] = np.array(COLUMNS, "S"), np.array(COLUMNS, "S")
        frame["axis1"], frame["block0_values"] = np.array([name.encode() for name in ROWS]), A
    assert copied(tmp_path, "a.h5") == (ROWS, COLUMNS)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"], file["station"], file["time"] = A, np.array(COLUMNS, object), [0, 1, 2]
        for k, name in enumerate(("time", "station")):
            file[name].make_scale(name)
            file["x"].dims[k].attach_scale(file[name])
    assert copied(tmp_path, "b.h5") == (None, COLUMNS)
    with h5py.File(tmp_path / "c.h5ad", "w") as file:
        file.attrs["encoding-type"] = "anndata"
        file["X"] = A
        for table, names in (("obs", ROWS), ("var", COLUMNS)):
            file.create_group(table).attrs["_index"] = "who"
            file[table]["who"] = np.array(names, object)
    assert copied(tmp_path, "c.h5ad") == (ROWS, COLUMNS)


def test_names_beside_an_array_as_xarray_and_anndata_write_them(tmp_path):
    group = zarr.create_group(tmp_path / "g.zarr")
    group.create_array("X", data=A, dimension_names=["time", "station"])
    for name, texts in (("time", ROWS), ("station", COLUMNS)):
        array = group.create_array(name, shape=(len(texts),), dtype="string", dimension_names=[name])
        array[...] = np.array(texts, np.dtypes.StringDType())
    assert told(tmp_path / "g.zarr" / "X") == (ROWS, COLUMNS)
    other = zarr.create_group(tmp_path / "h.zarr")
    other.create_array("X", data=A)
    for table, texts in (("obs", ROWS), ("var", COLUMNS)):
        found = other.create_group(table, attributes={"_index": "who"}).create_array("who", shape=(len(texts),), dtype="string")
        found[...] = np.array(texts, np.dtypes.StringDType())
    assert told(tmp_path / "h.zarr" / "X") == (ROWS, COLUMNS)


def test_views_name_what_they_show(tmp_path):
    write_csv(tmp_path / "a.csv", COLUMNS, ROWS)
    matrix = open_matrix(import_matrix(tmp_path / "a.csv", tmp_path / "y.zarr"))
    assert list(matrix.T.labels.row[:]) == COLUMNS
    assert list(matrix.T.T.labels.row[1:2]) == ROWS[1:2]
    from dlscale.storage.matrix import RowRange

    assert RowRange(matrix, 1, 3).labels.row is None
    assert list(RowRange(matrix, 1, 3).labels.column[:]) == COLUMNS


def test_other_names_are_another_content_and_damage_is_found(tmp_path):
    contents = set()
    for columns in (COLUMNS, ["a", "b"]):
        write_csv(tmp_path / "a.csv", columns)
        copy = import_matrix(tmp_path / "a.csv", tmp_path / "y.zarr", overwrite=True)
        contents.add(open_matrix(copy).attributes["content"])
    assert len(contents) == 2
    assert not verify(str(copy)).damage
    chunk = copy / "labels" / "column" / "c" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-6] + b"c" + chunk.read_bytes()[-5:])
    assert any("labels/column" in words for words in verify(str(copy)).damage)


@pytest.mark.parametrize("kind", ["pca", "svd", "lstsq", "train", "statistics"])
def test_results_name_what_goes_along_rows_and_columns(tmp_path, kind):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.standard_normal((12, 3)))
    np.save(tmp_path / "y.npy", rng.standard_normal((12, 1)))
    x, y = (import_matrix(tmp_path / f"{name}.npy", tmp_path / f"{name}.zarr") for name in "xy")
    columns, rows = ["a", "b", "c"], [f"person {i}" for i in range(12)]
    write_labels(x, Labels(rows, columns))
    roles = {"train": {"features": x, "targets": y}, "lstsq": {"matrix": x, "rhs": y}}.get(kind, {"matrix": x})
    params = {"pca": {"n_components": 2, "scores": True}, "svd": {"n_components": 2}, "train": {"epochs": 2}}.get(kind, {})
    spec = {"kind": kind, "input": roles, "params": params, "cluster": "threads"}
    spec |= {"model": {"type": "linear"}} if kind == "train" else {}
    group = zarr.open_group(dlscale.run(spec, workspace=tmp_path / "w").result, mode="r")
    arrays = dict(group.members(max_depth=None))
    dims = {name: array.metadata.dimension_names for name, array in arrays.items() if hasattr(array, "dtype")}
    assert all(name is not None for names in dims.values() for name in names)
    assert list(group["column"][:]) == columns
    along = {"pca": ("components", 1), "svd": ("vh", 1), "lstsq": ("x", 0), "statistics": ("columns/mean", 0)}
    name, axis = along.get(kind, ("parameters/layer-0/weight", 0))
    assert dims[name][axis] == "column"
    if kind in ("pca", "svd"):
        assert list(group["row"][:]) == rows
        assert dims[{"pca": "scores", "svd": "u"}[kind]] == ("row", "component")
    assert not verify(str(group.store_path.store.root)).damage


def test_what_a_program_holds_keeps_its_names(tmp_path):
    table = pa.table({"height": A[:, 0], "weight": A[:, 1]})
    assert told(table) == (None, COLUMNS)
    result = dlscale.run({"kind": "pca", "input": {"matrix": table}, "cluster": "threads"}, workspace=tmp_path)
    assert list(zarr.open_group(result.result, mode="r")["column"][:]) == COLUMNS
    assert list(result.open()["column"][...]) == COLUMNS


def test_an_estimator_knows_the_columns_of_stored_matrices(tmp_path):
    write_csv(tmp_path / "a.csv", COLUMNS, ROWS)
    copy = import_matrix(tmp_path / "a.csv", tmp_path / "a.zarr")
    turned = import_matrix(tmp_path / "a.csv", tmp_path / "b.zarr", columns=COLUMNS[::-1])
    fitted = dlscale.PCA(1).fit(copy)
    assert fitted.feature_names_in_.tolist() == COLUMNS
    assert fitted.get_feature_names_out().tolist() == ["pca0"]
    assert fitted.transform(copy).shape == (3, 1)
    with pytest.raises(SpecError, match="column 0 is 'weight', not 'height'"):
        fitted.transform(turned)
    assert not hasattr(fitted.fit(A), "feature_names_in_")


@pytest.mark.parametrize("kind", ["train", "ridge"])
def test_predictions_take_the_columns_of_their_model_in_its_order(tmp_path, kind):
    np.save(tmp_path / "y.npy", np.arange(3.0)[:, None])
    write_csv(tmp_path / "x.csv", COLUMNS, ROWS)
    source = {"import": str(tmp_path / "x.csv")}
    first, second = {"train": ("features", "targets"), "ridge": ("matrix", "rhs")}[kind]
    spec = {"kind": kind, "input": {first: source, second: {"import": str(tmp_path / "y.npy")}}, "cluster": "threads"}
    spec |= {"model": {"type": "linear"}, "params": {"epochs": 1}} if kind == "train" else {}
    model = dlscale.run(spec, workspace=tmp_path / "w").result
    predict = {"kind": "predict", "input": {"features": source, "model": model}, "cluster": "threads"}
    result = dlscale.run(predict, workspace=tmp_path / "w").result
    assert list(zarr.open_group(result, mode="r")["row"][:]) == ROWS
    turned = {**predict["input"], "features": source | {"columns": COLUMNS[::-1]}}
    with pytest.raises(InputError, match="column 0 is 'weight', and the model was made with 'height' there"):
        dlscale.run({**predict, "input": turned}, workspace=tmp_path / "w")


def test_chosen_columns_keep_their_names(tmp_path, monkeypatch):
    monkeypatch.setattr(names, "CHUNK", 4)
    spread, columns = np.array([1, 9, 2, 8, 3, 7, 4, 6, 5, 10]), [f"gene {j}" for j in range(10)]
    table, y = np.random.default_rng(0).standard_normal((40, 10)) * spread, np.arange(40.0)[:, None]
    sources = {}
    for name, some in (("x", range(10)), ("turned", range(9, -1, -1))):
        np.save(tmp_path / "x.npy", table[:, list(some)])
        sources[name] = import_matrix(tmp_path / "x.npy", tmp_path / f"{name}.zarr")
        write_labels(sources[name], Labels(None, [columns[j] for j in some]))
    np.save(tmp_path / "y.npy", y)
    steps = [{"select_columns": {"most_variable": 4}}, {"scale_columns": "std"}, {"select_columns": {"most_variable": 3}}]
    given = {"features": sources["x"], "targets": {"import": str(tmp_path / "y.npy")}, "transforms": steps[:2]}
    spec = {"kind": "train", "model": {"type": "linear"}, "params": {"epochs": 1}, "input": given, "cluster": "threads"}
    model = dlscale.run(spec, workspace=tmp_path / "w").result
    assert list(zarr.open_group(model, mode="r")["column"][:]) == [columns[j] for j in (1, 3, 7, 9)]
    for name in sources:
        predict = {"kind": "predict", "input": {"features": sources[name], "model": model}, "cluster": "threads"}
        with pytest.raises(InputError, match="'gene 8', and the model") if name == "turned" else nullcontext():
            dlscale.run(predict, workspace=tmp_path / "w")
    twice = {"kind": "pca", "input": {"matrix": sources["x"], "transforms": steps[::2]}, "params": {"n_components": 2}}
    found = dlscale.run({**twice, "cluster": "threads"}, workspace=tmp_path / "w").result
    assert list(zarr.open_group(found, mode="r")["column"][:]) == [columns[j] for j in (1, 3, 9)]


def test_info_tells_names(tmp_path):
    write_csv(tmp_path / "a.csv", COLUMNS, ROWS)
    copy = import_matrix(tmp_path / "a.csv", tmp_path / "a.zarr")
    facts = json.loads(CliRunner().invoke(commands, ["info", str(copy), "--json"]).output)
    assert (facts["names_of_rows"], facts["names_of_columns"]) == (ROWS, COLUMNS)
    assert Labels(column=[str(j) for j in range(12)]).describe() == {"names_of_columns": [*"0123456789", "... (12 in all)"]}


@pytest.mark.parametrize("name", ["../secret", "../../outside/secret", "..", "", "inner/secret"])
def test_names_of_dimensions_lead_to_no_other_folder(tmp_path, name):
    for place in ("outside", "g.zarr", "g.zarr/inner"):
        array = zarr.create_array(tmp_path / place / "secret", shape=(3,), dtype="string")
        array[...] = np.array(ROWS, np.dtypes.StringDType())
    group = zarr.create_group(tmp_path / "g.zarr" / "h.zarr")
    group.create_array("X", data=A, dimension_names=[name, "feature"])
    group.create_group("obs", attributes={"_index": name})
    assert told(tmp_path / "g.zarr" / "h.zarr" / "X") == (None, None)


def test_a_server_sends_parts_of_names(tmp_path):
    write_text(tmp_path / "g.zarr" / "row", Text("row", "row", ROWS, {}))
    zarr.open_group(tmp_path / "g.zarr", mode="a")
    spans, part = slices._read(str(tmp_path / "g.zarr"), "row", "1:3", "")
    assert (spans, part.tolist()) == ([(1, 3)], ROWS[1:])
    np.save(io.BytesIO(), part, allow_pickle=False)
