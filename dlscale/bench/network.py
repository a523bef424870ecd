"""What moves between processes: arrays between two Dask workers, tasks through the scheduler, sums between two ranks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.bench.growth import RecordingCluster
from dlscale.bench.tracing import is_value
from dlscale.engine.clusters import Cluster, describe_cluster
from dlscale.engine.clusters.client import list_workers
from dlscale.engine.clusters.cluster import DaskCluster
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Fold, Passes, State
from dlscale.engine.ranks import Communicator, MPICommunicator
from dlscale.engine.run import Run
from dlscale.storage.matrix import ArrayMatrix

_LARGE_BYTES = 2**26
_N_TASKS = 1000
_REDUCED_BYTES = (8, 2**13, 2**20, 2**25)


def measure_network() -> list[dict[str, Any]]:
    """Lines on two Dask workers on this machine: bandwidth, latency, and what a task costs."""
    facts = describe_cluster({"type": "local", "workers": 2, "threads": 1})
    cluster = DaskCluster(facts)
    with closing(cluster):
        client = cluster.client
        client.wait_for_workers(2)
        first, second = list_workers(client)
        # One worker makes an array, the other asks for it: with a small one that is three messages and two tasks.
        small = min(_transfer(client, first, second, 8) for _ in range(10))
        large = min(_transfer(client, first, second, _LARGE_BYTES) for _ in range(3))
        chain = min(_chain(client, 50) for _ in range(3)) / 50
        overhead = min(_many(client, _N_TASKS) for _ in range(2)) / _N_TASKS
        of_pass = min(_pass(cluster, _N_TASKS) for _ in range(5)) / _tasks_of_pass(_N_TASKS)
    return [
        {
            "what": "worker to worker",
            "value": _LARGE_BYTES / max(large - small, 1e-9) / 1e9,
            "unit": "GB/s",
            "note": "64 MiB by TCP on this machine",
        },
        {"what": "fetch of 8 bytes", "value": small * 1e3, "unit": "ms", "note": "a task whose input is on another worker"},
        {"what": "task, one after the other", "value": chain * 1e3, "unit": "ms", "note": "a chain of tasks that do nothing"},
        {"what": "task, many at once", "value": overhead * 1e3, "unit": "ms", "note": f"{_N_TASKS} tasks that do nothing"},
        {
            "what": "task of a pass",
            "value": of_pass * 1e3,
            "unit": "ms",
            "note": f"a pass over {_N_TASKS} blocks that does nothing, with its merges",
        },
    ]


def _transfer(client: Any, first: str, second: str, n_bytes: int) -> float:
    source = client.submit(np.zeros, n_bytes // 8, workers=[first], pure=False)
    client.submit(len, source, workers=[first], pure=False).result()
    started = time.perf_counter()
    client.submit(len, source, workers=[second], pure=False).result()
    return time.perf_counter() - started


def _chain(client: Any, length: int) -> float:
    started = time.perf_counter()
    future = client.submit(_same, 0, pure=False)
    for _ in range(length - 1):
        future = client.submit(_same, future, pure=False)
    future.result()
    return time.perf_counter() - started


def _many(client: Any, n: int) -> float:
    started = time.perf_counter()
    client.gather(client.map(_same, range(n), pure=False, batch_size=n))
    return time.perf_counter() - started


class _Nothing(Fold):
    """A pass that does nothing with its blocks."""

    def start(self) -> State:
        return {}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        return ()


def _pass(cluster: Cluster, n: int) -> float:
    started = time.perf_counter()
    Passes(Run(cluster)).sweep("bench", ArrayMatrix(np.zeros((n, 1))), _Nothing(), RowGrid(n, 1, 1))
    return time.perf_counter() - started


def _tasks_of_pass(n: int) -> int:
    recorder = RecordingCluster()
    _pass(recorder, n)
    return sum(not is_value(node) for node in recorder.graphs[0].graph.values())


def _same(value: Any) -> Any:
    return value


def measure_allreduce(n_ranks: int = 2) -> list[dict[str, Any]]:
    """Lines on sums between ranks of mpirun on this machine; none where there is no mpirun."""
    if shutil.which("mpirun") is None:
        return []
    program = ["-m", "dlscale.bench.network", *map(str, _REDUCED_BYTES)]
    command = ["mpirun", "-n", str(n_ranks), "--oversubscribe", sys.executable, *program]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode:
        return []
    lines = []
    for n_bytes, seconds in json.loads(ended.stdout.splitlines()[-1]):
        note = f"{n_ranks} ranks, {seconds * 1e3:.3g} ms"
        if n_bytes == _REDUCED_BYTES[0]:
            lines.append({"what": "allreduce of 8 bytes", "value": seconds * 1e3, "unit": "ms", "note": f"{n_ranks} ranks"})
        else:
            size = f"{n_bytes >> 20} MiB" if n_bytes >> 20 else f"{n_bytes >> 10} KiB"
            lines.append({"what": f"allreduce of {size}", "value": n_bytes / seconds / 1e9, "unit": "GB/s", "note": note})
    return lines


def time_allreduce(communicator: Communicator, sizes: Sequence[int] = _REDUCED_BYTES) -> list[tuple[int, float]]:
    """Seconds of an allreduce for some sizes in bytes: the slowest rank, the best of several."""
    found = []
    for n_bytes in sizes:
        array = np.zeros(n_bytes // 8)
        best = np.array([np.inf])
        for _ in range(5 if n_bytes > 2**20 else 20):
            communicator.barrier("bench")
            started = time.perf_counter()
            communicator.allreduce(array, name="bench")
            seconds = np.array([time.perf_counter() - started])
            best = np.minimum(best, communicator.allreduce(seconds, name="slowest", op="max"))
        found.append((n_bytes, float(best[0])))
    return found


if __name__ == "__main__":
    ranks = MPICommunicator()
    times = time_allreduce(ranks, [int(size) for size in sys.argv[1:]])
    if ranks.rank == 0:
        print(json.dumps(times))
    ranks.close()
