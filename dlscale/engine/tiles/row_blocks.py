"""Panels that are too tall for one worker: a panel is a column of r row blocks, tiles that lie on different workers.

    for each panel j:
        candidate_i   = propose(tile_ij)                     in every row block i: b rows at most
        choice, share = elect(candidates)                    the one reduction over row blocks
        tile_ij       = accept(tile_ij, candidate_i, share_i)
        for each panel k > j:
            met     = meet(choice, offer(tile_ij, tile_ik) from every row block)
            tile_ik = update(tile_ij, tile_ik, met)

Only candidates, shares, offers and what is met travel between row blocks, b rows at a time; no task sees a whole column. A
factorization supplies these verbs (`TiledMethod`). Where rows move, they move inside their tile, and go to their final places
when all panels are done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from dlscale.engine.tiles import row_block_tasks as tasks
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.groups import MAX_TASKS, Group, Key, TaskGraph
from dlscale.engine.tiles.methods import Facts, Method, Seen, TiledMethod
from dlscale.engine.tiles.steps import ReversibleSteps
from dlscale.engine.tiles.work import Applying, Factoring, Filling, Placing, Unapplying


class Transforms(NamedTuple):
    """The choice of a panel, and its tiles by row block, as what they do to others."""

    choice: Key
    tiles: Mapping[int, Key]


@dataclass(frozen=True)
class RowBlocks(ReversibleSteps[TiledMethod, Transforms]):
    """Steps of a method on panels in row blocks; one that inverts its transforms undoes them."""

    method: TiledMethod

    @property
    def costs(self) -> Method:
        return self.method.whole

    def begin(self, grid: PanelGrid) -> Facts:
        return self.method.begin(grid)

    def taking_part(self, grid: PanelGrid, j: int, k: int) -> range:
        """The row blocks that have rows in which step j changes panel k."""
        top = grid.columns(j)[0] if self.method.downward else 0
        return grid.blocks(max(top, self.method.whole.first_row(grid.columns(k)[0])))

    def load(self, graph: TaskGraph[Factoring[TiledMethod]]) -> None:
        group, grid, at = graph.group, graph.group.grid, graph.group.at
        for i in grid.blocks():
            panels = [k for k in group.panels if i in self.taking_part(grid, 0, k)]
            loaded = [graph.add(("load", i, k), tasks.load_tile, i, k, priority=k, worker=at(i, k)) for k in panels]
            for k, key in zip(panels, loaded, strict=True):
                group.tiles[i, k] = graph.add(("tile", i, k), tasks.tile_of, key, priority=k, worker=at(i, k))
            if graph.work.verb.probes.any():
                above = [k for k in group.panels if k not in panels]
                loaded += [graph.add(("see", i, k), tasks.see_tile, i, k, priority=k, worker=at(i, k)) for k in above]
            if loaded:
                seen = graph.add(("seen", i), tasks.seen_of_block, *loaded, priority=group.panels.stop, worker=at(i, 0))
                group.seen[i] = seen

    def together(self, group: Group[Factoring[TiledMethod]], parts: Mapping[int, Seen]) -> Seen:
        probes = group.work.verb.probes
        products = np.zeros((group.grid.shape[0], probes.shape[1]), probes.dtype)
        for i, part in parts.items():
            products[slice(*group.grid.rows(i))] += part.products
        return Seen(products, max(part.largest for part in parts.values()))

    def fetch(self, graph: TaskGraph[Applying[TiledMethod]], j: int, *, priority: float) -> Transforms:
        """A finished panel: its choice, and its tiles that panels of the group need."""
        group = graph.group
        blocks = self.taking_part(group.grid, j, max(j, group.panels.start))
        add = partial(graph.add, priority=priority)
        choice = add(("choice", j), tasks.recall, j, worker=j)
        return Transforms(choice, {i: add(("fetch", i, j), tasks.fetch, i, j, worker=group.at(i, j)) for i in blocks})

    def factor(self, graph: TaskGraph[Factoring[TiledMethod]], j: int, *, priority: float) -> Transforms:
        group, tiles, at = graph.group, graph.group.tiles, graph.group.at
        blocks, book = self.taking_part(group.grid, j, j), group.book
        add = partial(graph.add, priority=priority)
        begun = {i: add(("propose", i, j), tasks.propose, i, j, tiles[i, j], book, worker=at(i, j)) for i in blocks}
        candidates = [add(("candidate", i, j), tasks.candidate_of, begun[i], worker=at(i, j)) for i in blocks]
        elected = add(("elect", j), tasks.elect, j, book, *candidates, worker=j)
        choice = group.facts[j] = add(("choice", j), tasks.choice_of, elected, worker=j)
        group.book = add(("book", j), tasks.book_of, elected, worker=j)
        transforms = {}
        for p, i in enumerate(blocks):
            share = add(("share", i, j), tasks.share_of, elected, p, worker=j)
            tile = tiles[i, j] = add(("accept", i, j), tasks.accept, i, j, begun[i], share, worker=at(i, j))
            transforms[i] = add(("transform", i, j), tasks.transform_of, i, j, tile, choice, worker=at(i, j))
        return Transforms(choice, transforms)

    def apply(self, graph: TaskGraph[Applying[TiledMethod]], transform: Transforms, j: int, k: int, *, priority: float) -> None:
        group, tiles, at = graph.group, graph.group.tiles, graph.group.at
        blocks, add = self.taking_part(group.grid, j, k), partial(graph.add, priority=priority)
        offers = [
            add(("offer", i, j, k), tasks.offer, k, transform.tiles[i], tiles[i, k], worker=at(i, k))
            for i in self.method.offering(blocks)
        ]
        met = add(("meet", j, k), tasks.meet, transform.choice, *offers, worker=k)
        for i in blocks:
            tiles[i, k] = add(("tile", i, k, j), tasks.update, k, transform.tiles[i], tiles[i, k], met, worker=at(i, k))

    #: The method inverts its transforms.
    undo = apply

    def identity(self, graph: TaskGraph[Filling[TiledMethod]]) -> None:
        group = graph.group
        for i in group.grid.blocks():
            for k in group.panels:
                group.tiles[i, k] = graph.add(("identity", i, k), tasks.identity_tile, i, k, priority=k, worker=group.at(i, k))

    def vectors(self, graph: TaskGraph[Unapplying]) -> None:
        """Make a few vectors the one panel of the group."""
        group = graph.group
        for i in group.grid.blocks():
            group.tiles[i, 0] = graph.add(("rows", i), tasks.vector_tile, i, priority=0, worker=group.at(i, 0))

    def write(self, graph: TaskGraph[Filling[TiledMethod]], facts: Sequence[Facts]) -> tuple[list[Key], list[Facts]]:
        group = graph.group
        written = []
        for i in group.grid.blocks():
            for k in group.panels:
                tile, later = group.tiles.get((i, k)), facts[k - group.panels.start + 1 :]
                written.append(graph.add(("write", i, k), tasks.write_tile, i, k, tile, later, priority=k, worker=group.at(i, k)))
        return written, self.method.settle(facts, group.grid)

    def width(self, grid: PanelGrid) -> int:
        return 2 * len(grid.blocks())

    def n_tasks(self, grid: PanelGrid) -> int:
        group = min(grid.group, grid.n_panels)
        steps = max(1, min(MAX_TASKS // group // (2 * grid.row_blocks), grid.n_steps))
        return steps * group * (2 * grid.row_blocks + 1)

    def n_moved(self, grid: PanelGrid, n_workers: int) -> float:
        """Factored tiles to the workers of their row block, and for each column of a later panel b rows from the row blocks that
        offer some and b rows to each."""
        offered = grid.row_blocks if self.costs.all_row_blocks_offer else 1
        across = max(1, n_workers // grid.row_blocks)
        return float(grid.n_entries(grid.n_steps) * (across - 1 + min(n_workers - 1, offered + grid.row_blocks)))


def place_rows(graph: TaskGraph[Placing], k: int) -> list[Key]:
    """Rows of a finished panel go from the row blocks where they were stored to those where they belong."""
    group, blocks, add = graph.group, graph.group.grid.blocks(), partial(graph.add, priority=k)
    split = {i: add(("split", i, k), tasks.split_rows, i, k, worker=group.at(i, k)) for i in blocks}
    merged = []
    for q in blocks:
        pieces = [add(("piece", i, q, k), tasks.rows_for, split[i], q, worker=group.at(i, k)) for i in blocks]
        merged.append(add(("merge", q, k), tasks.merge_rows, q, k, *pieces, worker=group.at(q, k)))
    return merged
