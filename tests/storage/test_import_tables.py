"""Tables as they are written by others: separators, decimal commas, thousands, booleans, comments, quotations, row numbers."""

from __future__ import annotations

import csv
import io
import os
import warnings

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dlscale.batch.spec import load_spec
from dlscale.cli.main import commands
from dlscale.errors import ImportNote, InputError, SpecError
from dlscale.storage.importers import ReadOptions, import_matrix
from dlscale.storage.importers.records import record_pieces


def imported(tmp_path, content, name="a.csv", **options):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return zarr.open_array(import_matrix(tmp_path / name, tmp_path / "y.zarr", overwrite=True, **options), mode="r")[...]


RUNS = int(os.environ.get("DLSCALE_CHAOS_RUNS", "1"))
A = [[1.5, 2.25], [3, 4]]
WITHOUT_OPTIONS = {
    "blanks": "1.5 2.25\n3 4\n",
    "runs of blanks": "  height   weight\n   1.5  2.25\n   3.0  4  \n\n",
    "tabs in .csv": "a\tb\n1.5\t2.25\n3\t4\n",
    "bars": "a|b\n1.5|2.25\n3|4\n",
    "decimal commas": "a;b\n1,5;2,25\n3;4,0\n",
    "decimal commas without names": "1,5;2,25\n3,0;4,0\n",
    "decimal commas between tabs": "a\tb\n1,5\t2,25\n3\t4,0\n",
    "quoted decimals": '"a";"b"\n"1,5";"2,25"\n"3";"4"\n',
    "comments above": "# measured\n# a,b\n1.5,2.25\n3,4\n",
    "comments above names": "# measured, on Monday\na,b\n1.5,2.25\n3,4\n",
    "carriage returns": "a,b\r1.5,2.25\r3,4\r",
    "all line ends": "a,b\r\n1.5,2.25\r\r\n3,4",
    "plus signs": "a,b\n+1.5,+2.25\n3,4\n",
    "Fortran": "a,b\n1.5D0,0.225d+1\n3,4\n",
    "names with line breaks": '"a\nof it","b\r\n"\n1.5,2.25\n3,4\n',
    "UTF-16": "a,b\n1.5,2.25\n3,4\n".encode("utf-16"),
    "UTF-16 tabs": "größe\tb\r\n1,5\t2,25\r\n3\t4\r\n".encode("utf-16"),
}


@pytest.mark.parametrize("content", WITHOUT_OPTIONS.values(), ids=WITHOUT_OPTIONS)
def test_dialects_that_need_no_option(tmp_path, content):
    np.testing.assert_array_equal(imported(tmp_path, content), A)


WITH_OPTIONS = [
    ("a:b\n1.5:2.25\n3:4\n", {"delimiter": ":"}),
    ("a\tb\n1.5\t2.25\n3\t4\n", {"delimiter": "tab"}),
    ("1.5 2.25\n3\t 4\n", {"delimiter": "blank"}),
    ('a,b\n"1,5","2,25"\n3,4\n', {"decimal": ","}),
    ("% x\na,b\n1.5,2.25\n% y\n3,4\n% z", {"comment": "%"}),
    ('# x\na,b\n1.5,2.25\n  # "y\n3,4\n', {"comment": "#"}),
    ("'a';'b'\n'1.5';'2.25'\n3;4\n", {"quote": "'"}),
    ("a,b,c\n1.5,x,2.25\n3,y,4\n", {"drop": ["b"]}),
    ("a,b,c\n1.5,x,2.25\n3,y,4\n", {"columns": ["a", "b", "c"], "drop": ["b"]}),
    ("r,a,b\n7,1.5,2.25\n9,3,4\n", {"index": True}),
    ("größe,b\n1.5,2.25\n3,4\n".encode("latin-1"), {"encoding": "latin-1"}),
    ("a,b\n1.5,2.25\n3,4\n".encode("utf-16-be"), {"encoding": "utf-16-be"}),
    ("150,2\n1.5,2.25\n3,4\n", {"header": True}),
    ("a,b\n1.5,NA\n,4\n", {"fill": -1}),
    ("a,b\n1.5,?\n-,4\n", {"fill": -1, "missing": ["?", "-"]}),
    ('a,b\n"1,5","2,25"\n3,4\n', {"decimal": ","}),
    ("1,5;x;2,25\n3;y;4\n", {"decimal": ",", "drop": ["1"], "header": False}),
]


