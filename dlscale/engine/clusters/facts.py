"""What is known of a cluster before it is used: how many workers and threads, how much memory, and where it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dlscale.engine.clusters import launchers, started
from dlscale.engine.clusters.client import connect, list_workers
from dlscale.engine.clusters.versions import compare_workers
from dlscale.errors import SpecError
from dlscale.host import n_cores, total_bytes
from dlscale.showing import several

#: Resident memory of a process that has imported the libraries and read nothing.
BASELINE_BYTES = 300 * 2**20


@dataclass(frozen=True)
class ClusterFacts:
    """What a plan needs to know of a cluster.

    Parameters
    ----------
    kind : str
        ``local``, ``threads``, ``mpi``, ``tcp``, ``slurm``, ``pbs`` or ``kubernetes``.
    n_workers, threads_per_worker : int
    memory_bytes : int
        What one worker process may use, all in all.
    address : str
        Of the scheduler, for ``tcp``.
    options : mapping
        What else a batch system or Kubernetes is told (see `dlscale.engine.clusters.started.OPTIONS`); ``dashboard``.
    notes : tuple of str
        In what its workers differ from this process.
    """

    kind: str
    n_workers: int
    threads_per_worker: int
    memory_bytes: int
    address: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def one_host(self) -> bool:
        """Whether all its processes certainly run on this machine, whose kernel then holds what they have written."""
        return self.kind in ("local", "threads")

    @property
    def n_threads(self) -> int:
        return self.n_workers * self.threads_per_worker

    @property
    def work_bytes(self) -> int:
        """What is left of a worker's memory for a job's arrays."""
        return self.memory_bytes - (BASELINE_BYTES if self.kind != "threads" else 0)

    def to_dict(self) -> dict[str, Any]:
        """All but the notes, which are of one moment."""
        return {name: value for name, value in asdict(self).items() if name != "notes"}


def describe_cluster(spec: str | Mapping[str, Any] = "local") -> ClusterFacts:
    """Facts about a cluster; starts nothing.

    Parameters
    ----------
    spec : str or mapping
        ``"local"`` (under mpirun its ranks), ``"threads"``, ``"mpi"``, ``"tcp://host:port"``, or a mapping with
        ``workers``, ``threads`` (of each worker) and ``memory`` (of all processes together: bytes, or text such as
        ``"4GB"``) for a cluster of ``type`` local, threads, slurm, pbs or kubernetes, and ``dashboard`` for local.

    Raises
    ------
    SpecError
        If the kind is unknown, a number is not positive, the memory is less than the processes need to start, or
        nothing answers at the address.
    """
    options: dict[str, Any] = {"type": spec} if isinstance(spec, str) else dict(spec)
    kind = str(options.pop("type", "local"))
    if kind.startswith(("tcp://", "tls://")):
        return _remote_facts(kind)
    if kind == "mpi" or (spec == "local" and launchers.session() is not None):
        return _ranks_facts()
    options = {name: value for name, value in options.items() if value is not None}
    if has_pages := bool(options.pop("dashboard", False)):
        _require_dashboard(kind)
    if kind in started.OPTIONS:
        return _asked_for(kind, options)
    if kind not in ("local", "threads"):
        raise SpecError(f"cluster must be local, threads, mpi, slurm, pbs, kubernetes or tcp://host:port; got {kind!r}.")
    n_workers = int(options.pop("workers", None) or 1)
    threads = int(options.pop("threads", None) or max(1, n_cores() // n_workers))
    total = total_bytes()
    memory = _bytes(options.pop("memory", None)) or total * 6 // 10
    if memory > total:
        raise SpecError(f"cluster: memory must be at most the machine's {total / 1e9:.1f} GB; got {memory / 1e9:.1f} GB.")
    if options:
        raise SpecError(f"cluster: unknown key {next(iter(options))!r}; allowed: type, workers, threads, memory, dashboard.")
    if min(n_workers, threads, memory) < 1:
        raise SpecError(f"cluster: workers, threads and memory must be positive; got {n_workers}, {threads}, {memory}.")
    if kind == "threads":
        return ClusterFacts("threads", 1, threads, memory)
    per_worker = (memory - BASELINE_BYTES) // n_workers
    if per_worker < BASELINE_BYTES + 32 * 2**20:
        needed = (BASELINE_BYTES * (n_workers + 1) + n_workers * 32 * 2**20) / 1e9
        least = f"{needed:.2f} GB for {several(n_workers, 'worker')}"
        raise SpecError(f"cluster: memory must be at least {least}; got {memory / 1e9:.2f} GB.")
    return ClusterFacts("local", n_workers, threads, per_worker, options={"dashboard": True} if has_pages else {})


def _require_dashboard(kind: str) -> None:
    if kind != "local":
        raise SpecError(f"cluster: dashboard is one of worker processes on this machine, of type local; got type {kind}.")
    started.require_dashboard()


def _bytes(text: Any) -> int:
    from dask.utils import parse_bytes

    return int(parse_bytes(text)) if text else 0


def _asked_for(kind: str, options: dict[str, Any]) -> ClusterFacts:
    started.require_library(kind)
    if missing := [name for name in ("workers", "threads", "memory") if name not in options]:
        raise SpecError(f"cluster: {kind} needs the keys workers, threads and memory; missing: {', '.join(missing)}.")
    if unknown := [name for name in options if name not in ("workers", "threads", "memory", *started.OPTIONS[kind])]:
        allowed = ", ".join(("type", "workers", "threads", "memory", *started.OPTIONS[kind]))
        raise SpecError(f"cluster: unknown key {unknown[0]!r} of {kind}; allowed: {allowed}.")
    for name, form in started.OPTIONS[kind].items():
        if name in options and not re.fullmatch(form, str(options[name]), re.ASCII):
            raise SpecError(f"cluster: {name} must be one plain word of {kind}, such as a name; got {str(options[name])[:80]!r}.")
    n_workers, threads, memory = int(options.pop("workers")), int(options.pop("threads")), _bytes(options.pop("memory"))
    per_worker = memory // n_workers
    if per_worker < 2 * BASELINE_BYTES:
        raise SpecError(
            f"cluster: memory must be at least {2 * BASELINE_BYTES / 1e9:.2f} GB a worker; got {per_worker / 1e9:.2f} GB."
        )
    return ClusterFacts(kind, n_workers, threads, per_worker, options=options)


def _ranks_facts() -> ClusterFacts:
    if (session := launchers.session()) is None:
        if launchers.launched() is None:
            raise SpecError("cluster: mpi needs a launcher; start the job with `mpirun -n N dlscale run SPEC`.")
        return describe_cluster({"type": "local"})
    threads, memory = zip(*session.shares, strict=True)
    return ClusterFacts("mpi", len(session.shares), min(threads), min(memory))


def _remote_facts(address: str) -> ClusterFacts:
    with connect(address) as client:
        workers = list_workers(client).values()
        if not workers:
            raise SpecError(f"cluster: the scheduler at {address} has no workers; start some with `dask worker {address}`.")
        memory = min(worker["memory_limit"] or total_bytes() for worker in workers)
        n_threads = min(worker["nthreads"] for worker in workers)
        return ClusterFacts("tcp", len(workers), n_threads, int(memory), address, notes=compare_workers(client, address))
