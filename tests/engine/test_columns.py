"""What is stored, applied to columns by slabs: told, kept by groups, the same bits on any workers, run again where one dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlscale.arrays import Array
from dlscale.engine.clusters import ClusterFacts, open_cluster
from dlscale.engine.columns import GROUP_FLOPS, KEPT_FLOPS, Applied, Columns, Span, Tell, share_out, slab_columns
from dlscale.engine.events import Event, StepFinished, WorkDone, ignore
from dlscale.engine.run import Cost, Run, State
from dlscale.errors import StalledError
from dlscale.storage.checkpoints import Checkpoint
from tests.helpers import THREADS

LOCAL = ClusterFacts("local", 2, 1, 2**31)
#: Of a column, so that a slab of eight is all that a worker does in a group.
FLOPS = GROUP_FLOPS / 8


@dataclass(frozen=True)
class Times(Applied):
    """``T B``; one slab's task ends its process once, or sleeps, or all wait until so many processes are at work."""

    T: Array
    flops: float = KEPT_FLOPS
    fatal: Path | None = None
    n_fatal: int = 1
    seconds: float = 0.0
    together: tuple[Path, int] | None = None

    def cost(self, slabs: Sequence[Span]) -> Cost:
        return Cost(self.flops * sum(stop - start for start, stop in slabs), self.T.nbytes)

    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        ends = np.cumsum([stop - start for start, stop in slabs])
        parts = [None] * len(slabs) if B is None else np.split(B, ends[:-1], axis=1)
        return [self._apply(part, columns, tell) for part, columns in zip(parts, slabs, strict=True)]

    def _apply(self, B: Array | None, columns: Span, tell: Tell) -> State:
        if self.seconds:
            time.sleep(self.seconds)
        if self.together is not None:
            folder, n_processes = self.together
            (folder / str(os.getpid())).touch()
            ended = time.monotonic() + 120
            while len(list(folder.iterdir())) < n_processes and time.monotonic() < ended:
                time.sleep(0.01)
        if self.fatal is not None and (columns[0] or self.n_fatal > 1):
            for number in range(self.n_fatal):
                with suppress(FileExistsError):
                    self.fatal.with_name(f"{self.fatal.name}-{number}").touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
        n_columns = columns[1] - columns[0]
        tell(self.flops * n_columns / 2, 0)
        tell(self.flops * n_columns / 2, self.T.nbytes)
        return {"x": self.T[:, slice(*columns)] if B is None else self.T @ B, "pid": np.array(os.getpid())}


def run_of(cluster: Any, folder: Path | None = None, events: list[dict[str, Any]] | None = None) -> Run:
    checkpoint = None if folder is None else Checkpoint(folder / "checkpoint.zarr")
    return Run(cluster, checkpoint=checkpoint, emit=ignore if events is None else events.append)


def data(n: int = 40, k: int = 30) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, n)), rng.standard_normal((n, k))


def product(run: Run, what: Applied, B: Array, *, n_workers: int = 1) -> Array:
    found = Columns(run, replace(LOCAL, n_workers=n_workers)).apply("times", what, B, n_columns=B.shape[1], width=8)
    return np.hstack([state["x"] for state in found])


@pytest.mark.parametrize(("n", "k", "wanted"), [(100, 1, 1), (99, 255, 255), (99, 600, 300), (8192, 2000, 500), (8192, 10**4, 500)])
def test_a_slab_is_wide_enough_to_pay_and_there_are_several_where_there_are_many_columns(n, k, wanted):
    assert slab_columns(n, k, 8) == wanted


def test_a_slab_of_long_columns_is_narrow():
    assert slab_columns(10**6, 1000, 8) * 10**6 * 8 <= 2**28
    assert slab_columns(10**10, 5, 16) == 1


def shares(n_slabs: int, n_workers: int, flops: Callable[[int], float] = lambda start: 1.0, slab_bytes: int = 1) -> Any:
    def cost(slabs: Sequence[Span]) -> Cost:
        return Cost(sum(flops(start) for start, _ in slabs))

    return share_out([(i, i + 1) for i in range(n_slabs)], cost, replace(LOCAL, n_workers=n_workers), slab_bytes=slab_bytes)


