"""Every ready job in jobs/ runs and is certified."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlscale.batch.kinds import KINDS
from dlscale.batch.run import run
from dlscale.batch.spec import load_spec

JOBS = sorted((Path(__file__).parents[1] / "jobs").glob("*.yaml"))

#: No worker processes, and fewer patches of photos: the same job in a second.
QUICK, FEWER_PATCHES = ("cluster=threads",), ("input.matrix.stride=8",)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.mark.usefixtures("drawn_reports")
@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_a_ready_job_runs(job: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(JOBS[0].parents[1])
    fewer = FEWER_PATCHES if "patches: 8" in job.read_text(encoding="utf-8") else ()
    result = run(job, (*QUICK, *fewer, *_results_for(job, workspace)), workspace=workspace)
    assert result.state == "succeeded"
    assert result.certificate is not None
    assert result.certificate["passed"]
    assert (result.folder / "report.html").stat().st_size > 10_000


def _results_for(job: Path, workspace: Path) -> list[str]:
    """What a job goes on from, made by the ready job of that name: ``results/digits.zarr`` by the one with the name digits."""
    spec, overrides = load_spec(job), []
    for role in KINDS[spec.kind].roles:
        if role.result_of and (source := spec.input.roles().get(role.name)):
            (maker,) = (path for path in JOBS if load_spec(path).name == Path(str(source)).stem)
            output = workspace / Path(str(source)).name
            run(maker, (*QUICK, f"output={output}", "overwrite=true", "params.epochs=2"), workspace=workspace)
            overrides.append(f"input.{role.name}={output}")
    return overrides


def test_there_are_jobs_of_every_kind() -> None:
    assert {load_spec(path).kind for path in JOBS} == set(KINDS)
