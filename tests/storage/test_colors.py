"""A column of a table that colours rows is kept beside the matrix, as text, and travels into results."""

from __future__ import annotations

import csv
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dlscale
from dlscale.errors import ImportNote, SpecError
from dlscale.storage.importers import import_matrix
from dlscale.storage.labels.names import AXES
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
