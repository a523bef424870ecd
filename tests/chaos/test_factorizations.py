"""Factorizations that are killed, and go on: the same bits, at most one group of panels again."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
import zarr
from victims import (
    GOES_ON,
    RUNS,
    SEED,
    ask,
    fault,
    fingerprint,
    finish,
    held,
    job_folder,
    job_folders,
    killed_at_the_end,
    leftovers,
    let_go,
    repeated_passes,
    spawn,
    wait_for,
    workers_of,
)

KINDS = ("lu", "qr", "cholesky")
N, PANEL = 1200, 64
#: About what it takes until a worker process computes.
START_SECONDS = 1.5

#: Memory with room for about a quarter of the panels, in the process of the job, on one worker process and on two.
CLUSTERS: dict[int, dict[str, Any]] = {
    0: {"type": "threads", "threads": 2, "memory": 76_000_000},
    1: {"type": "local", "workers": 1, "threads": 2, "memory": 705_150_000},
    2: {"type": "local", "workers": 2, "threads": 1, "memory": 1_022_000_000},
}

Whole = Callable[[str], tuple[dict[str, str], float]]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Symmetric and positive definite by its diagonal, so that each kind takes it."""
    A = np.random.default_rng(0).standard_normal((N, N))
    path = tmp_path_factory.mktemp("input") / "a.zarr"
    array = zarr.create_array(path, shape=(N, N), dtype="f8", chunks=(400, 400), compressors=None)
    array[:] = A + A.T + 4 * N**0.5 * np.eye(N)
    return path


def write_spec(folder: Path, kind: str, matrix: Path, *, n_workers: int = 1, **more: Any) -> Path:
    spec = {"kind": kind, "name": "chaos", "input": {"matrix": str(matrix)}, "params": {"panel": PANEL}}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(spec | {"cluster": CLUSTERS[n_workers]} | more))
    return path


