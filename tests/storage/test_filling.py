"""Tables with words and missing values: what is left out, what is filled, and what is refused by its place."""

from __future__ import annotations

import csv

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlscale.cli.imports import ImportCommand
from dlscale.errors import ImportNote, InputError, SpecError
from dlscale.storage.importers import import_matrix
from dlscale.storage.importers.columns import filling
from dlscale.storage.importers.options import setting
from dlscale.storage.matrices import open_matrix

TABLE = ',a,city,b,c\nx,1,Rome,,3\ny,4,Oslo,5,6\nz,NA,Bonn,8,9\nw,10,"Bad, Ems",11,12\n'
FILLED = {
    "mean": [[1, 8, 3], [4, 5, 6], [5, 8, 9], [10, 11, 12]],
    "median": [[1, 8, 3], [4, 5, 6], [4, 8, 9], [10, 11, 12]],
    -1: [[1, -1, 3], [4, 5, 6], [-1, 8, 9], [10, 11, 12]],
}


def imported(tmp_path, name, **options):
    matrix = open_matrix(import_matrix(tmp_path / name, tmp_path / "y.zarr", overwrite=True, **options))
    return matrix.read(0, matrix.shape[0]), matrix


@pytest.mark.filterwarnings("ignore::dlscale.errors.ImportNote")
@pytest.mark.parametrize("fill", FILLED)
@pytest.mark.parametrize("leave_out", [{"numeric": True}, {"drop": ["city"]}, {"columns": ["a", "b", "c"]}], ids=str)
def test_text_with_words_and_missing_values(tmp_path, fill, leave_out):
    (tmp_path / "a.csv").write_text(TABLE)
    block, matrix = imported(tmp_path, "a.csv", fill=fill, **leave_out)
    np.testing.assert_array_equal(block, FILLED[fill])
    assert [list(names[:]) for names in matrix.labels[:2]] == [["x", "y", "z", "w"], ["a", "b", "c"]]


def test_what_was_left_out_and_filled_is_said(tmp_path):
    (tmp_path / "a.csv").write_text(TABLE)
    with pytest.warns(ImportNote) as said:
        _, matrix = imported(tmp_path, "a.csv", fill="mean", numeric=True)
    assert any("left out, as they hold no numbers: 'city'" in str(note.message) for note in said)
    assert any("2 missing values became the mean of the column; columns 'a', 'b' have such." in note for note in matrix.notes)


