"""What dlscale sets in every worker process of a Dask cluster, and workers in a process that is there already."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from distributed import WorkerPlugin

from dlscale.engine.clusters.client import quieten
from dlscale.engine.clusters.started import SETTINGS
from dlscale.kernels import one_blas_thread

if TYPE_CHECKING:
    from distributed.security import Security


class OneBlasThread(WorkerPlugin):
    """BLAS on one thread as long as the worker lives: the worker's own threads are the parallelism."""

    idempotent = True

    def setup(self, worker: Any) -> None:
        self.limit = one_blas_thread()
        self.limit.__enter__()

    def teardown(self, worker: Any) -> None:
        self.limit.__exit__(None, None, None)


def work(scheduler: str, security: Security, rank: int, threads: int, memory_bytes: int) -> None:
    """Work for a scheduler until it closes."""
    import dask

    from dlscale.engine.clusters.secured import ClosedWorker

    dask.config.set(SETTINGS)
    quieten()
    host = "127.0.0.1" if "//127.0.0.1:" in scheduler else None

    async def until_closed() -> None:
        options: dict[str, Any] = {"nthreads": threads, "memory_limit": memory_bytes, "name": rank, "host": host, "protocol": "tls"}
        async with ClosedWorker(scheduler, security=security, **options) as worker:
            await worker.finished()

    asyncio.run(until_closed())