@pytest.mark.parametrize(("content", "options"), WITH_OPTIONS)
def test_dialects_with_an_option(tmp_path, content, options):
    expected = [[1.5, -1], [-1, 4]] if "fill" in options else A
    np.testing.assert_array_equal(imported(tmp_path, content, **options), expected)


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        ('a,b\n"1,000","2,500,000.5"\n-3,4\n', {}, [[1000, 2500000.5], [-3, 4]]),
        ("a;b\n1.234,5;2\n1.000;4,25\n", {}, [[1234.5, 2], [1000, 4.25]]),
        ("a;b\n1,234;2\n1,000,000;4\n", {}, [[1234, 2], [1000000, 4]]),
        ("a;b\n1,234;2\n1,000;4\n", {"decimal": ","}, [[1.234, 2], [1, 4]]),
        ("a;b\n1,234;2\n1,000;4\n", {"thousands": ","}, [[1234, 2], [1000, 4]]),
        ("a;b\n1 234,5;2\n1 000;4\n", {"thousands": " ", "decimal": ","}, [[1234.5, 2], [1000, 4]]),
        ("a;b\n1'234.5;2\n1'000;4\n", {"thousands": "'", "decimal": "."}, [[1234.5, 2], [1000, 4]]),
    ],
)
def test_thousands(tmp_path, content, options, expected):
    np.testing.assert_array_equal(imported(tmp_path, content, **options), expected)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ('a,b\n"1,5",2\n', {}, r"line 2, column 1 \('a'\): '1,5' is not .* set decimal or thousands"),
        ('a,b\n"1,00",2\n', {}, r"line 2, column 1 .* set decimal or thousands"),
        ("a;b\n1,5;2\n1.5;2\n", {}, r"line 3, column 1 \('a'\): '1.5' is not .* set thousands, otherwise set decimal"),
        ("a;b\n1,234;2\n5,678;3\n", {}, "1,234 can be a fraction or a number of thousands. Set decimal to ',' or thousands"),
        ("a,b\n1,1e400\n", {}, r"line 2, column 2 \('b'\): '1e400' is infinite in float64"),
        ("a,b\n1,1e39\n", {"dtype": "f4"}, r"line 2, column 2 \('b'\): '1e39' is infinite in float32"),
        ("a,b\n1,True\n2,7\n", {}, r"line 3, column 2 \('b'\): '7' stands in a column of booleans"),
        ("a,b\n1,7\n2,True\n", {}, r"line 3, column 2 \('b'\): 'True' stands in a column of numbers"),
        ("a,b\n1,2\n# c\n3,4\n", {}, r"line 3: every line must have 2 cells"),
        ('a,b\n1,2\n"3,4\n5,6\n', {}, r"line 3: a quotation begins here and is never closed"),
        ("a,b\n1,2_0\n", {}, "'2_0' is not"),
        ("a,b\n1,0x10\n", {}, "'0x10' is not"),
        ("a,b\n1,\N{ARABIC-INDIC DIGIT TWO}\n", {}, "is not a float64 number"),
        ("a,b\n1,2\0\n", {}, r"line 2, column 2"),
        ("a,b\n1,NA\n", {}, r"line 2, column 2 \('b'\): 'NA' is not"),
        ("a,b\n1,\n", {"fill": 0, "missing": ["NA"]}, r"line 2, column 2 \('b'\): the cell is empty"),
        ("# a,b\n", {}, "holds no rows"),
        ("größe,b\n1,2\n".encode("latin-1"), {}, "is not UTF-8. Set encoding"),
        ("true,false\n1,0\n", {}, "can be names or values. Set header"),
        ("a,b\n1,2\n", {"drop": ["a", "b"]}, "no column is left"),
        ("a,b\n1,2\n", {"drop": ["c"]}, "no column 'c'"),
        ("a,b\n1,2\n", {"missing": ["x"]}, "set fill"),
        ("a,b\n1,2\n", {"delimiter": "x"}, "delimiter: got 'x'; allowed: a character"),
        ("a,b\n1,2\n", {"thousands": ",", "decimal": ","}, "thousands and decimal must differ"),
        ("a,b\n1,2\n", {"encoding": "klingon"}, "encoding: got 'klingon'; allowed"),
        ("a,b\n1,2\n", {"encoding": "rot13"}, "encoding: got 'rot13'; allowed"),
        ("1,5\n2,5\n", {"decimal": ","}, "line 1: a comma can be a part of a number, .* or separate two. Set delimiter"),
        ("a,b\n1,500\n2,300\n", {"thousands": ","}, "a comma can be a part of a number"),
        ("a,b\n1,2\n", {"dtype": "flo"}, "dtype must be an integer, float or complex type .* got 'flo'"),
        ("a,b\n1,2\n", {"chunks": (7,)}, "chunks must be two positive numbers, rows and columns; got 7"),
        ("a,b\n1,\n", {"dtype": "i4", "fill": 0.5}, "fill: 0.5 is not a number of dtype int32"),
    ],
)
def test_what_is_refused_says_why_and_where(tmp_path, content, options, message):
    with pytest.raises((InputError, SpecError), match=message):
        imported(tmp_path, content, **options)
    assert os.listdir(tmp_path) == ["a.csv"]


