"""Where a job runs: one noun, `Cluster`, that computes a task graph and says how large it is.

``local`` is one worker process with a thread per core; ``mpi`` are the ranks that mpirun started; ``tcp://host:port`` is a
running Dask cluster; ``slurm``, ``pbs`` and ``kubernetes`` ask for workers there; ``threads`` is this process itself, for
arrays that are in its memory.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

from dlscale.buffers import give_back_at_once
from dlscale.engine.clusters import started
from dlscale.engine.clusters.client import connect, list_workers, quieten
from dlscale.engine.clusters.facts import BASELINE_BYTES, ClusterFacts, describe_cluster
from dlscale.engine.clusters.watching import Watch, Wishes
from dlscale.engine.events import DashboardOpened, Emit, event_of, ignore
from dlscale.errors import DlscaleError, StalledError
from dlscale.kernels import one_blas_thread

__all__ = [
    "BASELINE_BYTES",
    "Cluster",
    "ClusterFacts",
    "DaskCluster",
    "ThreadCluster",
    "describe_cluster",
]


#: The scheduler may hear of the end of a worker sooner than whoever started it, which is waited for at most so long.
_KNOWN_SECONDS = 10.0
_CLOSE_SECONDS = 20


class Cluster(ABC):
    """A place that computes task graphs; a context manager.

    Parameters
    ----------
    facts : ClusterFacts

    Attributes
    ----------
    shares_memory : bool
        Whether tasks see the driver's arrays.
    losses : list of str
        Why workers ended before their time, as far as is known; a sentence on each.
    start_seconds : float
        That its workers took to start; 0 before anybody needed them.
    """

    shares_memory = False
    start_seconds = 0.0

    def __init__(self, facts: ClusterFacts) -> None:
        self.facts = facts
        self.losses: list[str] = []

    def __enter__(self) -> Cluster:
        # In the driver too: the bits of its small matrices must not depend on the cores that it may use.
        self._blas = one_blas_thread()
        self._blas.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._blas.__exit__(None, None, None)
        self.close()

    def close(self) -> None:
        """Let go of what was started."""

    @abstractmethod
    def compute(self, graph: dict[Any, Any], key: Any, watch: Watch) -> Any:
        """Compute one key of a task graph.

        Parameters
        ----------
        graph : dict
            Keys to Dask tasks.
        key
            What to return.
        watch : Watch
        """

    @abstractmethod
    def hold(
        self, graph: dict[Any, Any], keys: Sequence[Any], held: Mapping[Any, Any], wishes: Wishes, watch: Watch
    ) -> dict[Any, Any]:
        """Compute keys of a task graph and leave the results where they are.

        Parameters
        ----------
        graph : dict
            Keys to Dask tasks.
        keys : sequence
            What to hold.
        held : mapping
            What earlier calls returned and this graph refers to.
        wishes : Wishes
        watch : Watch

        Returns
        -------
        dict
            Each key with a handle on its result, which lives until `release`.
        """

    @abstractmethod
    def gather(self, handles: Sequence[Any]) -> list[Any]:
        """Bring (small) held results to the driver."""

    def release(self, handles: Iterable[Any]) -> None:
        """Let go of held results."""

    def tell_dashboard(self, emit: Emit) -> None:
        """Say where Dask's dashboard is, if the cluster was asked for one."""

    def workers(self) -> frozenset[str]:
        """Addresses of the workers that are there now; one that was lost and started again has another."""
        return frozenset()

    def on_every_rank(
        self,
        program: Callable[..., Any],
        *arguments: Any,
        token: str = "",
        listener: Emit = ignore,
        stall_seconds: float | None = None,
    ) -> list[Any]:
        """Run a program on all ranks at the same time.

        Under mpirun these are its ranks; on a Dask cluster whose workers are MPI ranks there is one on each worker; on any other
        cluster this process is the only rank.

        Parameters
        ----------
        program : callable
            Importable on every rank; called as ``program(communicator, *arguments)`` with a `Communicator`.
            Where the communicator says that it is ``stopping`` (SIGTERM or SIGINT), the program saves what it must and returns.
        arguments
            The same for every rank; pickled.
        token, listener
            Events that rank 0 sends under the token (`dlscale.engine.progress.send`) reach the listener; those of others do not.
        stall_seconds : float, optional
            How long a rank may wait for the others.

        Returns
        -------
        list
            What the program returned, by rank; small, pickled.

        Raises
        ------
        RankError
            If it failed or was killed on some rank. Under mpirun all ranks end soon after.
        """
        from dlscale.engine.programs import run_here

        return [run_here(program, arguments, token=token, listener=listener)]


