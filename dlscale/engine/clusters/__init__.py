"""Where a job runs: this process, processes of this machine, Dask and MPI clusters."""

from dlscale.engine.clusters.cluster import Cluster
from dlscale.engine.clusters.facts import ClusterFacts, describe_cluster
from dlscale.engine.clusters.opening import open_cluster

__all__ = ["Cluster", "ClusterFacts", "describe_cluster", "open_cluster"]
