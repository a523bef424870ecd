"""Workers of a running cluster that compute with something else than this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import pytest
from distributed import Client, LocalCluster

from dlscale import __version__
from dlscale.engine.clusters import describe_cluster
from dlscale.engine.clusters.client import list_workers
from dlscale.errors import SpecError


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Of two worker processes."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        yield client


def told(client: Client) -> tuple[str, ...]:
    return describe_cluster(client.scheduler.address).notes


@contextmanager
def altered(client: Client, code: str, undo: str) -> Iterator[str]:
    """One of the workers, changed by a line of Python while the body runs."""
    worker = min(list_workers(client))
    client.run(exec, code, workers=[worker])
    try:
        yield worker
    finally:
        client.run(exec, undo, workers=[worker])


def test_equal_workers_leave_no_note(client: Client) -> None:
    assert told(client) == ()


OTHER = ("import dlscale; dlscale.__version__ = '9.9'", f"import dlscale; dlscale.__version__ = {__version__!r}")
NONE = ("import dlscale, sys; sys.kept = dlscale; sys.modules['dlscale'] = None", "import sys; sys.modules['dlscale'] = sys.kept")


@pytest.mark.parametrize(
    ("change", "words"), [(OTHER, f"runs dlscale 9.9, and this is {__version__}"), (NONE, "cannot run dlscale")]
)
def test_a_worker_with_another_dlscale_or_none_is_refused(client: Client, change: tuple[str, str], words: str) -> None:
    with altered(client, *change) as worker, pytest.raises(SpecError, match=words) as caught:
        told(client)
    assert worker in str(caught.value)


def test_other_libraries_are_noted(client: Client) -> None:
    own = numpy.__version__
    with altered(client, "import numpy; numpy.__version__ = '0.1'", f"import numpy; numpy.__version__ = {own!r}"):
        (note,) = told(client)
        assert f"NumPy is {own} here and, on the workers, 0.1 on 1, {own} on 1" in note
        assert "notes" not in describe_cluster(client.scheduler.address).to_dict()
