"""Every ready job in jobs/ runs and is certified."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlscale.batch.run import run

JOBS = sorted((Path(__file__).parents[1] / "jobs").glob("*.yaml"))

#: Fewer patches and no worker processes: the same job in a second.
QUICK = ("cluster=threads", "input.matrix.stride=8")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_a_ready_job_runs(job: Path, workspace: Path) -> None:
    result = run(job, QUICK, workspace=workspace)
    assert result.state == "succeeded"
    assert result.certificate is not None
    assert result.certificate["passed"]
    assert (result.folder / "report.html").stat().st_size > 10_000


def test_there_are_jobs_of_every_kind() -> None:
    assert {"photo-pca", "svd", "qr"} <= {path.stem for path in JOBS}
