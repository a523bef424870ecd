"""Stored factors applied to columns: the inverse of a matrix, and systems with many right-hand sides, on one worker and on two.

`--n N` sets the order of the matrix (default 8,192), `--k K` the right-hand sides (default 2,000). Workers have one thread. The
clock runs from when they have done a small job to when the result is flushed and certified; what the plan expected is beside it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Bench, case

WORKERS = (1, 2)


def sizes(bench: Bench) -> tuple[int, int]:
    n = int(os.environ.get("DLSCALE_BENCH_N") or bench.pick(full=8_192, quick=1_024))
    return n, int(os.environ.get("DLSCALE_BENCH_K") or bench.pick(full=2_000, quick=600))


def stored(bench: Bench, name: str, n_columns: int) -> Path:
    """A random matrix of so many columns, and as many rows as the matrix of the case."""
    import zarr

    n, _ = sizes(bench)
    path = bench.data / f"columns-{name}-{n}-{n_columns}.zarr"
    if not path.exists():
        array = zarr.create_array(path, shape=(n, n_columns), chunks=(512, n_columns), dtype="f8", compressors=None)
        for i in range(0, n, 512):
            array[i : i + 512] = np.random.default_rng([i, n_columns]).standard_normal((min(512, n - i), n_columns))
    return path


def measure(bench: Bench, kind: str, n_workers: int) -> None:
    """Plan the job, start its workers, and compute it on the clock."""
    from dlscale.batch.kinds import KINDS
    from dlscale.engine.clusters import describe_cluster, open_cluster
    from dlscale.engine.events import Event, StepFinished, WorkDone
    from dlscale.engine.run import Run
    from dlscale.storage.checkpoints import Checkpoint
    from dlscale.storage.inputs import Inputs
    from dlscale.storage.matrices import open_matrix
    from dlscale.storage.results import ResultGroup

    n, k = sizes(bench)
    paths = {"matrix": stored(bench, "matrix", n)} | ({"rhs": stored(bench, "rhs", k)} if kind == "solve" else {})
    inputs = Inputs({role: open_matrix(str(path)) for role, path in paths.items()})
    facts = describe_cluster({"type": "local", "workers": n_workers, "threads": 1})
    chosen = KINDS[kind]
    options = chosen.options()
    plan = chosen.plan(inputs, options, facts).writing_in(bench.data)
    work = bench.data / f"columns-{kind}-{n_workers}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    told: list[Event] = []
    with open_cluster(facts) as cluster:
        result = ResultGroup(work / "result.zarr", fsync=True)
        run = Run(cluster, checkpoint=Checkpoint(work / "checkpoint.zarr"), result=result, emit=told.append)
        # Workers import what they need with their first tasks.
        small = Inputs({role: open_matrix(np.eye(64)) for role in paths})
        first = Run(cluster, checkpoint=Checkpoint(work / "first"), result=ResultGroup(work / "first.zarr"))
        chosen.compute(first, small, options, chosen.plan(small, options, facts))

        def compute() -> Any:
            outcome = chosen.compute(run, inputs, options, plan)
            for name, array in outcome.arrays.items():
                result.put(name, array)
            result.publish({})
            return outcome

        outcome = bench.time(compute, subprocess_only=True)
    for check in outcome.certificate.checks:
        bench.check(check.name, check.value, check.threshold)
    seconds = bench.record["seconds"][0]
    finished = [event for event in told if isinstance(event, StepFinished)]
    done, needed = (sum(event.flops for event in told if isinstance(event, what)) for what in (WorkDone, StepFinished))
    bench.fact(
        shape=[n, n],
        n_columns=k if kind == "solve" else n,
        dtype="f8",
        planned_seconds=plan.expected_seconds,
        planned_to_measured=plan.expected_seconds / seconds,
        planned_flops=plan.flops,
        told_flops=done,
        told_to_steps=done / needed,
        steps={event.step: round(event.seconds, 3) for event in finished},
    )
    shutil.rmtree(work)


def _register(kind: str, words: str) -> None:
    for n_workers in WORKERS:

        def run(bench: Bench, n_workers: int = n_workers) -> None:
            measure(bench, kind, n_workers)

        case(words, f"dlscale, {n_workers} worker{'s' if n_workers > 1 else ''} of one thread", limit=3600)(run)


_register("inverse", "inverse")
_register("solve", "solve with many right-hand sides")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--n", default=os.environ.get("DLSCALE_BENCH_N", ""))
    parser.add_argument("--k", default=os.environ.get("DLSCALE_BENCH_K", ""))
    mine, rest = parser.parse_known_args()
    # The processes of the cases see the sizes in their environment.
    os.environ["DLSCALE_BENCH_N"], os.environ["DLSCALE_BENCH_K"] = mine.n, mine.k
    sys.argv = [sys.argv[0], *rest]
    raise SystemExit(harness.main())
