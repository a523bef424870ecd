"""Panels: the same bits on every cluster and after every stop, nothing read or computed twice, what is wrong named."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from factorizations import factor, factor_in_files
from helpers import LAYOUTS, THREADS, Array, gaussian, store

from dlscale import gallery
from dlscale.batch.jobs.pacing import PacedCheckpoint
from dlscale.engine.clusters import Cluster, ClusterFacts, open_cluster
from dlscale.engine.clusters.cluster import _Ready
from dlscale.engine.events import Event, StepFinished, StepStarted, Warned, WorkDone
from dlscale.engine.tiles import whole_tasks
from dlscale.engine.tiles.grid import WIDE_PANEL_BYTES, WIDE_PANEL_COLUMNS, PanelGrid, choose_panel
from dlscale.errors import CorruptionError
from dlscale.storage import writers
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import Matrix, View
from dlscale.storage.results import ResultGroup

N, PANEL, GROUP = 200, 32, 3
MATRICES: dict[str, Callable[[], Array]] = {
    "lu": lambda: gaussian(N, N),
    "qr": lambda: gaussian(N + 30, N),
    "cholesky": lambda: gallery.positive_definite(N),
}


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda n: f"{n} workers")
def workers(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    if request.param < 3:
        yield request.getfixturevalue("shared_clusters")(request.param)
        return
    with open_cluster(ClusterFacts("local", 3, 1, 2**30)) as cluster:
        yield cluster


def expected(kind: str) -> dict[str, Array]:
    """In memory, by one group, on the threads of this process."""
    return factor(kind, MATRICES[kind](), panel=PANEL)[1]


def assert_same_bits(arrays: dict[str, Array], others: dict[str, Array]) -> None:
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)


#: How the matrix is stored for so many workers.
STORED = {1: "row strips", 2: "squares", 3: "zstd row strips"}


@pytest.mark.parametrize("kind", MATRICES)
def test_the_same_bits_on_every_cluster(kind: str, workers: Cluster, tmp_path: Path) -> None:
    """From strips, squares and compressed chunks, by several groups; panels are sent from worker to worker."""
    path = store(tmp_path / "a.zarr", MATRICES[kind](), **LAYOUTS[STORED[workers.facts.n_workers]])
    assert_same_bits(factor_in_files(kind, path, tmp_path, workers, panel=PANEL, group=GROUP), expected(kind))


class Stopped(Exception):
    """What a test stops a factorization with."""


class Run:
    """A factorization in files that is stopped and goes on."""

    def __init__(self, kind: str, folder: Path, *, every_seconds: float = 0.0) -> None:
        self.kind, self.folder, self.every_seconds = kind, folder, every_seconds
        self.events: list[Event] = []

    def run(self, *, stop: Callable[[dict[str, Any]], bool] = lambda event: False, flush: bool = False) -> None:
        self.events = []

        def emit(event: Event) -> None:
            self.events.append(event)
            if stop(event):
                raise Stopped

        checkpoint = PacedCheckpoint(self.folder / "checkpoint.zarr", every_seconds=self.every_seconds)
        group = ResultGroup(self.folder / "result.zarr")
        passes = {"checkpoint": checkpoint, "result": group, "emit": emit}
        try:
            outcome, arrays = factor(self.kind, MATRICES[self.kind](), panel=PANEL, group=GROUP, passes=passes)
            for name, array in arrays.items():
                group.put(name, array)
            outcome.certificate.require()
            group.publish({})
        except Stopped:
            if flush:
                checkpoint.flush()
        finally:
            group.close()

    @property
    def result(self) -> dict[str, Array]:
        group = zarr.open_group(self.folder / "result.zarr", mode="r")
        return {name: np.asarray(array) for name, array in group.arrays()}

    def steps(self, *, resumed: bool) -> list[str]:
        return [e.step for e in self.events if isinstance(e, StepFinished) and e.resumed == resumed]


@pytest.mark.parametrize("kind", MATRICES)
def test_a_stop_after_any_step(kind: str, tmp_path: Path) -> None:
    """What was finished is not repeated; what was not, is from its start; the bits are the same."""
    whole = Run(kind, tmp_path / "whole")
    whole.run()
    steps = whole.steps(resumed=False)
    assert len([step for step in steps if step.startswith(f"{kind}-") and step[-1].isdigit()]) >= 2
    assert_same_bits(whole.result, expected(kind))
    for i, step in enumerate(steps):
        stopped = Run(kind, tmp_path / step)
        stopped.run(stop=lambda event, step=step: isinstance(event, StepFinished) and event.step == step)
        stopped.run()
        assert stopped.steps(resumed=True) == steps[: i + 1]
        assert stopped.steps(resumed=False) == steps[i + 1 :]
        assert_same_bits(stopped.result, whole.result)


@pytest.mark.parametrize("kind", MATRICES)
def test_a_stop_within_a_step(kind: str, tmp_path: Path) -> None:
    """While panels are factored, and while they are written."""
    for task, panel in (("apply", 5), ("factor", 4), ("write", 4)):
        stopped = Run(kind, tmp_path / task)
        stopped.run(
            stop=lambda event, task=task, panel=panel: isinstance(event, WorkDone) and (event.task, event.panel) == (task, panel)
        )
        assert any(isinstance(event, WorkDone) and event.task == task for event in stopped.events)
        stopped.run()
        assert f"{kind}-1" in stopped.steps(resumed=True)
        assert f"{kind}-2" in stopped.steps(resumed=False)
        assert_same_bits(stopped.result, expected(kind))


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("kind", MATRICES)
def test_steps_that_wait_to_be_saved(kind: str, flush: bool, tmp_path: Path) -> None:
    """With ``checkpoint.every``, a signal saves them, and a kill loses them; either way the rest is right."""
    stopped = Run(kind, tmp_path, every_seconds=3600.0)
    stopped.run(stop=lambda event: isinstance(event, StepStarted) and event.step == f"{kind}-3", flush=flush)
    stopped.run()
    assert stopped.steps(resumed=True) == ([f"{kind}-1", f"{kind}-2"] if flush else [])
    assert_same_bits(stopped.result, expected(kind))


@pytest.mark.parametrize("kind", MATRICES)
def test_panels_are_on_the_disk_before_their_step_counts(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    save, fsync_tree = Checkpoint.save, writers.fsync_tree
    monkeypatch.setattr(Checkpoint, "save", lambda self, step, *a, **k: (order.append(step), save(self, step, *a, **k))[1])
    monkeypatch.setattr(
        writers, "fsync_tree", lambda path, known: (order.append(f"{path.name} flushed"), fsync_tree(path, known))[1]
    )
    Run(kind, tmp_path).run()
    for i, step in enumerate(order):
        if step.startswith(f"{kind}-") and step[-1].isdigit():
            assert order[i - 1].endswith("flushed"), order


def damage(folder: Path, name: str) -> Path:
    """Change one byte of the first chunk of an array."""
    path = next(path for path in sorted(folder.rglob(f"{name}/c/*/*")) if ".partial" not in path.name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("kind", "name"), [("lu", "lu"), ("qr", "qr"), ("cholesky", "l")])
def test_damage_to_a_finished_panel_is_found(kind: str, name: str, tmp_path: Path) -> None:
    """Never a wrong answer: an error that names the file."""
    stopped = Run(kind, tmp_path)
    stopped.run(stop=lambda event: isinstance(event, StepStarted) and event.step == f"{kind}-2")
    path = damage(tmp_path, name)
    with pytest.raises(CorruptionError, match=re.escape(str(path))):
        stopped.run()


class CountingMatrix(View):
    """Delegates, and counts how often every entry is read."""

    def __init__(self, base: Matrix) -> None:
        super().__init__(base)
        self.times = np.zeros(base.shape, int)
        self.requests: Counter[tuple[int, int]] = Counter()

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        self.times[slice(*rows), slice(*columns)] += 1
        self.requests[columns] += 1
        return self.base.region(rows, columns, out)


@pytest.mark.parametrize("group", [None, GROUP])
@pytest.mark.parametrize("kind", MATRICES)
def test_every_entry_is_read_once(kind: str, group: int | None, tmp_path: Path) -> None:
    """However many groups there are; of a Hermitian matrix no more than the panels that reach below the diagonal."""
    path = store(tmp_path / "a.zarr", MATRICES[kind](), chunks=(48, 64), compressors=None)
    A = CountingMatrix(open_matrix(path))

    def emit(event: Event) -> None:
        if isinstance(event, StepStarted) and event.step == f"{kind}-1":
            A.times[:] = 0  # the planner measures how fast it can read

    factor(kind, A, panel=PANEL, group=group, passes={"emit": emit})
    assert A.times.max() == 1
    assert (A.times[np.tril_indices(A.shape[0], 0, A.shape[1])] == 1).all()
    if kind != "cholesky":
        assert A.times.min() == 1


@pytest.mark.parametrize("layout", ["row strips", "squares"])
@pytest.mark.parametrize("kind", MATRICES)
def test_panels_are_read_in_many_strips(kind: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in strips that end above the first row of a panel."""
    monkeypatch.setattr(whole_tasks, "STRIP_BYTES", 2000)
    path = store(tmp_path / "a.zarr", MATRICES[kind](), **LAYOUTS[layout])
    with open_cluster("threads") as cluster:
        arrays = factor_in_files(kind, path, tmp_path, cluster, panel=16, group=6)
    assert_same_bits(arrays, factor(kind, MATRICES[kind](), panel=16)[1])