@pytest.mark.filterwarnings("ignore::dlscale.errors.ImportNote")
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=3, max_size=3), min_size=2, max_size=9),
    st.sampled_from(["mean", "median"]),
    st.sampled_from(["csv", "parquet"]),
)
def test_any_table_is_filled_as_numpy_does(tmp_path, rows, fill, suffix):
    values = np.array([[np.nan if value is None else value for value in row] for row in rows])
    if suffix == "csv":
        cells = [["" if value is None else repr(value) for value in row] for row in rows]
        with (tmp_path / "a.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["p", "q", "r"], *cells])
    else:
        columns = {name: pa.array([row[j] for row in rows], pa.float64()) for j, name in enumerate("pqr")}
        pyarrow.parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    if np.isnan(values).all(axis=0).any():
        with pytest.raises(InputError, match="no value, and so no"):
            imported(tmp_path, f"a.{suffix}", fill=fill)
        return
    expected = np.where(np.isnan(values), {"mean": np.nanmean, "median": np.nanmedian}[fill](values, axis=0), values)
    np.testing.assert_allclose(imported(tmp_path, f"a.{suffix}", fill=fill)[0], expected, rtol=1e-14, atol=1e-9)


@pytest.mark.filterwarnings("ignore::dlscale.errors.ImportNote")
@pytest.mark.parametrize("mark", ["-999", "-9.99E2"])
@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("dtype", [None, "f4", "i4"])
def test_marks_that_are_numbers_are_compared_by_value(tmp_path, mark, one_by_one, dtype):
    """And with the words of colours and of names, and keys, by text."""
    rows = "-999,7,-999,-999.0\nB,-999,2,red\n" + ("C,1,?,red\n" if one_by_one else "C,1,0,red\n")
    rows = rows if dtype == "i4" else rows.replace("-999,-999.0", "-999.000,-999.0").replace("B,-999", "B,-99.9e1")
    (tmp_path / "a.csv").write_text("name,a,b,color\n" + rows)
    block, matrix = imported(tmp_path, "a.csv", fill=0, missing=[mark, "?"], dtype=dtype, color="color", index=True)
    np.testing.assert_array_equal(block, [[7, 0], [0, 2], [1, 0]])
    assert list(matrix.labels.row[:]) == ["-999", "B", "C"]
    assert list(matrix.labels.color.texts[:]) == ["", "red", "red"]
    assert zarr.open_array(matrix.uri, mode="r").dtype == (dtype or "f8")
    (tmp_path / "b.csv").write_text(f"i,j,x\n1,0,1.0\n0,1,{'?' if one_by_one else 5}\n1,1,2\n")
    entries, _ = imported(tmp_path, "b.csv", fill=3, missing=["1", "?"], triplets=["i", "j", "x"])
    np.testing.assert_array_equal(entries, [[0, 3 if one_by_one else 5], [3, 2]])


@pytest.mark.filterwarnings("ignore::dlscale.errors.ImportNote")
def test_many_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("dlscale.storage.importers.delimited.PIECE_BYTES", 64)
    monkeypatch.setattr(filling, "_GROUP_BYTES", 8)
    lines = [",a,b", *(f"row {i},{'' if i % 3 else i},{i}" for i in range(100))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    block, matrix = imported(tmp_path, "a.csv", fill="median")
    np.testing.assert_array_equal(block[:, 0], [i if i % 3 == 0 else 49.5 for i in range(100)])
    assert list(matrix.labels.row[:]) == [f"row {i}" for i in range(100)]


@pytest.mark.filterwarnings("ignore::dlscale.errors.ImportNote")
def test_parquet_with_words_and_missing_values(tmp_path):
    table = {"a": pa.array([1, None, 3]), "s": ["x", "y", "z"], "b": [1.5, float("nan"), None], "t": [True, None, False]}
    pyarrow.parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    expected = [[1, 1.5, 1], [2, 1.5, 0.5], [3, 1.5, 0]]
    np.testing.assert_array_equal(imported(tmp_path, "a.parquet", numeric=True, fill="median")[0], expected)
    np.testing.assert_array_equal(imported(tmp_path, "a.parquet", drop=["s", "t"], fill=0)[0], [[1, 1.5], [0, 0], [3, 0]])
    whole, matrix = imported(tmp_path, "a.parquet", columns=["a"], fill=7)
    assert (matrix.stored_dtype, whole.tolist()) == (np.int64, [[1], [7], [3]])
    pairs = pa.table({"v": pa.array([[1.0, None], [3.0, 4.0]], pa.list_(pa.float64(), 2))})
    pyarrow.parquet.write_table(pairs, tmp_path / "b.parquet")
    np.testing.assert_array_equal(imported(tmp_path, "b.parquet", fill="mean")[0], [[1, 4], [3, 4]])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, InputError, r"line 2, column 3 \('city'\): 'Rome' is not .* numeric: true or --numeric yes leaves out"),
        ({"numeric": True}, InputError, r"line 2, column 4 \('b'\): the cell is empty"),
        ({"fill": "mode"}, SpecError, "fill: got 'mode'; allowed: a number, or mean or median"),
        ({"fill": "mean", "dtype": "i4", "numeric": True}, SpecError, "fill: mean is not a number of dtype int32"),
        ({"fill": 0.5, "dtype": "i4", "numeric": True}, SpecError, "fill: 0.5 is not a number of dtype int32"),
    ],
)
def test_refusals_name_the_place(tmp_path, options, error, words):
    (tmp_path / "a.csv").write_text(TABLE)
    with pytest.raises(error, match=words):
        import_matrix(tmp_path / "a.csv", tmp_path / "y.zarr", **options)
    assert not (tmp_path / "y.zarr").exists()