@pytest.mark.parametrize("n", [3, 5000])
def test_booleans(tmp_path, monkeypatch, n):
    monkeypatch.setattr("dlscale.storage.importers.delimited.PIECE_BYTES", 4096)
    rows = [(j, j % 3 == 0, j % 2 == 0) for j in range(n)]
    text = "age,red,blue\n" + "".join(f"{j + 7},{red},{str(blue).upper()}\n" for j, red, blue in rows)
    np.testing.assert_array_equal(imported(tmp_path, text), [(j + 7, red, blue) for j, red, blue in rows])
    text = "age,red,blue\n" + "".join(f"{j + 7},{'ny'[red]},{int(blue)}\n" for j, red, blue in rows)
    np.testing.assert_array_equal(
        imported(tmp_path, text, booleans=["n", "y"], dtype="i4"), [(j + 7, red, blue) for j, red, blue in rows]
    )


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("dtype", [None, "u1"])
def test_row_numbers_are_left_out_and_said(tmp_path, monkeypatch, name, start, dtype):
    monkeypatch.setattr("dlscale.storage.importers.delimited.PIECE_BYTES", 2000)
    expected = np.random.default_rng(0).integers(0, 255, (700, 2))
    text = f"{name},a,b\n" + "".join(f"{i},{a},{b}\n" for i, (a, b) in enumerate(expected, start))
    with pytest.warns(
        ImportNote, match="the first column .* holds the rows' numbers and is .*; index: false or --index no keeps it"
    ):
        got = imported(tmp_path, text, dtype=dtype)
    np.testing.assert_array_equal(got, expected)
    assert "left out" in zarr.open_array(tmp_path / "y.zarr", mode="r").attrs["dlscale"]["notes"][0]
    np.testing.assert_array_equal(imported(tmp_path, text, index=True), expected)
    np.testing.assert_array_equal(imported(tmp_path, text, columns=["b"]), expected[:, 1:])
    assert imported(tmp_path, text, index=False).shape == (700, 3)
    damaged = text.replace("\n600,", "\n601,")
    with pytest.raises(SpecError, match=rf"line {602 - start}: .* '601' is not the number of this row. Set index"):
        imported(tmp_path, damaged)