@pytest.fixture(scope="module")
def whole(matrix: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The arrays of an uninterrupted run of a kind in one process, and how long it took."""
    known: dict[str, tuple[dict[str, str], float]] = {}

    def run(kind: str) -> tuple[dict[str, str], float]:
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind)
            ended = ask("run", write_spec(folder, kind, matrix, n_workers=0), "--json", cwd=folder)
            assert ended.code == 0, ended.err
            assert 3 <= json.loads((job_folder(folder) / "plan.json").read_text())["grids"]["panels"]["n_groups"] <= 7
            known[kind] = fingerprint(ended.record["result"]), ended.seconds
        return known[kind]

    return run


def check_whole_after_resume(folder: Path, expected: dict[str, str], *, n_kills: int) -> None:
    job = job_folder(folder)
    ended = ask("resume", job.name, "--json", *GOES_ON, cwd=folder)
    assert ended.code == 0 or "has succeeded" in ended.err, ended.err
    assert fingerprint(job / "result.zarr") == expected
    assert len(repeated_passes(job)) <= n_kills
    assert not (job / "checkpoint.zarr").exists()
    assert ended.code or leftovers(folder) == set()


@pytest.mark.parametrize("kind", KINDS if RUNS >= 3 else [KINDS[SEED % 3]])
def test_a_process_tree_killed_at_every_group(kind: str, matrix: Path, whole: Whole, tmp_path: Path) -> None:
    """One job, killed as soon as each of its groups is finished."""
    expected, _ = whole(kind)
    write_spec(tmp_path, kind, matrix, n_workers=0)
    command: tuple[str, ...] = ("run", "job.yaml")
    n_groups = 1
    for n_kills in range(10):
        if n_kills == n_groups:
            break
        with held(f"pass_finished {kind}-{n_kills + 1}", *command, cwd=tmp_path):
            fault(f"tree of {kind}")
        n_groups = json.loads((job_folder(tmp_path) / "plan.json").read_text())["grids"]["panels"]["n_groups"]
        command = ("resume", job_folder(tmp_path).name)
    check_whole_after_resume(tmp_path, expected, n_kills=n_groups)


@pytest.mark.parametrize(("run", "kind"), [(i, KINDS[(SEED + 1 + i) % 3]) for i in range(RUNS)])
def test_a_process_tree_killed_at_a_random_moment(run: int, kind: str, matrix: Path, whole: Whole, tmp_path: Path) -> None:
    expected, seconds = whole(kind)
    moment = random.Random(SEED + run).uniform(0.0, 1.0) * (seconds + START_SECONDS)
    print(f"DLSCALE_CHAOS_SEED={SEED}, killed {moment:.2f} s after it had a folder, of {seconds:.2f} s")
    write_spec(tmp_path, kind, matrix)
    with killed_at_the_end(spawn("run", "job.yaml", cwd=tmp_path)) as process:
        wait_for(lambda: job_folders(tmp_path), alive=process)
        time.sleep(moment)
        fault(f"tree of {kind}")
    check_whole_after_resume(tmp_path, expected, n_kills=1)


@pytest.mark.parametrize(("run", "kind", "n_workers"), [(i, KINDS[(SEED + 2 + i) % 3], 2 - (i // 3) % 2) for i in range(RUNS)])
def test_a_worker_killed_in_the_middle(run: int, kind: str, n_workers: int, matrix: Path, whole: Whole, tmp_path: Path) -> None:
    """While panels of a later group are in the memory of the workers; the job succeeds, with the bits of one worker."""
    expected, _ = whole(kind)
    moment = random.Random(SEED + run).uniform(0.0, 0.5)
    print(f"DLSCALE_CHAOS_SEED={SEED}, killed {moment:.2f} s after the second group had begun")
    write_spec(tmp_path, kind, matrix, n_workers=n_workers)
    with held(f"pass_started {kind}-2", "run", "job.yaml", "--json", cwd=tmp_path) as process:
        found = workers_of(process)
        assert len(found) == n_workers
        let_go(process)
        time.sleep(moment)
        with suppress(psutil.NoSuchProcess):  # where the job had no more need of it
            found[run % n_workers].kill()
            fault(f"worker of {kind}")
        ended = finish(process)
    assert ended.code == 0, ended.err
    assert fingerprint(ended.record["result"]) == expected


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("lu", {"params": {"panel": N + 1}}, ["params.panel", f"{N} columns", f"got {N + 1}"]),
        ("qr", {"params": {"panel": 0}}, ["params.panel", "at least 1", "0"]),
        ("lu", {"params": {"row_blocks": "two"}}, ["params.row_blocks", "at least 1", "two"]),
        ("qr", {"params": {"mode": "full"}}, ["params.mode", "reduced", "raw", "full"]),
        ("lu", {"params": {"mode": "raw"}}, ["params.mode", "panel"]),
        ("cholesky", {"params": {"panels": 3}}, ["params.panels", "panel"]),
        ("lu", {"input": {"rhs": "x"}}, ["input", "matrix"]),
        ("cholesky", {}, ["input.matrix", "square", "got 3 x 2"]),
        ("lu", {"cluster": {"type": "local", "memory": "670MB"}, "params": {"panel": N}}, ["cluster.memory", "smaller panel"]),
    ],
    ids=str,
)
def test_wrong_specs_are_refused_before_anything_starts(
    kind: str, change: dict[str, Any], words: list[str], matrix: Path, tmp_path: Path
) -> None:
    if kind == "cholesky" and not change:
        matrix = tmp_path / "tall.zarr"
        zarr.create_array(matrix, shape=(3, 2), dtype="f8", config={"write_empty_chunks": True})[:] = 1
    ended = ask("plan", write_spec(tmp_path, kind, matrix, **change), cwd=tmp_path)
    assert ended.code == 2, ended.err
    for word in words:
        assert word in ended.err
    assert not job_folders(tmp_path)
