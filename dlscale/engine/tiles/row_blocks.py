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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.run import Cost, Run
from dlscale.engine.targets import Target
from dlscale.engine.tiles import row_block_tasks as tasks
from dlscale.engine.tiles.factorizer import NO_PROBES, NO_TARGET, Panels, group_flops, panel_bytes, unflatten
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.groups import Group, Key, TaskGraph, fresh_token
from dlscale.engine.tiles.methods import Factored, Facts, Finish, Seen
from dlscale.engine.tiles.row_block_tasks import Election, Place, TiledMethod, TileTransform
from dlscale.engine.tiles.whole_tasks import Work, take
from dlscale.storage.matrix import Matrix

__all__ = ["Election", "Place", "TileTransform", "TiledMethod", "Tiles", "TilesGroup"]


class Tiles:
    """Runs factorizations on row blocks.

    Parameters
    ----------
    run : Run
    """

    def __init__(self, run: Run) -> None:
        self.panels = Panels(run)

    def factor(
        self, step: str, A: Matrix, method: TiledMethod, grid: PanelGrid, target: Target, *, probes: Array
    ) -> tuple[Factored, Seen]:
        """Factor a matrix, group by group, as `Panels.factor`; the rows of a tile end in the order that the method gave them."""
        done = Factored(grid, target.matrix(), [])
        products, largest = np.zeros((grid.shape[0], probes.shape[1]), probes.dtype), 0.0
        book = method.begin(grid)
        for number, group in enumerate(grid.groups()):
            work = Work(fresh_token(), f"{step}-{number + 1}", A, method, grid, done, target, probes)
            flops = group_flops(method.whole, grid, group)
            n_bytes = grid.shape[0] * sum(map(grid.width, range(group.stop))) * A.dtype.itemsize
            begin = partial(_Factoring, self.panels.run, group=group, book=book)
            saved = self.panels.memoised(work, Cost(flops, n_bytes, panel_bytes(grid, group, A)), begin)
            products += saved.pop("products")
            largest = max(largest, float(saved.pop("largest")))
            book = {name.removeprefix("book-"): saved.pop(name) for name in [n for n in saved if n.startswith("book-")]}
            done = replace(done, facts=done.facts + unflatten(saved))
        return done, Seen(products, largest)

    def form(self, step: str, factored: Factored, method: TiledMethod, target: Target, *, finish: Finish | None = None) -> None:
        """Apply the transforms, the last one first, to the columns of the identity, as `Panels.form`; the method inverts them."""
        m, n = factored.grid.shape
        grid = replace(factored.grid, shape=(m, min(m, n)))
        for number, group in enumerate(grid.groups()):
            steps = [(m - grid.columns(j)[0], grid.width(j), grid.width(k)) for k in group for j in range(k + 1)]
            flops, A = sum(method.whole.apply_flops(*sizes) for sizes in steps), factored.matrix
            n_bytes = sum((m - grid.columns(j)[0]) * grid.width(j) for j in range(group.stop)) * A.dtype.itemsize
            work = Work(fresh_token(), f"{step}-{number + 1}", A, method, grid, factored, target, NO_PROBES, finish)
            self.panels.memoised(
                work, Cost(flops, n_bytes, panel_bytes(grid, group, A)), partial(_Forming, self.panels.run, group=group)
            )

    def unapply(self, step: str, factored: Factored, method: TiledMethod, X: Array) -> Array:
        """Apply the transforms, the last one first, to a few vectors (m, k); the method inverts them."""
        grid, A = factored.grid, factored.matrix
        work = Work(fresh_token(), step, A, method, grid, factored, NO_TARGET, X)
        begin = partial(_Applying, self.panels.run, group=range(1))
        cost = Cost(4.0 * A.shape[0] * A.shape[1] * X.shape[1], A.n_bytes)
        return self.panels.memoised(work, cost, begin)["product"]

    def copy(self, step: str, factored: Factored, target: Target, change: Callable[[int, int, Array], Array]) -> None:
        """Copy the tiles that begin in the rows of the target to there, each as ``change(i, k, tile)``."""
        self._move(step, factored, target, change, _Copying)

    def place(self, step: str, factored: Factored, target: Target, sources: Sequence[Array]) -> None:
        """Bring rows to their final places: row q of group g comes from stored row ``sources[g][q]``."""
        self._move(step, factored, target, tuple(sources), _Placing)

    def _move(self, step: str, factored: Factored, target: Target, how: object, group: type[Group]) -> None:
        grid, A = factored.grid, factored.matrix
        work = Work(fresh_token(), step, A, how, grid, None, target, NO_PROBES)
        n_bytes = grid.shape[0] * grid.shape[1] * A.dtype.itemsize
        self.panels.memoised(work, Cost(0.0, n_bytes, n_bytes), partial(group, self.panels.run, group=range(grid.n_panels)))


