"""Jobs under a real mpirun: every rank works, the same bits, a quiet end, and one end for all when a rank fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import gaussian, store

import dlscale
from dlscale.engine.clusters import describe_cluster, launchers
from dlscale.engine.clusters.launchers import Place, launched
from dlscale.errors import SpecError
from dlscale.storage.groups import open_arrays
from tests.engine.launching import LONG_SECONDS, end, is_gone, wait_for

MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
PROGRAMS = Path(__file__).with_name("rank_programs.py")
STAGED = Path(__file__).parents[1] / "chaos" / "staged.py"
needs_mpirun = pytest.mark.skipif(MPIRUN is None, reason="there is no mpirun on this machine")

#: What the launchers of other jobs may have left in the environment of the tests must not reach those that they start.
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMI", "SLURM_"))}
OPEN_MPI_AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

JOBS: dict[str, dict[str, Any]] = {
    "svd": {"kind": "svd", "params": {"n_components": 5}},
    "pca": {"kind": "pca", "params": {"n_components": 5, "scores": True}},
    "qr": {"kind": "qr"},
}


def start(n_ranks: int, *command: object, **environment: str) -> subprocess.Popen[str]:
    assert MPIRUN is not None
    return subprocess.Popen(
        [MPIRUN, "-n", str(n_ranks), "--oversubscribe", sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=CLEAN | OPEN_MPI_AS_ROOT | {"TERM": "xterm-256color"} | environment,
    )


def mpirun(n_ranks: int, *command: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    return end(start(n_ranks, *command), noted=lambda: True)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("matrix") / "A.zarr", gaussian(6000, 40), chunks=(500, 40), compressors=None)


@pytest.fixture(scope="module")
def reference(matrix: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The bits of every job in this process."""
    folder = tmp_path_factory.mktemp("reference")
    return {kind: bits(dlscale.run(spec(kind, matrix) | {"cluster": "threads"}, workspace=folder).result) for kind in JOBS}


def spec(kind: str, matrix: Path) -> dict[str, Any]:
    return JOBS[kind] | {"input": {"matrix": str(matrix)}}


def bits(result: str | Path | None) -> dict[str, bytes]:
    return {name: array[...].tobytes() for name, array in open_arrays(str(result)).items()}


@needs_mpirun
@pytest.mark.parametrize(("kind", "n_ranks"), [("qr", 1), ("pca", 2), ("svd", 3)])
def test_same_bits_and_a_quiet_end(
    matrix: Path, reference: dict[str, dict[str, bytes]], tmp_path: Path, kind: str, n_ranks: int
) -> None:
    (tmp_path / "job.yaml").write_text(json.dumps(spec(kind, matrix)))
    code, out, err = mpirun(n_ranks, "-m", "dlscale", "run", tmp_path / "job.yaml", "--workspace", tmp_path / "w")
    assert (code, err) == (0, ""), out
    assert "\x1b" not in out  # which Open MPI passes on from a terminal of its own
    [job] = (tmp_path / "w" / "jobs").iterdir()
    plan = json.loads((job / "plan.json").read_text())
    assert (plan["cluster"]["kind"], plan["cluster"]["n_workers"]) == (("mpi", n_ranks) if n_ranks > 1 else ("local", 1))
    assert bits(job / "result.zarr") == reference[kind]


@needs_mpirun
def test_every_rank_works(matrix: Path) -> None:
    """In a program that all run, and in a pass: none is given up for a scheduler or a client alone."""
    code, out, err = mpirun(2, PROGRAMS, "sweep", matrix)
    assert (code, err) == (0, "")
    assert out.splitlines() == ["[(0, 2, 3.0), (1, 2, 3.0)] [Warned(time=None, message='from rank 0')]", "['rank 0', 'rank 1']"]


