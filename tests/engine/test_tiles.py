"""The loop of factorizations and its two sets of steps: how grids cut a matrix, what graphs hold, and what comes first in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from helpers import THREADS, gaussian
from hypothesis import given
from hypothesis import strategies as st

from dlscale import gallery
from dlscale.engine.clusters.cluster import ThreadCluster
from dlscale.engine.clusters.watching import Watch, Wishes
from dlscale.engine.run import Run
from dlscale.engine.targets import MemoryTarget
from dlscale.engine.tiles import groups, whole_tasks
from dlscale.engine.tiles.factorizer import Factorizer
from dlscale.engine.tiles.grid import PanelGrid, Ways
from dlscale.engine.tiles.methods import Factored
from dlscale.engine.tiles.work import Factoring, Work
from dlscale.linalg.cholesky import kind as cholesky
from dlscale.linalg.lu import kind as lu
from dlscale.linalg.lu.panels import LU
from dlscale.linalg.qr.kind import WAYS
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import ArrayMatrix

N, PANEL = 96, 16
STEPS: dict[str, Ways[Any]] = {
    "lu": lu.STEPS,
    "cholesky": cholesky.STEPS,
    "qr": Ways(WAYS.whole.steps, WAYS.in_row_blocks.steps),
}


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40), st.integers(1, 9), st.integers(1, 400))
def test_row_blocks_cover_all_rows_in_whole_chunks(m: int, n: int, panel: int, row_blocks: int, most: int) -> None:
    """Chunks are as high as asked for at most, but where a panel is higher: a writer owns whole chunks."""
    grid = PanelGrid((m, n), min(panel, n), 1, min(row_blocks, -(-m // min(panel, n))))
    spans = [grid.rows(i) for i in grid.blocks()]
    assert [row for start, stop in spans for row in range(start, stop)] == list(range(m))
    rows = grid.chunk_rows(most)
    assert rows <= max(most, grid.panel)
    assert all(start % rows == 0 for start, _ in spans)
    assert all(start % grid.panel == 0 for start, _ in spans)
    for first, stop in ((0, 1), (0, m), (m - 1, m), (m // 2, m), (m // 3, m // 2), (m, m)):
        assert list(grid.blocks(first, stop)) == [i for i, (a, b) in enumerate(spans) if max(a, first) < min(b, stop)]


def test_the_grid_alone_chooses_the_steps() -> None:
    ways = Ways("whole", "row blocks")
    assert ways.of(PanelGrid((N, N), PANEL, 2)) == "whole"
    assert ways.of(PanelGrid((N, N), PANEL, 2, 2)) == "row blocks"


def test_work_travels_in_one_piece() -> None:
    grid, target = PanelGrid((4, 4), 2, 2), MemoryTarget(np.zeros((4, 4)))
    done = Factored(grid, target.matrix(), [{"first": np.array([0])}, {"first": np.array([2])}])
    verb = Factoring(method=LU(), finished=done, target=target, probes=np.ones((4, 1)))
    work = Work("lu-1", ArrayMatrix(np.eye(4)), grid, verb, "token")
    _, pieces = work.__reduce__()
    assert [type(piece) for piece in pieces] == [bytes]
    back = pickle.loads(pickle.dumps(work))
    assert (back.step, back.grid, back.token, type(back.verb.method)) == ("lu-1", grid, "token", LU)
    np.testing.assert_array_equal(back.verb.probes, verb.probes)
    assert [sorted(fact) for fact in verb.with_facts_of([1]).finished.facts] == [[], ["first"]]


@pytest.mark.parametrize("writeable", [True, False])
def test_a_panel_that_cannot_be_changed_in_its_place_comes_with_its_transform(
    writeable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a panel that came from another worker may be."""
    monkeypatch.setattr(whole_tasks, "measured", lambda *_, **__: None)
    A, grid, target = gaussian(8, 8), PanelGrid((8, 8), 4, 2), MemoryTarget(np.zeros((8, 8)))
    verb = Factoring(method=LU(), finished=Factored(grid, target.matrix(), []), target=target, probes=np.zeros((8, 1)))
    work = Work("lu-1", ArrayMatrix(A), grid, verb, "token")
    panels = [A[:, :4].copy(), A[:, 4:].copy()]
    for panel in panels:
        panel.flags.writeable = writeable
    first = whole_tasks.factor_panel(work, 0, panels[0])
    second = whole_tasks.update_and_factor(work, 1, first, panels[1])
    found = [whole_tasks.factored_panel(work, *pair) for pair in zip((first, second), panels, strict=True)]
    assert [found[i] is panels[i] for i in (0, 1)] == [writeable] * 2
    move = lu.row_move(4, second.facts["pivots"])
    found[0][move.targets] = found[0][move.sources]
    expected, pivots = scipy.linalg.lu_factor(A)
    np.testing.assert_allclose(np.hstack(found), expected, atol=1e-13)
    np.testing.assert_array_equal(np.concatenate([first.facts["pivots"], second.facts["pivots"]]), pivots)


