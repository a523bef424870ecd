"""Systems and least squares by iterations, beside SciPy's: what each ends with is measured in the same way.

A definite matrix with a known spectrum, ``A = H D H`` with a reflector H as in `eigen.py`, on disk and read under 2 GB; and least
squares problems whose columns have lengths over three decades, in memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Bench, case

STORED, TALL = "definite system on disk", "least squares in memory"
STRIP_BYTES, TOLERANCE, CONDITION = 2**25, 1e-8, 1e3


def strip(n: int, start: int, stop: int) -> np.ndarray:
    """Rows of ``D + 2 (u v' + v u')`` with ``v = (u' D u) u - D u``."""
    d, u = np.linspace(1 / CONDITION, 1, n), np.random.default_rng(1).standard_normal(n)
    u /= np.linalg.norm(u)
    v = (u @ (d * u)) * u - d * u
    rows = 2 * (np.multiply.outer(u[start:stop], v) + np.multiply.outer(v[start:stop], u))
    rows[np.arange(stop - start), np.arange(start, stop)] += d[start:stop]
    return np.asarray(rows)


def stored(bench: Bench) -> tuple[Path, Path]:
    """The matrix and a right-hand side as Zarr arrays; kept."""
    import zarr

    n = bench.pick(full=30_000, quick=1500)
    matrix, rhs = bench.data / f"definite-{n}.zarr", bench.data / f"definite-{n}-rhs.zarr"
    if not matrix.exists():
        partial, rows = matrix.with_suffix(".partial"), max(1, STRIP_BYTES // (8 * n))
        array: Any = zarr.create_array(partial, shape=(n, n), dtype="f8", chunks=(rows, n), compressors=None, overwrite=True)
        for i in range(0, n, rows):
            array[i : i + rows] = strip(n, i, min(n, i + rows))
        zarr.create_array(rhs, shape=(n,), dtype="f8", chunks=(n,), overwrite=True)[:] = np.random.default_rng(2).standard_normal(n)
        partial.rename(matrix)
    bench.fact(store_bytes=8 * n * n, n=n)
    return matrix, rhs


def judge(bench: Bench, matrix: Path, rhs: Path, x: np.ndarray) -> None:
    """``||b - A x|| / ||b||``, strip by strip."""
    import zarr

    A, b = zarr.open_array(matrix, mode="r"), np.asarray(zarr.open_array(rhs, mode="r")[:])
    rows, squares = A.chunks[0], 0.0
    for i in range(0, len(b), rows):
        squares += float(((b[i : i + rows] - np.asarray(A[i : i + rows]) @ x) ** 2).sum())
    bench.check("true residual / tolerance", squares**0.5 / float(np.linalg.norm(b)) / TOLERANCE, 1)


@case(STORED, "dlscale run, 2 GB", limit=7200)
def dlscale_stored(bench: Bench) -> None:
    import zarr

    matrix, rhs = stored(bench)
    job, output = bench.data / "iterative.json", bench.data / "iterative-result.zarr"
    params = {"method": "cg", "tolerance": TOLERANCE, "max_iterations": 600}
    cluster = {"type": "local", "workers": 1, "threads": harness.CORES, "memory": "2GB"}
    spec = {"kind": "solve", "input": {"matrix": str(matrix), "rhs": str(rhs)}, "params": params, "cluster": cluster}
    job.write_text(json.dumps(spec | {"output": str(output), "overwrite": True}))
    harness.forget(matrix)
    command = [sys.executable, "-m", "dlscale", "run", str(job), "--workspace", str(bench.data / "iterative-jobs"), "--json"]
    bench.limit_memory(2e9)
    bench.time(lambda: subprocess.run(command, check=True, capture_output=True), subprocess_only=True)
    estimates = dict(zarr.open_group(output, mode="r").attrs)["dlscale"]["estimates"]
    bench.fact(iterations=estimates["iterations"], reads=estimates["reads"])
    judge(bench, matrix, rhs, np.asarray(zarr.open_array(output / "x", mode="r")[:]))


@case(STORED, "scipy cg, one strip at a time", limit=7200)
def scipy_stored(bench: Bench) -> None:
    import zarr
    from scipy.sparse.linalg import LinearOperator, cg

    matrix, rhs = stored(bench)
    A, b = zarr.open_array(matrix, mode="r"), np.asarray(zarr.open_array(rhs, mode="r")[:])
    rows, count = A.chunks[0], 0

    def multiply(x: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return np.concatenate([np.asarray(A[i : i + rows]) @ x for i in range(0, len(b), rows)])

    harness.forget(matrix)
    x, _ = bench.time(lambda: cg(LinearOperator(A.shape, matvec=multiply, dtype="f8"), b, rtol=TOLERANCE, maxiter=600))
    bench.fact(reads=count)
    judge(bench, matrix, rhs, x)


def tall(bench: Bench) -> tuple[np.ndarray, np.ndarray]:
    """A matrix with columns of lengths over three decades, and a right-hand side."""
    m, n = bench.pick(full=(1_000_000, 200), quick=(20_000, 50))
    bench.fact(m=m, n=n)
    rng = np.random.default_rng(3)
    return rng.standard_normal((m, n)) * np.geomspace(1 / CONDITION, 1, n), rng.standard_normal(m)


def judge_gradient(bench: Bench, A: np.ndarray, b: np.ndarray, x: np.ndarray) -> None:
    """``||A'r|| / (||A|| ||r||)``."""
    r = b - A @ x
    bench.check("gradient / tolerance", float(np.linalg.norm(A.T @ r) / np.linalg.norm(A) / np.linalg.norm(r)) / TOLERANCE, 1)


@case(TALL, "dlscale cgls, jacobi")
def dlscale_tall(bench: Bench) -> None:
    from dlscale.declaration.kind import run_here
    from dlscale.linalg.lstsq.kind import KIND, LstsqOptions

    A, b = tall(bench)
    options = LstsqOptions(method="cgls", preconditioner="jacobi", tolerance=TOLERANCE)
    found = bench.time(lambda: run_here(KIND, KIND.inputs({"matrix": A, "rhs": b}), options))
    bench.fact(iterations=found.outcome.estimates["iterations"])
    judge_gradient(bench, A, b, found.arrays["x"])


SKETCHED = "least squares of 1,000 columns in memory"


def ill_conditioned(bench: Bench) -> tuple[np.ndarray, np.ndarray]:
    """Columns that depend on each other more and more, to condition numbers near 1e12."""
    m, n = bench.pick(full=(1_000_000, 1000), quick=(20_000, 100))
    bench.fact(m=m, n=n)
    rng = np.random.default_rng(4)
    A = rng.standard_normal((m, n))
    A *= np.geomspace(1e-12, 1, n)
    for i in range(0, m, 2**14):
        A[i : i + 2**14] @= np.linalg.qr(np.random.default_rng(5).standard_normal((n, n)))[0]
    return A, rng.standard_normal(m)


def _lstsq(bench: Bench, method: str) -> None:
    from dlscale.declaration.kind import run_here
    from dlscale.linalg.lstsq.kind import KIND, LstsqOptions

    A, b = ill_conditioned(bench)
    inputs = KIND.inputs({"matrix": A, "rhs": b})
    # The direct method would count singular values of this size as zero.
    options = LstsqOptions(method="sketch") if method == "sketch" else LstsqOptions(method="direct", rcond=0.0)
    x = bench.time(lambda: run_here(KIND, inputs, options)).arrays["x"]
    # Karlson and Walden's estimate, by the singular values of a triangle of A.
    r = b - A @ x
    triangles = [np.linalg.qr(A[i : i + 2**16], mode="r") for i in range(0, len(A), 2**16)]
    _, s, Vh = np.linalg.svd(np.linalg.qr(np.vstack(triangles), mode="r"))
    mu, size = float(np.linalg.norm(r) / np.linalg.norm(x)), float(np.linalg.norm(x) * np.linalg.norm(s))
    bench.check("backward error / eps", float(np.linalg.norm(Vh @ (A.T @ r) / np.hypot(s, mu)) / size / np.finfo(float).eps), 100)


@case(SKETCHED, "dlscale sketch")
def dlscale_sketch(bench: Bench) -> None:
    _lstsq(bench, "sketch")


@case(SKETCHED, "dlscale direct")
def dlscale_direct(bench: Bench) -> None:
    _lstsq(bench, "direct")


@case(TALL, "scipy lsqr")
def scipy_tall(bench: Bench) -> None:
    from scipy.sparse.linalg import lsqr

    A, b = tall(bench)
    found = bench.time(lambda: lsqr(A, b, atol=TOLERANCE, btol=TOLERANCE, iter_lim=2000))
    bench.fact(iterations=int(found[2]))
    judge_gradient(bench, A, b, found[0])


if __name__ == "__main__":
    raise SystemExit(harness.main())
