"""Passes in this process: every block once and in order, memory bounded, outputs whole, what is wrong named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from helpers import LAYOUTS, THREADS, Array, M, N, gaussian, store
from zarr.storage import LocalStore, WrapperStore

from dlscale.engine.clusters import ClusterFacts, open_cluster
from dlscale.engine.events import Event, MemoryTaken, StepFinished, StepStarted, WorkDone
from dlscale.engine.grids import RowGrid, plan_grid
from dlscale.engine.passes import Fold, Passes, State
from dlscale.engine.run import Run
from dlscale.engine.targets import MemoryTarget
from dlscale.errors import NonFiniteError, NumericalError
from dlscale.linalg.folds.products import Gram
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import Matrix, View
from dlscale.storage.results import ResultGroup


@dataclass(frozen=True)
class Trace(Fold):
    """Which blocks came, in the order of the merges, their sum, and on request twice the block as output."""

    keep: bool = False

    @property
    def flops_per_row(self) -> float:
        return 3.0

    def start(self) -> State:
        return {"rows": np.zeros((0, 2)), "sum": np.zeros(1)}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        state["rows"] = np.concatenate([state["rows"], [[first_row, first_row + len(A)]]])
        state["sum"] += A.sum()
        return (2 * A,) if self.keep else ()

    def merge(self, left: State, right: State) -> State:
        return {"rows": np.concatenate([left["rows"], right["rows"]]), "sum": left["sum"] + right["sum"]}


class CountingMatrix(View):
    """Delegates, and counts how often every row is read."""

    def __init__(self, base: Matrix) -> None:
        super().__init__(base)
        self.times: Counter[int] = Counter()
        self.in_memory = base.in_memory

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        self.times.update(range(*rows))
        return self.base.region(rows, columns, out)


def sweep(A: Matrix | Sequence[Matrix], fold: Fold, grid: RowGrid, *, threads: int = 2, outputs: Any = (), **more: Any) -> State:
    with open_cluster(ClusterFacts("threads", 1, threads, 2**31)) as cluster:
        return Passes(Run(cluster, **more)).sweep("test", A, fold, grid, outputs=outputs)


GRIDS = [(64, 64), (64, 192), (M, M), (1, 50), (100, 300), (699, 699), (17, 34)]


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(("block_rows", "leaf_rows"), GRIDS)
@pytest.mark.parametrize("name", ["row strips", "zstd row strips", "column strips", "crc32c squares"])
def test_every_block_comes_once_and_merges_keep_the_order(
    tmp_path: Path, name: str, block_rows: int, leaf_rows: int, threads: int
) -> None:
    A = CountingMatrix(open_matrix(store(tmp_path / "A.zarr", gaussian(M, N), **LAYOUTS[name])))
    state = sweep(A, Trace(), RowGrid(M, block_rows, leaf_rows), threads=threads)
    expected = [(i, min(i + block_rows, M)) for i in range(0, M, block_rows)]
    assert [tuple(rows) for rows in state["rows"]] == expected
    assert state["sum"][0] == pytest.approx(gaussian(M, N).sum(), rel=1e-9)
    aligned = A.any_range or leaf_rows % A.row_unit == 0 or leaf_rows >= M
    assert set(A.times) == set(range(M))
    if aligned:
        assert max(A.times.values()) == 1


class Together(Fold):
    """``A^H B`` of two matrices, or of three ``A^H (B + C)``, and the rows that came."""

    def start(self) -> State:
        return {"product": np.zeros((N, 3)), "rows": np.zeros((0, 2))}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        A, *others = A
        assert {len(A)} == {len(other) for other in others}
        for other in others:
            state["product"] += A.T @ other
        state["rows"] = np.concatenate([state["rows"], [[first_row, first_row + len(A)]]])
        return (A[:, :3] + others[0],)

    def merge(self, left: State, right: State) -> State:
        return {"product": left["product"] + right["product"], "rows": np.concatenate([left["rows"], right["rows"]])}


@pytest.mark.parametrize(("block_rows", "leaf_rows"), GRIDS)
@pytest.mark.parametrize(
    "layouts", [("row strips", "zstd row strips"), ("zstd squares", "column strips"), ("blosc", "memory", "v2")]
)
def test_matrices_with_the_same_rows_are_read_together_each_once(
    tmp_path: Path, layouts: tuple[str, ...], block_rows: int, leaf_rows: int
) -> None:
    A, others = gaussian(M, N), [gaussian(M, 3) * (i + 1) for i in range(len(layouts) - 1)]
    inputs = [
        CountingMatrix(open_matrix(array if name == "memory" else store(tmp_path / f"{i}.zarr", array, **LAYOUTS[name])))
        for i, (array, name) in enumerate(zip([A, *others], layouts, strict=True))
    ]
    grid, events, states, outputs = RowGrid(M, block_rows, leaf_rows), list[Event](), [], []
    for threads in (1, 3):
        for one in inputs:
            one.times.clear()
        outputs.append(np.empty((M, 3)))
        target = MemoryTarget(outputs[-1])
        states.append(sweep(inputs, Together(), grid, threads=threads, outputs=[target], emit=events.append))
        for one in inputs:
            assert set(one.times) == set(range(M))
            if one.any_range or leaf_rows % one.row_unit == 0 or leaf_rows >= M:
                assert max(one.times.values()) == 1
    assert [tuple(rows) for rows in states[0]["rows"]] == [(i, min(i + block_rows, M)) for i in range(0, M, block_rows)]
    np.testing.assert_allclose(states[0]["product"], A.T @ np.sum(others, axis=0), atol=1e-9)
    np.testing.assert_array_equal(outputs[0], A[:, :3] + others[0])
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name])
    np.testing.assert_array_equal(*outputs)
    n_bytes = sum(one.n_stored_bytes for one, name in zip(inputs, layouts, strict=True) if name != "memory")
    assert sum(event.bytes for event in events if isinstance(event, WorkDone)) == 2 * n_bytes


def test_what_is_not_finite_in_another_matrix_is_named_with_it(tmp_path: Path) -> None:
    B = np.ones((M, 3))
    B[321, 2] = np.nan
    path, target = store(tmp_path / "B.zarr", B, **LAYOUTS["row strips"]), MemoryTarget(np.empty((M, 3)))
    with pytest.raises(NonFiniteError, match=rf"{path} contains NaN or infinity: nan at row 321, column 2"):
        sweep([open_matrix(np.ones((M, N))), open_matrix(path)], Together(), RowGrid(M, 64, 128), outputs=[target])


class CountingStore(WrapperStore[LocalStore]):
    """A local store that counts its requests for chunks; not local to dlscale, which then reads through zarr-python."""

    def __init__(self, store: LocalStore) -> None:
        super().__init__(store)
        self.requests: Counter[tuple[str, str]] = Counter()

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        self.requests[key, repr(byte_range)] += 1
        return await super().get(key, prototype, byte_range)


@pytest.mark.parametrize("room", [2**30, 40_000], ids=["much memory", "little memory"])
@pytest.mark.parametrize(
    "name", ["zstd row strips", "zstd squares", "blosc", "sharded", "sharded zstd", "v2 compressed column major"]
)
def test_every_stored_chunk_is_read_once_a_pass(tmp_path: Path, name: str, room: int) -> None:
    """Counted in the store; a shard is asked for all, or for its index and then for each of its chunks."""
    store_of_chunks = CountingStore(LocalStore(store(tmp_path / "A.zarr", gaussian(M, N), **LAYOUTS[name])))
    A = open_matrix(zarr.open_array(store_of_chunks, mode="r+"))
    store_of_chunks.requests.clear()
    grid = plan_grid(A, max_block_bytes=room)
    sweep(A, Trace(), grid)
    sharded = "shards" in LAYOUTS[name]
    requests = {k: n for k, n in store_of_chunks.requests.items() if not sharded or "Suffix" not in k[1]}
    chunks = LAYOUTS[name]["chunks"]
    assert set(requests.values()) == {1}
    if not sharded:
        assert len(requests) == -(-M // chunks[0]) * -(-N // chunks[1])


@pytest.mark.parametrize(("block_rows", "leaf_rows"), GRIDS)
@pytest.mark.parametrize("transposed", [False, True])
def test_outputs_in_memory(block_rows: int, leaf_rows: int, transposed: bool) -> None:
    A = gaussian(M, N)
    with open_cluster(THREADS) as cluster:
        passes, grid = Passes(Run(cluster)), RowGrid(M, block_rows, leaf_rows)
        output = passes.run.output("B", A.shape, A.dtype, grid, transposed=transposed)
        passes.sweep("test", open_matrix(A), Trace(keep=True), grid, outputs=[output])
    np.testing.assert_array_equal(passes.run.outputs["B"], 2 * (A.T if transposed else A))


@pytest.mark.parametrize(("block_rows", "leaf_rows"), GRIDS)
@pytest.mark.parametrize("transposed", [False, True])
def test_outputs_on_disk(tmp_path: Path, block_rows: int, leaf_rows: int, transposed: bool) -> None:
    A = gaussian(M, N)
    result = ResultGroup(tmp_path / "result.zarr")
    with open_cluster(THREADS) as cluster:
        passes, grid = Passes(Run(cluster, result=result)), RowGrid(M, block_rows, leaf_rows)
        output = passes.run.output("B", A.shape, A.dtype, grid, transposed=transposed)
        passes.sweep("test", open_matrix(A), Trace(keep=True), grid, outputs=[output])
    path = result.publish({})
    np.testing.assert_array_equal(open_matrix(path / "B").read(0, N if transposed else M), 2 * (A.T if transposed else A))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 63, 64, 413, M - 1])
def test_what_is_not_finite_is_named(value: float, row: int) -> None:
    A = gaussian(M, N)
    A[row, 7] = value
    with pytest.raises(NonFiniteError, match=f"row {row}, column 7") as caught:
        sweep(open_matrix(A), Gram(N, A.dtype), RowGrid(M, 64, 128))
    assert (caught.value.row, caught.value.column) == (row, 7)


def test_what_is_not_finite_in_a_wide_matrix_is_named_by_its_own_rows() -> None:
    """Passes over a wide matrix go over its columns; the user's rows are meant."""
    A = gaussian(30, 200)
    A[11, 150] = np.nan
    with pytest.raises(NonFiniteError, match="row 11, column 150"):
        sweep(open_matrix(A).T, Gram(30, A.dtype), RowGrid(200, 64, 64))


