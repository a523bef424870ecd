"""A notebook in its own kernel: a bar, a table of what was found, the report; arrays of a program as inputs of its jobs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dask.array as da
import nbclient
import nbformat
import numpy as np
import pytest
import zarr
from drawing import with_pages
from gate import PATIENCE_SECONDS
from helpers import gaussian

import dlscale
from dlscale.errors import InexactNote, InputError, SpecError

A = gaussian(60, 5)
SVD = {"kind": "svd", "params": {"n_components": 2}, "cluster": "threads"}

CELLS = [
    "import numpy as np, dlscale",
    "A = np.random.default_rng(0).standard_normal((300, 6))",
    "result = dlscale.run({'kind': 'pca', 'input': {'matrix': A}, 'params': {'n_components': 2}, 'cluster': 'threads'})",
    "result",
    "result.report()",
    "[job.state for job in dlscale.jobs()]",
]


def outputs(cell: Any, kind: str = "text/html") -> str:
    return "\n".join(output.get("data", {}).get(kind, "") for output in cell.outputs)


@pytest.mark.filterwarnings("ignore")  # of the libraries between a notebook and its kernel
def test_a_notebook_shows_the_bar_the_answer_and_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [str(Path(dlscale.__file__).parents[1]), with_pages(os.environ)["PYTHONPATH"]]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    patience = {"timeout": PATIENCE_SECONDS, "startup_timeout": PATIENCE_SECONDS}
    client = nbclient.NotebookClient(notebook, **patience, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    run, result, report, jobs = notebook.cells[2:]
    assert "<progress" in outputs(run)
    assert "100%" in outputs(run)
    for said in ("succeeded after", "Variance explained", "check passed"):
        assert said in outputs(result)
    assert "certificate passed" in outputs(result, "text/plain")
    assert "<iframe" in outputs(report)
    assert "Principal component analysis" in outputs(report)
    assert outputs(jobs, "text/plain") == "['succeeded']"


HELD = [A, A.tolist(), da.from_array(A, chunks=(20, 5)), np.asfortranarray(A)]


@pytest.mark.parametrize("held", HELD, ids=("C order", "list", "Dask", "Fortran order"))
def test_arrays_are_inputs(held: Any, tmp_path: Path) -> None:
    result = dlscale.run({**SVD, "input": {"matrix": held}}, workspace=tmp_path / "w")
    np.testing.assert_allclose(result.open()["s"][:], np.linalg.svd(A, compute_uv=False)[:2], rtol=1e-12)
    again = dlscale.run({**SVD, "input": {"matrix": A}}, workspace=tmp_path / "w")
    assert again.plan["inputs"]["matrix"]["uri"] == result.plan["inputs"]["matrix"]["uri"]
    assert len(list((tmp_path / "w" / "imports").iterdir())) == 1
    assert [job.id for job in dlscale.jobs(tmp_path / "w", limit=1)] == [again.job]
    with pytest.raises(SpecError, match="has succeeded"):
        again.resume()


def test_a_stored_array_is_read_where_it_is(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=A.shape, chunks=(20, 5), dtype="f8")
    array[:] = A
    result = dlscale.run({**SVD, "input": {"matrix": array}}, workspace=tmp_path / "w")
    assert result.plan["inputs"]["matrix"]["uri"] == str(tmp_path / "a.zarr")
    assert not (tmp_path / "w" / "imports").exists()


def test_vectors_stay_vectors(tmp_path: Path) -> None:
    S, b = A.T @ A, np.arange(5.0)
    result = dlscale.run({"kind": "solve", "input": {"matrix": S, "rhs": b}, "cluster": "threads"}, workspace=tmp_path / "w")
    np.testing.assert_allclose(result.open()["x"][:], np.linalg.solve(S, b), rtol=1e-10)


def test_what_is_no_matrix_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    for wrong, words in ((np.zeros((2, 2, 2)), "two"), ([["a", "b"]], "numbers"), ([[1.0], [1.0, 2.0]], "one length")):
        with pytest.raises((InputError, SpecError), match=words):
            dlscale.run({**SVD, "input": {"matrix": wrong}}, workspace=tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_rounded_integers_are_told(tmp_path: Path) -> None:
    with pytest.warns(InexactNote):
        dlscale.run({**SVD, "input": {"matrix": np.full((4, 3), 2**53 + 1) + np.eye(4, 3, dtype=int)}}, workspace=tmp_path / "w")
