"""A kind that is declared in one file and listed in the table is whole: jobs, schema, documentation, report, Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import column_norms
import numpy as np
import pytest
import yaml
import zarr
from helpers import gaussian

from dlscale.batch import run as jobs
from dlscale.batch.kinds import KINDS, MODULES
from dlscale.batch.spec import json_schema, load_spec
from dlscale.batch.workspace import Workspace
from dlscale.declaration.kind import run_here
from dlscale.errors import SpecError

ROOT = Path(__file__).parents[1]
KIND = column_norms.KIND


@pytest.fixture(autouse=True)
def _listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES, KIND.name, column_norms.__name__)


@pytest.fixture
def job(tmp_path: Path) -> dict[str, object]:
    path, A = tmp_path / "a.zarr", gaussian(700, 40)
    zarr.create_array(path, shape=A.shape, chunks=(100, 40), dtype="f8")[:] = A
    example = yaml.safe_load(KIND.example)
    return {**example, "input": {"matrix": str(path)}, "params": {"block_rows": 50}, "cluster": "threads"}


@pytest.mark.usefixtures("drawn_reports")
def test_it_runs_as_a_job_is_certified_and_has_a_report(job: dict[str, object], tmp_path: Path) -> None:
    result = jobs.run(job, workspace=tmp_path / "ws")
    assert result.certificate is not None
    assert result.certificate["passed"]
    np.testing.assert_allclose(np.asarray(result.open()["norms"]), np.linalg.norm(gaussian(700, 40), axis=0), rtol=1e-14)
    plan = json.loads((result.folder / "plan.json").read_text())
    assert (plan["kind"], plan["bytes_read"]) == ("column_norms", 700 * 40 * 8)
    page = (result.folder / "report.html").read_text()
    for words in (
        "Norms of columns of a.zarr, a matrix of 700 rows",
        "sums of squares, one read",
        "olumns hold what the rows do",
    ):
        assert words in page


def test_it_goes_on_to_the_same_bits_where_it_was_stopped(job: dict[str, object], tmp_path: Path) -> None:
    whole = np.asarray(jobs.run(job, workspace=tmp_path / "whole").open()["norms"])

    def fail(event: dict[str, Any]) -> None:
        if event["event"] == "pass_finished":
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        jobs.run(job, workspace=tmp_path / "ws", listener=fail)
    workspace = Workspace(tmp_path / "ws")
    stopped = workspace.find(None)
    resumed = jobs.resume(stopped, jobs.reopen(stopped, workspace))
    assert np.asarray(resumed.open()["norms"]).tobytes() == whole.tobytes()


def test_its_files_are_parsed_and_described(job: dict[str, object]) -> None:
    assert load_spec(yaml.safe_load(KIND.example)).kind == KIND.name
    assert "block_rows" in json_schema()["$defs"]["ColumnNormsParams"]["properties"]
    for faulty in ({"block_rows": 0}, {"blok_rows": 5}):
        with pytest.raises(SpecError, match=r"params\.(block_rows: got 0|blok_rows: unknown key; did you mean block_rows)"):
            load_spec({**job, "params": faulty})


def test_the_reference_of_the_job_file_has_it() -> None:
    program = (
        "from dlscale.batch import kinds; kinds.MODULES['column_norms'] = 'column_norms'; "
        "import job_file_reference as page; print(page.reference())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT / "docs",
        env={"PYTHONPATH": f"{ROOT}/tests:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert KIND.example in ran.stdout
    assert "## `column_norms`\n\nThe Euclidean norm of each column.\n\nArrays of the result: `norms` (n)." in ran.stdout


def test_each_line_of_the_table_is_loaded_alone_and_holds_what_it_names() -> None:
    assert {name: kind.name for name, kind in KINDS.items()} == {name: name for name in KINDS}
    program = (
        "import sys; from dlscale.batch.kinds import KINDS; from dlscale.batch import run; KINDS['matmul']; "
        "print([m for m in sys.modules if m.endswith('.kind') and 'linalg' in m])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "['dlscale.linalg.multiply.kind']"


def test_python_computes_it_too() -> None:
    A = gaussian(300, 7)
    norms = run_here(KIND, KIND.inputs({"matrix": A}), KIND.options()).arrays["norms"]
    np.testing.assert_allclose(norms, np.linalg.norm(A, axis=0), rtol=1e-14)
