"""What is not finite is said by the import, and named by the jobs that refuse it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

import dlscale
from dlscale.errors import ImportNote, NonFiniteError
from dlscale.storage.exactness import NotFinite
from dlscale.storage.importers import import_matrix


def notes(folder: Path, text: str) -> list[str]:
    (folder / "a.csv").write_text(text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import_matrix(folder / "a.csv", folder / "a.zarr")
    return [str(each.message) for each in caught if each.category is ImportNote]


@pytest.mark.parametrize("cell", ["inf", "-Infinity", "NaN"])
def test_an_import_says_what_is_not_finite(tmp_path: Path, cell: str) -> None:
    (said,) = notes(tmp_path, f"height,width\n1,2\n3,{cell}\n")
    where = rf"{float(cell)} in row 1, column 1 ('width'), counted from 0; jobs refuse such matrices."
    assert said == f"{tmp_path}/a.csv holds an entry that is not finite, {where}"


def test_an_import_of_finite_numbers_says_nothing(tmp_path: Path) -> None:
    assert notes(tmp_path, "height,width\n1,2\n3,1e308\n") == []


ENTRIES = st.sampled_from([0.0, 1.0, np.inf, -np.inf, np.nan])


@given(st.lists(st.lists(ENTRIES, min_size=3, max_size=3), min_size=1, max_size=6), st.booleans(), st.booleans())
def test_the_first_of_them_is_told_and_all_are_counted(rows: list[list[float]], sparse: bool, by_rows: bool) -> None:
    A, seen = np.array(rows), NotFinite()
    for k, row in enumerate(A):
        block = row[None, :]
        seen.look(scipy.sparse.csr_array(block) if sparse else block, k, ["a", "b"], by_rows=by_rows)
    places = np.argwhere(~np.isfinite(A))
    assert seen.n == len(places)
    for said in seen.words("x"):
        i, j = places[0]
        row, column = (i, j) if by_rows else (j, i)
        called = f" ({'ab'[column]!r})" if column < 2 else ""
        assert f"{A[i, j]} in row {row}, column {column}{called}, counted from 0" in said
    assert bool(seen.words("x")) == bool(len(places))


@pytest.mark.parametrize("transforms", [[], [{"map": "log1p"}]])
def test_a_job_names_the_column(tmp_path: Path, transforms: list[dict[str, str]]) -> None:
    notes(tmp_path, "height,width,depth\n1,2,3\n4,inf,6\n7,8,1\n")
    inputs = {"matrix": str(tmp_path / "a.zarr"), "transforms": transforms}
    spec = {"kind": "svd", "input": inputs, "params": {"n_components": 1}, "cluster": "threads"}
    with pytest.raises(NonFiniteError, match=r"inf at row 1, column 1 \('width'\)\. Every entry"):
        dlscale.run(spec, workspace=tmp_path / "ws")
