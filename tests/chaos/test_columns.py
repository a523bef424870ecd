"""Solves and inverses that are killed while factors are applied to columns, and go on: the same bits, at most one group again."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from victims import (
    RUNS,
    SEED,
    ask,
    events,
    fault,
    fingerprint,
    held,
    job_folder,
    job_folders,
    leftovers,
    let_go,
    repeated_passes,
)

from dlscale.engine import columns

N, K = 1200, 2000
#: What the steps of a kind are called in which its factors are applied.
STEPS = {"solve": "solve-", "inverse": "inverse-"}
CLUSTER: dict[str, Any] = {"type": "local", "workers": 2, "threads": 1, "memory": "2GB"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, rng = tmp_path_factory.mktemp("input"), np.random.default_rng(0)
    for name, n_columns in (("matrix", N), ("rhs", K)):
        array = zarr.create_array(folder / f"{name}.zarr", shape=(N, n_columns), dtype="f8", chunks=(400, 400), compressors=None)
        array[:] = rng.standard_normal((N, n_columns))
    return {name: str(folder / f"{name}.zarr") for name in ("matrix", "rhs")}


def write_spec(folder: Path, kind: str, inputs: dict[str, str], **cluster: Any) -> None:
    roles = inputs if kind == "solve" else {"matrix": inputs["matrix"]}
    spec = {"kind": kind, "name": "chaos", "input": roles, "cluster": CLUSTER | cluster}
    (folder / "job.yaml").write_text(yaml.safe_dump(spec))


RUNS_OF_KINDS = [(i, sorted(STEPS)[(SEED + i) % 2]) for i in range(RUNS)]


@pytest.fixture(scope="module")
def whole(inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The arrays of an uninterrupted run of each kind in one process, whose events account for its work."""
    found = {}
    for kind in {kind for _, kind in RUNS_OF_KINDS}:
        folder = tmp_path_factory.mktemp(kind)
        write_spec(folder, kind, inputs, type="threads", workers=1)
        ended = ask("run", "job.yaml", "--json", cwd=folder)
        assert ended.code == 0, ended.err
        told = events(job_folder(folder))
        done, needed = (sum(e["flops"] for e in told if e["event"] == event) for event in ("blocks", "pass_finished"))
        assert done >= 0.95 * needed
        found[kind] = fingerprint(ended.record["result"])
    return found


def told_of(folder: Path, kind: str, name: str) -> int:
    """Events of a kind that the only job of a folder has sent while its factors were applied."""
    lines = (event for job in job_folders(folder) for event in events(job))
    return sum(event["event"] == name and event["step"].startswith(STEPS[kind]) for event in lines if "step" in event)


@pytest.mark.usefixtures("jobs_on_shared_clusters")
@pytest.mark.parametrize(("run", "kind"), RUNS_OF_KINDS)
def test_a_process_tree_killed_while_columns_are_solved_for(
    run: int, kind: str, inputs: dict[str, str], whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed a moment after one of the groups has begun; the whole run had no worker processes."""
    monkeypatch.setattr(columns, "GROUP_FLOPS", 1.0)
    write_spec(tmp_path, kind, inputs)
    drawn = random.Random(SEED + run)
    group, seconds = drawn.randint(1, 2), drawn.uniform(0, 0.2)
    print(f"DLSCALE_CHAOS_SEED={SEED}, killed {seconds:.2f} s after group {group} had begun")
    with held(f"pass_started {STEPS[kind]}.* {group}", "run", "job.yaml", cwd=tmp_path, GROUP_FLOPS="1") as process:
        let_go(process)
        time.sleep(seconds)
        fault(f"tree of {kind}")
    done = told_of(tmp_path, kind, "checkpoint")
    job = job_folder(tmp_path)
    ended = ask("resume", job.name, "--json", cwd=tmp_path)
    assert ended.code == 0 or "has succeeded" in ended.err, ended.err
    assert fingerprint(job / "result.zarr") == whole[kind]
    assert sum(step.startswith(STEPS[kind]) for step in repeated_passes(job)) <= 1
    finished = [event for event in events(job) if event["event"] == "pass_finished" and event["step"].startswith(STEPS[kind])]
    assert sum(event["resumed"] for event in finished) >= done
    assert len({event["step"] for event in finished}) > 1
    assert not (job / "checkpoint.zarr").exists()
    assert ended.code or leftovers(tmp_path) == set()
