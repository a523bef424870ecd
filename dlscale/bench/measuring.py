"""Scaling measured: the same job with more and more workers, each time in processes of its own.

A worker brings one core. Runs with so many workers are confined to so many cores, with all that they do: otherwise one worker
alone would read ahead, be driven and be scheduled on cores that the others need when they are there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from dlscale.batch.workspace import Workspace
from dlscale.bench.workloads import make_job, workload
from dlscale.engine.events import Event, StepFinished, WorkDone
from dlscale.errors import DlscaleError, SpecError


@dataclass(frozen=True)
class Run:
    """One measured run.

    Parameters
    ----------
    kind, mode, launcher : str
        ``strong`` or ``weak``; ``dask`` or ``mpirun``.
    n_workers : int
    shape : (m, n)
    seconds : float
        From the start of the first task to the end of the last pass: without the start of processes.
    wall_seconds : float
        From the command to its end.
    flops : float
        By the plan.
    """

    kind: str
    mode: str
    launcher: str
    n_workers: int
    shape: tuple[int, int]
    seconds: float
    wall_seconds: float
    flops: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"measured": True}


def measure(kind: str, n_workers: int, folder: Path, *, mode: str, launcher: str = "dask", size: float = 1.0) -> Run:
    """Run the workload of a kind on workers with one thread and one core each.

    Parameters
    ----------
    kind : str
    n_workers : int
    folder : Path
        Holds matrices between runs.
    mode : str
        ``strong``: the same problem for all; ``weak``: work in proportion to the workers.
    launcher : str
        ``dask``: local worker processes; ``mpirun``: that many ranks.
    size : float
        How many times the work of the usual problem.

    Raises
    ------
    DlscaleError
        If the job did not succeed.
    """
    if launcher == "mpirun" and shutil.which("mpirun") is None:
        raise SpecError("--launcher mpirun: there is no mpirun on the PATH; install Open MPI or MPICH.")
    factor = size * (n_workers if mode == "weak" else 1)
    cluster = "mpi" if launcher == "mpirun" else {"workers": n_workers, "threads": 1}
    job_file = make_job(folder, kind, factor, cluster)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        spec = Path(place) / "spec.yaml"
        spec.write_text(yaml.safe_dump(job_file))
        ranks = ["mpirun", "-n", str(n_workers), "--oversubscribe"] if launcher == "mpirun" else []
        command = [*ranks, sys.executable, "-m", "dlscale", "run", str(spec), "--workspace", place, "--json"]
        with cores(range(n_workers)):
            started = time.perf_counter()
            ended = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread())
            wall = time.perf_counter() - started
        if ended.returncode:
            raise DlscaleError(f"{kind} with {n_workers} workers ended with {ended.returncode}: {ended.stderr[-1000:]}")
        job = Workspace(place).find(json.loads(ended.stdout.splitlines()[-1])["job"])
        seconds, flops = seconds_of(job.read_events()), float(job.read_plan()["flops"])
    return Run(kind, mode, launcher, n_workers, workload(kind).grown(factor), seconds, wall, flops)


@contextmanager
def cores(numbers: range) -> Iterator[None]:
    """Confine this thread, and the processes and threads that it starts, to some of its cores, where there are so many."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if numbers.stop > len(allowed):
        yield
        return
    os.sched_setaffinity(0, [allowed[i] for i in numbers])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def one_thread() -> dict[str, str]:
    """The environment of a process whose BLAS has one thread."""
    return os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def seconds_of(events: Sequence[Event]) -> float:
    """From the start of a job's first task to the end of its last pass; of a training, its own time."""
    finished = [event for event in events if isinstance(event, StepFinished)]
    if finished[0].step == "training":
        return finished[0].seconds
    started = min(_start(event) for event in events if isinstance(event, WorkDone))
    return max(event.time or 0.0 for event in finished) - started


def _start(event: WorkDone) -> float:
    """When what a task tells of began, in seconds since 1970."""
    return event.started or (event.time or 0.0) - event.read_seconds - event.compute_seconds