def test_refusals_of_parquet_name_column_and_row(tmp_path):
    pyarrow.parquet.write_table(pa.table({"s": ["x"] * 3, "a": pa.array([1, 2, None])}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="column 'a' has missing values, the first in row 2"):
        import_matrix(tmp_path / "a.parquet", tmp_path / "y.zarr", drop=["s"])
    with pytest.raises(InputError, match="no column of numbers is left; it has 's'"):
        import_matrix(tmp_path / "a.parquet", tmp_path / "y.zarr", numeric=True, drop=["a"])
    with pytest.raises(SpecError, match="no column 'z'"):
        import_matrix(tmp_path / "a.parquet", tmp_path / "y.zarr", drop=["z"])


@pytest.mark.parametrize("fill", ["mean", "median"])
def test_a_statistic_that_is_not_finite_is_refused(tmp_path, fill):
    (tmp_path / "a.csv").write_text("a,b\n1e308,1\n1.7e308,2\n,3\n")
    with pytest.raises(InputError, match=f"column 'a' has no finite {fill}; scale or correct it"):
        imported(tmp_path, "a.csv", fill=fill)
    for number in (np.nan, np.inf):
        with pytest.raises(SpecError, match="fill: got"):
            imported(tmp_path, "a.csv", fill=number)
    pa.parquet.write_table(pa.table({"a": pa.array([1, None], pa.float32())}), tmp_path / "a.parquet")
    for name, options in (("a.csv", {"dtype": "f4"}), ("a.parquet", {}), ("a.parquet", {"dtype": "f8"})):
        with pytest.raises(SpecError, match=r"fill: 1e\+39 is infinite in float32; ask for a wider dtype"):
            imported(tmp_path, name, fill=1e39, **options)


def test_a_median_that_would_not_fit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(filling, "_MAX_COLUMN_BYTES", 16)
    (tmp_path / "a.csv").write_text("a,b\n1,\n2,3\n4,5\n")
    with pytest.raises(Exception, match="set fill to mean, or to a number"):
        import_matrix(tmp_path / "a.csv", tmp_path / "y.zarr", fill="median")


def test_a_column_of_words_alone_is_not_left_out(tmp_path):
    (tmp_path / "y.csv").write_text("kind\nyes\nno\n")
    pyarrow.parquet.write_table(pa.table({"kind": ["yes", "no"]}), tmp_path / "y.parquet")
    for name in ("y.csv", "y.parquet"):
        with pytest.raises(InputError, match="write numbers for the words of its column, such as 0, 1, 2") as caught:
            import_matrix(tmp_path / name, tmp_path / "y.zarr")
        assert "numeric" not in str(caught.value)


def test_settings_are_told_as_they_are_written_in_a_file_and_on_the_command_line():
    told = [("index", False), ("numeric", True), ("fill", 0), ("drop", [""]), ("drop", ["a", "b"])]
    assert [setting(*each) for each in told] == [
        "index: false or --index no",
        "numeric: true or --numeric yes",
        "fill: 0 or --fill 0",
        "drop: [''] or --drop ''",
        "drop: ['a', 'b'] or --drop a,b",
    ]
    for text in (setting(*each) for each in told):
        name, _, value = text.rpartition(" or --")[2].partition(" ")
        command = ImportCommand("import")
        (option,) = (each for each in command.get_params(click.Context(command)) if each.name == name)
        in_file = yaml.safe_load(text.rpartition(" or --")[0])
        assert option.type_cast_value(click.Context(command), value.strip("'")) == in_file[name]
