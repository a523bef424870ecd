"""Jobs as real processes that tests start, kill and resume, and what must hold afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
import zarr

ROOT = Path(__file__).parents[2]

#: Random kills of each test; raise it for a long night, which runs the slower tests too.
RUNS = int(os.environ.get("DLSCALE_CHAOS_RUNS", "1"))
#: Where a job of one worker process goes on: by night where it began, otherwise without starting one more.
GOES_ON = () if RUNS >= 10 else ("--cluster", "threads")
at_night = pytest.mark.skipif(RUNS < 10, reason="slow; set DLSCALE_CHAOS_RUNS=10 or more")
#: The same in each short run, so that it says what has changed; of a long night, the same in all its processes, whose name is in
#: the environment, and another one in each.
_RUN = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID"))
SEED = int(os.environ.get("DLSCALE_CHAOS_SEED", "0")) or (_RUN.randrange(1, 2**31) if RUNS > 1 else 1)

#: What the launchers of other jobs may have left in the environment of the tests must not reach those that they start.
_CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMI", "SLURM_"))}
ENVIRONMENT = _CLEAN | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}

MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

_NOT_ALLOWED = re.compile("permission denied|not permitted|superuser|only root|not supported|unknown device type", re.IGNORECASE)

#: For `spawn`: the command as its environment says (see staged.py).
STAGED = (sys.executable, str(Path(__file__).with_name("staged.py")))

#: What was done to jobs so far in the test that runs.
FAULTS: list[str] = []

N_ROWS, N_COLUMNS = 30_000, 40

#: Many short passes of some blocks, so that a kill meets each part of a job.
PARAMS: Mapping[str, Mapping[str, Any]] = {
    "svd": {"n_components": 6, "power_iterations": 8, "block_rows": 1500},
    "pca": {"n_components": 5, "solver": "randomized", "power_iterations": 5, "scores": True, "block_rows": 1500},
    "qr": {"block_rows": 1500},
}


def make_matrix(path: Path, shape: tuple[int, int] = (N_ROWS, N_COLUMNS), *, seed: int = 0, **layout: Any) -> Path:
    """A matrix with slowly falling singular values and an offset."""
    A = np.random.default_rng(seed).standard_normal(shape) * np.arange(1, shape[1] + 1) ** -0.5 + 3.0
    array = zarr.create_array(path, shape=shape, dtype="f8", **{"chunks": (1000, shape[1]), "compressors": None, **layout})
    array[:] = A
    return path


def write_spec(path: Path, kind: str, matrix: str | Path, **more: Any) -> Path:
    """A job file; params are those of `PARAMS` where they are not given."""
    spec = {"kind": kind, "name": "chaos", "input": {"matrix": str(matrix)}, "params": dict(PARAMS[kind]), **more}
    path.write_text(yaml.safe_dump(spec))
    return path


def fault(what: str) -> None:
    """Note a fault, for the ledger of a long night (see conftest.py)."""
    FAULTS.append(what)


def spawn(*arguments: str | Path, cwd: Path, under: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
    """A command in a session of its own, so that its whole process tree can be killed at once; ``under`` a launcher."""
    return subprocess.Popen(
        [*under, sys.executable, "-m", "dlscale", *map(str, arguments)],
        env=ENVIRONMENT | environment,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ranks(n: int) -> list[str]:
    """The launcher of so many ranks, for `spawn`."""
    return [str(MPIRUN), "-n", str(n), "--oversubscribe"]


@contextmanager
def held(at: str, *arguments: str | Path, cwd: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command that stands still right behind an event (see staged.py) until `let_go`, and is killed at the end."""
    with killed_at_the_end(spawn(*arguments, cwd=cwd, under=STAGED, HELD_AT=at, **environment)) as process:
        wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, alive=process)
        yield process


def let_go(process: subprocess.Popen[str]) -> None:
    kill_tree(process, signal.SIGCONT)


