"""What LAPACK does in one task: all of a matrix is read, and the task says that it works while LAPACK says nothing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.columns import Tell
from dlscale.errors import NonFiniteError
from dlscale.storage.matrix import Matrix

T = TypeVar("T")

#: BLAS on several threads is faster from this order on.
MANY_THREADS_FROM = 2000
#: Beside the matrix: strips that are read, and what is worked in.
WORK_BYTES = 2**28
_STRIP_BYTES = 2**25
_TICK_SECONDS = 0.5


def n_blas_threads(n: int, facts: ClusterFacts) -> int:
    """Threads of BLAS in the one task, which decide the order of sums."""
    return 1 if n < MANY_THREADS_FROM else facts.threads_per_worker


def read_all(A: Matrix, place: Array, tell: Tell) -> None:
    """Read all of a matrix (m, n) to its place, all of it finite (NonFiniteError)."""
    m, n = A.shape
    rows = max(1, _STRIP_BYTES // (n * A.dtype.itemsize) // A.row_unit) * A.row_unit
    for i in range(0, m, rows):
        strip = A.read(i, min(i + rows, m))
        tell(0.0, strip.size * A.stored_dtype.itemsize)
        if not np.isfinite(strip).all():
            row, column = (int(index) for index in np.argwhere(~np.isfinite(strip))[0])
            raise NonFiniteError(*A.place(i + row, column), strip[row, column].item())
        place[i : i + len(strip)] = strip


def patiently(tell: Tell, work: Callable[[], T]) -> T:
    """Work in a thread of its own, while this one, to which the messages of the task belong, says that it goes on."""
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(work)
        while not wait([ahead], timeout=_TICK_SECONDS).done:
            tell(0.0, 0)
        return ahead.result()
