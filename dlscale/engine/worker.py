"""What dlscale sets in every worker process of a Dask cluster."""

from __future__ import annotations

from typing import Any

from distributed import WorkerPlugin

from dlscale.kernels import one_blas_thread


class OneBlasThread(WorkerPlugin):
    """BLAS on one thread as long as the worker lives: the worker's own threads are the parallelism."""

    idempotent = True

    def setup(self, worker: Any) -> None:
        self.limit = one_blas_thread()
        self.limit.__enter__()

    def teardown(self, worker: Any) -> None:
        self.limit.__exit__(None, None, None)
