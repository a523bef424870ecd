"""A night with mpirun: every kind of job on 1, 2 and 4 ranks, and fifty runs in a row that end well, soon and without a word."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from every_kind import JOBS, Arrays, Whole, arrays_of, check_same, write_job
from victims import MPIRUN, at_night, finish, job_folder, ranks, spawn

pytestmark = [at_night, pytest.mark.skipif(MPIRUN is None, reason="there is no mpirun on this machine")]

N_RUNS = 50
#: How long the processes may take to end after the state of the job says that it has.
END_SECONDS = 10.0


def check_run(kind: str, n_ranks: int, folder: Path, inputs: Path, expected: Arrays) -> None:
    """Run a job under mpirun: a good end, soon and quiet, and the answer of the local cluster."""
    ended = finish(spawn("run", write_job(folder, kind, inputs), cwd=folder, under=ranks(n_ranks)))
    now = time.time()
    assert (ended.code, ended.err) == (0, ""), ended.out
    job = job_folder(folder)
    assert now - (job / "state.json").stat().st_mtime < END_SECONDS
    assert json.loads((job / "plan.json").read_text())["cluster"]["kind"] == ("mpi" if n_ranks > 1 else "local")
    check_same(kind, arrays_of(job / "result.zarr"), expected)


@pytest.mark.parametrize("n_ranks", [1, 2, 4])
@pytest.mark.parametrize("kind", JOBS)
def test_the_bits_of_the_local_cluster(kind: str, n_ranks: int, inputs: Path, whole: Whole, tmp_path: Path) -> None:
    check_run(kind, n_ranks, tmp_path, inputs, whole(kind))


@pytest.mark.parametrize("first", range(0, N_RUNS, 10))
def test_fifty_runs_in_a_row(first: int, inputs: Path, whole: Whole, tmp_path: Path) -> None:
    for i in range(first, first + 10):
        kind = list(JOBS)[i % len(JOBS)]
        folder = tmp_path / f"{i} {kind}"
        folder.mkdir()
        check_run(kind, 2, folder, inputs, whole(kind))
