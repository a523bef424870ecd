"""What this machine can do: the limits that a plan and a report measure a job against."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from threadpoolctl import threadpool_info

from dlscale.buffers import empty_pages
from dlscale.host import total_bytes
from dlscale.kernels import one_blas_thread
from dlscale.sparse_rows import SparseRows, add_normal_product
from dlscale.storage.matrix import Matrix

_N_MATMUL = 768
#: Rows, columns, entries a row, and columns of the factor.
_SPARSE_SAMPLE = (4000, 8000, 40, 64)
_SAMPLE_BYTES = 48 * 2**20
_WRITTEN_BYTES = 64 * 2**20


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


@cache
def sparse_rate() -> float:
    """Flops per second of a product of compressed rows with a dense matrix, and back, on one core (0.1 s to measure)."""
    rng, (m, n, per_row, width) = np.random.default_rng(0), _SPARSE_SAMPLE
    indices = np.sort(rng.integers(0, n, (m, per_row)), axis=1).ravel()
    rows = scipy.sparse.csr_array((rng.random(m * per_row), indices, np.arange(m + 1) * per_row), shape=(m, n))
    block, W, ZH = SparseRows(rows), rng.random((n, width)), np.zeros((n, width)).T
    seconds = min(_timed(lambda: add_normal_product(block, W, ZH)) for _ in range(2))
    return 4 * m * per_row * width / seconds


def sparse_read_rate(A: Matrix, block_rows: int) -> float:
    """Stored bytes per second at which one thread reads a block of compressed rows."""
    rows = min(A.shape[0], block_rows)
    seconds = _timed(lambda: A.sparse_rows(0, rows))
    return A.n_stored_bytes * rows / A.shape[0] / max(seconds, 1e-9)


def read_rate(A: Matrix, *, n_threads: int = 1, block_rows: int | None = None) -> float:
    """Bytes per second at which so many threads together read a sample of the matrix; infinite in memory.

    Parameters
    ----------
    A : Matrix (m, n)
    n_threads : int
        Of this machine.
    block_rows : int, optional
        Of the blocks that will be read: what is stored by columns is read in pieces as high as a block.
    """
    if A.in_memory:
        return float("inf")
    m, n, item = *A.shape, A.dtype.itemsize
    if A.by_columns and A.any_range and block_rows:
        rows = min(block_rows, m)
        columns = min(n, max(1, _SAMPLE_BYTES // n_threads // (rows * item) // A.column_unit) * A.column_unit)
    else:
        unit = min(A.row_unit, m)
        rows, columns = min(m, max(1, _SAMPLE_BYTES // n_threads // (n * item) // unit) * unit), n
    if rows * columns * item > 4 * _SAMPLE_BYTES:
        return 1e9
    # Of a matrix that no cache keeps another part each time: what was read a moment ago is still somewhere near.
    n_places = max(1, m // rows)
    first = int(np.random.default_rng().integers(n_places)) if A.n_stored_bytes > total_bytes() // 2 else 0
    samples = [empty_pages((rows, columns), A.dtype) for _ in range(n_threads)]
    for sample in samples:
        sample.fill(0)

    def read(i: int) -> None:
        row = (first + i) % n_places * rows
        A.region((row, row + rows), (0, columns), samples[i])

    with ThreadPoolExecutor(n_threads) as pool:
        seconds = _timed(lambda: list(pool.map(read, range(n_threads))))
    # Stored bytes, which of a sparse matrix are fewer than its entries.
    return n_threads * rows * columns * (A.n_stored_bytes / (m * n)) / max(seconds, 1e-9)


@cache
def write_rate(folder: Path) -> float:
    """Bytes per second at which a file is written in a folder and flushed to its disk; infinite where none can be.

    Notes
    -----
    The file has no name, so that nothing is left of it, whatever happens.
    """
    data = np.random.default_rng(0).bytes(_WRITTEN_BYTES)

    def write() -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    try:
        return _WRITTEN_BYTES / _timed(write)
    except OSError:
        return float("inf")


def _timed(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def blas_kernels() -> str:
    """The BLAS libraries in this process with the kernels they chose for the processor: rates and bits depend on both."""
    found = (library for library in threadpool_info() if library["user_api"] == "blas")
    names = {f"{library['internal_api']} {library['version']} {library.get('architecture') or ''}".strip() for library in found}
    return ", ".join(sorted(names))


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("dlscale", "numpy", "scipy", "dask", "distributed", "zarr")}


def describe_machine() -> dict[str, Any]:
    """Facts for the report: processor, cores, memory and the versions of the libraries that compute."""
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_bytes": total_bytes(),
        "python": platform.python_version(),
        "versions": _versions() | {"blas": blas_kernels()},
    }
