"""A job of Slurm that shares nothing with whoever submits and watches it but a bucket."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from held.drivers import PATH_OF_HELD_JOBS, driver_of, held, stop
from jobs_here import command, job_file
from object_server import SECRET, environment, reached, s3_server
from slurm_cluster import SlurmCluster

from dlscale.batch.remote.opening import open_workspace
from dlscale.storage.groups import open_arrays
from dlscale.storage.objects import requests


def in_a_bucket(slurm: SlurmCluster, folder: Path, alone: dict[str, bytes]) -> None:
    """It is submitted from one machine, watched and cancelled from another, queued again, stopped, and goes on."""
    variables = {"SLURM_CONF": slurm.environment["SLURM_CONF"], "PYTHONPATH": PATH_OF_HELD_JOBS}
    with s3_server() as port, reached(port) as bucket:
        place, spec, still = bucket / "ws", job_file(folder, cluster={"workers": 1, "threads": 1}), held(folder)

        def dlscale_says(machine: str, *arguments: str | Path) -> str:
            machines = environment(port) | {"XDG_CACHE_HOME": str(folder / machine)}
            ended = command("dlscale", *arguments, "--workspace", str(place), cwd=folder, **variables, **machines)
            assert ended.returncode == 0, ended.stderr
            return ended.stdout.strip()

        name = dlscale_says("login", "submit", spec, "--slurm", "--time", "5:00", "--cpus-per-task", "1", "--partition", "closed")
        scripts = [path.read_text() for path in (folder / "login").rglob("slurm.sh")]
        assert [str(place) in script and SECRET not in script for script in scripts] == [True]
        shutil.rmtree(folder / "login")
        seen = json.loads(dlscale_says("desk", "status", name, "--json"))
        assert (seen["state"], seen["slurm"]["state"]) == ("submitted", "PENDING"), seen
        assert name in dlscale_says("desk", "jobs", "--state", "submitted")
        assert "cancelled" in dlscale_says("desk", "cancel", name)
        assert slurm.wait(seen["slurm"]["number"], "CANCELLED")
        dlscale_says("login", "resume", name, "--slurm", "--partition", "main")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(folder / "desk"))
            job = open_workspace(str(place)).find(name)
        number = job.stored_state().slurm
        assert number != seen["slurm"]["number"]
        driver = driver_of(job)
        still.unlink()
        stop(slurm, number, driver)
        facts = slurm.wait(number, "COMPLETED", "FAILED")
        assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), Path(facts["StdOut"]).read_text()
        result = job.read_state().result
        assert {key: np.asarray(array[:]).tobytes() for key, array in open_arrays(str(result)).items()} == alone
        Path(facts["StdOut"]).unlink()
        written = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
        written += [requests.get(place / key) for key in requests.listing(place)]
        assert not any(SECRET.encode() in data for data in written)
