"""Integers that double precision does not hold are told wherever they are rounded; others are not spoken of."""

from __future__ import annotations

import sys
import threading
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import dlscale
from dlscale.errors import ImportNote, InexactNote
from dlscale.storage.exactness import has_inexact
from dlscale.storage.importers import import_matrix
from dlscale.storage.matrices import open_matrix
from dlscale.storage.scaled import Scaled

#: Rounded, and just not.
ROUNDED, HELD = 2**53 + 1, 2**60 + 2**8


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6), st.booleans())
def test_what_double_precision_holds(values: list[int], shifted: bool) -> None:
    """As exact arithmetic says."""
    numbers = [value + 2**63 for value in values] if shifted else values
    block = np.array(numbers, np.uint64 if shifted else np.int64)
    assert has_inexact(block) == any(Fraction(float(number)) != number for number in numbers)


@pytest.mark.parametrize("value", [ROUNDED, HELD, -ROUNDED, 2**63 - 1, -(2**63), 0])
def test_every_kind_of_matrix_tells(value: int, tmp_path: Path) -> None:
    array = np.arange(12).reshape(4, 3)
    array[2, 1] = value
    stored = zarr.create_array(tmp_path / "a.zarr", shape=array.shape, chunks=(2, 3), dtype="i8", compressors=None)
    stored[:] = array
    lossy = int(np.float64(value)) != value
    for source in (array, da.from_array(array, chunks=(2, 3)), tmp_path / "a.zarr"):
        matrix = open_matrix(source)
        view = Scaled(matrix.T, 1)
        view.read(0, 1)
        assert (matrix.inexact(), view.inexact()) == (set(), set())
        view.read(1, 3)
        assert view.inexact() == matrix.inexact() == ({matrix.uri} if lossy else set())


def test_what_other_threads_learn_of_a_matrix_meanwhile_does_no_harm() -> None:
    """What is computed once, such as a property, becomes an attribute whenever a thread asks for it first."""
    A = open_matrix(np.ones((2, 2)))
    ended = threading.Event()

    def learn() -> None:
        while not ended.is_set():
            for number in range(50):
                setattr(A, f"property_{number}", number)
            for number in range(50):
                delattr(A, f"property_{number}")

    seconds = sys.getswitchinterval()
    learning = threading.Thread(target=learn)
    sys.setswitchinterval(1e-6)
    learning.start()
    try:
        for _ in range(500):
            assert A.inexact() == set()
    finally:
        ended.set()
        learning.join()
        sys.setswitchinterval(seconds)


@pytest.mark.usefixtures("jobs_on_shared_clusters", "drawn_reports")
@pytest.mark.parametrize("cluster", ["threads", {"workers": 2, "threads": 1}], ids=["threads", "local"])
@pytest.mark.parametrize(("kind", "params"), [("svd", {"n_components": 2, "block_rows": 50}), ("lu", {"panel": 16})])
def test_a_job_notes_it(kind: str, params: dict[str, Any], cluster: Any, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(1, 2**53, (100, 100))
    array[70, 1] = ROUNDED
    stored = zarr.create_array(tmp_path / "a.zarr", shape=array.shape, chunks=(25, 100), dtype="i8")
    stored[:] = array
    spec = {"kind": kind, "input": {"matrix": str(tmp_path / "a.zarr")}, "params": params, "cluster": cluster}
    done = dlscale.run(spec, workspace=tmp_path / "ws")
    notes = zarr.open_group(done.result, mode="r").attrs["dlscale"]["notes"]
    assert sum("integers beyond 2^53" in note for note in notes) == 1
    assert "integers beyond 2^53" in (done.folder / "report.html").read_text()


def test_functions_warn_and_imports_note_it(tmp_path: Path) -> None:
    array = np.eye(3, dtype=np.int64) * ROUNDED
    with pytest.warns(InexactNote, match="NumPy array holds integers beyond"):
        dlscale.svd(array)
    np.save(tmp_path / "a.npy", array)
    with pytest.warns(ImportNote, match="a.npy holds integers beyond"):
        import_matrix(str(tmp_path / "a.npy"), tmp_path / "a.zarr", dtype="f8")
    assert "integers beyond" in open_matrix(tmp_path / "a.zarr").notes[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import_matrix(str(tmp_path / "a.npy"), tmp_path / "b.zarr")
        dlscale.svd(np.eye(3, dtype=np.int64) * HELD)
    assert open_matrix(tmp_path / "b.zarr").stored_dtype == np.int64


@pytest.mark.parametrize("options", [{}, {"fill": 0.5}, {"fill": "mean"}, {"fill": 1}], ids=str)
@pytest.mark.parametrize("number", [ROUNDED, -ROUNDED, HELD])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_tables_tell_what_they_round(number: int, suffix: str, options: dict[str, Any], tmp_path: Path) -> None:
    path, gap = tmp_path / f"a{suffix}", None if options else 5
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pa.table({"a": [number, gap, 7], "b": [0.5, 1.0, 2.0]}), path)
    else:
        mark = "," if suffix == ".csv" else "\t"
        path.write_text(f"a{mark}b\n{number}{mark}0.5\n{gap or ''}{mark}1\n7{mark}2\n")
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        matrix = open_matrix(import_matrix(path, tmp_path / "a.zarr", **options))
    assert matrix.read(0, 3)[0, 0] == float(number)
    assert sum("integers beyond 2^53" in note for note in matrix.notes) == (number != HELD)
