"""What this machine can do: the limits that a plan and a report measure a job against."""

from __future__ import annotations

import os
import platform
import time
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from dlscale.host import total_bytes
from dlscale.kernels import one_blas_thread
from dlscale.storage.matrix import Matrix

_N_MATMUL = 768
_SAMPLE_BYTES = 48 * 2**20


@cache
def matmul_rate(dtype: str) -> float:
    """Flops per second of a square matrix product on one core (0.1 s to measure).

    Notes
    -----
    A complex multiplication and addition counts as one of each, as in the flop counts of the plans.
    """
    generator = np.random.default_rng(0)
    A = generator.standard_normal((_N_MATMUL, _N_MATMUL)).astype(dtype)
    C = np.empty_like(A)
    with one_blas_thread():
        np.matmul(A, A, out=C)
        seconds = min(_timed(lambda: np.matmul(A, A, out=C)) for _ in range(3))
    return 2 * _N_MATMUL**3 / seconds


def read_rate(A: Matrix) -> float:
    """Bytes per second at which a sample of the matrix is read on one thread; infinite in memory."""
    if A.in_memory:
        return float("inf")
    row_bytes = A.shape[1] * A.dtype.itemsize
    unit = min(A.row_unit, A.shape[0])
    n_rows = min(A.shape[0], max(1, _SAMPLE_BYTES // row_bytes // unit) * unit)
    if n_rows * row_bytes > 4 * _SAMPLE_BYTES:
        return 1e9
    out = np.empty((n_rows, A.shape[1]), A.dtype)
    out.fill(0)
    seconds = _timed(lambda: A.read(0, n_rows, out))
    return n_rows * A.shape[1] * A.stored_dtype.itemsize / max(seconds, 1e-9)


def _timed(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def blas_kernels() -> str:
    """The BLAS libraries in this process with the kernels they chose for the processor: rates and bits depend on both."""
    found = (library for library in threadpool_info() if library["user_api"] == "blas")
    names = {f"{library['internal_api']} {library['version']} {library.get('architecture') or ''}".strip() for library in found}
    return ", ".join(sorted(names))


def describe_machine() -> dict[str, Any]:
    """Facts for the report: processor, cores, memory and the versions of the libraries that compute."""
    names = ("dlscale", "numpy", "scipy", "dask", "distributed", "zarr")
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_bytes": total_bytes(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names} | {"blas": blas_kernels()},
    }
