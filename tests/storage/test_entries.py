"""Sparse matrices that are given entry by entry: SVMlight's text, and tables of row, column and value."""

from __future__ import annotations

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import scipy.sparse
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import dump_svmlight_file, load_svmlight_file

import dlscale
from dlscale.batch.spec import load_spec
from dlscale.errors import InputError, SpecError
from dlscale.storage.importers import import_matrix
from dlscale.storage.importers.entries import sorting, svmlight, triplets
from dlscale.storage.matrices import open_matrix

pytestmark = pytest.mark.filterwarnings("ignore::dlscale.errors.ImportNote")


def imported(path, **options):
    return open_matrix(import_matrix(path, path.parent / "y.zarr", overwrite=True, **options))


def dense(matrix):
    return matrix.read(0, matrix.shape[0])


@pytest.mark.parametrize("zero_based", [True, False])
@pytest.mark.parametrize("name", ["a.svmlight", "a.libsvm.gz", "a.svm"])
def test_svmlight_as_scikit_learn_writes_it(tmp_path, monkeypatch, zero_based, name):
    monkeypatch.setattr(svmlight, "PIECE_BYTES", 100)
    A = scipy.sparse.random_array((60, 9), density=0.2, rng=np.random.default_rng(0)).toarray().round(6)
    A[:, 0], y = 1, np.arange(60) % 3 - 1.5
    X = scipy.sparse.csr_array(A)
    dump_svmlight_file(X, y, str(tmp_path / "a"), zero_based=zero_based, comment="by hand\nwith_care", query_id=np.arange(60))
    text = (tmp_path / "a").read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    matrix = imported(tmp_path / name, n_columns=12)
    assert (matrix.shape, matrix.describe()["sparse"]) == ((60, 12), "CSR")
    np.testing.assert_array_equal(dense(matrix)[:, :9], X.toarray())
    np.testing.assert_array_equal(zarr.open_group(matrix.uri, mode="r")["targets"][:], y)
    np.testing.assert_array_equal(dense(imported(tmp_path / name, dataset="targets"))[:, 0], y)
    whole = imported(tmp_path / name, sparse=False)
    assert "sparse" not in whole.describe()
    np.testing.assert_array_equal(dense(whole), X.toarray())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.floats(-9, 9), st.dictionaries(st.integers(0, 20), st.floats(allow_nan=False), max_size=5)),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["", " # 7:1 of_it", "  ", "\r"]),
)
def test_svmlight_of_any_entries(tmp_path, rows, end):
    lines = [" ".join([repr(y), *(f"{j}:{value!r}" for j, value in sorted(row.items()))]) + end for y, row in rows]
    (tmp_path / "a.svm").write_text("# made\n\n" + "\n".join(lines), newline="")
    matrix = imported(tmp_path / "a.svm")
    expected, y = load_svmlight_file(str(tmp_path / "a.svm"))
    if any(row for _, row in rows):
        np.testing.assert_array_equal(dense(matrix), expected.toarray())
    np.testing.assert_array_equal(zarr.open_group(matrix.uri, mode="r")["targets"][:], y)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 1:2\n1 1:2 3\n", "line 2: '3' is no entry"),
        ("1 1:2:3 4\n", "line 1: '1:2:3' is no entry"),
        ("x 1:2\n", "line 1: begins with 'x', and a label is one number"),
        ("1,2 1:2\n", "Rows with several labels are not read"),
        ("1 1:1_0\n", "'1:1_0' is no entry"),
        ("1 -1:2\n", "'-1:2' is no entry"),
        ("1 99999999999999999999:2\n", "is no entry"),
        ("1 9223372036854775807:2\n", "is no entry"),
        ("1 1:0x1p3\n", "is no entry"),
        ("inf qid:a 1:inf\n1 qid:b 1:2 2:-1e400\n", "line 2: '2:-1e400' is infinite in double precision; scale the numbers"),
        ("1 1:2\n1e999 1:2\n", "line 2: '1e999' is infinite in double precision"),
        ("1 qid:7 2:1 qid:7\n", "'qid:7' is no entry"),
        ("# nothing\n", "holds no rows"),
    ],
)
def test_svmlight_that_is_refused(tmp_path, text, words):
    (tmp_path / "a.svm").write_text(text)
    with pytest.raises(InputError, match=words):
        imported(tmp_path / "a.svm")
    assert not (tmp_path / "y.zarr").exists()


