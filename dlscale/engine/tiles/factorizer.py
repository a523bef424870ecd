"""The panels: one driver for all one-sided factorizations.

    for each column panel j:
        for each finished panel k < j:  panel_j = apply(transform_k, panel_j)
        transform_j, panel_j = factor(panel_j)

A factorization supplies a `Method` (factor, apply) and gets from here: right-looking updates inside a group of panels
that fits in memory, with the next panel updated and factored first, so that no thread waits for a panel; left-looking
updates across groups, the finished panels streamed from the store; a finished group as a checkpoint that costs one write;
graphs of bounded size; progress, retry and every kind of cluster.

Panels are updated in place: each state of a panel has one consumer, which runs where the state is. What a lost worker had
could only be made again from states that the others have overwritten since, so a group starts again when a worker is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.events import Warned
from dlscale.engine.run import Cost, Run
from dlscale.engine.targets import MemoryTarget, Target
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.groups import Factoring, Forming, Group, Placing, fresh_token
from dlscale.engine.tiles.methods import Factored, Facts, Finish, Method, Reversible, Seen
from dlscale.engine.tiles.whole_tasks import Work
from dlscale.errors import WorkersLostError
from dlscale.storage.matrix import Matrix

#: Times that a group is started before the loss of workers is taken as a fault of the job.
MAX_LOSSES = 4
NO_PROBES = np.empty((0, 0))
#: Of what writes nothing.
NO_TARGET = MemoryTarget(NO_PROBES)


class Panels:
    """Runs factorizations on a cluster.

    Parameters
    ----------
    run : Run
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def factor(
        self, step: str, A: Matrix, method: Method, grid: PanelGrid, target: Target, *, probes: Array
    ) -> tuple[Factored, Seen]:
        """Factor a matrix, group by group; a group that is in the checkpoint is not repeated.

        Parameters
        ----------
        step : str
            Unique in the job.
        A : Matrix (m, n)
        method : Method
        grid : PanelGrid
        target : Target (m, n)
            Where the finished panels go; memory only where tasks share the driver's.
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
        m = grid.shape[0]
        done = Factored(grid, target.matrix(), [])
        products, largest = np.zeros((m, probes.shape[1]), probes.dtype), 0.0
        for number, group in enumerate(grid.groups()):
            work = Work(fresh_token(), f"{step}-{number + 1}", A, method, grid, done, target, probes)
            cost = Cost(group_flops(method, grid, group), group_bytes(A, grid, group), panel_bytes(grid, group, A))
            saved = self.memoised(work, cost, partial(Factoring, self.run, group=group))
            products += saved.pop("products")
            largest = max(largest, float(saved.pop("largest")))
            done = replace(done, facts=done.facts + unflatten(saved))
        return done, Seen(products, largest)

    def form(self, step: str, factored: Factored, method: Reversible, target: Target, *, finish: Finish | None = None) -> None:
        """Apply the transforms, the last one first, to the columns of the identity: the orthogonal factor itself.

        Parameters
        ----------
        step : str
        factored : Factored
        method : Reversible
        target : Target (m, k), k = min(m, n)
        finish : callable, optional
            A last change to each panel.
        """
        m, n = factored.grid.shape
        grid = replace(factored.grid, shape=(m, min(m, n)))
        for number, group in enumerate(grid.groups()):
            # A panel's own transform meets columns of the identity, which is half the work.
            flops = sum(
                method.apply_flops(m - grid.columns(j)[0], grid.width(j), grid.width(k)) / (1 + (j == k))
                for k in group
                for j in range(k + 1)
            )
            n_bytes = sum((m - grid.columns(j)[0]) * grid.width(j) for j in range(group.stop)) * factored.matrix.dtype.itemsize
            work = Work(fresh_token(), f"{step}-{number + 1}", factored.matrix, method, grid, factored, target, NO_PROBES, finish)
            self.memoised(
                work, Cost(flops, n_bytes, panel_bytes(grid, group, factored.matrix)), partial(Forming, self.run, group=group)
            )

    def place(self, step: str, factored: Factored, target: Target, finish: Finish) -> None:
        """Copy the panels to their final place, each changed by ``finish``."""
        grid = factored.grid
        n_bytes = grid.shape[0] * grid.shape[1] * factored.matrix.dtype.itemsize
        work = Work(fresh_token(), step, factored.matrix, None, grid, factored, target, NO_PROBES, finish)
        self.memoised(work, Cost(0.0, n_bytes, n_bytes), partial(Placing, self.run, group=range(grid.n_panels)))

    def memoised(self, work: Work, cost: Cost, begin: Callable[[Work], Group]) -> Facts:
        """Compute a step, or take its small results from the checkpoint; then what it wrote is there too."""
        return self.run.step(
            work.step, cost, lambda name: self._undisturbed(replace(work, step=name), begin), flushed=work.target.writers
        )

    def _undisturbed(self, work: Work, begin: Callable[[Work], Group]) -> Facts:
        """Run a group; from its start again, under other keys, where a worker was lost meanwhile."""
        for _ in range(MAX_LOSSES):
            group = begin(replace(work, token=fresh_token()))
            try:
                facts = group.compute()
                if not group.has_lost_workers:
                    return facts
            except WorkersLostError:
                pass  # it may be back by now
            except Exception:
                # Whatever it is, it may come from panels that were made again wrongly.
                if not group.has_lost_workers:
                    raise
            finally:
                group.let_go()
            self.run.emit(Warned(f"A worker was lost; {work.step} starts again."))
        raise WorkersLostError(work.step, MAX_LOSSES)


def group_flops(method: Method, grid: PanelGrid, group: range) -> float:
    """Flops of bringing a group up to date and factoring it."""
    m = grid.shape[0]
    steps = range(min(group.stop, grid.n_steps))
    factors = sum(method.factor_flops(m - grid.columns(j)[0], grid.width(j)) for j in steps if j in group)
    applies = sum(
        method.apply_flops(m - max(grid.columns(j)[0], method.first_row(grid.columns(k)[0])), grid.width(j), grid.width(k))
        for j in steps
        for k in group
        if k > j
    )
    return factors + applies


def group_bytes(A: Matrix, grid: PanelGrid, group: range) -> int:
    """Bytes read for a group: its columns, and the finished panels."""
    m, item = grid.shape[0], A.dtype.itemsize
    finished = sum((m - grid.columns(j)[0]) * grid.width(j) for j in range(min(group.start, grid.n_steps)))
    return int(m * sum(grid.width(k) for k in group) * A.stored_dtype.itemsize + finished * item)


def panel_bytes(grid: PanelGrid, group: range, A: Matrix) -> int:
    """Bytes of the panels of a group."""
    return int(grid.shape[0] * sum(map(grid.width, group)) * A.dtype.itemsize)


def unflatten(saved: Mapping[str, Array]) -> list[Facts]:
    facts: dict[int, Facts] = {}
    for key, value in saved.items():
        j, name = key.split(".")
        facts.setdefault(int(j), {})[name] = value
    return [facts[j] for j in sorted(facts)]
