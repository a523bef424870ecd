"""Dask clusters that are started for one job: processes of this machine, or asked for from a batch system or Kubernetes."""

from __future__ import annotations

import logging
import math
import shlex
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlscale.errors import SpecError

if TYPE_CHECKING:
    from dlscale.engine.clusters.facts import ClusterFacts

#: Run by each worker as it starts. A terminal sends Ctrl-C to every process, and the driver is the one that acts on it.
_WORKER_SETUP = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
#: Tasks without inputs that each thread of a worker is given ahead: messages go every few milliseconds, and meanwhile a thread
#: finishes several that are short. Their results are small, and what they read they read when they run. More would cost less a
#: task, but leave a slow worker with more than others can steal from it in time.
WORKER_SATURATION = 16.0
#: The plan bounds memory; Dask's own reactions to a full worker (spill, pause, kill) would only hide a wrong plan. Its profiler
#: takes the interpreter from the computing threads a hundred times a second, and to measure itself each process wakes up fifty
#: times a second, which takes a fiftieth of a core where nothing is done.
SETTINGS: Mapping[str, Any] = {
    **{f"distributed.worker.memory.{what}": False for what in ("target", "spill", "pause", "terminate")},
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.client.scheduler-info-interval": "60s",
    # Each process would keep the last thousand messages that it sent, each of up to a megabyte, with the graphs in them.
    "distributed.admin.low-level-log-length": 0,
    "distributed.scheduler.worker-saturation": WORKER_SATURATION,
    # Where pages are served after all (by workers that a batch system starts), there are none.
    **{f"distributed.{node}.http.routes": [] for node in ("scheduler", "worker")},
}
#: Of a cluster with a dashboard: its figures and what they are drawn with, but not the tables of workers, logs and call stacks.
#: Only pages of its own may read them, so that no page of somebody else in the same browser does.
DASHBOARD: Mapping[str, Any] = {
    "distributed.scheduler.http.routes": ["distributed.http.statics"],
    "distributed.scheduler.dashboard.bokeh-application.allow_websocket_origin": [],
}
#: A word of a batch script or of Kubernetes: no blanks, quotes, line breaks or signs of a shell, and no option of its own.
WORD = r"[A-Za-z0-9_][A-Za-z0-9_.,:+=@/-]{0,127}"
#: Address of a scheduler: nothing that one reader of addresses takes for a host and another one for something else.
ADDRESS = r"(tcp|tls)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?\]):[0-9]{1,5}"
#: Time limits of batch systems: minutes, MM:SS, HH:MM:SS, days-hours and days-HH:MM:SS.
TIME_LIMIT = r"([0-9]{1,9}|[0-9]{1,6}:[0-9]{2}(:[0-9]{2})?|[0-9]{1,5}-[0-9]{1,2}(:[0-9]{2}){0,2})"
#: Beside workers, threads and memory; what they mean is said by the libraries. With the form of each, since they are written
#: into batch scripts.
OPTIONS: Mapping[str, Mapping[str, str]] = {
    "slurm": {"queue": WORD, "account": WORD, "walltime": TIME_LIMIT, "interface": WORD},
    "pbs": {"queue": WORD, "account": WORD, "walltime": TIME_LIMIT, "interface": WORD},
    "kubernetes": {"image": WORD, "namespace": r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"},
}
_INSTALL = {"slurm": "dask-jobqueue", "pbs": "dask-jobqueue", "kubernetes": "dask-kubernetes"}


def require_library(kind: str) -> None:
    """Refuse a cluster whose library is not installed (SpecError, which says what to install)."""
    from importlib.util import find_spec

    package = _INSTALL[kind]
    if find_spec(package.replace("-", "_")) is None:
        extra = "kubernetes" if kind == "kubernetes" else "slurm"
        raise SpecError(f"cluster: {kind} needs {package}; install it with `pip install dlscale[{extra}]`.")


def require_dashboard() -> None:
    """Refuse a dashboard where what draws it is not installed (SpecError, which says what to install)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import distributed.dashboard.core  # noqa: F401
    except ImportError as error:
        said = "bokeh" if isinstance(error, ModuleNotFoundError) else f"another bokeh ({error})"
        raise SpecError(f"cluster: dashboard needs {said}; install it with `pip install dlscale[dashboard]`.") from error


def start(facts: ClusterFacts, tell: Callable[[str], None]) -> Any:
    """Start the workers, or ask for them: they come when there is room for them.

    Parameters
    ----------
    facts : ClusterFacts
        Of kind ``local``, or of one in `OPTIONS`.
    tell : callable
        Receives a sentence on each worker of this machine that ends before its time.
    """
    import dask

    with dask.config.set(SETTINGS):
        cluster = _start_processes(facts, tell) if facts.kind == "local" else _STARTERS[facts.kind](facts)
    if facts.kind != "kubernetes":  # whose scheduler is a pod
        from dlscale.engine.clusters.arrivals import follow_arrivals

        follow_arrivals(cluster.scheduler)
    return cluster


#: Between two times that the cluster tells its scheduler how many workers it wants, which does not change.
_SYNC_SECONDS = 60
#: Dask has its workers give all freed memory back at once: memory that is touched for the first time each time halves the speed
#: of what makes large arrays from block to block.
_USUAL_ALLOCATION = {"distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None}


def _start_processes(facts: ClusterFacts, tell: Callable[[str], None]) -> Any:
    import dask

    from dlscale.engine.clusters.lost_workers import PatientCluster, WatchedNanny
    from dlscale.engine.clusters.secured import make_security

    settings: dict[str, Any] = {"distributed.worker.preload": [_WORKER_SETUP], **_USUAL_ALLOCATION}
    if facts.n_workers == 1:  # nobody else could take what it is given ahead
        settings["distributed.scheduler.worker-saturation"] = math.inf
    if has_pages := bool(facts.options.get("dashboard")):
        settings |= DASHBOARD
    _forget_unreadable_script()
    with dask.config.set(settings):
        return PatientCluster(  # type: ignore[no-untyped-call]
            worker_class=WatchedNanny,
            tell=tell,
            n_workers=facts.n_workers,
            threads_per_worker=facts.threads_per_worker,
            memory_limit=facts.memory_bytes,
            dashboard_address="127.0.0.1:0" if has_pages else None,
            security=make_security(),
            silence_logs=logging.CRITICAL,
            scheduler_sync_interval=_SYNC_SECONDS,
            # Also of workers that are started again, when this context is over.
            config={**SETTINGS, **settings},
        )


def _forget_unreadable_script() -> None:
    """Let worker processes, which import the main script, leave out one that no file holds: it came by standard input."""
    main = sys.modules["__main__"]
    script = getattr(main, "__file__", None)
    if script is not None and getattr(main, "__spec__", None) is None and not Path(script).is_file():
        del main.__file__  # as at a prompt, which has none


def _environment() -> dict[str, str]:
    """Dask's settings, as the environment variables from which workers elsewhere read them."""
    return {"DASK_" + name.upper().replace(".", "__").replace("-", "_"): str(value) for name, value in SETTINGS.items()}


def _start_jobs(facts: ClusterFacts) -> Any:
    from dask_jobqueue.pbs import PBSCluster
    from dask_jobqueue.slurm import SLURMCluster

    from dlscale.engine.clusters.secured import in_files, make_security

    # Batch jobs start in this folder, so their hosts see it. The key goes with the cluster.
    keys = tempfile.TemporaryDirectory(prefix=".dlscale-keys-", dir=".", ignore_cleanup_errors=True)
    cluster = (SLURMCluster if facts.kind == "slurm" else PBSCluster)(
        n_workers=facts.n_workers,
        cores=facts.threads_per_worker,
        memory=f"{facts.memory_bytes}B",
        processes=1,
        job_script_prologue=[f"export {name}={shlex.quote(value)}" for name, value in _environment().items()],
        security=in_files(make_security(), Path(keys.name).absolute()),
        scheduler_options={"dashboard_address": "127.0.0.1:0"},
        worker_extra_args=["--no-dashboard", "--dashboard-address", "127.0.0.1:0"],
        silence_logs=logging.CRITICAL,
        **facts.options,
    )
    weakref.finalize(cluster, keys.cleanup)
    return cluster


def _start_pods(facts: ClusterFacts) -> Any:
    from dask_kubernetes.operator import KubeCluster

    size = {"cpu": str(facts.threads_per_worker), "memory": str(facts.memory_bytes)}
    return KubeCluster(
        name="dlscale",
        n_workers=facts.n_workers,
        resources={"requests": size, "limits": size},
        env=_environment(),
        quiet=True,
        **facts.options,
    )


_STARTERS: Mapping[str, Callable[[ClusterFacts], Any]] = {
    "slurm": _start_jobs,
    "pbs": _start_jobs,
    "kubernetes": _start_pods,
}
