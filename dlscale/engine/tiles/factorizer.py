"""The factorizer: one loop for all one-sided factorizations.

    for each column panel j:
        for each finished panel k < j:  panel_j = apply(transform_k, panel_j)
        transform_j, panel_j = factor(panel_j)

A factorization supplies a `Method`, or a `TiledMethod` for panels in row blocks, and gets from here: right-looking updates inside
a group of panels that fits in memory, with the next panel updated and factored first, so that no thread waits for a panel;
left-looking updates across groups, the finished panels streamed from the store; a finished group as a checkpoint that costs one
write; graphs of bounded size; progress, retry and every kind of cluster. How the steps of the loop become tasks is said by `Steps`:
`WholePanels` or `RowBlocks`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.run import Cost, Run
from dlscale.engine.targets import Target
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.groups import Group, Key, TaskGraph, memoised
from dlscale.engine.tiles.methods import Change, Factored, Facts, Method, Seen
from dlscale.engine.tiles.row_blocks import RowBlocks, place_rows
from dlscale.engine.tiles.steps import ReversibleSteps, Steps
from dlscale.engine.tiles.work import Applying, Copying, Factoring, Filling, Placing, Unapplying, Verb, Work, Writing, measured
from dlscale.storage.matrix import Matrix

M = TypeVar("M")
F = TypeVar("F")
V = TypeVar("V", bound=Verb)
W = TypeVar("W", bound=Writing)
A = TypeVar("A", bound=Applying[Any])


class Factorizer:
    """Runs factorizations on a cluster.

    Parameters
    ----------
    run : Run
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def factor(
        self, step: str, A: Matrix, steps: Steps[M, F], grid: PanelGrid, target: Target, *, probes: Array
    ) -> tuple[Factored, Seen]:
        """Factor a matrix, group by group; a group that is in the checkpoint is not repeated.

        Parameters
        ----------
        step : str
            Unique in the job.
        A : Matrix (m, n)
        steps : Steps
        grid : PanelGrid
        target : Target (m, n)
            Where the finished panels go; memory only where tasks share the driver's. The rows of a tile end in the order that its
            method gave them.
        probes : (n, k)
            Random vectors.

        Returns
        -------
        Factored
        Seen
            What was measured of A while it was read.

        Raises
        ------
        NonFiniteError
        StalledError
        """
        done, book = Factored(grid, target.matrix(), []), steps.begin(grid)
        seen = Seen(np.zeros((grid.shape[0], probes.shape[1]), probes.dtype), 0.0)
        for number, panels in enumerate(grid.groups()):
            verb = Factoring(method=steps.method, finished=done, target=target, probes=probes)
            cost = Cost(group_flops(steps.costs, grid, panels), group_bytes(A, grid, panels), panel_bytes(grid, panels, A))
            begin = partial(_factor, steps=steps, book=book)
            saved = memoised(self.run, Work(f"{step}-{number + 1}", A, grid, verb), cost, panels, begin, width=steps.width(grid))
            seen = Seen.of([seen, Seen(saved.pop("products"), float(saved.pop("largest")))])
            book = {name.removeprefix("book-"): saved.pop(name) for name in [n for n in saved if n.startswith("book-")]}
            done = replace(done, facts=done.facts + _unflatten(saved))
        return done, seen

    def form(
        self, step: str, factored: Factored, steps: ReversibleSteps[M, F], target: Target, *, change: Change | None = None
    ) -> None:
        """Apply the transforms, the last one first, to the columns of the identity: the orthogonal factor itself.

        Parameters
        ----------
        step : str
        factored : Factored
        steps : ReversibleSteps
        target : Target (m, k), k = min(m, n)
        change : callable, optional
            A last change to each tile.
        """
        (m, n), A = factored.grid.shape, factored.matrix
        grid = replace(factored.grid, shape=(m, min(m, n)))
        for number, panels in enumerate(grid.groups()):
            flops = sum(
                steps.costs.apply_flops(m - grid.columns(j)[0], grid.width(j), grid.width(k)) * (steps.own_share if j == k else 1)
                for k in panels
                for j in range(k + 1)
            )
            cost = Cost(flops, grid.n_entries(panels.stop) * A.dtype.itemsize, panel_bytes(grid, panels, A))
            verb = Filling(method=steps.method, finished=factored, target=target, change=change)
            work = Work(f"{step}-{number + 1}", A, grid, verb)
            memoised(self.run, work, cost, panels, partial(_form, steps=steps), width=steps.width(grid))

    def unapply(self, step: str, factored: Factored, steps: RowBlocks, X: Array) -> Array:
        """Apply the transforms, the last one first, to a few vectors (m, k), whose rows lie where the tiles do."""
        grid, A = factored.grid, factored.matrix
        work = Work(step, A, grid, Unapplying(method=steps.method, finished=factored, vectors=X))
        cost = Cost(4.0 * A.shape[0] * A.shape[1] * X.shape[1], A.n_bytes)
        return memoised(self.run, work, cost, range(1), partial(_unapply, steps=steps), width=steps.width(grid))["product"]

    def copy(self, step: str, factored: Factored, target: Target, change: Change) -> None:
        """Copy the tiles that begin in the rows of the target to there, each changed."""
        width = 2 * factored.grid.row_blocks
        self._move(Work(step, factored.matrix, factored.grid, Copying(target, change)), copy_panel, width=width)

    def place(self, step: str, factored: Factored, target: Target, sources: Sequence[Array]) -> None:
        """Bring rows to their final places in other row blocks: row q of group g comes from stored row ``sources[g][q]``."""
        width = 2 * factored.grid.row_blocks**2
        self._move(Work(step, factored.matrix, factored.grid, Placing(target, sources)), place_rows, width=width)

    def _move(self, work: Work[W], move: Callable[[TaskGraph[W], int], Sequence[Key]], *, width: int) -> None:
        grid, n_bytes = work.grid, work.verb.target.n_bytes
        memoised(
            self.run, work, Cost(0.0, n_bytes, n_bytes), range(grid.n_panels), partial(_each_panel, move=move), width=width
        )  # fmt: skip


