"""Dask across the ranks of one mpirun: every rank is a worker, and rank 0 is the scheduler and the driver as well."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dlscale.engine.clusters.client import connect
from dlscale.engine.clusters.cluster import DaskCluster
from dlscale.engine.clusters.facts import ClusterFacts
from dlscale.engine.clusters.launchers import Session
from dlscale.engine.clusters.started import SETTINGS
from dlscale.engine.clusters.watching import Watch, Wishes
from dlscale.engine.events import Emit, ignore
from dlscale.errors import DlscaleError, RankError

if TYPE_CHECKING:
    pass

_START_SECONDS = 60


class MpiCluster(DaskCluster):
    """The ranks of a session; Dask is started on them with the first graph."""

    def __init__(self, facts: ClusterFacts, session: Session) -> None:
        super().__init__(facts)
        self.session = session

    def _connect(self) -> Any:
        import dask

        from dlscale.engine.clusters.secured import ClosedCluster, ClosedWorker, make_security

        self.session.check()
        dask.config.set(SETTINGS)
        threads, memory_bytes = self.session.shares[0]
        security = make_security()
        self.local = ClosedCluster(  # type: ignore[no-untyped-call]
            n_workers=1,
            processes=False,
            worker_class=ClosedWorker,
            threads_per_worker=threads,
            memory_limit=memory_bytes,
            security=security,
            host=self.session.own_address(),
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        )
        self.session.tell("work", self.local.scheduler_address, security)
        client = connect(self.local.scheduler_address, security)
        try:
            client.wait_for_workers(self.facts.n_workers, timeout=_START_SECONDS)
        except TimeoutError as error:
            self.session.blame()
            raise DlscaleError(
                f"Not all of the {self.facts.n_workers} ranks reached the scheduler at {self.local.scheduler_address} within "
                f"{_START_SECONDS} s; let the hosts open connections to each other."
            ) from error
        return client

    def __exit__(self, kind: object = None, *_: object) -> None:
        # A launcher that sent a signal kills the ranks soon: what matters is saved without waiting for the workers' end.
        if kind is None or (isinstance(kind, type) and issubclass(kind, Exception)):
            super().__exit__()

    def close(self) -> None:
        if self.local is not None and self.session.healthy:
            super().close()
            self.session.tell("rest")

    def compute(self, graph: dict[Any, Any], key: Any, watch: Watch) -> Any:
        with self._blamed(watch) as checked:
            return super().compute(graph, key, checked)

    def hold(
        self, graph: dict[Any, Any], keys: Sequence[Any], held: Mapping[Any, Any], wishes: Wishes, watch: Watch
    ) -> dict[Any, Any]:
        with self._blamed(watch) as checked:
            return super().hold(graph, keys, held, wishes, checked)

    def on_every_rank(
        self,
        program: Callable[..., Any],
        *arguments: Any,
        token: str = "",
        listener: Emit = ignore,
        stall_seconds: float | None = None,
    ) -> list[Any]:
        return self.session.run(program, arguments, token=token, listener=listener, stall_seconds=stall_seconds)

    @contextmanager
    def _blamed(self, watch: Watch) -> Iterator[Watch]:
        """A rank that fails ends the computation, whatever else seems to be the reason at first."""

        def checked() -> str:
            self.session.check()
            return watch.stalled()

        try:
            yield replace(watch, stalled=checked)
        except RankError:
            raise
        except BaseException:
            self.session.blame()
            raise
