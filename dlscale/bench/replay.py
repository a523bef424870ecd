"""From a job on one worker of this machine to its time on any number of workers."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dlscale.batch.document import read_document
from dlscale.batch.kinds import KINDS
from dlscale.batch.prepare import prepare
from dlscale.batch.spec import parse_spec
from dlscale.batch.workspace import Workspace
from dlscale.bench.growth import grown
from dlscale.bench.measuring import cores, one_thread
from dlscale.bench.simulation import ModelCluster, SimulatedJob, simulate
from dlscale.bench.tracing import Trace, TracingCluster, replayed
from dlscale.bench.training import predict_training
from dlscale.bench.workloads import Scale, make_job, workload
from dlscale.engine.run import Run
from dlscale.errors import DlscaleError
from dlscale.linalg.fitting import compute_with_fits
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.results import ResultGroup

#: A second, smaller run tells how what the driver does alone grows with the matrix.
SMALLER = 0.5
#: A first, small one pays for imports and the first call of everything.
_WARMING = 0.01


def trace(kind: str, folder: Path, *, size: float = 1.0) -> Trace:
    """Run the workload of a kind on one worker with one thread and one core, and note each task of its graphs.

    Parameters
    ----------
    kind : str
    folder : Path
        Holds matrices between runs.
    size : float
        How many times the work of the usual problem.
    """
    with cores(range(1)), closing(TracingCluster()) as cluster:
        _run(kind, folder, min(size, _WARMING), cluster)
        cluster.traces.clear()
        flops, ended = _run(kind, folder, size, cluster)
    # What comes before the first graph is the start of the job, which the measured runs do not count either.
    return Trace(cluster.traces, cluster.traces[0].started, ended, flops, workload(kind).grown(size))


def _run(kind: str, folder: Path, size: float, cluster: TracingCluster) -> tuple[float, float]:
    """Compute a job on a cluster: its flops by the plan, and when it ended."""
    document = read_document(make_job(folder, kind, size, {"workers": 1, "threads": 1}))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        root = Path(place)
        prepared = prepare(parse_spec(document), document, Workspace(root / "workspace"))
        group = ResultGroup(root / "result.zarr", fsync=False)
        run = Run(cluster, checkpoint=Checkpoint(root / "checkpoint.zarr"), result=group)
        with closing(group):
            compute_with_fits(KINDS[kind], run, prepared.inputs, prepared.options, prepared.plan)
            ended = cluster.clock()
    return float(prepared.plan.flops), ended


@contextmanager
def neighbour(kind: str, folder: Path, *, size: float) -> Iterator[None]:
    """Another process that does the same job, again and again, on one thread and the second core."""
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as place:
        command = [sys.executable, "-m", "dlscale.bench.neighbour", kind, str(folder), str(size), place]
        with cores(range(1, 2)):
            process = subprocess.Popen(command, env=one_thread(), stdout=subprocess.PIPE)
        with process:
            try:
                assert process.stdout is not None
                if not process.stdout.readline():  # it has begun
                    raise DlscaleError("The neighbour of the traced job did not start; see what it said above.")
                yield
            finally:
                process.kill()


def predict(
    kind: str,
    workers: Sequence[int],
    folder: Path,
    *,
    scale: Scale,
    network: ModelCluster,
    shared: bool = False,
) -> Iterator[dict[str, Any]]:
    """Predict the times of a kind's workload.

    Parameters
    ----------
    kind : str
    workers : sequence of int
    folder : Path
        Holds matrices between runs.
    scale : Scale
    network : ModelCluster
        Of any number of workers.
    shared : bool
        The workers share this machine, as those of a measured run do: their tasks take as long as beside a neighbour.

    Yields
    ------
    dict
        A record for each number of workers.
    """
    if kind == "train":
        yield from predict_training(workers, folder, scale=scale, network=network)
        return
    size = scale.size
    traced = trace(kind, folder, size=size)
    larger = scale.grow > 1 or scale.mode == "weak"
    smaller = trace(kind, folder, size=size * SMALLER) if larger else traced
    network = replace(network, between_seconds=traced.overheads[1])
    crowded = network
    if shared and max(workers) > 1:
        with neighbour(kind, folder, size=size):
            crowded = replace(network, slowdown=max(1.0, trace(kind, folder, size=size).task_seconds / traced.task_seconds))
    jobs: dict[float, SimulatedJob] = {}
    for n in workers:
        factor = scale.factor(n)
        if factor not in jobs:
            shape, flops = workload(kind).grown(size * factor), traced.flops * factor
            jobs = {factor: replayed(traced) if factor == 1 else grown(traced, smaller, shape, flops=flops)}
        found = simulate(jobs[factor], replace(crowded if n > 1 else network, n_workers=n))
        facts = {"kind": kind, "mode": scale.mode, "launcher": "model", "shape": workload(kind).grown(size * factor)}
        yield asdict(crowded if n > 1 else network) | facts | found.to_dict() | {"flops": jobs[factor].flops, "measured": False}