def test_complex_values_are_named() -> None:
    A = gaussian(M, N, "c16")
    A[100, 3] = complex(1, np.inf)
    with pytest.raises(NonFiniteError, match="row 100, column 3"):
        sweep(open_matrix(A), Gram(N, A.dtype), RowGrid(M, 64, 128))


@pytest.mark.parametrize(("dtype", "size"), [("f4", 1e25), ("f8", 1e200)])
def test_overflow_is_told_from_infinities(dtype: str, size: float) -> None:
    A = (gaussian(M, N, dtype) * size).astype(dtype)
    with pytest.raises(NumericalError, match=r"overflow.*divide"):
        sweep(open_matrix(A), Gram(N, A.dtype), RowGrid(M, 64, 128))


def test_a_failing_pass_leaves_the_next_one_alone(tmp_path: Path) -> None:
    """Reading goes on in the background when a leaf fails; its buffers must not reach the next pass."""
    bad, good = gaussian(M, N), gaussian(M, N, seed=1)
    bad[5, 5] = np.nan
    A, B = (open_matrix(store(tmp_path / f"{i}.zarr", X, chunks=(50, N))) for i, X in enumerate((bad, good)))
    with open_cluster(THREADS) as cluster:
        passes, grid = Passes(Run(cluster)), RowGrid(M, 50, 100)
        for i in range(5):
            with pytest.raises(NonFiniteError):
                passes.sweep(f"bad-{i}", A, Gram(N, A.dtype), grid)
            fold = Gram(N, A.dtype)
            G = fold.matrix(passes.sweep(f"good-{i}", B, fold, grid))
            np.testing.assert_allclose(G, good.T @ good, atol=1e-10)


