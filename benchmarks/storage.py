"""Reading a Zarr v3 matrix in row strips with two threads: zarr-python, the zarrs pipeline, tensorstore, dlscale, plain preadv.

Chunks of 16 and 64 MiB of random float64, uncompressed and zstd, from a cold and from a warm page cache. Everyone reads whole
chunks, the store once per repeat. "into a buffer" means that the rows land in an array that the caller reuses: fresh memory costs a
page fault every 4 KiB.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness
import matrices
import numpy as np
from harness import Bench, case

THREADS = 2
N_COLUMNS = 2048

Read = Callable[[int, int, np.ndarray], np.ndarray]


def zarr_python(path: Path) -> Read:
    """zarr-python as everyone uses it."""
    import zarr

    Z = zarr.open_array(path, mode="r")
    return lambda start, stop, buffer: Z[start:stop]


def zarr_python_into(path: Path) -> Read:
    """zarr-python into the caller's buffer."""
    import zarr
    from zarr.core.buffer.cpu import NDBuffer

    Z = zarr.open_array(path, mode="r")

    def read(start: int, stop: int, buffer: np.ndarray) -> np.ndarray:
        rows = buffer[: stop - start]
        Z.get_basic_selection((slice(start, stop), slice(None)), out=NDBuffer.from_ndarray_like(rows))
        return rows

    return read


def zarrs(path: Path) -> Read:
    """The zarrs codec pipeline (Rust) behind zarr-python."""
    import zarr

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": THREADS})
    return zarr_python(path)


def zarrs_into(path: Path) -> Read:
    """The zarrs pipeline into the caller's buffer."""
    zarrs(path)
    return zarr_python_into(path)


def tensorstore(path: Path) -> Read:
    """tensorstore, limited to the same two threads."""
    import tensorstore as ts

    limits = {"data_copy_concurrency": {"limit": THREADS}, "file_io_concurrency": {"limit": THREADS}}
    T = ts.open({"driver": "zarr3", "kvstore": f"file://{path}/", "context": limits}).result()
    return lambda start, stop, buffer: T[start:stop].read().result()


def tensorstore_into(path: Path) -> Read:
    """tensorstore into the caller's buffer."""
    import tensorstore as ts

    limits = {"data_copy_concurrency": {"limit": THREADS}, "file_io_concurrency": {"limit": THREADS}}
    T = ts.open({"driver": "zarr3", "kvstore": f"file://{path}/", "context": limits}).result()

    def read(start: int, stop: int, buffer: np.ndarray) -> np.ndarray:
        rows = buffer[: stop - start]
        ts.array(rows).write(T[start:stop]).result()
        return rows

    return read


def dlscale(path: Path) -> Read:
    """dlscale's own reader."""
    from dlscale.storage.matrices import open_matrix

    A = open_matrix(str(path))
    return lambda start, stop, buffer: A.read(start, stop, buffer[: stop - start])


READERS: dict[str, Callable[[Path], Read]] = {
    "dlscale": dlscale,
    "zarr-python": zarr_python,
    "zarr-python into a buffer": zarr_python_into,
    "zarrs pipeline": zarrs,
    "zarrs pipeline into a buffer": zarrs_into,
    "tensorstore": tensorstore,
    "tensorstore into a buffer": tensorstore_into,
}


def prepare(bench: Bench, chunk_mib: int, compression: str) -> tuple[Path, tuple[int, int]]:
    """The store, written if it is not there."""
    shape = (bench.pick(full=2 * 65536, quick=8192), N_COLUMNS)  # 2 GiB, 128 MiB
    path = matrices.store(bench.data, shape, "f8", chunk_bytes=chunk_mib * 2**20, compression=compression, noise=True)
    stored = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    bench.fact(shape=list(shape), stored_bytes=stored, matrix_bytes=8 * shape[0] * shape[1], chunk_mib=chunk_mib)
    return path, shape


def clock(bench: Bench, path: Path, *, cold: bool, sweep: Callable[[], Any]) -> None:
    """Time sweeps over the store from the wanted state of the page cache, and put the rate on record."""
    if cold:
        bench.time(sweep, repeats=bench.pick(full=3, quick=1), before=lambda: harness.forget(path))
    else:
        bench.time(sweep, repeats=bench.pick(full=5, quick=2), warm_up=True)
    seconds = statistics.median(bench.record["seconds"])
    bench.fact(gigabytes_per_second=bench.record["facts"]["matrix_bytes"] / seconds / 1e9)


def read_with(bench: Bench, name: str, chunk_mib: int, compression: str, cold: bool) -> None:
    """Two threads, a chunk of rows each at a time."""
    path, (m, n) = prepare(bench, chunk_mib, compression)
    chunk_rows = chunk_mib * 2**20 // (8 * n)
    read = READERS[name](path)
    spans = [(start, min(start + chunk_rows, m)) for start in range(0, m, chunk_rows)]

    def part(buffer: np.ndarray, mine: list[tuple[int, int]]) -> float:
        return sum(float(read(start, stop, buffer)[-1, -1]) for start, stop in mine)

    # Buffers are written once here, so that none of the readers pays for their first touch.
    buffers = [np.ones((chunk_rows, n)) for _ in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        clock(
            bench,
            path,
            cold=cold,
            sweep=lambda: sum(pool.map(part, buffers, [spans[i::THREADS] for i in range(THREADS)])),
        )
    for start, stop in (spans[0], spans[-1]):
        exact = np.random.default_rng(start).standard_normal((stop - start, n))
        bench.check("different_entries", float(np.sum(read(start, stop, buffers[0]) != exact)), 0.0)


def read_files(bench: Bench, chunk_mib: int, compression: str, cold: bool) -> None:
    """The chunk files, not decoded: the limit. The rate is in bytes of the matrix, so that it compares."""
    path, _ = prepare(bench, chunk_mib, compression)
    clock(bench, path, cold=cold, sweep=lambda: harness.read_raw(path, threads=THREADS))
    bench.check("missing_bytes", float(bench.record["facts"]["stored_bytes"] - harness.read_raw(path)), 0.0)


def register() -> Iterator[None]:
    """Every reader on every store in both states of the cache."""
    for compression in ("none", "zstd"):
        for chunk_mib in (16, 64):
            for cold in (True, False):
                group = f"read {chunk_mib} MiB {compression} {'cold' if cold else 'warm'}"
                for name in READERS:
                    yield case(group, name, limit=300)(lambda bench, a=(name, chunk_mib, compression, cold): read_with(bench, *a))
                yield case(group, "preadv of the files")(lambda bench, a=(chunk_mib, compression, cold): read_files(bench, *a))


list(register())

if __name__ == "__main__":
    raise SystemExit(harness.main())