@pytest.mark.parametrize("head", ["id,a\n", "index,a\n", ""])
def test_a_column_that_numbers_the_rows_is_kept_and_said(tmp_path, monkeypatch, head):
    monkeypatch.setattr("dlscale.storage.importers.delimited.PIECE_BYTES", 100)
    text = head + "".join(f"{i},{i % 7}.5\n" for i in range(100))
    with pytest.warns(ImportNote, match=r"the first column \('.*'\) numbers the rows\. .* index: true or --index yes\."):
        assert imported(tmp_path, text).shape == (100, 2)
    assert imported(tmp_path, text, index=True).shape == (100, 1)
    assert imported(tmp_path, text, index=False).shape == (100, 2)
    assert imported(tmp_path, text.replace("\n50,", "\n51,")).shape == (100, 2)


def test_row_numbers_in_several_columns(tmp_path):
    text = ",,a,b\n0,0,1.5,2.25\n0,1,3,4\n"
    with pytest.raises(SpecError, match="its first columns have no names"):
        imported(tmp_path, text)
    np.testing.assert_array_equal(imported(tmp_path, text, drop=[""]), A)


def test_row_names(tmp_path):
    for name, text in (("a.tsv", "\tg1\tg2\ncell-a\t1.5\t2.25\ncell-b\t3\t4\n"), ("a.csv", 'a b\n"x" 1.5 2.25\n"y" 3 4\n')):
        with pytest.warns(ImportNote, match="holds the rows' names and is left out"):
            np.testing.assert_array_equal(imported(tmp_path, text, name), A)
    with pytest.raises(SpecError, match="'17' is not the number of this row"):
        imported(tmp_path, ",a\n17,1\n4,2\n")
    for text in ("a,b\n1,2,\n3,4,\n", "a,b\n1,2,3\n2,4,5\n"):
        with pytest.raises(InputError, match="line 2: every line must have 2 cells like the first; this one has 3"):
            imported(tmp_path, text)
    np.testing.assert_array_equal(imported(tmp_path, "t,x\ta\tb\nq,r\t1.5\t2.25\ns\t3\t4\n", "b.tsv", columns=["a", "b"]), A)


@pytest.mark.parametrize("quote", ['"', "'"])
def test_quotations_over_the_ends_of_pieces(tmp_path, monkeypatch, quote):
    monkeypatch.setattr("dlscale.storage.importers.delimited.PIECE_BYTES", 700)
    notes = [f"{'x' * (i % 97)}\n{quote * 2}{i},\r\n7,8\n" for i in range(300)]
    text = "t,a,b\n" + "".join(f"{quote}{note}{quote},{i},{quote}{2 * i}{quote}\n" for i, note in enumerate(notes))
    got = imported(tmp_path, text, columns=["a", "b"], quote=quote)
    np.testing.assert_array_equal(got, [[i, 2 * i] for i in range(300)])


def test_marks_inside_cells_are_letters(tmp_path, monkeypatch):
    monkeypatch.setattr("dlscale.storage.importers.delimited.PIECE_BYTES", 100)
    text = "t,a\n" + "".join(f'{i}" pipe,{i}\n' if i % 3 else f'"of\n5"" pipe",{i}\n' for i in range(200))
    np.testing.assert_array_equal(imported(tmp_path, text, columns=["a"])[:, 0], np.arange(200))