def kill_tree(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """Signal the whole session of a process, and wait for its end if the signal was a kill."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    if number == signal.SIGKILL:
        process.communicate(timeout=120)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def record(self) -> dict[str, Any]:
        """The JSON object of its last line."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found


def call(*arguments: str | Path, cwd: Path, timeout: float = 240.0, **environment: str) -> Ended:
    """Run a command to its end; one that hangs is killed with its children and fails the test."""
    return finish(spawn(*arguments, cwd=cwd, **environment), timeout)


def ask(*arguments: str | Path, cwd: Path) -> Ended:
    """Run a command to its end in this process, which costs a tenth of a process of its own."""
    from click.testing import CliRunner

    from dlscale.cli.main import commands

    started = time.monotonic()
    with chdir(cwd):
        result = CliRunner().invoke(commands, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Ended(result.exit_code, result.stdout, result.stderr, time.monotonic() - started)


def finish(process: subprocess.Popen[str], timeout: float = 240.0) -> Ended:
    started = time.monotonic()
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"hung for {timeout} s\n{out}\n{err}") from None
    return Ended(process.returncode, out, err, time.monotonic() - started)


def system(*command: str | Path) -> None:
    """Change this machine for a test, which is skipped where the machine has no such command or does not allow it."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no command {command[0]} on this machine")
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode and _NOT_ALLOWED.search(ended.stderr):
        pytest.skip(f"this machine does not allow {command[0]}: {ended.stderr.strip()}")
    assert ended.returncode == 0, (command, ended.stderr)


@contextmanager
def killed_at_the_end(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Leave no process behind whatever a test does."""
    try:
        yield process
    finally:
        if process.returncode is None:
            kill_tree(process)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def wait_for(condition: Callable[[], Any], seconds: float = 120.0, *, alive: subprocess.Popen[str] | None = None) -> Any:
    """Poll until a condition holds, for a fifth of the time or so; its value."""
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if value := condition():
            return value
        assert began < deadline, f"waited {seconds} s"
        assert alive is None or alive.poll() is None, alive.communicate() if alive else ""
        time.sleep(min(max(0.01, 4 * (time.monotonic() - began)), 0.05))


def job_folders(cwd: Path) -> list[Path]:
    return sorted(cwd.glob("dlscale-workspace/jobs/[!.]*"))


def job_folder(cwd: Path) -> Path:
    (folder,) = job_folders(cwd)
    return folder


def events(folder: Path) -> list[dict[str, Any]]:
    """The events of a job; a line that a kill tore is left out."""
    found = []
    path = folder / "events.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def finished(cwd: Path) -> int:
    """Passes that the only job of a folder has finished."""
    return sum(event["event"] == "pass_finished" for folder in job_folders(cwd) for event in events(folder))


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The worker processes of a job on the local cluster."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.NoSuchProcess:
        return []


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The ranks that an mpirun started, in their order."""
    children = psutil.Process(process.pid).children(recursive=True)
    ranks = {child.environ().get("OMPI_COMM_WORLD_RANK"): child for child in children if "dlscale" in child.cmdline()}
    return [ranks[rank] for rank in sorted(filter(None, ranks))]


def fingerprint(result: str | Path) -> dict[str, str]:
    """Shape, dtype and a digest of the bytes of each array of a result."""
    arrays = {name: np.asarray(array) for name, array in zarr.open_group(result, mode="r").arrays()}
    return {name: f"{a.shape} {a.dtype} {hashlib.sha256(a.tobytes()).hexdigest()}" for name, a in sorted(arrays.items())}


def repeated_passes(folder: Path) -> list[str]:
    """Passes that were started more than once without coming from the checkpoint."""
    started: dict[str, int] = {}
    for event in events(folder):
        if event["event"] == "pass_started":
            started[event["step"]] = started.get(event["step"], 0) + 1
        elif event["event"] == "pass_finished" and event["resumed"]:
            started[event["step"]] -= 1
    return [step for step, n in started.items() for _ in range(n - 1)]


def leftovers(cwd: Path) -> set[str]:
    """Temporary files and folders that nobody will remove."""
    return {str(path.relative_to(cwd)) for path in cwd.rglob("*") if ".partial" in path.name or path.name.startswith(".dlscale-")}
