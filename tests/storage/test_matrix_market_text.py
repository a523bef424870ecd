"""Matrix Market as it is written by Fortran, damaged by disks, or wrong: read exactly, or refused by its line."""

from __future__ import annotations

import os
from decimal import Decimal

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from dlscale.errors import InputError
from dlscale.storage.importers import import_matrix
from dlscale.storage.importers.market_text import Line, entries_by_lines, mixed_entries, plain_entries


def imported(tmp_path, head, body, **options):
    text = f"%%MatrixMarket matrix {head}\n{body}"
    (tmp_path / "a.mtx").write_bytes(text.encode("latin-1"))
    return zarr.open_array(import_matrix(tmp_path / "a.mtx", tmp_path / "y.zarr", overwrite=True, **options), mode="r")[...]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.5D+03", 1500),
        ("2.0d-01", 0.2),
        ("+5.5E+00", 5.5),
        ("-.5", -0.5),
        ("+7.", 7),
        ("1e-400", 0),
        ("0001", 1),
        ("NaN", np.nan),
        ("-Infinity", -np.inf),
        ("+1.d2", 100),
    ],
)
@pytest.mark.filterwarnings("ignore:.* not finite:dlscale.errors.ImportNote")
def test_numbers_of_other_writers(tmp_path, text, value):
    np.testing.assert_array_equal(imported(tmp_path, "array real general", f"2 1\n{text}\n3\n"), [[value], [3]])
    body = f"% c\n\n2 2 2\n  1\t1  {text}  \r\n\n% between\n2 2 +3"
    np.testing.assert_array_equal(imported(tmp_path, "coordinate real general", body), [[value, 0], [0, 3]])


DAMAGED = [
    "2.96x640299E-1",
    "4.5E?12",
    "1.5\0\0",
    "2;9",
    "2,5",
    "1.5-3",
    "1e",
    "1e+",
    "1.2.3",
    "--1",
    "1-",
    "1e5e5",
    "1e5.0",
    ".",
    "x",
]
DAMAGED += [".", "x", "1 2", "0x10", "1_0", "1e400", "1f", "+", "e5", "\N{SUPERSCRIPT TWO}"]


@pytest.mark.parametrize("word", DAMAGED)
@pytest.mark.parametrize("n", [2, 5000])
def test_what_is_not_a_number_is_refused_by_its_line(tmp_path, word, n):
    with pytest.raises(InputError, match=rf"a\.mtx, line {n + 2}: "):
        imported(tmp_path, "array real general", f"{n} 1\n" + "1.25\n" * (n - 1) + word + "\n")
    with pytest.raises(InputError, match=rf"a\.mtx, line {n + 2}: "):
        imported(tmp_path, "coordinate real general", f"2 2 {n}\n" + "1 1 1.25\n" * (n - 1) + f"2 2 {word}\n")
    assert os.listdir(tmp_path) == ["a.mtx"]


@pytest.mark.parametrize(
    ("head", "line"),
    [
        ("coordinate real", "1 1"),
        ("coordinate real", "1.0 1 1"),
        ("coordinate real", "1 +1 1"),
        ("coordinate real", "-1 1 1"),
        ("coordinate real", "1 .1 1"),
        ("coordinate real", "0 1 1"),
        ("coordinate real", "1 3 1"),
        ("coordinate real", "1 " + "9" * 5000 + " 1"),
        ("coordinate integer", "1 1 2.9"),
        ("coordinate integer", "1 1 1e5"),
        ("coordinate integer", "1 1 9223372036854775808"),
        ("coordinate unsigned-integer", "1 1 -1"),
        ("coordinate unsigned-integer", "1 1 18446744073709551616"),
        ("coordinate pattern", "1 1 7"),
        ("coordinate complex", "1 1 7"),
        ("coordinate complex", "1 1 7 8 9"),
    ],
)
def test_lines_that_do_not_fit_the_header(tmp_path, head, line):
    with pytest.raises(InputError, match=r"a\.mtx, line 3: "):
        imported(tmp_path, f"{head} general", f"2 2 1\n{line}\n")


@pytest.mark.parametrize(
    "head", ["array pattern general", "coordinate pattern skew-symmetric", "coordinate unsigned-integer skew-symmetric"]
)
def test_kinds_that_contradict_themselves(tmp_path, head):
    with pytest.raises(InputError, match="is not a kind of Matrix Market file"):
        imported(tmp_path, head, "2 2 1\n2 1\n")


