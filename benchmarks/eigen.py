"""Eigenvalues of symmetric matrices: all in memory, and the largest of a stored matrix that does not fit.

The spectrum is known: ``A = H D H`` with a reflector ``H = I - 2 u u'``, made strip by strip. SciPy's `eigsh`, which multiplies one
vector at a time, gets the same store behind a LinearOperator; its products are counted on a smaller matrix of the same shape of
spectrum, and multiplied by the time of one read.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Bench, case

ALL, SOME = "all eigenpairs", "largest eigenpairs of a stored matrix"
STRIP_BYTES = 2**27


def spectrum(n: int) -> np.ndarray:
    """Like that of a random symmetric matrix: distances to either end grow as the number to the power 2/3."""
    x = np.linspace(-1, 1, n)
    return np.asarray(np.sign(x) * (1 - (1 - np.abs(x)) ** (2 / 3)))


def strips(n: int) -> Iterator[tuple[int, np.ndarray]]:
    """Rows of ``D + 2 (u v' + v u')`` with ``v = (u' D u) u - D u``."""
    d, u = spectrum(n), np.random.default_rng(1).standard_normal(n)
    u /= np.linalg.norm(u)
    v = (u @ (d * u)) * u - d * u
    rows = max(1, STRIP_BYTES // (8 * n))
    for i in range(0, n, rows):
        part = slice(i, min(n, i + rows))
        # Symmetric to the bit: a sum of two products does not depend on their order.
        strip = 2 * (np.multiply.outer(u[part], v) + np.multiply.outer(v[part], u))
        strip[np.arange(len(strip)), np.arange(part.start, part.stop)] += d[part]
        yield i, strip


def stored(bench: Bench, n: int) -> Path:
    """The matrix as a Zarr array of row strips; kept."""
    import zarr

    path = bench.data / f"eigen-{n}.zarr"
    if not path.exists():
        partial = path.with_suffix(".partial")
        rows = max(1, 2**24 // (8 * n))
        array: Any = zarr.create_array(partial, shape=(n, n), dtype="f8", chunks=(rows, n), compressors=None, overwrite=True)
        for i, strip in strips(n):
            array[i : i + len(strip)] = strip
        partial.rename(path)
    bench.fact(store_bytes=8 * n * n)
    return path


def whole(n: int) -> np.ndarray:
    return np.concatenate([strip for _, strip in strips(n)])


def judge(bench: Bench, A: np.ndarray, values: np.ndarray, V: np.ndarray) -> None:
    """Residual and orthogonality as LAPACK's testers scale them, on random vectors, and the values against the known ones."""
    n, k = V.shape
    X = np.random.default_rng(7).standard_normal((k, 4))
    unit = n * np.finfo(float).eps
    VX = V @ X
    bench.check("residual", float(np.linalg.norm(A @ VX - V @ (values[:, None] * X)) / np.linalg.norm(X) / unit), 30)
    bench.check("orthogonality", float(np.linalg.norm(V.T @ VX - X) / np.linalg.norm(X) / unit), 30)
    bench.check("values", float(np.abs(values - spectrum(n)[-k:]).max() / unit), 30)


def _all(bench: Bench) -> np.ndarray:
    n = bench.pick(full=8192, quick=600)
    bench.fact(n=n)
    return whole(n)


@case(ALL, "dlscale")
def dlscale_all(bench: Bench) -> None:
    import dlscale

    A = _all(bench)
    found = bench.time(lambda: dlscale.eigh(A))
    judge(bench, A, *found)


@case(ALL, "scipy evd")
def scipy_evd(bench: Bench) -> None:
    _scipy(bench, "evd")


@case(ALL, "scipy evr")
def scipy_evr(bench: Bench) -> None:
    _scipy(bench, "evr")


def _scipy(bench: Bench, driver: str) -> None:
    import scipy.linalg

    A = _all(bench)
    judge(bench, A, *bench.time(lambda: scipy.linalg.eigh(A, driver=driver)))


@case(SOME, "dlscale run, 4 GB", limit=7200)
def dlscale_some(bench: Bench) -> None:
    import zarr

    n, k = bench.pick(full=(50_000, 50), quick=(2000, 10))
    path, job = stored(bench, n), bench.data / "eigen.json"
    params = {"n_components": k, "method": "iterative"}
    cluster = {"type": "local", "workers": 1, "threads": harness.CORES, "memory": "4GB"}
    spec = {"kind": "eigh", "input": {"matrix": str(path)}, "params": params, "cluster": cluster}
    job.write_text(json.dumps(spec | {"output": str(bench.data / "eigen-result.zarr"), "overwrite": True}))
    command = [sys.executable, "-m", "dlscale", "run", str(job), "--workspace", str(bench.data / "eigen-jobs"), "--json"]
    raw = [_raw_seconds(bench, path)]
    bench.limit_memory(4e9)
    bench.time(lambda: subprocess.run(command, check=True, capture_output=True), subprocess_only=True)
    raw.append(_raw_seconds(bench, path))
    result: Any = zarr.open_group(bench.data / "eigen-result.zarr", mode="r")
    said = result.attrs["dlscale"]
    events = (bench.data / "eigen-jobs" / "jobs" / said["job"] / "events.jsonl").read_text().splitlines()
    steps = [event for event in map(json.loads, events) if event["event"] == "pass_finished"]
    reads, plan = said["estimates"]["reads"], said["plan"]
    products = sum(step["flops"] for step in steps) / harness.matmul_flops("f8", bench.pick(full=4096, quick=1024))
    bound = max(reads * sum(raw) / 2, products)
    read_bytes = sum(step["bytes_read"] for step in steps)
    bench.fact(reads=reads, read_bytes=read_bytes, planned_bytes=plan["bytes_read"], planned_seconds=plan["expected_seconds"])
    bench.fact(raw_read_seconds=raw, products_seconds=products, bound_ratio=bench.record["seconds"][0] / bound)
    values = np.asarray(result["eigenvalues"][:])
    bench.check("values", float(np.abs(values - spectrum(n)[-k:]).max() / (n * np.finfo(float).eps)), 30)


def _raw_seconds(bench: Bench, path: Path) -> float:
    """What reading the store once takes from a cold start."""
    harness.forget(path)
    watch = Bench(bench.size, bench.data)
    watch.time(lambda: harness.read_raw(path))
    return float(watch.record["seconds"][0])


@case(SOME, "scipy eigsh, products counted", limit=7200)
def scipy_some(bench: Bench) -> None:
    from scipy.sparse.linalg import LinearOperator, eigsh

    n, k = bench.pick(full=(50_000, 50), quick=(2000, 10))
    smaller = bench.pick(full=5000, quick=600)
    A, count = whole(smaller), 0

    def multiply(x: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return np.asarray(A @ x)

    eigsh(LinearOperator(A.shape, matvec=multiply, dtype="f8"), k, which="LA", tol=smaller * np.finfo(float).eps)
    path = stored(bench, n)
    harness.forget(path)
    bench.time(lambda: harness.read_raw(path))
    bench.fact(products=count, n_counted=smaller, seconds_of_all_products=count * bench.record["seconds"][0])


if __name__ == "__main__":
    raise SystemExit(harness.main())
