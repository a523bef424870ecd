"""The 16 GB store, jobs through the command line, peers' clusters, and the bound that all are held against."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import matrices
import numpy as np
from harness import Bench


def stored(bench: Bench, shape: tuple[int, int] | None = None) -> tuple[Path, tuple[int, int]]:
    """The known matrix as a Zarr store, float64: 1,000,000 x 2,000 unless told."""
    m, n = shape or bench.pick(full=(1_000_000, 2_000), quick=(30_000, 500))
    path = matrices.store(bench.data, (m, n), "f8")
    size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    bench.fact(shape=[m, n], dtype="f8", matrix_bytes=8 * m * n, stored_bytes=size)
    return path, (m, n)


def strips(path: Path) -> Iterator[tuple[int, int, np.ndarray]]:
    """Row blocks of a store."""
    import zarr

    Z = zarr.open_array(path, mode="r")
    for start in range(0, Z.shape[0], Z.chunks[0]):
        yield start, min(start + Z.chunks[0], Z.shape[0]), Z[start : start + Z.chunks[0]]


def measure_bound(bench: Bench, path: Path, *, n_reads: int, flops: float, width: int) -> None:
    """What no program can beat: reading the store as often, from a cold start, or the flops at the matrix-product rate.

    The rate of the product with a matrix of `width` columns, which is what subspace methods can use, is kept beside it.
    """
    harness.forget(path)
    watch = Bench(bench.size, bench.data)
    watch.time(lambda: [harness.read_raw(path) for _ in range(n_reads)])
    read = watch.record["seconds"][0]
    compute = flops / harness.matmul_flops("f8", bench.pick(full=4096, quick=1024))
    skinny = flops / harness.skinny_flops(bench.record["facts"]["shape"][1], width)
    bench.fact(flops=flops, raw_read_seconds=read, flops_seconds=compute, skinny_seconds=skinny, bound_seconds=max(read, compute))


@contextmanager
def enforced(limit_bytes: int) -> Iterator[None]:
    """Put this process and its children in a control group whose memory, page cache included, is limited by the kernel.

    What is read then really comes from the disk each time, however much memory the machine has. Needs root on Linux.
    """
    groups = Path("/sys/fs/cgroup")
    version_1 = (groups / "memory").is_dir()
    name, limit = ("memory/dlscale-bench", "memory.limit_in_bytes") if version_1 else ("dlscale-bench", "memory.max")
    own = Path("/proc/self/cgroup").read_text().splitlines()
    line = next(line for line in own if (":memory:" in line if version_1 else line.startswith("0::")))
    before = groups / ("memory" if version_1 else "") / line.split(":", 2)[2].strip("/")
    group = groups / name
    group.mkdir(exist_ok=True)
    # In whole pages, and not under what is asked for.
    (group / limit).write_text(str(-(-limit_bytes // 4096) * 4096))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        (before / "cgroup.procs").write_text(str(os.getpid()))


def run_dlscale(
    bench: Bench, path: Path, kind: str, params: dict[str, Any], *, memory: str, roles: tuple[str, ...] = ("matrix",)
) -> Path:
    """`dlscale run` with this memory for all its processes together, from a cold page cache; returns the result's path.

    On the clock is the whole command: start of the processes, plan, work, certificate, durable result and report. The store is
    the input of all the roles.
    """
    work, result = _fresh(bench)
    cluster, given = {"type": "local", "memory": memory}, dict.fromkeys(roles, str(path))
    spec = {"kind": kind, "input": given, "params": params, "output": str(result), "cluster": cluster}
    bench.limit_memory(float(memory.removesuffix("GB")) * 1e9)
    plan = bench.time(lambda: command(work, spec), before=lambda: harness.forget(path), subprocess_only=True).get("plan") or {}
    bench.fact(method=plan.get("words"), plan_flops=plan.get("flops"), plan_read_bytes=plan.get("bytes_read"))
    if "bound_seconds" in bench.record["facts"]:
        bench.fact(bound_ratio=bench.record["seconds"][-1] / bench.record["facts"]["bound_seconds"])
    return result


def run_job(bench: Bench, path: Path, kind: str, params: dict[str, Any]) -> Path:
    """`dlscale run` on the local cluster as it is by default, off any clock; returns the result's path."""
    work, result = _fresh(bench)
    command(work, {"kind": kind, "input": {"matrix": str(path)}, "params": params, "output": str(result)})
    return result


def _fresh(bench: Bench) -> tuple[Path, Path]:
    """An empty folder for a job, and the path of its result in there."""
    work = bench.data / "job"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    return work, work / "result.zarr"


def command(work: Path, spec: dict[str, Any], workspace: str | None = None) -> dict[str, Any]:
    """Run the command line in a folder, where the workspace is too if no other is named; what it says of the job."""
    (work / "spec.yaml").write_text(json.dumps(spec))  # JSON is YAML
    program = str(Path(sys.executable).with_name("dlscale"))
    arguments = [program, "run", str(work / "spec.yaml"), "--json", "--workspace", workspace or str(work / "workspace")]
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {(done.stderr + done.stdout)[-1500:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


@contextmanager
def dask_cluster(bench: Bench) -> Iterator[None]:
    """LocalCluster 1 x 2 for a peer: half of this machine's memory, spilling to the data folder beyond it."""
    import dask
    from distributed import Client, LocalCluster

    spill = bench.data / "dask-spill"
    limit = harness.psutil.virtual_memory().total // 2
    with (
        dask.config.set({"temporary-directory": str(spill)}),
        LocalCluster(n_workers=1, threads_per_worker=2, memory_limit=limit, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        yield
    shutil.rmtree(spill, ignore_errors=True)
