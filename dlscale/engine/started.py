"""Dask clusters that are asked for from a batch system or from Kubernetes, for one job."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dlscale.errors import SpecError

if TYPE_CHECKING:
    from dlscale.engine.clusters import ClusterFacts

#: Beside workers, threads and memory; what they mean is said by the libraries.
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "slurm": ("queue", "account", "walltime", "interface"),
    "pbs": ("queue", "account", "walltime", "interface"),
    "kubernetes": ("image", "namespace"),
}
_INSTALL = {"slurm": "dask-jobqueue", "pbs": "dask-jobqueue", "kubernetes": "dask-kubernetes"}


def require_library(kind: str) -> None:
    """Refuse a cluster whose library is not installed (SpecError, which says what to install)."""
    from importlib.util import find_spec

    package = _INSTALL[kind]
    if find_spec(package.replace("-", "_")) is None:
        extra = "kubernetes" if kind == "kubernetes" else "slurm"
        raise SpecError(f"cluster: {kind} needs {package}; install it with `pip install dlscale[{extra}]`.")


def start(facts: ClusterFacts, settings: Mapping[str, Any]) -> Any:
    """Ask for the workers; they come when there is room for them.

    Parameters
    ----------
    facts : ClusterFacts
        Of a kind in `OPTIONS`.
    settings : mapping
        Dask's configuration of the workers.
    """
    return _STARTERS[facts.kind](facts, {_variable(name): str(value) for name, value in settings.items()})


def _variable(name: str) -> str:
    """The environment variable from which Dask reads a setting."""
    return "DASK_" + name.upper().replace(".", "__").replace("-", "_")


def _start_jobs(facts: ClusterFacts, environment: Mapping[str, str]) -> Any:
    from dask_jobqueue.pbs import PBSCluster
    from dask_jobqueue.slurm import SLURMCluster

    return (SLURMCluster if facts.kind == "slurm" else PBSCluster)(
        n_workers=facts.n_workers,
        cores=facts.threads_per_worker,
        memory=f"{facts.memory_bytes}B",
        processes=1,
        job_script_prologue=[f"export {name}={value}" for name, value in environment.items()],
        scheduler_options={"dashboard_address": ":0"},
        silence_logs=logging.CRITICAL,
        **facts.options,
    )


def _start_pods(facts: ClusterFacts, environment: Mapping[str, str]) -> Any:
    from dask_kubernetes.operator import KubeCluster

    size = {"cpu": str(facts.threads_per_worker), "memory": str(facts.memory_bytes)}
    return KubeCluster(
        name="dlscale",
        n_workers=facts.n_workers,
        resources={"requests": size, "limits": size},
        env=dict(environment),
        quiet=True,
        **facts.options,
    )


_STARTERS: Mapping[str, Callable[[ClusterFacts, Mapping[str, str]], Any]] = {
    "slurm": _start_jobs,
    "pbs": _start_jobs,
    "kubernetes": _start_pods,
}
