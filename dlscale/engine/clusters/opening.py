"""From what a job says of its cluster to a `Cluster`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlscale.engine.clusters import launchers
from dlscale.engine.clusters.cluster import Cluster, DaskCluster, ThreadCluster
from dlscale.engine.clusters.facts import ClusterFacts, describe_cluster
from dlscale.engine.clusters.mpi import MpiCluster


def open_cluster(spec: str | Mapping[str, Any] | ClusterFacts = "local") -> Cluster:
    """Start or join a cluster (see `describe_cluster` for the forms)."""
    facts = spec if isinstance(spec, ClusterFacts) else describe_cluster(spec)
    if facts.kind == "threads":
        return ThreadCluster(facts)
    if facts.kind == "mpi" and (session := launchers.session()) is not None:
        return MpiCluster(facts, session)
    return DaskCluster(facts)
