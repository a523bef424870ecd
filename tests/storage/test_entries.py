"""Sparse matrices that are given entry by entry: SVMlight's text, and tables of row, column and value."""

from __future__ import annotations

import gzip

import numpy as np
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
from dlscale.storage.importers.entries import svmlight
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


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_a_job_learns_from_svmlight(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((80, 4))
    dump_svmlight_file(X, X @ [1.0, 2.0, 0.0, -1.0], str(tmp_path / "a.svmlight"))
    source = f"{{import: '{tmp_path}/a.svmlight'"
    spec = f"kind: lstsq\ninput: {{matrix: {source}, sparse: false}}, rhs: {source}, dataset: targets}}}}\ncluster: threads\n"
    assert load_spec(spec).input.rhs.dataset == "targets"
    result = dlscale.run(spec, workspace=tmp_path / "w")
    np.testing.assert_allclose(np.asarray(result.open()["x"][...]).ravel(), [1, 2, 0, -1], atol=1e-12)