@needs_mpirun
def test_a_bad_spec_is_refused_by_one_voice(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("kind: svd\ninput: {matrix: /no/where.zarr}\n")
    code, out, err = mpirun(2, "-m", "dlscale", "run", tmp_path / "job.yaml", "--workspace", tmp_path / "w")
    assert code == 2
    assert (out + err).count("/no/where.zarr") == 1


@needs_mpirun
def test_a_killed_rank_is_the_recorded_cause(matrix: Path, tmp_path: Path) -> None:
    job = {"kind": "svd", "input": {"matrix": str(matrix)}, "params": {"n_components": 5, "power_iterations": 100}}
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    command = (STAGED, sys.executable, "-m", "dlscale", "run", tmp_path / "job.yaml", "--workspace", tmp_path / "w")

    def state() -> dict[str, str]:
        (job,) = (tmp_path / "w" / "jobs").iterdir()
        return dict(json.loads((job / "state.json").read_text()))

    with running(start(2, *command, HELD_AT="pass_finished .*")) as process:
        wait_for(lambda: process.poll() or any(rank.status() == psutil.STATUS_STOPPED for rank in ranks_of(process)))
        process.send_signal(signal.SIGSTOP)
        ranks = {rank.environ()["OMPI_COMM_WORLD_RANK"]: rank for rank in ranks_of(process)}
        ranks["1"].kill()
        wait_for(lambda: is_gone(ranks["1"]))
        ranks["0"].terminate()  # as the launcher does, which does not wait for what comes of it
        ranks["0"].resume()
        wait_for(lambda: state()["state"] != "running")
        process.send_signal(signal.SIGCONT)
        assert process.wait(LONG_SECONDS) != 0
    assert state()["state"] == "failed"
    assert state()["message"].startswith("Rank 1: the process ended without a word")


@needs_mpirun
@pytest.mark.parametrize(("how", "rank", "n_ranks"), [("raise", 2, 3), ("exit", 1, 2), ("kill", 0, 2)])
def test_one_rank_ends_all(how: str, rank: int, n_ranks: int, tmp_path: Path) -> None:
    said = tmp_path / "said"
    launcher = start(n_ranks, PROGRAMS, "misbehave", how, rank, SAID=str(said))

    def noted() -> bool:
        return said.exists() or (
            psutil.Process(launcher.pid).status() == psutil.STATUS_STOPPED and all(map(is_gone, ranks_of(launcher)))
        )

    code, out, err = end(launcher, noted)
    out += said.read_text() if said.exists() else ""
    assert code != 0
    cause = "ZeroDivisionError: of all things" if how == "raise" else f"Rank {rank}: the process ended without a word"
    assert cause in out + err


@needs_mpirun
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_stops_all_ranks_at_the_same_step(tmp_path: Path, number: signal.Signals) -> None:
    """Launchers forward SIGUSR1; the SIGTERM of a batch system comes to a rank itself. The exit code is passed on."""
    with running(start(2, PROGRAMS, "until_stopped", tmp_path)) as process:
        wait_for((tmp_path / "running-1").exists)
        (rank,) = (rank for rank in ranks_of(process) if rank.environ()["OMPI_COMM_WORLD_RANK"] == "0")
        (process if number == signal.SIGUSR1 else rank).send_signal(number)
        code = process.wait(LONG_SECONDS)
    assert (tmp_path / "stopped-0").read_text() == (tmp_path / "stopped-1").read_text()
    assert code == 75


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [child] if "python" in child.name() else []
    return found


@contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Nothing of it is left afterwards."""
    children = []
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(process.pid).children(recursive=True)
        for each in (process, *children):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}, (1, 4)),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, (0, 2)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}, (3, 4)),
        # The batch script itself, before srun.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),
        # mpirun inside a step of Slurm.
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2)),
    ],
)
def test_who_started_this_process(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: tuple[int, int] | None
) -> None:
    monkeypatch.setattr(launchers.os, "environ", environment)
    assert launched() == expected


def test_cores_and_memory_are_shared_by_the_ranks_of_a_host() -> None:
    bound = [Place("a", frozenset({0, 1}), 10**10), Place("a", frozenset({2, 3}), 10**10), Place("b", frozenset({0}), 10**9)]
    assert [place.share(bound) for place in bound] == [(2, 3 * 10**9), (2, 3 * 10**9), (1, 6 * 10**8)]
    free = [Place("a", frozenset(range(8)), 10**10)] * 3
    assert {place.share(free) for place in free} == {(2, 2 * 10**9)}
    crowded = [Place("a", frozenset({0}), 10**10)] * 4
    assert {place.share(crowded)[0] for place in crowded} == {1}


def test_ranks_need_a_launcher() -> None:
    with pytest.raises(SpecError, match="mpirun -n N dlscale run"):
        describe_cluster("mpi")
