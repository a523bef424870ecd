"""A PCA whose matrix, checkpoint, result and workspace lie in a bucket, beside the same job on the disk.

The server is that of the tests, a program in Python on the same cores, unless DLSCALE_BENCH_BUCKET names a place in another one
(s3://bucket/prefix), which the environment leads to. Page cache and server are warm: both hold the matrix in memory.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import numpy as np
import outofcore
from harness import Bench, case

import dlscale
from dlscale.storage.groups import open_arrays
from dlscale.storage.objects import requests
from dlscale.storage.objects.address import Address, forget_clients

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
import object_server

N_ROUNDS = 3
FROZEN_SECONDS = 60


@contextmanager
def place() -> Iterator[tuple[Address, int | None]]:
    """An empty place in a bucket, and the port of its server if that is the one of the tests."""
    if given := os.environ.get("DLSCALE_BENCH_BUCKET"):
        found = Address.of(given) / f"bench-{os.getpid()}"
        try:
            yield found, None
        finally:
            requests.remove(found)
        return
    with object_server.s3_server() as port, object_server.reached(port) as bucket:
        yield bucket, port


def spec(matrix: str, params: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": "pca", "input": {"matrix": matrix}, "params": {"n_components": 24, "scores": True, "seed": 0, **params}}


def run(spec: dict[str, Any], workspace: str) -> str:
    """The whole command `dlscale run`; the place of its result."""
    with tempfile.TemporaryDirectory() as folder:
        return str(outofcore.command(Path(folder), spec, workspace)["result"])


def count_different(ours: str, theirs: str) -> int:
    """Entries whose bits two results do not share."""
    mine, others = open_arrays(ours), open_arrays(theirs)
    if mine.keys() != others.keys():
        return sys.maxsize
    return sum(int(np.sum(mine[name][...] != others[name][...])) for name in mine)


@contextmanager
def folders(bench: Bench) -> Iterator[Path]:
    """An empty folder for local jobs and for the mirror of the bucket."""
    work = bench.data / "bucket-jobs"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    try:
        yield work
    finally:
        shutil.rmtree(work)


def compare(bench: Bench, params: Mapping[str, Any]) -> None:
    """Both in turn, after one of each."""
    path, _ = outofcore.stored(bench, bench.pick(full=(125_000, 2_000), quick=(30_000, 500)))
    with folders(bench) as work, place() as (bucket, _):
        remote = object_server.upload(path, bucket / "A.zarr")
        seconds = []
        for k in range(N_ROUNDS + 1):
            began = time.monotonic()
            ours = run(spec(str(path), params), str(work / "here"))
            seconds.append(time.monotonic() - began)
            theirs = bench.time(lambda: run(spec(remote, params), f"{bucket}/ws"), subprocess_only=True)
            if k == 0:
                bench.check("different_entries", count_different(ours, theirs), 0)
        for name in ("seconds", "marks"):
            del bench.record[name][0]
        on_disk = statistics.median(seconds[1:])
        bench.fact(disk_seconds=on_disk, of_the_disk=on_disk / statistics.median(bench.record["seconds"]))


SOLVERS: dict[str, dict[str, Any]] = {
    "covariance, 2 reads": {"solver": "covariance"},
    "randomized, 5 reads": {"solver": "randomized", "power_iterations": 3},
    "randomized, 2 reads": {"solver": "randomized", "power_iterations": 0},
}
for _name, _params in SOLVERS.items():
    case("PCA of 2 GB in a bucket", _name)(lambda bench, params=_params: compare(bench, params))


@case("PCA of 2 GB in a bucket", "worker killed, store frozen for 60 s, 5 % of requests failing")
def harmed(bench: Bench) -> None:
    """The bits of the disk, and no secret in any file or object."""
    path, _ = outofcore.stored(bench, bench.pick(full=(125_000, 2_000), quick=(30_000, 500)))
    params, cluster = SOLVERS["randomized, 5 reads"], {"type": "local", "workers": 2, "threads": 1}
    with folders(bench) as work, object_server.s3_server() as port, object_server.reached(port) as bucket:
        ours = run({**spec(str(path), params), "cluster": cluster}, str(work / "here"))
        remote = object_server.upload(path, bucket / "A.zarr")
        with object_server.faulty_proxy(port) as (proxy, faults):
            os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy}"
            forget_clients()
            faults.failing = 0.05
            harmed: list[int] = []

            def harm(event: dict[str, Any]) -> None:
                if event["event"] == "checkpoint" and not harmed:
                    workers = [each for each in harness.psutil.Process().children() if "spawn_main" in " ".join(each.cmdline())]
                    harmed.append(workers[-1].pid)
                    workers[-1].kill()
                    faults.frozen_until = time.monotonic() + FROZEN_SECONDS

            job = {**spec(remote, params), "cluster": cluster, "stall": 600.0}
            theirs = bench.time(lambda: dlscale.run(job, workspace=f"{bucket}/ws", listener=harm))
            faults.failing = 0.0
            bench.fact(killed=len(harmed), **faults.counts)
            bench.check("different_entries", count_different(ours, theirs.result), 0)
            secret = object_server.SECRET.encode()
            objects = [key for key in requests.listing(bucket) if secret in requests.get(bucket / key)]
            files = [each for each in work.rglob("*") if each.is_file() and secret in each.read_bytes()]
            bench.check("secrets", len(objects) + len(files), 0)
            bench.check("unharmed", float(not harmed or not faults.counts["frozen"] or not faults.counts["failing"]), 0)


if __name__ == "__main__":
    raise SystemExit(harness.main())
