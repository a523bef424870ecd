"""Tall QR in memory, Q and R: 2,000,000 x 100 float64."""

from __future__ import annotations

from typing import Any

import harness
import matrices
import numpy as np
from harness import Bench, case

GROUP = "tall QR"


def shape(bench: Bench) -> tuple[int, int]:
    """Rows and columns."""
    return bench.pick(full=(2_000_000, 100), quick=(60_000, 40))


def load(bench: Bench) -> np.ndarray:
    """The matrix, with what it costs on record."""
    m, n = shape(bench)
    # Q and R by Householder: 2mn^2 for R, as much again for Q.
    bench.fact(shape=[m, n], dtype="f8", flops=4 * m * n * n, matrix_bytes=8 * m * n)
    return matrices.in_memory(bench.data, (m, n), "f8")


def judge(bench: Bench, A: np.ndarray, q: Any, r: np.ndarray) -> None:
    """Backward error and orthogonality, block by block."""
    m, n = A.shape
    defect, gram = 0.0, np.zeros((n, n))
    for start, stop in matrices.blocks(m, 8 * n):
        part = np.asarray(q[start:stop])
        defect += float(np.linalg.norm(A[start:stop] - part @ r) ** 2)
        gram += part.T @ part
    bench.check("orthogonality", float(np.linalg.norm(gram - np.eye(n), 2)), 1e-12)
    bench.check("backward_error", float(np.sqrt(defect) / np.linalg.norm(matrices.spectrum(A.shape))), 1e-13)
    bench.check("below_diagonal", float(np.abs(np.tril(r, -1)).max()), 0.0)


@case(GROUP, "dlscale")
def ours(bench: Bench) -> None:
    """dlscale.qr."""
    import dlscale

    A = load(bench)
    result = bench.time(lambda: dlscale.qr(A), repeats=bench.pick(full=3, quick=1), warm_up=True)
    judge(bench, A, result.q, np.asarray(result.r))


def dask_tsqr(bench: Bench, chunk_rows: int, blas_threads: int) -> None:
    """dask.array.linalg.tsqr on the threaded scheduler; Q comes back as one NumPy array."""
    import dask
    import dask.array as da
    from threadpoolctl import threadpool_limits

    A = load(bench)
    D = da.from_array(A, chunks=(chunk_rows, -1), name=False)
    with threadpool_limits(blas_threads), dask.config.set(scheduler="threads", num_workers=harness.CORES):
        q, r = bench.time(lambda: dask.compute(*da.linalg.tsqr(D)), repeats=bench.pick(full=3, quick=1), warm_up=True)
    judge(bench, A, q, r)


@case(GROUP, "dask tsqr")
def dask_default(bench: Bench) -> None:
    """Chunks of 20,000 rows, one BLAS thread per task: its best here."""
    dask_tsqr(bench, 20_000, 1)


@case(GROUP, "dask tsqr, BLAS threads left alone")
def dask_oversubscribed(bench: Bench) -> None:
    """The same without limiting BLAS threads: what a user gets."""
    dask_tsqr(bench, 20_000, harness.CORES)


@case(GROUP, "scipy qr economic")
def scipy_economic(bench: Bench) -> None:
    """LAPACK geqrf and orgqr."""
    import scipy.linalg

    A = load(bench)
    q, r = bench.time(lambda: scipy.linalg.qr(A, mode="economic", check_finite=False))
    judge(bench, A, q, r)


@case(GROUP, "numpy qr reduced")
def numpy_reduced(bench: Bench) -> None:
    """numpy.linalg.qr."""
    A = load(bench)
    q, r = bench.time(lambda: np.linalg.qr(A))
    judge(bench, A, q, r)


if __name__ == "__main__":
    raise SystemExit(harness.main())
