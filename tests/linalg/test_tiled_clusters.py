"""Panels in row blocks on worker processes: the same bits on every cluster, after a stop, and when a worker is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factorizations import factor_in_files
from helpers import THREADS, Array, gaussian, store

from dlscale import gallery
from dlscale.engine.clusters import Cluster, open_cluster
from dlscale.engine.events import Event, StepFinished, Warned, WorkDone

N = 96
#: Four panels, two of them a group; four row blocks, or where they are rounded up to panels three.
CUT: dict[str, Any] = {"panel": 24, "row_blocks": 4, "group": 2}
MATRICES: dict[str, Callable[[], Array]] = {
    "lu": lambda: gaussian(N, N),
    "qr": lambda: gaussian(N + 10, N, "c16"),
    "cholesky": lambda: gallery.positive_definite(N),
}


@pytest.fixture(scope="module")
def matrices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("matrices")
    return {kind: store(folder / f"{kind}.zarr", make(), chunks=(64, 48), compressors=None) for kind, make in MATRICES.items()}


@pytest.fixture(scope="module")
def expected(matrices: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Array]]:
    """On the threads of this process."""
    with open_cluster(THREADS) as cluster:
        return {kind: factor_in_files(kind, matrices[kind], tmp_path_factory.mktemp(kind), cluster, **CUT) for kind in MATRICES}


def assert_same_bits(arrays: dict[str, Array], others: dict[str, Array]) -> None:
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)


@pytest.mark.parametrize("kind", MATRICES)
def test_the_same_bits_on_two_workers(
    kind: str, two_workers: Cluster, matrices: dict[str, Path], expected: dict[str, dict[str, Array]], tmp_path: Path
) -> None:
    assert_same_bits(factor_in_files(kind, matrices[kind], tmp_path, two_workers, **CUT), expected[kind])


@pytest.mark.parametrize("kind", MATRICES)
def test_the_same_bits_on_one_worker(
    kind: str,
    shared_clusters: Callable[[int], Cluster],
    matrices: dict[str, Path],
    expected: dict[str, dict[str, Array]],
    tmp_path: Path,
) -> None:
    assert_same_bits(factor_in_files(kind, matrices[kind], tmp_path, shared_clusters(1), **CUT), expected[kind])


@pytest.mark.parametrize("kind", MATRICES)
def test_a_worker_that_is_killed_in_the_middle(
    kind: str, two_workers: Cluster, matrices: dict[str, Path], expected: dict[str, dict[str, Array]], tmp_path: Path
) -> None:
    """While it has tiles of the second group, which the others have changed in place since: the group starts again."""
    killed: list[int] = []
    said: list[str] = []

    def emit(event: Event) -> None:
        if isinstance(event, Warned):
            said.append(event.message)
        if not killed and isinstance(event, WorkDone) and (event.task, event.panel) == ("factor", 3):
            nannies = {nanny.worker_address: nanny for nanny in two_workers.local.workers.values()}
            killed.append(nannies[min(nannies)].pid)
            os.kill(killed[0], signal.SIGKILL)

    arrays = factor_in_files(kind, matrices[kind], tmp_path, two_workers, emit=emit, **CUT)
    assert killed
    assert any("starts again" in message for message in said)
    assert_same_bits(arrays, expected[kind])


class Stopped(Exception):
    """What a test stops a factorization with."""


@pytest.mark.parametrize("kind", MATRICES)
def test_a_stop_after_any_step(kind: str, matrices: dict[str, Path], expected: dict[str, dict[str, Array]], tmp_path: Path) -> None:
    """What was finished is not repeated; the bits are the same."""
    with open_cluster(THREADS) as cluster:
        seen: list[Event] = []
        factor_in_files(kind, matrices[kind], tmp_path / "whole", cluster, emit=seen.append, **CUT)
        steps = [event.step for event in seen if isinstance(event, StepFinished)]
        assert steps[:2] == [f"{kind}-1", f"{kind}-2"]
        for i, last in enumerate(steps):
            events: list[Event] = []

            def stop(event: Event, last: str = last) -> None:
                if isinstance(event, StepFinished) and event.step == last:
                    raise Stopped

            with pytest.raises(Stopped):
                factor_in_files(kind, matrices[kind], tmp_path / last, cluster, emit=stop, **CUT)
            arrays = factor_in_files(kind, matrices[kind], tmp_path / last, cluster, emit=events.append, **CUT)
            resumed = [event.step for event in events if isinstance(event, StepFinished) and event.resumed]
            assert resumed == steps[: i + 1]
            assert_same_bits(arrays, expected[kind])