def _factor(group: Group[Factoring[M]], steps: Steps[M, F], book: Facts) -> Facts:
    """Load a group, bring it up to date, factor and write it: its facts, and what was seen of its columns."""
    grid, n_done, group.book = group.grid, len(group.work.verb.finished.facts), book

    def step(graph: TaskGraph[Factoring[M]], j: int) -> None:
        """Factor panel j, or read it where it is finished, and apply it to the panels of the group behind it."""
        urgent = (j - 2) * grid.n_panels
        transform = (steps.fetch if j < n_done else steps.factor)(graph, j, priority=urgent)
        for k in group.panels:
            if k > j:
                # The panel that is factored next comes first, before the rest of the step before.
                steps.apply(graph, transform, j, k, priority=(j - 1 if k == j + 1 else j) * grid.n_panels + k)

    own = range(min(group.panels.start, grid.n_steps), min(group.panels.stop, grid.n_steps))
    windows = [*group.windows(range(n_done), fetched=True), *group.windows(own, fetched=False)]
    group.go_through(windows or [range(0)], steps.load, step)
    facts = group.gather(group.facts.values())
    last_book = group.last_book()
    graph = group.graph()
    written, settled = steps.write(graph, facts)
    group.hold(graph, [*written, *group.seen.values()])
    seen = steps.together(group, dict(zip(group.seen, group.gather(group.seen.values()), strict=True)))
    saved = {"products": seen.products, "largest": np.array(seen.largest)}
    saved |= {f"book-{name}": value for name, value in last_book.items()}
    return saved | _flatten(settled)


def _undo(
    group: Group[A],
    steps: ReversibleSteps[Any, F],
    begin: Callable[[TaskGraph[A]], None],
    n_steps: int,
    reached: Callable[[int], Iterable[int]],
) -> None:
    """Read the transforms, the last one first, and apply the inverse of each to the panels that it reaches."""

    def step(graph: TaskGraph[A], j: int) -> None:
        transform = steps.fetch(graph, j, priority=-(j + 2) * group.grid.n_panels)
        for k in reached(j):
            steps.undo(graph, transform, j, k, priority=-j * group.grid.n_panels + k)

    group.go_through(group.windows(range(n_steps)[::-1], fetched=True), begin, step)