def test_svmlight_adds_up_what_stands_twice_and_knows_its_width(tmp_path):
    (tmp_path / "a.svm").write_text("1 3:1 0:2 3:5\n")
    np.testing.assert_array_equal(dense(imported(tmp_path / "a.svm")), [[2, 0, 0, 6]])
    with pytest.raises(InputError, match=r"an entry in column 3 .* n_columns is 2"):
        imported(tmp_path / "a.svm", n_columns=2)
    with pytest.raises(SpecError, match="dataset: got 'X'"):
        imported(tmp_path / "a.svm", dataset="X")


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("suffix", ["svm", "csv", "parquet"])
def test_sums_out_of_range_are_refused_by_their_place(tmp_path, suffix, sparse):
    """1e308 + 1e308 at row 1, column 2; an infinity that the file holds is kept."""
    path, options = tmp_path / f"a.{suffix}", {"sparse": sparse}
    entries = [(0, 2, 1e308), (0, 1, np.inf), (0, 1, 1.0), (1, 2, 1e308), (1, 0, 1.0), (1, 2, 1e308)]
    if suffix == "svm":
        path.write_text("".join(f"1 {' '.join(f'{j}:{x}' for i, j, x in entries if i == row)}\n" for row in range(2)))
    else:
        table = pa.table(dict(zip("ijx", map(list, zip(*entries, strict=True)), strict=True)))
        (pyarrow.parquet.write_table if suffix == "parquet" else pyarrow.csv.write_csv)(table, path)
        options["triplets"] = ["i", "j", "x"]
    with pytest.raises(InputError, match=r"row 1, column 2 .* add up to inf, which float64 does not hold; correct"):
        imported(path, **options)
    assert not (tmp_path / "y.zarr").exists()


