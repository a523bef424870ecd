"""Whole panels: a panel is a block of columns that one worker holds, and LAPACK's to factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dlscale.engine.tiles import whole_tasks as tasks
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.groups import MAX_TASKS, Group, Key, TaskGraph
from dlscale.engine.tiles.methods import Facts, Method, Reversible, Seen
from dlscale.engine.tiles.steps import ReversibleSteps, Steps
from dlscale.engine.tiles.work import Applying, Factoring, Filling
from dlscale.storage.matrix import Matrix

P = TypeVar("P", bound=Method)


@dataclass(frozen=True)
class WholePanels(Steps[P, Key], Generic[P]):
    """Steps of a method on whole panels; a panel travels to the workers of those behind it."""

    method: P

    @property
    def costs(self) -> Method:
        return self.method

    def load(self, graph: TaskGraph[Factoring[P]]) -> None:
        group = graph.group
        for number, some in enumerate(load_sets(graph.work.A, group.grid, group.panels)):
            # Several panels are one worker's, and the next ones the next one's. Each of them travels on its own.
            first, place = some[0], group.at(0, some[0]) if len(some) == 1 else number
            loaded = graph.add(("load", first), tasks.load_panels, some, priority=first, worker=place)
            group.seen[first] = graph.add(("products", first), tasks.seen_of, loaded, priority=first, worker=place)
            for i, k in enumerate(some):
                group.tiles[0, k] = graph.add(("panel", k, 0), tasks.panel_of, loaded, i, priority=k, worker=place)

    def fetch(self, graph: TaskGraph[Applying[P]], j: int, *, priority: float) -> Key:
        return graph.add(("fetch", j), tasks.fetch_panel, j, priority=priority, worker=graph.group.at(0, j))

    def factor(self, graph: TaskGraph[Factoring[P]], j: int, *, priority: float) -> Key:
        group, worker = graph.group, graph.group.at(0, j)
        panel = group.tiles[0, j]
        how: tuple[Any, ...] = (tasks.factor_panel, j, panel)
        if last := graph.take_back(panel, tasks.apply_panel):
            # In one with its last update: a scheduler would hear of that first, and the worker do what nobody waits for meanwhile.
            before, _, panel = last
            how = (tasks.update_and_factor, j, before, panel)
        transform = graph.add(("factor", j), *how, priority=priority, worker=worker)
        whole = (tasks.factored_panel, transform, panel)
        group.tiles[0, j] = graph.add(("panel", j, "factored"), *whole, priority=priority, worker=worker)
        group.facts[j] = graph.add(("facts", j), tasks.facts_of, transform, priority=priority, worker=worker)
        return transform

    def apply(self, graph: TaskGraph[Applying[P]], transform: Key, j: int, k: int, *, priority: float) -> None:
        tiles = graph.group.tiles
        tiles[0, k] = graph.add(
            ("panel", k, j + 1), tasks.apply_panel, transform, k, tiles[0, k], priority=priority, worker=graph.group.at(0, k)
        )  # fmt: skip

    def write(self, graph: TaskGraph[Filling[P]], facts: Sequence[Facts]) -> tuple[list[Key], list[Facts]]:
        group = graph.group
        settled = self.method.settle(facts, group.panels.start, group.grid)
        moves = [move for move, _ in settled] + [None] * (len(group.panels) - len(settled))
        written = [
            graph.add(("write", k), tasks.write_panel, k, group.tiles[0, k], move, priority=k, worker=group.at(0, k))
            for k, move in zip(group.panels, moves, strict=True)
        ]
        return written, [fact for _, fact in settled]

    def together(self, group: Group[Factoring[P]], parts: Mapping[int, Seen]) -> Seen:
        return Seen.of(list(parts.values()))

    def width(self, grid: PanelGrid) -> int:
        return 1

    def n_tasks(self, grid: PanelGrid) -> int:
        group = min(grid.group, grid.n_panels)
        return group * max(1, min(MAX_TASKS // group, grid.n_steps))

    def n_moved(self, grid: PanelGrid, n_workers: int) -> float:
        """Factored panels, to all workers."""
        return float(grid.n_entries(grid.n_steps) * (n_workers - 1))


class ReversiblePanels(WholePanels[Reversible], ReversibleSteps[Reversible, Key]):
    """The same for a method whose transforms can be undone."""

    #: Half of what a transform does to other columns.
    own_share = 0.5

    def identity(self, graph: TaskGraph[Filling[Reversible]]) -> None:
        """Nothing: a panel begins where the transform of its own number is applied."""

    def undo(self, graph: TaskGraph[Applying[Reversible]], transform: Key, j: int, k: int, *, priority: float) -> None:
        tiles = graph.group.tiles
        before = tiles.get((0, k))
        how = (tasks.form_panel, transform, k) if before is None else (tasks.unapply_panel, transform, k, before)
        tiles[0, k] = graph.add(("panel", k, j), *how, priority=priority, worker=graph.group.at(0, k))


def load_sets(A: Matrix, grid: PanelGrid, panels: range) -> list[list[int]]:
    """Panels that are loaded by one task: those that share stored chunks, as far as two threads still share the work.

    Where whole rows lie together, one task can as well have those that `Group.at` deals to the first of two workers: none travels.
    """
    if A.any_range and not A.by_columns and A.column_unit >= grid.shape[1] and 1 < len(panels) == grid.n_panels:
        return [[k for k in panels if k % 4 in place] for place in ((0, 3), (1, 2))]
    length = max(1, min(A.column_unit // grid.panel, len(panels) // 2))
    return [list(range(k, min(k + length, panels.stop))) for k in range(panels.start, panels.stop, length)]
