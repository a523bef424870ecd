"""Every ready job in jobs/ runs and is certified."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlscale.batch.run import run

JOBS = sorted((Path(__file__).parents[1] / "jobs").glob("*.yaml"))

#: No worker processes, and fewer patches of photos: the same job in a second.
QUICK, FEWER_PATCHES = ("cluster=threads",), ("input.matrix.stride=8",)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_a_ready_job_runs(job: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(JOBS[0].parents[1])
    fewer = FEWER_PATCHES if "patches: 8" in job.read_text(encoding="utf-8") else ()
    result = run(job, (*QUICK, *fewer), workspace=workspace)
    assert result.state == "succeeded"
    assert result.certificate is not None
    assert result.certificate["passed"]
    assert (result.folder / "report.html").stat().st_size > 10_000


def test_there_are_jobs_of_every_kind() -> None:
    assert {"photo-pca", "svd", "qr", "qr-square", "lu", "cholesky"} <= {path.stem for path in JOBS}