class TilesGroup(Group):
    """Panels in row blocks that are in memory together."""

    def __init__(self, run: Run, work: Work, group: range) -> None:
        super().__init__(run, work, group)
        # Rounding up may leave nothing for the last blocks.
        self.blocks = [i for i in range(self.grid.row_blocks) if self.grid.rows(i)[0] < self.grid.rows(i)[1]]
        self.tiles: dict[tuple[int, int], Key] = {}

    def at(self, i: int, k: int) -> int:
        """The worker of a tile: those of a row block share a row of workers, so that a tile travels along that row only."""
        across = max(1, self.run.cluster.facts.n_workers // self.grid.row_blocks)
        return i * across + k % across

    def limit(self, *, fetched: bool) -> int:
        limit = max(1, super().limit(fetched=False) // (2 * len(self.blocks)))
        return min(limit, self.grid.streamed) if fetched else limit

    def taking_part(self, j: int, k: int) -> list[int]:
        """The row blocks that have rows in which step j changes panel k."""
        method, top = self.work.method, self.grid.columns(j)[0] if self.work.method.downward else 0
        first = max(top, method.whole.first_row(self.grid.columns(k)[0]))
        return [i for i in self.blocks if self.grid.rows(i)[1] > first]

    def fetch(self, graph: TaskGraph, j: int, *, priority: float) -> tuple[Key, dict[int, Key]]:
        """A finished panel: its choice, and its tiles that panels of this group need."""
        blocks = self.taking_part(j, max(j, self.group.start))
        choice = graph.add(("choice", j), tasks.recall, j, priority=priority, worker=j)
        return choice, {i: graph.add(("fetch", i, j), tasks.fetch, i, j, priority=priority, worker=self.at(i, j)) for i in blocks}

    def apply(self, graph: TaskGraph, j: int, k: int, choice: Key, transforms: Mapping[int, Key], *, priority: float) -> None:
        """Apply panel j to the tiles of panel k."""
        blocks = self.taking_part(j, k)
        offers = [
            graph.add(("offer", i, j, k), tasks.offer, k, transforms[i], self.tiles[i, k], priority=priority, worker=self.at(i, k))
            for i in self.work.method.offering(blocks)
        ]
        met = graph.add(("meet", j, k), tasks.meet, choice, *offers, priority=priority, worker=k)
        for i in blocks:
            self.tiles[i, k] = graph.add(
                ("tile", i, k, j), tasks.update, k, transforms[i], self.tiles[i, k], met, priority=priority, worker=self.at(i, k)
            )

    def write(self, graph: TaskGraph, facts: Sequence[Facts]) -> list[Key]:
        """Write all tiles of the group, whose first factored panels have these facts."""
        return [
            graph.add(
                ("write", i, k),
                tasks.write_tile,
                i,
                k,
                self.tiles.get((i, k)),
                facts[k - self.group.start + 1 :],
                priority=k,
                worker=self.at(i, k),
            )
            for i in self.blocks
            for k in self.group
        ]


class _Factoring(TilesGroup):
    """A group is loaded, updated by the finished panels, factored, and written, tile by tile."""

    def __init__(self, run: Run, work: Work, group: range, book: Facts) -> None:
        super().__init__(run, work, group)
        self.first_book = book
        self.book: Key | None = None
        self.facts: dict[int, Key] = {}
        self.seen: dict[int, Key] = {}

    def compute(self) -> Facts:
        self.go_through(self.factoring(), self._load, self._step, self._kept)
        gather = self.run.cluster.gather
        facts = gather([self.held[key] for key in self.facts.values()])
        book = gather([self.held[self.book]])[0] if self.book else self.first_book
        graph = self.graph()
        self.hold(graph, [*self.write(graph, facts), *self.seen.values()])
        saved = self._seen(gather([self.held[key] for key in self.seen.values()]))
        saved |= {f"book-{name}": value for name, value in book.items()}
        settled = self.work.method.settle(facts, self.grid)
        return saved | {f"{j}.{name}": value for j, fact in enumerate(settled) for name, value in fact.items()}

    def _kept(self) -> list[Key]:
        keys = [*self.tiles.values(), *self.facts.values(), *self.seen.values()]
        return [*keys, self.book] if self.book else keys

    def _load(self, graph: TaskGraph) -> None:
        for i in self.blocks:
            panels = [k for k in self.group if i in self.taking_part(0, k)]
            loaded = [graph.add(("load", i, k), tasks.load_tile, i, k, priority=k, worker=self.at(i, k)) for k in panels]
            for k, key in zip(panels, loaded, strict=True):
                self.tiles[i, k] = graph.add(("tile", i, k), take, key, 0, priority=k, worker=self.at(i, k))
            if self.work.probes.any():
                above = [k for k in self.group if k not in panels]
                loaded += [graph.add(("see", i, k), tasks.see_tile, i, k, priority=k, worker=self.at(i, k)) for k in above]
            if loaded:
                self.seen[i] = graph.add(("seen", i), tasks.seen_of_block, *loaded, priority=self.group.stop, worker=self.at(i, 0))

    def _seen(self, parts: Sequence[tuple[Array, float]]) -> Facts:
        probes = self.work.probes
        products = np.zeros((self.grid.shape[0], probes.shape[1]), probes.dtype)
        for i, (here, _) in zip(self.seen, parts, strict=True):
            products[slice(*self.grid.rows(i))] += here
        return {"products": products, "largest": np.array(max(largest for *_, largest in parts))}

    def _step(self, graph: TaskGraph, j: int) -> None:
        """Factor panel j, or read it where it is finished, and apply it to the panels of the group behind it."""
        n, urgent = self.grid.n_panels, (j - 2) * self.grid.n_panels
        choice, transforms = self.fetch(graph, j, priority=urgent) if j < self.n_done else self._factor(graph, j, priority=urgent)
        for k in self.group:
            if k > j:
                # The panel that is factored next comes first, before the rest of the step before.
                self.apply(graph, j, k, choice, transforms, priority=(j - 1 if k == j + 1 else j) * n + k)

    def _factor(self, graph: TaskGraph, j: int, *, priority: float) -> tuple[Key, dict[int, Key]]:
        blocks, book, transforms = self.taking_part(j, j), self.book or self.first_book, {}
        add = partial(graph.add, priority=priority)
        begun = {i: add(("propose", i, j), tasks.propose, i, j, self.tiles[i, j], book, worker=self.at(i, j)) for i in blocks}
        candidates = {i: add(("candidate", i, j), take, begun[i], 1, worker=self.at(i, j)) for i in blocks}
        elected = add(("elect", j), tasks.elect, j, book, *candidates.values(), worker=j)
        choice = self.facts[j] = add(("choice", j), take, elected, 0, worker=j)
        self.book = add(("book", j), take, elected, 1, worker=j)
        for p, i in enumerate(blocks):
            place = self.at(i, j)
            tile = add(("begun", i, j), take, begun[i], 0, worker=place)
            share = add(("share", i, j), take, elected, 2 + p, worker=j)
            tile = self.tiles[i, j] = add(("accept", i, j), tasks.accept, i, j, tile, candidates[i], share, worker=place)
            transforms[i] = add(("transform", i, j), tasks.transform_of, i, j, tile, choice, worker=place)
        return choice, transforms


class _Forming(TilesGroup):
    """Tiles of the identity, to which the transforms are applied, the last one first."""

    def compute(self) -> Facts:
        self.apply_backwards(range(self.group.stop))
        graph = self.graph()
        self.hold(graph, self.write(graph, []))
        return {"done": np.array(True)}

    def begin(self, graph: TaskGraph) -> None:
        """Make the tiles that the transforms are applied to."""
        for i in self.blocks:
            for k in self.group:
                self.tiles[i, k] = graph.add(("identity", i, k), tasks.identity_tile, i, k, priority=k, worker=self.at(i, k))

    def apply_backwards(self, steps: range) -> None:
        windows = self.windows(steps[::-1], fetched=True)
        self.go_through(windows, self.begin, self._step, lambda: list(self.tiles.values()))

    def _step(self, graph: TaskGraph, j: int) -> None:
        choice, transforms = self.fetch(graph, j, priority=-(j + 2) * self.grid.n_panels)
        for k in self.changed_by(j):
            self.apply(graph, j, k, choice, transforms, priority=-j * self.grid.n_panels + k)

    def changed_by(self, j: int) -> Sequence[int]:
        """The panels of the identity that are not zero in the rows of step j."""
        return [k for k in self.group if k >= j]


class _Applying(_Forming):
    """A few vectors as the one panel, to which the transforms are applied, the last one first."""

    def compute(self) -> Facts:
        self.apply_backwards(range(self.grid.n_steps))
        return {"product": np.concatenate(self.run.cluster.gather([self.held[key] for key in self.tiles.values()]))}

    def begin(self, graph: TaskGraph) -> None:
        for i in self.blocks:
            self.tiles[i, 0] = graph.add(("rows", i), tasks.vector_tile, i, priority=0, worker=self.at(i, 0))

    def changed_by(self, j: int) -> Sequence[int]:
        return [0]


class _Copying(TilesGroup):
    """Finished tiles are read, changed, and written to another place."""

    def compute(self) -> Facts:
        blocks = [i for i in self.blocks if self.grid.rows(i)[0] < self.work.target.shape[0]]
        for window in self.windows(self.group, fetched=False):
            graph = self.graph()
            copied = [
                graph.add(("copy", i, k), tasks.copy_tile, i, k, priority=k, worker=self.at(i, k)) for k in window for i in blocks
            ]
            self.hold(graph, copied)
        return {"done": np.array(True)}


class _Placing(TilesGroup):
    """Rows of finished panels go from the row blocks where they were stored to those where they belong."""

    def limit(self, *, fetched: bool) -> int:
        return max(1, super().limit(fetched=fetched) // len(self.blocks))

    def compute(self) -> Facts:
        for window in self.windows(self.group, fetched=False):
            graph, merged = self.graph(), []
            for k in window:
                add = partial(graph.add, priority=k)
                split = {i: add(("split", i, k), tasks.split_rows, i, k, worker=self.at(i, k)) for i in self.blocks}
                for q in self.blocks:
                    pieces = [add(("piece", i, q, k), take, split[i], q, worker=self.at(i, k)) for i in self.blocks]
                    merged.append(add(("merge", q, k), tasks.merge_rows, q, k, *pieces, worker=self.at(q, k)))
            self.hold(graph, merged)
        return {"done": np.array(True)}
