"""What this machine can do: the rates that bound every job, each measured in about a second."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlscale.bench.network import measure_allreduce, measure_network
from dlscale.engine.machine import matmul_rate, read_rate
from dlscale.host import n_cores
from dlscale.kernels import one_blas_thread
from dlscale.storage.matrices import open_matrix
from dlscale.storage.results import ResultGroup

_N_MATMUL = 1024
_COPY_BYTES = 2**28
_FILE_BYTES = 2**28
_BLOCK_BYTES = 2**24


@dataclass(frozen=True)
class Rate:
    """One line of the table.

    Parameters
    ----------
    what, unit : str
    value : float
    note : str
        How it was measured.
    """

    what: str
    value: float
    unit: str
    note: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_machine(folder: Path) -> list[Rate]:
    """Measure this machine.

    Parameters
    ----------
    folder : Path
        On the disk whose speed counts; what is written there is removed.

    Returns
    -------
    list of Rate

    Notes
    -----
    About 10 seconds and half a gigabyte of memory and disk. Without mpirun there are no lines on allreduce.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        return [
            *_products(),
            *_memory(),
            *_disk(Path(place) / "file"),
            *_store(Path(place) / "store.zarr"),
            *(Rate(**line) for line in measure_network()),
            *(Rate(**line) for line in measure_allreduce()),
        ]


def _products() -> list[Rate]:
    n, lines = n_cores(), []
    for dtype in ("f8", "f4"):
        one = matmul_rate(dtype)
        together = _together(lambda dtype=dtype: _product(dtype), n)  # type: ignore[misc]
        lines += [
            Rate(f"product {dtype}, 1 thread", one / 1e9, "GFLOP/s", f"{768} x {768} matrices"),
            Rate(f"product {dtype}, {n} threads", together / 1e9, "GFLOP/s", f"a {_N_MATMUL} x {_N_MATMUL} product on each"),
        ]
    return lines


def _product(dtype: str) -> Callable[[], float]:
    A = np.random.default_rng(0).standard_normal((_N_MATMUL, _N_MATMUL)).astype(dtype)
    C = np.empty_like(A)

    def work() -> float:
        for _ in range(3):
            np.matmul(A, A, out=C)
        return float(6 * _N_MATMUL**3)

    return work


def _memory() -> list[Rate]:
    n = n_cores()
    one, together = _together(_copy, 1), _together(_copy, n)
    note = "bytes read and written while arrays are copied"
    return [
        Rate("memory, 1 thread", one / 1e9, "GB/s", note),
        Rate(f"memory, {n} threads", together / 1e9, "GB/s", note),
    ]


def _copy() -> Callable[[], float]:
    source = np.ones(_COPY_BYTES // 8)
    target = np.zeros_like(source)

    def work() -> float:
        np.copyto(target, source)
        return 2.0 * _COPY_BYTES

    return work


def _together(prepare: Callable[[], Callable[[], float]], n_threads: int) -> float:
    """Amount of work a second when each of some threads does it at the same time, the best of three."""
    works = [prepare() for _ in range(n_threads)]
    with one_blas_thread(), ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(lambda work: work(), works))
        rates: list[float] = []
        for _ in range(3):
            started = time.perf_counter()
            amount = sum(pool.map(lambda work: work(), works))
            rates.append(amount / (time.perf_counter() - started))
    return max(rates)


def _disk(path: Path) -> list[Rate]:
    block = np.random.default_rng(0).bytes(_BLOCK_BYTES)
    started = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for _ in range(_FILE_BYTES // _BLOCK_BYTES):
            file.write(block)
        os.fsync(file.fileno())
        written = time.perf_counter() - started
        # What is safe on the disk may leave the memory, so that it is read from the disk.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.read(_BLOCK_BYTES):
            pass
    read = time.perf_counter() - started
    path.unlink()
    return [
        Rate("disk write", _FILE_BYTES / written / 1e9, "GB/s", f"{_FILE_BYTES >> 20} MiB, flushed"),
        Rate("disk read", _FILE_BYTES / read / 1e9, "GB/s", "the same file, dropped from memory first"),
    ]


def _store(path: Path) -> list[Rate]:
    rows = np.random.default_rng(0).standard_normal((2048, 1024))
    shape = (_FILE_BYTES // rows[0].nbytes, rows.shape[1])
    group = ResultGroup(path, fsync=False)
    try:
        writer = group.create("A", shape, rows.dtype, chunks=rows.shape)
        started = time.perf_counter()
        for row in range(0, shape[0], len(rows)):
            writer.write(row, rows)
        written = time.perf_counter() - started
        group.publish({})
    finally:
        group.close()
    rate = read_rate(open_matrix(path / "A"))
    return [
        Rate("store write, 1 thread", _FILE_BYTES / written / 1e9, "GB/s", "Zarr chunks of 16 MiB with checksums, not flushed"),
        Rate("store read, 1 thread", rate / 1e9, "GB/s", "the same, from memory where it is still there"),
    ]
