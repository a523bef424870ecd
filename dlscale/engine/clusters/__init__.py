"""Where a job runs: this process, processes of this machine, Dask and MPI clusters."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlscale.engine.clusters.cluster import Cluster as Cluster
    from dlscale.engine.clusters.facts import ClusterFacts as ClusterFacts
    from dlscale.engine.clusters.facts import describe_cluster as describe_cluster
    from dlscale.engine.clusters.opening import open_cluster as open_cluster

_PLACES = {"Cluster": "cluster", "ClusterFacts": "facts", "describe_cluster": "facts", "open_cluster": "opening"}
__all__ = ["Cluster", "ClusterFacts", "describe_cluster", "open_cluster"]


def __getattr__(name: str) -> Any:
    """Load what is asked for: `launchers` is imported by every command, most of which open no cluster."""
    if name not in _PLACES:
        raise AttributeError(f"module 'dlscale.engine.clusters' has no attribute {name!r}")
    return getattr(import_module(f"dlscale.engine.clusters.{_PLACES[name]}"), name)
