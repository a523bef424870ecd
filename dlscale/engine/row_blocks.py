"""Panels that are too tall for one worker: a panel is a column of r row blocks, tiles that lie on different workers.

    for each panel j:
        candidates_i = propose(tile_ij)           in every row block i, of b rows at most
        choice       = elect(candidates)          the one reduction over row blocks
        tile_ij      = accept(tile_ij, choice)
        for each panel k > j:
            met      = meet(choice, offer(tile_ik) from every row block)
            tile_ik  = update(tile_ik, met)

Only candidates, offers and what is met travel between row blocks, b rows at a time; no task sees a whole column. Rows move
inside their tile only, and go to their final places when all panels are done.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from dlscale.engine.panel_grids import PanelGrid
from dlscale.engine.panel_tasks import Work, find_non_finite, measured, take, writable
from dlscale.engine.panels import NO_PROBES, Group, Key, Panels, TaskGraph, fresh_token, group_flops, unflatten
from dlscale.engine.transforms import Factored, Facts, Method, Seen, largest_modulus
from dlscale.storage.matrices import Array, ArrayMatrix, Matrix
from dlscale.storage.results import ArrayWriter


@dataclass(frozen=True)
class TileTransform:
    """What a factored tile does to the tiles right of it.

    Parameters
    ----------
    index, block : int
        j, of the panel, and i, of the row block.
    tile : (m_i, b)
    facts : dict of arrays
        The choice of the panel.
    """

    index: int
    block: int
    tile: Array
    facts: Facts


class TiledMethod(ABC):
    """A factorization on row blocks. Picklable; only `accept` and `update` change their tile."""

    #: The same factorization on whole panels, for its costs.
    whole: Method

    @abstractmethod
    def begin(self, grid: PanelGrid) -> Facts:
        """The book that goes from step to step."""

    @abstractmethod
    def propose(self, tile: Array, book: Facts, i: int) -> Facts:
        """At most b candidate rows of a tile."""

    @abstractmethod
    def elect(self, candidates: Sequence[Facts], book: Facts, top: int) -> tuple[Facts, Facts]:
        """The choice for a panel, and the book of the next step."""

    @abstractmethod
    def accept(self, tile: Array, choice: Facts, i: int) -> None:
        """Finish a tile of the panel by the choice, in place."""

    @abstractmethod
    def offer(self, transform: TileTransform, tile: Array) -> Array:
        """What a tile of a later panel gives to the meeting."""

    @abstractmethod
    def meet(self, choice: Facts, offers: Sequence[Array]) -> Array:
        """What the offers of all row blocks make together."""

    @abstractmethod
    def update(self, transform: TileTransform, tile: Array, met: Array) -> None:
        """Apply a factored tile to a tile of its row block, in place."""

    @abstractmethod
    def order(self, facts: Sequence[Facts], i: int, n_rows: int) -> Array | None:
        """How the rows of tile i moved in these steps: position p holds what was at ``order[p]``."""

    @abstractmethod
    def settle(self, facts: Sequence[Facts], grid: PanelGrid) -> list[Facts]:
        """The facts of a finished group, whose tiles are stored in the order that the rows had at its end."""


class Tiles:
    """Runs factorizations on row blocks.

    Parameters
    ----------
    panels : Panels
        Whose cluster, checkpoint and events are used.
    """

    def __init__(self, panels: Panels) -> None:
        self.panels = panels

    def factor(
        self, step: str, A: Matrix, method: TiledMethod, grid: PanelGrid, target: ArrayWriter | Array, *, probes: Array
    ) -> tuple[Factored, Seen]:
        """Factor a matrix, group by group, as `Panels.factor`; the rows of a tile end in the order that the method gave them."""
        done = Factored(grid, ArrayMatrix(target) if isinstance(target, np.ndarray) else target.matrix(), [])
        products, largest = np.zeros((grid.shape[0], probes.shape[1]), probes.dtype), 0.0
        book = method.begin(grid)
        for number, group in enumerate(grid.groups()):
            work = Work(fresh_token(), f"{step}-{number + 1}", A, method, grid, done, target, probes)
            flops = group_flops(method.whole, grid, group)
            n_bytes = grid.shape[0] * sum(map(grid.width, range(group.stop))) * A.dtype.itemsize
            begin = partial(_TiledFactoring, self.panels.passes, group=group, book=book)
            saved = self.panels.memoised(work, flops, n_bytes, begin)
            products += saved.pop("products")
            largest = max(largest, float(saved.pop("largest")))
            book = {name.removeprefix("book-"): saved.pop(name) for name in [n for n in saved if n.startswith("book-")]}
            done = replace(done, facts=done.facts + unflatten(saved))
        return done, Seen(products, largest)

    def place(self, step: str, factored: Factored, target: ArrayWriter | Array, sources: Sequence[Array]) -> None:
        """Bring rows to their final places: row q of group g comes from stored row ``sources[g][q]``."""
        grid = factored.grid
        n_bytes = grid.shape[0] * grid.shape[1] * factored.matrix.dtype.itemsize
        work = Work(fresh_token(), step, factored.matrix, _Rows(tuple(sources)), grid, factored, target, NO_PROBES)
        self.panels.memoised(work, 0.0, n_bytes, partial(_TiledPlacing, self.panels.passes, group=range(grid.n_panels)))

    def product(self, step: str, T: Matrix, grid: PanelGrid, X: Array, *, lower: bool, unit: bool = False) -> tuple[Array, float]:
        """``T X`` for the lower or upper triangle of a stored factor (m, n), tile by tile, and its largest modulus."""
        work = Work(fresh_token(), step, T, _Triangle(lower, unit), grid, None, NO_PROBES, X)
        n_bytes = grid.shape[0] * grid.shape[1] * T.dtype.itemsize
        found = self.panels.memoised(work, 0.0, n_bytes, partial(_Product, self.panels.passes, group=range(grid.n_panels)))
        return found["product"], float(found["largest"])


class _TiledFactoring(Group):
    """A group is loaded, updated by the finished panels, factored, and written, tile by tile."""

    def __init__(self, passes: Any, work: Work, group: range, book: Facts) -> None:
        super().__init__(passes, work, group)
        self.n_done = len(work.finished.facts) if work.finished else 0
        self.blocks = range(self.grid.row_blocks)
        self.first_book = book
        self.book: Key | None = None
        self.tiles: dict[tuple[int, int], Key] = {}
        self.facts: dict[int, Key] = {}
        self.products: dict[int, Key] = {}

    def at(self, i: int, k: int) -> int:
        """The worker of a tile: those of a row block share a row of workers, so that a tile travels along that row only."""
        return _at(self, i, k)

    def run(self) -> Facts:
        to_factor = range(min(self.group.start, self.grid.n_steps), min(self.group.stop, self.grid.n_steps))
        graph = TaskGraph(self.work)
        self.load(graph)
        for window in (*self.windows(range(self.n_done), fetched=True), *self.windows(to_factor, fetched=False)):
            for j in window:
                self.step(graph, j, finished=j < self.n_done)
            self.compute(graph, self.kept)
            graph = TaskGraph(self.work)
        if graph.n_tasks:
            self.compute(graph, self.kept)
        facts = self.passes.cluster.gather([self.held[key] for key in self.facts.values()])
        book = self.passes.cluster.gather([self.held[self.book]])[0] if self.book else self.first_book
        graph = TaskGraph(self.work)
        written = [
            graph.add(
                ("write", i, k), _write, i, k, self.tiles[i, k], facts[k - to_factor.start + 1 :], priority=k, worker=self.at(i, k)
            )
            for i, k in self.tiles
        ]
        self.compute(graph, [*written, *self.products.values()])
        parts = self.passes.cluster.gather([self.held[key] for key in self.products.values()])
        sums = {"products": np.concatenate([part for part, _ in parts]), "largest": np.array(max(x for _, x in parts))}
        sums |= {f"book-{name}": value for name, value in book.items()}
        settled = self.work.method.settle(facts, self.grid)
        return sums | {f"{j}.{name}": value for j, fact in enumerate(settled) for name, value in fact.items()}

    @property
    def kept(self) -> list[Key]:
        keys = [*self.tiles.values(), *self.facts.values(), *self.products.values()]
        return [*keys, self.book] if self.book else keys

    def limit(self, *, fetched: bool) -> int:
        return max(1, super().limit(fetched=fetched) // (1 if fetched else 2 * len(self.blocks)))

    def load(self, graph: TaskGraph) -> None:
        for i in self.blocks:
            loaded = [graph.add(("load", i, k), _load, i, k, priority=k, worker=self.at(i, k)) for k in self.group]
            for k, key in zip(self.group, loaded, strict=True):
                self.tiles[i, k] = graph.add(("tile", i, k, 0), take, key, 0, priority=k, worker=self.at(i, k))
            self.products[i] = graph.add(("products", i), _total, *loaded, priority=self.group.stop, worker=i)

    def step(self, graph: TaskGraph, j: int, *, finished: bool) -> None:
        """Factor panel j, or read it where it is finished, and apply it to the panels of the group behind it."""
        n, urgent = self.grid.n_panels, (j - 2) * self.grid.n_panels
        if finished:
            choice = graph.add(("choice", j), _recall, j, priority=urgent, worker=j)
            transforms = [graph.add(("fetch", i, j), _fetch, i, j, priority=urgent, worker=self.at(i, j)) for i in self.blocks]
        else:
            book = self.book or self.first_book
            candidates = [
                graph.add(("propose", i, j), _propose, i, j, self.tiles[i, j], book, priority=urgent, worker=self.at(i, j))
                for i in self.blocks
            ]
            elected = graph.add(("elect", j), _elect, j, book, *candidates, priority=urgent, worker=j)
            choice = self.facts[j] = graph.add(("choice", j), take, elected, 0, priority=urgent, worker=j)
            self.book = graph.add(("book", j), take, elected, 1, priority=urgent, worker=j)
            transforms = []
            for i in self.blocks:
                tile = graph.add(("accept", i, j), _accept, i, j, self.tiles[i, j], choice, priority=urgent, worker=self.at(i, j))
                self.tiles[i, j] = tile
                transforms.append(
                    graph.add(("transform", i, j), _transform, i, j, tile, choice, priority=urgent, worker=self.at(i, j))
                )
        for k in self.group:
            if k > j:
                priority = (j - 1 if k == j + 1 else j) * n + k
                offers = [
                    graph.add(("offer", i, j, k), _offer, transforms[i], self.tiles[i, k], priority=priority, worker=self.at(i, k))
                    for i in self.blocks
                ]
                met = graph.add(("meet", j, k), _meet, choice, *offers, priority=priority, worker=k)
                for i in self.blocks:
                    key, before = ("tile", i, k, j + 1), self.tiles[i, k]
                    self.tiles[i, k] = graph.add(
                        key, _update, i, k, transforms[i], before, met, priority=priority, worker=i + k
                    )  # fmt: skip


class _TiledPlacing(Group):
    """Rows of finished panels go from the row blocks where they were stored to those where they belong."""

    def at(self, i: int, k: int) -> int:
        return _at(self, i, k)

    def run(self) -> Facts:
        blocks = range(self.grid.row_blocks)
        limit = max(1, self.limit(fetched=False) // len(blocks) ** 2)
        for start in range(0, len(self.group), limit):
            graph, merged = TaskGraph(self.work), []
            for k in self.group[start : start + limit]:
                split = [graph.add(("split", i, k), _split, i, k, priority=k, worker=self.at(i, k)) for i in blocks]
                for q in blocks:
                    pieces = [
                        graph.add(("piece", i, q, k), take, split[i], q, priority=k, worker=self.at(i, k)) for i in blocks
                    ]  # fmt: skip
                    merged.append(graph.add(("merge", q, k), _merge, q, k, *pieces, priority=k, worker=self.at(q, k)))
            self.compute(graph, merged)
        return {"done": np.array(True)}


class _Product(Group):
    """A chain of tile products for each row block."""

    def run(self) -> Facts:
        sums: dict[int, Key | None] = dict.fromkeys(range(self.grid.row_blocks))
        limit = max(1, self.limit(fetched=False) // len(sums))
        for start in range(0, len(self.group), limit):
            graph = TaskGraph(self.work)
            for k in self.group[start : start + limit]:
                for i in sums:
                    sums[i] = graph.add(("product", i, k), _add_product, i, k, sums[i], priority=k, worker=i)
            self.compute(graph, [key for key in sums.values() if key])
        parts = self.passes.cluster.gather([self.held[key] for key in sums.values() if key])
        return {"product": np.concatenate([part for part, _ in parts]), "largest": np.array(max(x for _, x in parts))}


def _at(group: Group, i: int, k: int) -> int:
    across = max(1, group.passes.cluster.facts.n_workers // group.grid.row_blocks)
    return i * across + k % across


@dataclass(frozen=True)
class _Rows:
    """Where the rows of each group come from."""

    sources: tuple[Array, ...]


@dataclass(frozen=True)
class _Triangle:
    lower: bool
    unit: bool


def _load(work: Work, i: int, k: int) -> tuple[Array, Array, float]:
    started = time.perf_counter()
    rows, columns = work.grid.rows(i), work.grid.columns(k)
    block = work.A.region(rows, columns)
    if isinstance(work.target, np.ndarray):
        tile = work.target[slice(*rows), slice(*columns)]
        tile[...] = block
    else:
        tile = writable(block.copy() if work.A.in_memory else block)
    with np.errstate(over="ignore", invalid="ignore"):
        product = tile @ work.probes[slice(*columns)]
    if not np.isfinite(product).all():
        find_non_finite(work.A, columns, rows[0])
    measured(work, "load", k, started, n_bytes=tile.nbytes)
    return tile, product, largest_modulus(tile)


def _total(work: Work, *loaded: tuple[Array, Array, float]) -> tuple[Array, float]:
    products = [product for _, product, _ in loaded]
    return sum(products[1:], products[0]), max(largest for *_, largest in loaded)


def _propose(work: Work, i: int, j: int, tile: Array, book: Facts) -> Facts:
    started = time.perf_counter()
    candidates: Facts = work.method.propose(tile, book, i)
    measured(work, "factor", j, started, flops=work.method.whole.factor_flops(*tile.shape))
    return candidates


def _elect(work: Work, j: int, book: Facts, *candidates: Facts) -> tuple[Facts, Facts]:
    started = time.perf_counter()
    elected: tuple[Facts, Facts] = work.method.elect(candidates, book, work.grid.columns(j)[0])
    measured(work, "factor", j, started)
    return elected


def _accept(work: Work, i: int, j: int, tile: Array, choice: Facts) -> Array:
    started = time.perf_counter()
    tile = writable(tile)
    work.method.accept(tile, choice, i)
    measured(work, "factor", j, started, flops=float(len(tile)) * tile.shape[1] ** 2)
    return tile


def _transform(work: Work, i: int, j: int, tile: Array, choice: Facts) -> TileTransform:
    return TileTransform(j, i, tile, choice)


def _recall(work: Work, j: int) -> Facts:
    assert work.finished is not None
    return work.finished.facts[j]


def _fetch(work: Work, i: int, j: int) -> TileTransform:
    started = time.perf_counter()
    assert work.finished is not None
    tile = work.finished.matrix.region(work.grid.rows(i), work.grid.columns(j))
    measured(work, "fetch", j, started, n_bytes=tile.nbytes)
    return TileTransform(j, i, tile, work.finished.facts[j])


def _offer(work: Work, transform: TileTransform, tile: Array) -> Array:
    rows: Array = work.method.offer(transform, tile)
    return rows


def _meet(work: Work, choice: Facts, *offers: Array) -> Array:
    met: Array = work.method.meet(choice, offers)
    return met


def _update(work: Work, i: int, k: int, transform: TileTransform, tile: Array, met: Array) -> Array:
    started = time.perf_counter()
    tile = writable(tile)
    work.method.update(transform, tile, met)
    flops = work.method.whole.apply_flops(len(tile), len(met), tile.shape[1])
    measured(work, "apply", k, started, flops=flops, transform=transform.index)
    return tile


def _write(work: Work, i: int, k: int, tile: Array, later: Sequence[Facts]) -> int:
    started = time.perf_counter()
    order = work.method.order(later, i, len(tile)) if later else None
    if order is not None:
        tile = writable(tile)
        tile[...] = tile[order]
    if isinstance(work.target, ArrayWriter):
        work.target.write(work.grid.rows(i)[0], np.ascontiguousarray(tile), work.grid.columns(k)[0])
    measured(work, "write", k, started, n_bytes=tile.nbytes)
    return k


def _pick(work: Work, k: int, q: int) -> tuple[Array, Array]:
    """For the rows of destination block q: the row block that each comes from, and its place there."""
    sources = work.method.sources[k // work.grid.group][slice(*work.grid.rows(q))]
    return sources // work.grid.block_rows, sources % work.grid.block_rows


def _split(work: Work, i: int, k: int) -> list[Array]:
    tile = work.A.region(work.grid.rows(i), work.grid.columns(k))
    pieces = []
    for q in range(work.grid.row_blocks):
        block, place = _pick(work, k, q)
        pieces.append(tile[place[block == i]])
    return pieces


def _merge(work: Work, q: int, k: int, *pieces: Array) -> int:
    started = time.perf_counter()
    rows, columns = work.grid.rows(q), work.grid.columns(k)
    block, _ = _pick(work, k, q)
    tile = np.empty((rows[1] - rows[0], columns[1] - columns[0]), work.A.dtype)
    for i, piece in enumerate(pieces):
        tile[block == i] = piece
    if isinstance(work.target, ArrayWriter):
        work.target.write(rows[0], tile, columns[0])
    else:
        work.target[slice(*rows), slice(*columns)] = tile
    measured(work, "write", k, started, n_bytes=tile.nbytes)
    return k


def _add_product(work: Work, i: int, k: int, total: tuple[Array, float] | None) -> tuple[Array, float]:
    started = time.perf_counter()
    rows, columns, X = work.grid.rows(i), work.grid.columns(k), work.probes
    triangle: _Triangle = work.method
    result, largest = (np.zeros((rows[1] - rows[0], X.shape[1]), X.dtype), 0.0) if total is None else total
    result = result.copy()
    shift = rows[0] - columns[0]
    if triangle.lower and rows[1] > columns[0]:
        T = np.tril(work.A.region(rows, columns), shift - triangle.unit)
        result += T @ X[slice(*columns)]
        first, stop = max(rows[0], columns[0]), min(rows[1], columns[1])
        if triangle.unit and first < stop:
            result[first - rows[0] : stop - rows[0]] += X[first:stop]
        largest = float(np.maximum(largest, largest_modulus(T)))
    elif not triangle.lower and columns[1] > rows[0]:
        T = np.triu(work.A.region(rows, columns), shift)
        result += T @ X[slice(*columns)]
        largest = float(np.maximum(largest, largest_modulus(T)))
    measured(work, "product", k, started, n_bytes=result.nbytes)
    return result, largest