@pytest.mark.parametrize(
    ("symmetry", "field", "body", "message"),
    [
        ("symmetric", "real", "2 1 5\n1 2 5\n", "both sides of the diagonal"),
        ("hermitian", "complex", "2 1 5 1\n1 2 5 -1\n", "both sides of the diagonal"),
        ("skew-symmetric", "real", "1 1 5\n2 1 1\n", r"entry 1 of the diagonal is 5\.0"),
        ("hermitian", "complex", "1 1 5 0\n2 2 1 3\n", "entry 2 of the diagonal is"),
    ],
)
def test_symmetric_files_store_one_triangle(tmp_path, symmetry, field, body, message):
    with pytest.raises(InputError, match=message):
        imported(tmp_path, f"coordinate {field} {symmetry}", "2 2 2\n" + body)
    upper = imported(tmp_path, "coordinate real symmetric", "2 2 2\n1 2 5\n1 1 3\n")
    np.testing.assert_array_equal(upper, [[3, 5], [5, 0]])


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", [np.uint64, np.int64])
def test_integers_of_64_bits(tmp_path, dtype, sparse):
    A = np.array([[1, 0], [np.iinfo(dtype).max, np.iinfo(dtype).min]], dtype)
    scipy.io.mmwrite(tmp_path / "a.mtx", scipy.sparse.coo_array(A) if sparse else A)
    got = zarr.open_array(import_matrix(tmp_path / "a.mtx", tmp_path / "y.zarr"), mode="r")
    assert got.dtype == A.dtype
    np.testing.assert_array_equal(got[...], A)


@pytest.mark.filterwarnings("ignore:.* not finite:dlscale.errors.ImportNote")
def test_sums_of_entries_given_twice(tmp_path):
    most = 2**63 - 1
    body = f"2 2 4\n1 1 {most}\n2 2 {-most}\n1 1 1\n1 1 -5\n"
    np.testing.assert_array_equal(imported(tmp_path, "coordinate integer general", body), [[most - 4, 0], [0, -most]])
    with pytest.raises(InputError, match="row 1, column 1 add up to 9223372036854775808, which int64 does not hold"):
        imported(tmp_path, "coordinate integer general", f"2 2 3\n1 1 {most}\n1 1 1\n2 1 4\n")
    assert imported(tmp_path, "coordinate integer general", f"2 2 3\n1 1 {most}\n1 1 1\n2 1 4\n", dtype="f8")[0, 0] == 2.0**63
    with pytest.raises(InputError, match="row 2, column 1 add up to 18446744073709551616, which uint64"):
        imported(tmp_path, "coordinate unsigned-integer general", f"2 2 2\n2 1 {2**63}\n2 1 {2**63}\n")
    with pytest.raises(InputError, match="add up to inf, which float64"):
        imported(tmp_path, "coordinate real general", "2 2 2\n2 1 1e308\n2 1 1e308\n")
    body = "2 2 5\n1 1 inf\n1 1 1\n2 2 -1e308\n2 1 nan\n"
    np.testing.assert_array_equal(imported(tmp_path, "coordinate real general", body + "2 2 1\n"), [[np.inf, 0], [np.nan, -1e308]])
    with pytest.raises(InputError, match="row 2, column 2 add up to -inf, which float64 does not hold"):
        imported(tmp_path, "coordinate real general", body + "2 2 -1e308\n")


def test_counts_of_pattern_files(tmp_path):
    body = "2 2 300\n" + "1 1\n" * 255 + "2 1\n" * 45
    np.testing.assert_array_equal(imported(tmp_path, "coordinate pattern general", body), [[255, 0], [45, 0]])
    body = "2 2 300\n" + "1 1\n" * 300
    with pytest.raises(InputError, match=r"row 1, column 1 add up to 300, which uint8 does not hold\. Ask for dtype f8"):
        imported(tmp_path, "coordinate pattern general", body)
    assert imported(tmp_path, "coordinate pattern general", body, dtype="f4")[0, 0] == 300
    assert imported(tmp_path, "coordinate pattern general", body, dtype="i2")[0, 0] == 300


