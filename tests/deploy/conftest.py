from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dlscale

# Test files are imported by path, which leaves their folder off the module path.
sys.path.insert(0, str(Path(__file__).parent))

from jobs_here import arrays, job_file
from slurm_cluster import SlurmCluster, missing_programs, running_slurm


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A Slurm of one node."""
    if missing := missing_programs():
        pytest.skip(f"Slurm is not installed here: no {', '.join(missing)}")
    with running_slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the job gives without any deployment."""
    folder = tmp_path_factory.mktemp("alone")
    result = dlscale.run(job_file(folder, cluster="threads"), workspace=folder / "workspace").result
    return arrays(Path(result))