class ThreadCluster(Cluster):
    """This process, through Dask's threaded scheduler."""

    shares_memory = True

    def compute(self, graph: dict[Any, Any], key: Any, watch: Watch) -> Any:
        import dask.threaded

        from dlscale.engine import progress

        progress.listen(watch.token, watch.listener)
        try:
            with one_blas_thread():
                return dask.threaded.get(graph, key, num_workers=self.facts.threads_per_worker)
        finally:
            progress.unlisten(watch.token)

    def hold(
        self, graph: dict[Any, Any], keys: Sequence[Any], held: Mapping[Any, Any], wishes: Wishes, watch: Watch
    ) -> dict[Any, Any]:
        from dask.callbacks import Callback

        from dlscale.engine.graphs import DataNode

        def order_ready(_: Any, state: dict[str, Any]) -> None:
            state["ready"] = _Ready(state["ready"], wishes.priority)

        graph = {key: DataNode(key, value) for key, value in held.items()} | graph
        with Callback(start_state=order_ready):  # type: ignore[no-untyped-call]
            values = self.compute(graph, list(keys), watch)
        return dict(zip(keys, values, strict=True))

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return list(handles)


class _Ready:
    """Tasks that are ready, for Dask's threaded scheduler, which takes them by `pop`: the most urgent one first."""

    def __init__(self, keys: Iterable[Any], priority: Mapping[Any, float]) -> None:
        self._priority, self._count = priority, itertools.count()
        self._heap: list[tuple[float, int, Any]] = []
        for key in keys:
            self.append(key)

    def append(self, key: Any) -> None:
        heapq.heappush(self._heap, (self._priority.get(key, 0.0), next(self._count), key))

    def pop(self) -> Any:
        return heapq.heappop(self._heap)[2]

    def __len__(self) -> int:
        return len(self._heap)