def test_a_job_learns_from_svmlight(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((80, 4))
    dump_svmlight_file(X, X @ [1.0, 2.0, 0.0, -1.0], str(tmp_path / "a.svmlight"))
    source = f"{{import: '{tmp_path}/a.svmlight'"
    spec = f"kind: lstsq\ninput: {{matrix: {source}, sparse: false}}, rhs: {source}, dataset: targets}}}}\ncluster: threads\n"
    assert load_spec(spec).input.rhs.dataset == "targets"
    result = dlscale.run(spec, workspace=tmp_path / "w")
    np.testing.assert_allclose(np.asarray(result.open()["x"][...]).ravel(), [1, 2, 0, -1], atol=1e-12)


NAMED = "user,item,stars\nAnn,Dune,5\nBob,Emma,3.5\nAnn,Emma,1\nAnn,Dune,2\n"


def named(matrix) -> tuple:
    return tuple(None if names is None else list(names[:]) for names in matrix.labels[:2])


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_triplets_with_names(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        users, items = pa.array(["Ann", "Bob", "Ann", "Ann"]).dictionary_encode(), ["Dune", "Emma", "Emma", "Dune"]
        pyarrow.parquet.write_table(pa.table({"user": users, "item": items, "stars": [5, 3.5, 1, 2]}), path)
    else:
        path.write_text(NAMED.replace(",", "\t") if suffix == "tsv" else NAMED)
    matrix = imported(path, triplets=["user", "item", "stars"])
    assert (matrix.describe()["sparse"], matrix.nnz) == ("CSR", 3)
    np.testing.assert_array_equal(dense(matrix), [[7, 1], [0, 3.5]])
    assert named(matrix) == (["Ann", "Bob"], ["Dune", "Emma"])
    np.testing.assert_array_equal(dense(imported(path, triplets=["item", "user"])), [[2, 0], [1, 1]])
    whole = imported(path, triplets=["user", "item", "stars"], sparse=False)
    np.testing.assert_array_equal(dense(whole), [[7, 1], [0, 3.5]])
    assert named(whole) == (["Ann", "Bob"], ["Dune", "Emma"])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9), st.integers(-4, 4)), min_size=1, max_size=40),
    st.sampled_from(["csv", "parquet"]),
    st.sampled_from([None, "names"]),
    st.sampled_from([None, False]),
)
def test_triplets_in_any_order(tmp_path, rows, suffix, keys, sparse):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "STRIP_ENTRIES", 4)
        patch.setattr(sorting, "STRIP_ROWS", 5)
        patch.setattr(sorting, "_PIECE", 7)
        patch.setattr(sorting, "_N_BINS", 4)
        patch.setattr(triplets, "PIECE_BYTES", 40)
        path = tmp_path / f"a.{suffix}"
        if suffix == "csv":
            path.write_text("to,from,n\n" + "".join(f"{j},{i},{value}\n" for i, j, value in rows))
        else:
            i, j, value = zip(*rows, strict=True)
            pyarrow.parquet.write_table(pa.table({"to": j, "from": i, "n": value}), path)
        matrix = imported(path, triplets=["from", "to", "n"], keys=keys, sparse=sparse)
    places = [(list(dict.fromkeys(row[k] for row in rows)) if keys else range(max(row[k] for row in rows) + 1)) for k in (0, 1)]
    expected = np.zeros(tuple(map(len, places)))
    for i, j, value in rows:
        expected[places[0].index(i), places[1].index(j)] += value
    np.testing.assert_array_equal(dense(matrix), expected)
    assert named(matrix) == (tuple([str(key) for key in axis] for axis in places) if keys else (None, None))


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("a,b,v\n1,2,x\n", {}, r"line 2, column 3 \('v'\): 'x' is no number"),
        ("a,b,v\n1,2,\n", {}, r"line 2, column 3 \('v'\): the cell is empty"),
        ("a,b,v\n1,2,1e999\n", {}, "'1e999' is no number"),
        ("a,b,v\n-1,2,3\n", {}, "'a' is -1; numbers count from 0"),
        ("a,b,v\n1,2,3\n1,2\n", {}, "line 3: every line must have 3 cells"),
        ("a,b,v\n" + "1,2,3\n" * 1000 + "1,x,3\n", {}, "line 1002: 'x' of 'b' is no whole number, as others are; set keys: names"),
        ("a,b,v\n1,x,3\n", {"keys": "numbers"}, "'x' of 'b' is no whole number"),
        ("a,b,v\nx,y,3\n,y,3\n", {}, "'a' is empty"),
        ("a,b,v\n99999999999,2,3\n", {}, "if these are names, set keys: names"),
        ("a,b,v\n1,2,3\n", {"triplets": ["a", "c", "v"]}, "no column 'c'; its columns are: a, b, v"),
        ("a,b,v\n1,2,3\n", {"triplets": ["a", "a", "v"]}, "must be different columns"),
        ("a,b,v\n1,2,3\n", {"numeric": True}, "triplets says which columns are read; leave numeric out"),
        ("a,b,v\n1,2,3\n", {"fill": "mean"}, "with a number only"),
        ("a,b,v\n1,2,3\n", {"triplets": None, "keys": "names"}, "set triplets to the columns"),
        ("a,b,v\n", {}, "no entries"),
    ],
)
def test_triplets_that_are_refused(tmp_path, text, options, words):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises((InputError, SpecError), match=words):
        imported(tmp_path / "a.csv", **{"triplets": ["a", "b", "v"]} | options)
    assert not (tmp_path / "y.zarr").exists()


def test_triplets_of_parquet_that_are_refused(tmp_path):
    table = {"a": [1, 2], "b": ["x", None], "v": [1.0, None], "w": [1.5, 2.5]}
    pyarrow.parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    for names, words in [
        ("bav", "'b' has missing values, the first in row 1"),
        ("aav", "different columns"),
        ("wa", "'w' holds double"),
        ("aw", "'w' holds double"),
        ("azv", "no column 'z'"),
    ]:
        with pytest.raises((InputError, SpecError), match=words):
            imported(tmp_path / "a.parquet", triplets=list(names))


def test_a_job_factors_a_table_of_ratings(tmp_path):
    (tmp_path / "a.csv").write_text(NAMED)
    source = f"{{import: '{tmp_path}/a.csv', triplets: [user, item, stars]}}"
    spec = f"kind: svd\ninput: {{matrix: {source}}}\nparams: {{n_components: 1}}\ncluster: threads\n"
    group = zarr.open_group(dlscale.run(spec, workspace=tmp_path / "w").result, mode="r")
    assert [list(group[axis][:]) for axis in ("row", "column")] == [["Ann", "Bob"], ["Dune", "Emma"]]
    np.testing.assert_allclose(group["s"][:], np.linalg.svd([[7, 1], [0, 3.5]])[1][:1])
