"""What holds for all tests: the order of modules, and what the processes of tests are told before they start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits

from dlscale.engine.clusters import Cluster, ClusterFacts, open_cluster

# Several processes share the cores: threads of BLAS that wait for a core take more time than they save.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# For the BLAS that a plugin of pytest has loaded already.
threadpool_limits(1, user_api="blas")
# Of the many commands that are started, the first compiles the package for all of them, as it does for users.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# How long an example takes says how busy the machine is.
settings.register_profile("dlscale", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dlscale")

#: Long modules, so that none of them is left for the end, when there is nothing to do beside it.
FIRST = (
    "chaos",
    "deploy",
    "batch/test_rivals.py",
    "batch/test_submit.py",
    "engine/test_mpi.py",
    "test_cli.py",
    "peers",
    "service",
    "batch",
    "engine",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    turn = {root / name: i for i, name in enumerate(FIRST)}

    def key(item: pytest.Item) -> int:
        return min(turn.get(place, len(turn)) for place in (item.path, *item.path.parents))

    items.sort(key=key)


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    """Two worker processes of one thread, which take two seconds to start; tests ask for `two_workers`."""
    cluster = open_cluster(ClusterFacts("local", 2, 1, 2**31))
    yield cluster
    cluster.close()


@pytest.fixture
def two_workers(shared_cluster: Cluster) -> Cluster:
    """The same for all tests of this process; both are there, also where a test before has killed one."""
    shared_cluster.client.wait_for_workers(2)  # type: ignore[attr-defined]
    shared_cluster.losses.clear()
    return shared_cluster


@pytest.fixture
def jobs_on_two_workers(two_workers: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of this process that ask for two local workers of one thread compute on those that are there."""

    def opened(facts: ClusterFacts) -> AbstractContextManager[Cluster]:
        there = (facts.kind, facts.n_workers, facts.threads_per_worker) == ("local", 2, 1)
        return nullcontext(two_workers) if there else open_cluster(facts)

    monkeypatch.setattr("dlscale.batch.run.open_cluster", opened)