@pytest.mark.parametrize(("n_slabs", "n_workers"), [(1, 1), (1, 3), (7, 3), (16, 2), (40, 7)])
def test_every_slab_has_one_worker_and_no_worker_many_more_than_another(n_slabs, n_workers):
    for part in (1e-3, 0.3, 1.0, 10.0):
        groups = shares(n_slabs, n_workers, lambda start, part=part: part * GROUP_FLOPS)
        assert sorted(i for group in groups for share in group for i in share) == list(range(n_slabs))
        for group in groups:
            sizes = [len(share) for share in group]
            assert max(sizes) - min(sizes) <= 1 or group is groups[-1]
            assert max(sizes) == 1 or max(sizes) * part <= 1


def test_slabs_of_a_group_are_no_more_than_memory_holds_and_are_shared_by_what_they_take():
    most = max(len(share) for group in shares(16, 1, slab_bytes=LOCAL.work_bytes // 8) for share in group)
    assert most == 4
    (group,) = shares(16, 2, lambda start: 1 + (1 - start / 16) ** 2)
    work = [sum(1 + (1 - i / 16) ** 2 for i in share) for share in group]
    assert max(work) <= 1.02 * min(work)


def test_every_column_is_told_and_a_group_that_is_kept_is_not_repeated(tmp_path):
    T, B = data()
    events: list[Event] = []
    with open_cluster(THREADS) as cluster:
        X = product(run_of(cluster, tmp_path, events), Times(T, FLOPS), B, n_workers=2)
        np.testing.assert_array_equal(X, np.hstack([T @ B[:, i : i + 8] for i in range(0, 30, 8)]))
        steps = [e for e in events if isinstance(e, StepFinished)]
        assert [(e.step, e.flops / FLOPS) for e in steps] == [("times-1", 16), ("times-2", 14)]
        assert sum(e.flops for e in events if isinstance(e, WorkDone)) == 30 * FLOPS
        Checkpoint(tmp_path / "checkpoint.zarr").drop("times-2")
        events.clear()
        again = product(run_of(cluster, tmp_path, events), Times(T, FLOPS), B, n_workers=2)
    np.testing.assert_array_equal(again, X)
    assert [e.resumed for e in events if isinstance(e, StepFinished)] == [True, False]


def test_what_is_sooner_computed_again_is_not_kept(tmp_path):
    T, B = data()
    with open_cluster(THREADS) as cluster:
        product(run_of(cluster, tmp_path), Times(T, flops=1.0), B)
    assert Checkpoint(tmp_path / "checkpoint.zarr").steps() == []


def test_columns_that_are_known_by_their_numbers_need_not_be_given():
    T, _ = data()
    with open_cluster(THREADS) as cluster:
        found = Columns(run_of(cluster), LOCAL).apply("some", Times(T), n_columns=20, width=7)
    np.testing.assert_array_equal(np.hstack([state["x"] for state in found]), T[:, :20])


def test_two_workers_share_a_group_and_give_the_bits_of_one_process(two_workers, tmp_path):
    # Large enough for files.
    rng = np.random.default_rng(0)
    what, B = Times(rng.standard_normal((70_000 // 8, 100))), rng.standard_normal((100, 16))
    with open_cluster(THREADS) as cluster:
        expected = product(run_of(cluster), what, B)
    events: list[Event] = []
    run = run_of(two_workers, tmp_path, events)
    (pids := tmp_path / "pids").mkdir()
    what = replace(what, together=(pids, 2))
    found = Columns(run, LOCAL).apply("times", what, B, n_columns=16, width=8)
    np.testing.assert_array_equal(np.hstack([state["x"] for state in found]), expected)
    assert len({int(state["pid"]) for state in found} - {os.getpid()}) == 2
    assert len({e.worker for e in events if isinstance(e, WorkDone)}) == 2
    assert not (tmp_path / "checkpoint.zarr" / "parcels").exists()


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_slab_whose_worker_dies_is_computed_again(two_workers, tmp_path, n_workers):
    """Also where all of them die at the same time."""
    T, B = data()
    fatal = Times(T, fatal=tmp_path / "died", n_fatal=n_workers)
    X = product(run_of(two_workers, tmp_path), fatal, B, n_workers=2)
    assert len(list(tmp_path.glob("died-*"))) == n_workers
    np.testing.assert_array_equal(X, np.hstack([T @ B[:, i : i + 8] for i in range(0, 30, 8)]))


def test_silence_ends_it(tmp_path):
    T, B = data()
    with open_cluster(replace(LOCAL, n_workers=1)) as cluster:
        run = Run(cluster, stall_seconds=1.0)
        with pytest.raises(StalledError, match="No progress for 1 s"):
            product(run, Times(T, seconds=30.0), B)
