"""Jobs that are killed without warning, at any moment, and resumed: the same bits, at most one pass again, nothing lost."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crashes import run_until
from victims import (
    GOES_ON,
    PARAMS,
    RUNS,
    SEED,
    ask,
    at_night,
    call,
    events,
    fault,
    fingerprint,
    finish,
    held,
    job_folder,
    job_folders,
    kill_tree,
    killed_at_the_end,
    leftovers,
    let_go,
    make_matrix,
    repeated_passes,
    spawn,
    wait_for,
    workers_of,
    write_spec,
)

pytestmark = pytest.mark.usefixtures("drawn_reports")

#: About what it takes until a worker process computes.
START_SECONDS = 1.5
#: Small enough for a job in a fraction of a second.
SMALL: dict[str, dict[str, Any]] = {
    "svd": {"n_components": 3, "power_iterations": 2, "block_rows": 500},
    "pca": {"n_components": 2, "solver": "randomized", "power_iterations": 1, "scores": True, "block_rows": 500},
    "qr": {"block_rows": 500},
}


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_matrix(tmp_path_factory.mktemp("input") / "a.zarr")


@pytest.fixture(scope="module")
def small_matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_matrix(tmp_path_factory.mktemp("input") / "small.zarr", (3000, 20))


@pytest.fixture(scope="module")
def whole(matrix: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[dict[str, str], float]]:
    """The arrays of an uninterrupted run of a kind in one process, and how long a process and its worker take about."""
    known: dict[str, tuple[dict[str, str], float]] = {}

    def run(kind: str) -> tuple[dict[str, str], float]:
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind)
            ended = ask("run", write_spec(folder / "job.yaml", kind, matrix, cluster="threads"), "--json", cwd=folder)
            assert ended.code == 0, ended.err
            known[kind] = fingerprint(ended.record["result"]), ended.seconds + START_SECONDS
        return known[kind]

    return run


def check_whole_after_resume(folder: Path, expected: dict[str, str], *, n_kills: int = 1) -> None:
    job = job_folder(folder)
    ended = ask("resume", job.name, "--json", *GOES_ON, cwd=folder)
    if "has succeeded" in ended.err:
        assert ask("report", job.name, cwd=folder).code == 0
    else:
        assert ended.code == 0, ended.err
        assert ended.record["state"] == "succeeded"
    assert fingerprint(job / "result.zarr") == expected
    assert len(repeated_passes(job)) <= n_kills
    assert (job / "report.html").exists()
    assert not (job / "checkpoint.zarr").exists()
    assert leftovers(folder) == set()


@pytest.mark.parametrize(("run", "kind"), [(i, list(PARAMS)[(SEED + i) % 3]) for i in range(RUNS)])
def test_a_process_tree_killed_at_a_random_moment(
    run: int, kind: str, matrix: Path, whole: Callable[[str], tuple[dict[str, str], float]], tmp_path: Path
) -> None:
    expected, seconds = whole(kind)
    moments = random.Random(SEED + run)
    print(f"DLSCALE_CHAOS_SEED={SEED}")
    write_spec(tmp_path / "job.yaml", kind, matrix)
    command: tuple[str, ...] = ("run", "job.yaml")
    n_kills = 0
    while n_kills < 2:
        with killed_at_the_end(spawn(*command, cwd=tmp_path)) as process:
            wait_for(lambda: job_folders(tmp_path), alive=process)
            time.sleep(moments.uniform(0.0, 1.0) * seconds)
            if process.poll() == 0:
                break
        n_kills += 1
        fault(f"tree of {kind}")
        command = ("resume", job_folder(tmp_path).name)
    check_whole_after_resume(tmp_path, expected, n_kills=n_kills)


def whole_small(kind: str, small_matrix: Path, folder: Path) -> tuple[dict[str, str], int]:
    folder.mkdir()
    write_spec(folder / "job.yaml", kind, small_matrix, params=SMALL[kind], cluster="threads")
    code, n_changes = run_until(None, ["run", "job.yaml"], folder)
    assert code == 0, (folder / "output.txt").read_text()
    return fingerprint(job_folder(folder) / "result.zarr"), n_changes


@pytest.mark.parametrize("kind", PARAMS if RUNS >= 3 else [list(PARAMS)[SEED % 3]])
def test_a_kill_before_any_change_of_the_disk(kind: str, small_matrix: Path, tmp_path: Path) -> None:
    """Four for each run, chosen at random; all of them with DLSCALE_CHAOS_RUNS=1000."""
    expected, n_changes = whole_small(kind, small_matrix, tmp_path / "whole")
    chosen = range(1, n_changes + 1)
    if n_changes > 4 * RUNS:
        chosen = sorted(random.Random(SEED).sample(chosen, 4 * RUNS))
    print(f"DLSCALE_CHAOS_SEED={SEED}, changes {chosen}")
    for change in chosen:
        folder = tmp_path / str(change)
        folder.mkdir()
        write_spec(folder / "job.yaml", kind, small_matrix, params=SMALL[kind], cluster="threads")
        code, _ = run_until(change, ["run", "job.yaml"], folder)
        assert code == -signal.SIGKILL
        fault(f"{kind} at change {change} of the disk")
        for job in job_folders(folder):
            code, _ = run_until(None, ["resume", job.name], folder)
            said = (folder / "output.txt").read_text()
            assert code == 0 or "has succeeded" in said, (change, said)
            assert fingerprint(job / "result.zarr") == expected, change
            assert len(repeated_passes(job)) <= 1, change
            assert not (job / "checkpoint.zarr").exists(), change
            assert (job / "report.html").exists() or code, change
            assert code or leftovers(folder) == set(), change


@at_night
def test_a_kill_while_publishing_or_reporting(matrix: Path, tmp_path: Path) -> None:
    """At each moment after the last pass, with a real process tree."""
    folder = tmp_path / "whole"
    folder.mkdir()
    write_spec(folder / "job.yaml", "svd", matrix)
    assert call("run", "job.yaml", cwd=folder).code == 0
    expected = fingerprint(job_folder(folder) / "result.zarr")
    for delay in (0.0, 0.02, 0.05, 0.1, 0.2)[: max(1, RUNS)]:
        folder = tmp_path / f"after {delay} s"
        folder.mkdir()
        write_spec(folder / "job.yaml", "svd", matrix)
        with killed_at_the_end(spawn("run", "job.yaml", cwd=folder)) as process:
            wait_for(lambda folder=folder: any(e.get("state") == "certifying" for f in job_folders(folder) for e in events(f)))
            time.sleep(delay)
            fault("tree of svd")
        process.communicate()
        check_whole_after_resume(folder, expected)


def test_a_worker_killed_in_the_middle_of_a_pass(matrix: Path, whole: Callable[[str], Any], tmp_path: Path) -> None:
    expected, _ = whole("svd")
    write_spec(tmp_path / "job.yaml", "svd", matrix)
    with held("pass_started .* 3", "run", "job.yaml", "--json", cwd=tmp_path) as process:
        (worker,) = workers_of(process)
        worker.kill()
        fault("worker of svd")
        let_go(process)
        ended = finish(process)
    assert ended.code == 0, ended.err
    assert fingerprint(ended.record["result"]) == expected
    for noise in ("Traceback", "distributed", "Error", "exited"):
        assert noise not in ended.err


@at_night
def test_no_worker_outlives_its_driver(matrix: Path, whole: Callable[[str], Any], tmp_path: Path) -> None:
    """Killed alone, as by an out-of-memory killer, the driver leaves workers that notice and go; the job resumes at once."""
    expected, _ = whole("svd")
    write_spec(tmp_path / "job.yaml", "svd", matrix)
    with held("pass_started .* 3", "run", "job.yaml", cwd=tmp_path) as process:
        workers = workers_of(process)
        process.kill()
        fault("driver of svd")
        process.wait(30)
        check_whole_after_resume(tmp_path, expected)
        wait_for(lambda: not any(worker.is_running() for worker in workers), seconds=30)


@at_night
@pytest.mark.parametrize(("number", "n_times"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 3)])
def test_a_signal_stops_within_seconds(
    number: int, n_times: int, matrix: Path, whole: Callable[[str], Any], tmp_path: Path
) -> None:
    expected, _ = whole("svd")
    write_spec(tmp_path / "job.yaml", "svd", matrix)
    with held("pass_started .* 3", "run", "job.yaml", "--json", cwd=tmp_path) as process:
        let_go(process)
        for _ in range(n_times):
            kill_tree(process, number)
            time.sleep(0.1)
        fault(f"{signal.Signals(number).name} to svd")
        ended = finish(process, timeout=240)
    assert ended.code == 75, ended.err
    assert ended.seconds < 30.0
    assert f"dlscale resume {job_folder(tmp_path).name}" in ended.err
    assert "Traceback" not in ended.err
    assert ended.record["state"] == "interrupted"
    check_whole_after_resume(tmp_path, expected)


@pytest.mark.parametrize("delay", [0.0, 0.2][: max(1, RUNS)])
def test_a_signal_before_the_job_exists_leaves_nothing(delay: float, tmp_path: Path) -> None:
    """During the import of the input, which may be long."""
    write_spec(tmp_path / "job.yaml", "pca", "x")
    (tmp_path / "job.yaml").write_text(
        "kind: pca\ninput: {matrix: {import: 'sample:photos', patches: 8}}\nparams: {n_components: 4}\ncluster: threads\n"
    )
    before = {path.name for path in tmp_path.iterdir()}
    with killed_at_the_end(spawn("run", "job.yaml", cwd=tmp_path)) as process:
        wait_for(lambda: list(tmp_path.glob("dlscale-workspace/imports/.*")), alive=process)
        time.sleep(delay)
        kill_tree(process, signal.SIGTERM)
        fault("SIGTERM to an import")
        ended = finish(process, timeout=240)
    assert ended.code == 75, ended.err
    assert "run the command again" in ended.err
    assert ended.seconds < 30.0
    assert "Traceback" not in ended.err
    assert {path.name for path in tmp_path.iterdir()} == before