class Watched(ThreadCluster):
    """Keeps the priorities of its graphs."""

    def __init__(self) -> None:
        super().__init__(THREADS)
        self.priorities: list[dict[Any, float]] = []

    def hold(
        self, graph: dict[Any, Any], keys: Sequence[Any], held: Mapping[Any, Any], wishes: Wishes, watch: Watch
    ) -> dict[Any, Any]:
        self.priorities.append(dict(wishes.priority))
        return super().hold(graph, keys, held, wishes, watch)


def factored(kind: str, grid: PanelGrid) -> tuple[Watched, Factored]:
    A = gallery.positive_definite(N) if kind == "cholesky" else gaussian(N, N)
    target = MemoryTarget(np.empty((N, N)))
    with Watched() as cluster:
        steps = STEPS[kind].of(grid)
        done, _ = Factorizer(Run(cluster)).factor(kind, open_matrix(A), steps, grid, target, probes=np.zeros((N, 1)))
    return cluster, done


@pytest.mark.parametrize("row_blocks", [1, 3])
@pytest.mark.parametrize("kind", STEPS)
def test_the_panel_that_is_factored_next_comes_first(kind: str, row_blocks: int) -> None:
    """Look-ahead, whether panels are cut or not: it is updated and factored before the rest of the step before it."""
    cluster, _ = factored(kind, PanelGrid((N, N), PANEL, 100, row_blocks))
    priorities = {key[1:]: value for graph in cluster.priorities for key, value in graph.items()}
    # The priority of panel k in step j, whole or tile by tile.
    updates = [
        (key[1], key[2] - 1, value) for key, value in priorities.items() if key[0] == "panel" and key[2] not in ("factored", 0)
    ]
    updates += [(key[2], key[3], value) for key, value in priorities.items() if key[0] == "tile" and len(key) == 4]
    # The last update of a whole panel is done in one with its factoring.
    assert len({(k, j) for k, j, _ in updates}) == 6 * 5 // 2 - (5 if row_blocks == 1 else 0)
    factors = {key[-1]: value for key, value in priorities.items() if key[0] in ("factor", "propose")}
    for j in range(5):
        following = [value for k, i, value in updates if i == j and k == j + 1]
        rest = [value for k, i, value in updates if i == j and k > j + 1]
        assert max([*following, factors[j + 1]]) < min(rest, default=np.inf)


@pytest.mark.parametrize("row_blocks", [1, 3])
@pytest.mark.parametrize("kind", STEPS)
def test_graphs_are_bounded(kind: str, row_blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small graphs make what one large graph makes."""
    grid = PanelGrid((N, N), PANEL, 100, row_blocks)
    one, expected = factored(kind, grid)
    monkeypatch.setattr(groups, "MAX_TASKS", 12)
    many, done = factored(kind, grid)
    assert len(many.priorities) > len(one.priorities)
    assert max(map(len, many.priorities)) < max(map(len, one.priorities))
    np.testing.assert_array_equal(done.matrix.region((0, N), (0, N)), expected.matrix.region((0, N), (0, N)))
