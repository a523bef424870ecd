"""A training on ranks that are not there: its steps on one rank, shared among many that sum their gradients.

    step = compute / ranks + max(0, allreduce - overlap * compute / ranks)
    allreduce = 2 (ranks - 1) / ranks * bytes / bandwidth + 2 ceil(log2 ranks) * latency

References
----------
Thakur, Rabenseifner, Gropp (2005), Optimization of collective communication operations in MPICH, section 4.5.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlscale.batch.run import run
from dlscale.batch.workspace import Job
from dlscale.bench.simulation import ModelCluster, Prediction
from dlscale.bench.workloads import Scale, make_job, workload

#: Part of a step's computing behind which the sum of gradients can hide: the backward half of it, less the last layer.
OVERLAP = 0.5


@dataclass(frozen=True)
class TracedTraining:
    """A training on one rank.

    Parameters
    ----------
    n_steps : int
    seconds : float
        Of all steps.
    gradient_bytes : int
    flops : float
    """

    n_steps: int
    seconds: float
    gradient_bytes: int
    flops: float


def trace_training(folder: Path, *, size: float) -> TracedTraining:
    """Run the workload of kind train in this process, on one thread."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        result = run(make_job(folder, "train", size, {"type": "threads", "threads": 1}), workspace=place)
        arrays = result.open()
        gradients = sum(array.nbytes for name, array in arrays.items() if name.startswith("parameters/"))
        summary = Job(result.folder).read_state().summary["estimates"]
    return TracedTraining(
        int(summary["steps"]), float(max(summary["seconds_by_rank"]["total"])), gradients, float(result.plan["steps"][0]["flops"])
    )


def predict_training(workers: Sequence[int], folder: Path, *, scale: Scale, network: ModelCluster) -> Iterator[dict[str, Any]]:
    """Predict the times of the workload of kind train on ranks; see `dlscale.bench.replay.predict`.

    A larger problem has so many times the rows, in as many steps on batches so many times as large.
    """
    traced = trace_training(folder, size=scale.size)
    for n in workers:
        factor = scale.factor(n)
        found = predicted(traced, n, factor, network)
        facts = {"kind": "train", "mode": scale.mode, "launcher": "model", "shape": workload("train").grown(scale.size * factor)}
        more = {"flops": traced.flops * factor, "measured": False, "n_workers": n}
        yield asdict(network) | facts | found.to_dict() | more


def predicted(traced: TracedTraining, n_ranks: int, factor: float, network: ModelCluster) -> Prediction:
    """A training with so many times the traced one's rows in a batch, on ranks of one thread."""
    computing = traced.seconds * factor / traced.n_steps
    share = (n_ranks - 1) / n_ranks
    reducing = 2 * share * traced.gradient_bytes / network.bandwidth_bytes_per_second
    reducing += 2 * math.ceil(math.log2(n_ranks)) * network.latency_seconds
    exposed = max(0.0, reducing - OVERLAP * computing / n_ranks)
    step = computing / n_ranks + exposed
    moved = 2 * share * traced.gradient_bytes * n_ranks * traced.n_steps if n_ranks > 1 else 0.0
    smallest = traced.n_steps * reducing
    return Prediction(n_ranks, traced.n_steps * n_ranks, step * traced.n_steps, exposed / step, int(moved), smallest)