@settings(max_examples=100 * RUNS, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(["9007199254740993", "1"], None, {})
@given(
    st.lists(
        st.text("01239.eEdD+-, _naif()x\t", max_size=8) | st.floats().map(repr) | st.integers().map(str), min_size=1, max_size=4
    ),
    st.sampled_from([None, "f4", "u1", "i8"]),
    st.sampled_from([{}, {"decimal": ","}, {"fill": 7}]),
)
def test_arrow_says_what_the_reading_of_cells_says(tmp_path, cells, dtype, options):
    text = "a;b\n" + "".join(f"{cell};1\n" for cell in cells)

    def answer():
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            try:
                found = imported(tmp_path, text, dtype=dtype, delimiter=";", **options)
            except InputError as error:
                found = np.array(str(error))
        return found, [str(note.message) for note in notes]

    found, notes = answer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dlscale.storage.importers.delimited._Reader._parsed", lambda *_: None)
        again, notes_again = answer()
    np.testing.assert_array_equal(found, again)
    assert notes == notes_again


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.text('ab", \n\r;\t', max_size=6), min_size=2, max_size=2), min_size=1, max_size=12),
    st.integers(1, 40),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_pieces_hold_whole_records(cells, size, line_end):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(cells)
    raw = text.getvalue().replace("\r", "").replace("\n", line_end).encode()
    pieces = list(record_pieces(io.BytesIO(raw), size, source="a", quote=b'"'))
    records = [record for piece in pieces for record in csv.reader(io.StringIO(piece.text.decode(), newline="\n"))]
    assert records == [[cell.replace("\r", "") for cell in row] for row in cells]
    assert all(piece.line == 1 + sum(before.text.count(b"\n") for before in pieces[:k]) for k, piece in enumerate(pieces))


@pytest.mark.parametrize("options", [{}, {"drop": ["x7"]}, {"columns": ["x9000", "x2"]}])
@pytest.mark.parametrize("content", ["numbers", "words", "quotes"])
def test_wide_tables(tmp_path, options, content):
    n = 9001
    rows = np.arange(2.0 * n).reshape(2, n)
    cells = [[str(x) for x in row] for row in rows]
    cells[1][7] = {"numbers": "1e3", "words": "word", "quotes": '"1,000"'}[content]
    rows[1, 7] = 1000
    text = ",".join(f"x{j}" for j in range(n)) + "\n" + "\n\n".join(map(",".join, cells))
    if content == "words" and not options:
        with pytest.raises(InputError, match=r"line 4, column 8 \('x7'\): 'word' is not"):
            imported(tmp_path, text)
        return
    expected = rows[:, [9000, 2]] if "columns" in options else np.delete(rows, 7, axis=1) if options else rows
    np.testing.assert_array_equal(imported(tmp_path, text, **options), expected)
    with pytest.raises(InputError, match=f"line 5: every line must have {n} cells like the first; this one has 3"):
        imported(tmp_path, text + "\n1,2,3", **options)


def test_options_in_a_job_file():
    def load(**options):
        return load_spec({"kind": "svd", "input": {"matrix": {"import": "a.csv", **options}}, "params": {"n_components": 2}})

    given = {"header": True, "decimal": ",", "fill": 0, "booleans": ["no", "yes"], "drop": ["r"], "index": False}
    assert load(**given).input.matrix.read_options() == ReadOptions(**given).model_dump()
    for options, message in (
        ({"missing": ["x"]}, r"input\.matrix: missing says which cells are filled; set fill"),
        ({"delimiter": "xx"}, r"input\.matrix\.delimiter: got 'xx' \(text\); allowed: a character"),
        ({"headr": True}, r"input\.matrix\.headr: unknown key; did you mean header\?"),
    ):
        with pytest.raises(SpecError, match=message):
            load(**options)


def test_options_on_the_command_line(tmp_path):
    (tmp_path / "a.csv").write_text("# x\nr;a;b;c\n7;1.234,5;no;?\n8;2;yes;4\n")
    options = "--header yes --delimiter ; --decimal , --thousands . --comment # --drop r --booleans no,yes --fill -1 --missing ?"
    result = CliRunner().invoke(commands, ["import", str(tmp_path / "a.csv"), str(tmp_path / "y.zarr"), *options.split()])
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "y.zarr", mode="r")[...], [[1234.5, 0, -1], [2, 1, 4]])
    (tmp_path / "b.csv").write_text(",a\n0,5\n1,6\n")
    with pytest.warns(ImportNote):
        result = CliRunner().invoke(commands, ["import", str(tmp_path / "b.csv"), str(tmp_path / "z.zarr")])
    assert "holds the rows' numbers and is left out" in " ".join(result.output.split())