def _form(group: Group[Filling[M]], steps: ReversibleSteps[M, F]) -> Facts:
    """Apply the inverses to columns of the identity, which are zero in the rows of later steps, and write them."""
    _undo(group, steps, steps.identity, group.panels.stop, lambda j: (k for k in group.panels if k >= j))
    graph = group.graph()
    written, _ = steps.write(graph, [])
    group.hold(graph, written)
    return {"done": np.array(True)}


def _unapply(group: Group[Unapplying], steps: RowBlocks) -> Facts:
    _undo(group, steps, steps.vectors, group.grid.n_steps, lambda j: group.panels)
    return {"product": np.concatenate(group.gather(group.tiles.values()))}


def _each_panel(group: Group[V], move: Callable[[TaskGraph[V], int], Sequence[Key]]) -> Facts:
    """Graphs of tasks that have nothing to do with each other."""
    for window in group.windows(group.panels, fetched=False):
        graph = group.graph()
        group.hold(graph, [key for k in window for key in move(graph, k)])
    return {"done": np.array(True)}


def copy_panel(graph: TaskGraph[Copying], k: int) -> list[Key]:
    """Copy the tiles of a panel."""
    group = graph.group
    blocks = group.grid.blocks(stop=graph.work.verb.target.shape[0])
    return [graph.add(("copy", i, k), copy_tile, i, k, priority=k, worker=group.at(i, k)) for i in blocks]


def copy_tile(work: Work[Copying], i: int, k: int) -> int:
    """A task: copy the upper rows of a tile, as many as are wanted, to their final place, and change them there."""
    started = time.perf_counter()
    (first, stop), columns, target = work.grid.rows(i), work.grid.columns(k), work.verb.target
    tile = work.A.region((first, min(stop, target.shape[0])), columns)
    tile = target.take(first, tile, columns[0], own=not work.A.in_memory)
    work.verb.change(i, k, tile)
    target.write(first, tile, columns[0])
    measured(work, "write", k, started, n_bytes=2 * tile.nbytes)
    return k


def group_flops(method: Method, grid: PanelGrid, panels: range) -> float:
    """Flops of bringing a group up to date and factoring it."""
    m = grid.shape[0]
    steps = range(min(panels.stop, grid.n_steps))
    factors = sum(method.factor_flops(m - grid.columns(j)[0], grid.width(j)) for j in steps if j in panels)
    applies = sum(
        method.apply_flops(m - max(grid.columns(j)[0], method.first_row(grid.columns(k)[0])), grid.width(j), grid.width(k))
        for j in steps
        for k in panels
        if k > j
    )
    return factors + applies


def group_bytes(A: Matrix, grid: PanelGrid, panels: range) -> int:
    """Bytes read for a group: its columns, and the finished panels."""
    read = grid.shape[0] * sum(map(grid.width, panels)) * A.stored_dtype.itemsize
    return int(read + grid.n_entries(panels.start) * A.dtype.itemsize)


def panel_bytes(grid: PanelGrid, panels: range, A: Matrix) -> int:
    """Bytes of the panels of a group."""
    return int(grid.shape[0] * sum(map(grid.width, panels)) * A.dtype.itemsize)


def _flatten(facts: Sequence[Facts]) -> Facts:
    """The facts of panels as few arrays, since each is a file or two: vectors of one name are put one behind the other."""
    names = [name for name, value in facts[0].items() if value.ndim == 1] if facts else []
    flat = {f"{j}.{name}": value for j, fact in enumerate(facts) for name, value in fact.items() if name not in names}
    for name in names:
        vectors = [fact[name] for fact in facts]
        flat |= {f"all.{name}": np.concatenate(vectors), f"ends.{name}": np.cumsum([len(vector) for vector in vectors])}
    return flat


def _unflatten(flat: Mapping[str, Array]) -> list[Facts]:
    facts: dict[int, Facts] = {}
    for key, value in flat.items():
        j, _, name = key.partition(".")
        if j == "all":
            for i, vector in enumerate(np.split(value, flat[f"ends.{name}"][:-1])):
                facts.setdefault(i, {})[name] = vector
        elif j != "ends":
            facts.setdefault(int(j), {})[name] = value
    return [facts[j] for j in sorted(facts)]