class DaskCluster(Cluster):
    """A Dask cluster: one that was started for this job, or a running one."""

    def __init__(self, facts: ClusterFacts) -> None:
        super().__init__(facts)
        self.local: Any = None

    @cached_property
    def client(self) -> Any:
        """Of the scheduler; workers are started when it is first asked for."""
        from dlscale.engine.clusters.worker import OneBlasThread

        asked = time.perf_counter()
        quieten()
        client = self._connect()
        plugin, name = OneBlasThread(), "dlscale-one-blas-thread"
        try:
            client.register_plugin(plugin, name=name)
        except OSError:
            # A worker was lost at this moment. The scheduler has told the others and tells its successor; now it only agrees.
            client.register_plugin(plugin, name=name)
        self.start_seconds = time.perf_counter() - asked
        return client

    def _connect(self) -> Any:
        give_back_at_once()
        if self.facts.kind == "tcp":
            return connect(self.facts.address)
        try:
            self.local = started.start(self.facts, self.losses.append)
        except RuntimeError as error:
            said = " ".join(self.losses) or str(error)
            raise DlscaleError(f"The workers of the {self.facts.kind} cluster did not start. {said}") from error
        client = connect(self.local.scheduler_address, self.local.security)
        client.wait_for_workers(self.facts.n_workers)
        return client

    def close(self) -> None:
        # Worker processes end with this one at the latest; a busy machine that is slow to end them spoils no result.
        with suppress(TimeoutError):
            if "client" in self.__dict__:
                self.client.close(timeout=_CLOSE_SECONDS)
        with suppress(TimeoutError):
            if self.local is not None:
                self.local.close(timeout=_CLOSE_SECONDS)

    def compute(self, graph: dict[Any, Any], key: Any, watch: Watch) -> Any:
        with self._listening(watch.token, watch.listener):
            future = self._submit(graph, key, watch)
            try:
                return self._wait(future, watch.stalled)
            finally:
                future.release()

    def hold(
        self, graph: dict[Any, Any], keys: Sequence[Any], held: Mapping[Any, Any], wishes: Wishes, watch: Watch
    ) -> dict[Any, Any]:
        annotations: dict[str, Any] = {"priority": {key: -wishes.priority.get(key, 0.0) for key in graph}.__getitem__}
        addresses = sorted(self.workers())
        if len(addresses) > 1:
            places = {key: [addresses[wishes.worker.get(key, 0) % len(addresses)]] for key in graph}
            annotations |= {"workers": places.__getitem__, "allow_other_workers": True}
        with self._listening(watch.token, watch.listener):
            futures = self._submit(graph, list(keys), watch, annotations)
            try:
                for future in futures:
                    self._wait(future, watch.stalled, result=False)
            except BaseException:
                self.release(futures)
                raise
        return dict(zip(keys, futures, strict=True))

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return list(self.client.gather(list(handles)))

    def release(self, handles: Iterable[Any]) -> None:
        # At once, and not when the last reference to a future goes: exceptions keep some.
        for future in handles:
            future.release()

    def tell_dashboard(self, emit: Emit) -> None:
        if self.facts.options.get("dashboard"):
            _ = self.client  # whose scheduler serves it
            port = self.local.scheduler.http_server.port
            emit(DashboardOpened(f"http://localhost:{port}/status"))

    def workers(self) -> frozenset[str]:
        try:
            return frozenset(list_workers(self.client))
        except OSError as error:
            raise self._unreachable() from error

    def on_every_rank(
        self,
        program: Callable[..., Any],
        *arguments: Any,
        token: str = "",
        listener: Emit = ignore,
        stall_seconds: float | None = None,
    ) -> list[Any]:
        if self.facts.kind == "local":
            return super().on_every_rank(program, *arguments, token=token, listener=listener, stall_seconds=stall_seconds)
        from dlscale.engine.clusters.ranks_on_workers import run_on_workers

        with self._listening(token, listener):
            return run_on_workers(self.client, program, arguments, token=token, stall_seconds=stall_seconds)

    @contextmanager
    def _listening(self, token: str, listener: Emit) -> Iterator[None]:
        def hear(message: tuple[float, Any]) -> None:
            if (event := event_of(message[1])) is not None:
                listener(event)

        self.client.subscribe_topic(token, hear)
        try:
            yield
        finally:
            self.client.unsubscribe_topic(token)

    def _submit(self, graph: dict[Any, Any], keys: Any, watch: Watch, annotations: dict[str, Any] | None = None) -> Any:
        """Futures of some keys of a graph."""
        import dask
        from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

        # As a layer with a name; the name of a mere dict would be made from all that is in it.
        named = HighLevelGraph({watch.token: MaterializedLayer(graph, annotations=annotations)}, {watch.token: set()})
        # What the leaves of a pass share travels in the graph, so that it survives the worker that had it.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):
            return self.client.get(named, keys, sync=False)

    def _wait(self, future: Any, stalled: Callable[[], str], *, result: bool = True) -> Any:
        """The result of a future, or just its end."""
        from concurrent.futures import CancelledError

        from distributed.comm.core import CommClosedError
        from distributed.scheduler import KilledWorker

        # A timeout of `future.result` would leave a cycle of references to the frames of its callers, and so to all that they hold.
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        while not done.wait(1.0):
            if reason := stalled():
                raise StalledError(reason + f" Waiting for: {self._running()}.")
        try:
            if result:
                return future.result()
            if future.exception() is not None:
                future.result()
            return None
        except KilledWorker as error:
            self._await_losses(error.allowed_failures + 1)
            said = " ".join(dict.fromkeys(self.losses)) or str(error)
            raise DlscaleError(f"The same task was lost with each of {error.allowed_failures + 1} workers. {said}") from error
        except (CancelledError, CommClosedError) as error:
            raise self._unreachable() from error

    def _await_losses(self, n: int) -> None:
        deadline = time.monotonic() + _KNOWN_SECONDS
        while self.facts.kind == "local" and len(self.losses) < n and time.monotonic() < deadline:
            time.sleep(0.02)

    def _unreachable(self) -> DlscaleError:
        where = f" at {self.facts.address}" if self.facts.address else ""
        return DlscaleError(
            f"The connection to the scheduler{where} was lost; start the cluster again, or resume with `--cluster local`."
        )

    def _running(self) -> str:
        tasks = [f"{task} on {worker}" for worker, names in self.client.processing().items() for task in names]
        return ", ".join(tasks[:4]) or "workers to start"
