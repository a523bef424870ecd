"""What holds for all tests: the order of modules, what processes of tests are told before they start, and which pages are drawn."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from shutil import disk_usage
from typing import Any

import pytest
from drawing import leave_pages_empty
from hypothesis import HealthCheck, settings
from psutil import virtual_memory
from threadpoolctl import threadpool_limits
from xdist.scheduler import LoadFileScheduling

from dlscale.engine.clusters import Cluster, ClusterFacts, open_cluster
from dlscale.engine.clusters.cluster import DaskCluster
from dlscale.host import total_bytes
from dlscale.report.html import render

# Several processes share the cores: threads of BLAS that wait for a core take more time than they save.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# Whoever starts the tests with nohup does not mean the jobs that they start, which take it over.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# For the BLAS that a plugin of pytest has loaded already.
threadpool_limits(1, user_api="blas")
# Of the many commands that are started, the first compiles the package for all of them, as it does for users.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# How long an example takes says how busy the machine is. Examples are the same in each run, so that a run says what has changed;
# DLSCALE_FRESH_EXAMPLES=1 draws others.
settings.register_profile(
    "dlscale", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="DLSCALE_FRESH_EXAMPLES" not in os.environ
)
settings.load_profile("dlscale")

#: A file system in memory, and how much room must be in it for the files of tests: a disk would be waited for longer than all
#: that is computed, for files that are written through and removed by the hundred thousand.
IN_MEMORY, ROOM_BYTES = Path("/dev/shm"), 8 * 2**30

#: Whose fixtures tests of several folders share.
pytest_plugins = ("gate", "object_server")

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


#: Modules whose tests take worker processes from `shared_clusters`: they go to one process, so that workers are started once.
ON_CLUSTERS = (
    "chaos/test_columns.py",
    *(f"engine/test_{name}.py" for name in ("clusters", "columns", "panels", "parcels")),
    *(f"linalg/test_{name}.py" for name in ("applying", "iterative", "operators", "solve_jobs", "sparse", "tiled_clusters")),
    *(f"storage/test_{name}.py" for name in ("exactness", "transforms")),
)


class Modules(LoadFileScheduling):
    """Which process runs a module."""

    def _split_scope(self, nodeid: str) -> str:
        module = str(super()._split_scope(nodeid))
        return "clusters" if module.removeprefix("tests/") in ON_CLUSTERS else module


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Modules | None:
    return Modules(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    turn = {root / name: i for i, name in enumerate(FIRST)}

    def key(item: pytest.Item) -> int:
        return min(turn.get(place, len(turn)) for place in (item.path, *item.path.parents))

    items.sort(key=key)


def pytest_configure(config: pytest.Config) -> None:
    # Not of the process that only starts those with the tests, which draw what their fixtures ask for.
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        leave_pages_empty()
    if IN_MEMORY.is_dir() and min(disk_usage(IN_MEMORY).free, virtual_memory().available, total_bytes()) > ROOM_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(IN_MEMORY))
    # Ten thousand tests and their modules stay: to look for garbage among them, as they are found and after, finds none.
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    # Garbage that is left is told; pytest would look for it five times among all that there is.
    gc.collect()
    gc.freeze()


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A folder that is not in memory, as `tmp_path` may be."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(scope="session", autouse=True)
def _empty_reports() -> Iterator[None]:
    """Jobs of this process leave pages without content: to draw one takes as long as a small job, and few tests look at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dlscale.batch.reporting.render", lambda record: "<!DOCTYPE html>\n")
        yield


@pytest.fixture
def drawn_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of this process draw their reports."""
    monkeypatch.setattr("dlscale.batch.reporting.render", render)


Shared = Callable[[int], Cluster]


@pytest.fixture(scope="session")
def shared_clusters() -> Iterator[Shared]:
    """So many worker processes of one thread, which take two seconds to start, the same for all tests of this process."""
    started: dict[int, DaskCluster] = {}

    def cluster(n_workers: int) -> Cluster:
        if n_workers not in started:
            started[n_workers] = DaskCluster(ClusterFacts("local", n_workers, 1, 2**31))
        # All of them are there, also where a test before has killed one.
        started[n_workers].client.wait_for_workers(n_workers)
        started[n_workers].losses.clear()
        return started[n_workers]

    yield cluster
    for each in started.values():
        each.close()


@pytest.fixture
def two_workers(shared_clusters: Shared) -> Cluster:
    return shared_clusters(2)


@pytest.fixture
def jobs_on_shared_clusters(shared_clusters: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of this process that ask for one or two local workers of one thread compute on those that are there."""

    def opened(facts: ClusterFacts) -> AbstractContextManager[Cluster]:
        there = facts.kind == "local" and facts.n_workers <= 2 and facts.threads_per_worker == 1
        return nullcontext(shared_clusters(facts.n_workers)) if there else open_cluster(facts)

    monkeypatch.setattr("dlscale.batch.run.open_cluster", opened)