@pytest.mark.parametrize("sizes", ["9" * 5000 + " 5", "300000 300000", "1 1000000000000"])
def test_sizes_that_the_file_cannot_hold(tmp_path, sizes):
    with pytest.raises(InputError, match=r"line of sizes|promises \d+ entries and has only \d+ bytes"):
        imported(tmp_path, "array real general", sizes + "\n1\n")


words = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    # Between two neighbours, below the smallest and above the largest number.
    st.tuples(st.integers(-(10**40), 10**40), st.integers(-370, 300)).map(lambda pair: f"{pair[0]}e{pair[1]}"),
    st.floats(1, 2).map(lambda x: str((Decimal(x) + Decimal(np.nextafter(x, 2))) / 2)),
    st.sampled_from(DAMAGED[:-1]),
    st.sampled_from(["nan", "inf", "-Infinity", "nan(1)", "0x1p3", "1\r", "\ufeff1", "1\x0c", "1 %", "+5", "+-5", "1d2", "-0"]),
    st.text("0123456789+-.eEdDx \t\r", min_size=1, max_size=8),
)


@settings(max_examples=400, deadline=None)
@given(
    lines=st.lists(words, min_size=1, max_size=6),
    ends=st.sampled_from(["\n", "\r\n", " \n", "\n\n", "\n \t\n  "]),
    begin=st.sampled_from(["", "3 4 ", "3\t 4 ", " 3  4\t", "0 4 ", "3 10 ", "-3 4 ", "0x3 4 "]),
    field=st.sampled_from(["real", "integer", "unsigned-integer", "complex", "pattern"]),
)
def test_what_is_plain_is_what_the_lines_say(lines, ends, begin, field):
    kind = Line(bool(begin) or field == "pattern", field, 9, 9)
    piece = "".join(f"{begin}{' '.join([word] * kind.n_values)}{ends}" for word in lines).encode() + b"\n"
    found = plain_entries(piece, kind)
    if found is not None:
        expected = entries_by_lines(piece, kind, line=1, source="a")
        assert found.n_lines == expected.n_lines
        assert found.values.dtype == expected.values.dtype
        assert found.values.tobytes() == expected.values.tobytes()
        if kind.positions:
            np.testing.assert_array_equal(found.i, expected.i)
            np.testing.assert_array_equal(found.j, expected.j)


@pytest.mark.parametrize("positions", [False, True])
def test_a_few_lines_that_are_not_plain(positions):
    lines = [f"{'3 4 ' * positions}{k / 7!r}" for k in range(9000)]
    lines[1] = lines[1].rpartition(" ")[0] + " nan"
    lines[4500] = "% two thirds"
    lines[8000] = lines[8000].rpartition(" ")[0] + " -inf"
    piece, kind = "".join(f"{line}\n" for line in lines).encode(), Line(positions, "real", 9, 9)
    assert plain_entries(piece, kind) is None
    found, expected = (read(piece, kind, line=7, source="a") for read in (mixed_entries, entries_by_lines))
    assert found.n_lines == expected.n_lines == 9000
    for got, wanted in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(got, wanted)
    wrong = "".join(f"{line}\n" for line in [*lines[:7000], "1 2 3 4", *lines[7000:]]).encode()
    with pytest.raises(InputError, match="a, line 7007: a line must have"):
        mixed_entries(wrong, kind, line=7, source="a")


@pytest.mark.parametrize("field", ["real", "integer", "complex", "pattern"])
@pytest.mark.parametrize(("blank", "end"), [(" ", "\n"), ("  ", "\n"), ("\t", "\n"), (" ", " \n   "), (" ", "\r\n"), (" ", "\n\n")])
def test_what_other_programs_write_is_plain(field, blank, end):
    """It is read a hundred times as fast as line by line."""
    words = {"real": ["1.5D+03"], "integer": ["7"], "complex": ["1e3", "-.5"], "pattern": []}[field]
    found = plain_entries((blank.join(["3", "4", *words]) + end).encode() * 2 + b"\n", Line(True, field, 9, 9))
    assert found is not None
    assert found.i.tolist() == [2, 2]
    assert found.j.tolist() == [3, 3]
    assert found.values.tolist() == [{"real": 1500.0, "integer": 7, "complex": 1000 - 0.5j, "pattern": 1}[field]] * 2