def test_panels_that_share_chunks_are_read_together(tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr", gaussian(128, 256), chunks=(128, 64), compressors=None)
    A = CountingMatrix(open_matrix(path))
    factor("lu", A, panel=16)
    assert {columns for columns in A.requests if columns != (0, 256)} == {(i, i + 64) for i in range(0, 256, 64)}


def test_panels_whose_rows_lie_together_are_read_where_they_are_worked_on(tmp_path: Path) -> None:
    """By two tasks, each of which has what two workers have between them; no bit depends on it."""
    A = gaussian(128, 128)
    path = store(tmp_path / "a.zarr", A, chunks=(32, 128), compressors=None)
    counted = CountingMatrix(open_matrix(path))
    factor("lu", counted, panel=16)
    assert {(0, 128), (16, 112)} <= set(counted.requests)
    assert_same_bits(factor("lu", open_matrix(path), panel=16)[1], factor("lu", A, panel=16)[1])


def test_the_work_is_reported(tmp_path: Path) -> None:
    """What the tasks say they did adds up to what was planned."""
    stopped = Run("lu", tmp_path)
    stopped.run()
    for step in ("lu-1", "lu-2", "lu-3"):
        (planned,) = [e.flops for e in stopped.events if isinstance(e, StepStarted) and e.step == step]
        done = sum(e.flops for e in stopped.events if isinstance(e, WorkDone) and e.step == step)
        assert done == pytest.approx(planned)


def test_grid() -> None:
    grid = PanelGrid((70, 100), 32, 2)
    assert (grid.n_panels, grid.n_steps) == (4, 3)
    assert [grid.columns(k) for k in range(4)] == [(0, 32), (32, 64), (64, 96), (96, 100)]
    assert grid.width(3) == 4
    assert grid.groups() == [range(2), range(2, 4)]
    assert choose_panel((10**6, 10**6)) == 512
    assert [choose_panel((n, n), most=WIDE_PANEL_COLUMNS) for n in (6144, 9000, 16384)] == [512, 768, 1024]
    assert [choose_panel((5, n)) for n in (1, 5, 40)] == [1, 5, 32]


@pytest.mark.parametrize("shape", [(1, 1), (5, 40), (40, 5), (40, 40)], ids=str)
def test_the_planner_cuts_any_matrix(shape: tuple[int, int]) -> None:
    for kind in ("lu", "qr"):
        outcome, _ = factor(kind, gaussian(*shape), facts=THREADS)
        assert outcome.certificate.passed


def test_a_worker_that_is_lost_when_the_others_went_on(two_workers: Cluster, tmp_path: Path) -> None:
    """Its panels need what the others had before they went on, and changed in place: the group starts again."""
    kind = "qr"
    path = store(tmp_path / "a.zarr", MATRICES[kind](), chunks=(64, 32), compressors=None)
    lost: list[int] = []
    warnings: list[str] = []

    def emit(event: Event) -> None:
        if isinstance(event, Warned):
            warnings.append(event.message)
        if not lost and isinstance(event, WorkDone) and (event.task, event.panel) == ("factor", 2 * GROUP - 1):
            nannies = {nanny.worker_address: nanny for nanny in two_workers.local.workers.values()}
            lost.append(nannies[min(nannies)].pid)
            os.kill(lost[0], signal.SIGKILL)

    arrays = factor_in_files(kind, path, tmp_path, two_workers, panel=PANEL, group=GROUP, emit=emit)
    assert lost
    assert any("starts again" in said for said in warnings)
    assert_same_bits(arrays, expected(kind))


@pytest.mark.parametrize("shape", [(1, 100_000), (2, 400_000), (50, 10_000), (300, 10**6)])
def test_short_wide_matrices_have_few_panels(shape: tuple[int, int]) -> None:
    """Each panel is a task in every step; panels as narrow as those of a square matrix would be thousands."""
    m, n = shape
    width = choose_panel(shape)
    assert width % 32 == 0
    assert -(-n // width) <= max(64, 2 * m * n * 8 // WIDE_PANEL_BYTES)
    assert width * m * 8 <= max(WIDE_PANEL_BYTES, m * 8 * 512)


def test_the_most_urgent_task_is_taken_first() -> None:
    ready = _Ready(["c", "a"], {"a": 1.0, "b": 2.0, "c": 3.0, "d": 0.5})
    ready.append("b")
    assert [ready.pop(), ready.pop()] == ["a", "b"]
    ready.append("d")
    assert [ready.pop() for _ in range(len(ready))] == ["d", "c"]