def test_a_checkpointed_pass_is_not_run_again(tmp_path: Path) -> None:
    A, grid = CountingMatrix(open_matrix(store(tmp_path / "A.zarr", gaussian(M, N), chunks=(50, N)))), RowGrid(M, 50, 100)
    first = sweep(A, Trace(), grid, checkpoint=Checkpoint(tmp_path / "checkpoint.zarr"))
    A.times.clear()
    events: list[Event] = []
    again = sweep(A, Trace(), grid, checkpoint=Checkpoint(tmp_path / "checkpoint.zarr"), emit=events.append)
    assert not A.times
    assert [e.resumed for e in events if isinstance(e, StepFinished)] == [True]
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])


def test_a_damaged_checkpoint_is_run_again(tmp_path: Path) -> None:
    A, grid = CountingMatrix(open_matrix(store(tmp_path / "A.zarr", gaussian(M, N), chunks=(50, N)))), RowGrid(M, 50, 100)
    first = sweep(A, Trace(), grid, checkpoint=Checkpoint(tmp_path / "checkpoint.zarr"))
    chunk = max((tmp_path / "checkpoint.zarr" / "steps").rglob("*"), key=lambda f: f.stat().st_size if f.is_file() else 0)
    chunk.write_bytes(bytes(len(chunk.read_bytes())))
    A.times.clear()
    again = sweep(A, Trace(), grid, checkpoint=Checkpoint(tmp_path / "checkpoint.zarr"))
    assert set(A.times.values()) == {1}
    np.testing.assert_array_equal(first["rows"], again["rows"])


def test_events_add_up() -> None:
    events: list[Event] = []
    sweep(open_matrix(gaussian(M, N)), Trace(), RowGrid(M, 64, 128), emit=events.append)
    done = [e for e in events if isinstance(e, WorkDone)]
    assert sum(e.rows for e in done) == M
    assert sum(e.bytes for e in done) == M * N * 8
    assert sum(e.flops for e in done) == 3 * M
    assert events[0] == StepStarted("test", 3.0 * M, M * N * 8)
    assert isinstance(events[-1], StepFinished)
    assert any(isinstance(e, MemoryTaken) and e.rss_bytes > 2**20 for e in events)


def test_merges_do_not_change_what_theymerge() -> None:
    """A merge may be repeated after a worker died: the same partial results give the same sum twice."""
    from dlscale.engine.passes.sweep import Sweep, merge

    fold = Gram(3, np.dtype("f8"), center=True)
    states = []
    for seed in range(3):
        states.append(fold.start())
        fold.update(states[-1], gaussian(10, 3, seed=seed) + 7, 0)
        fold.finish(states[-1])
    before = [{k: v.copy() for k, v in s.items()} for s in states]
    job = Sweep("t", "s", (open_matrix(np.ones((30, 3))),), fold, 10, ())
    once = merge(job, states[0], states[1])
    twice = merge(job, states[0], states[1])
    for name in once:
        np.testing.assert_array_equal(once[name], twice[name])
    for state, copy in zip(states, before, strict=True):
        for name in state:
            np.testing.assert_array_equal(state[name], copy[name])
