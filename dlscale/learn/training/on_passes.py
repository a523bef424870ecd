"""Training on a Dask cluster without MPI: each step is a pass over its batch, local gradients and a tree of sums.

The loop, and with it the curve, is that of the ranks; only where gradients come from differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import workspace
from dlscale.engine import progress
from dlscale.engine.grids import RowGrid
from dlscale.engine.guard import Guard
from dlscale.engine.passes import Fold, Passes, State
from dlscale.engine.ranks import Communicator
from dlscale.engine.run import Run
from dlscale.learn.models.coordinates import moments
from dlscale.learn.models.model import Model, Room
from dlscale.learn.models.parameters import Parameters, backward_buffer
from dlscale.learn.optimizers.kfac import factor_buffer, factor_sums
from dlscale.learn.training.data import is_compressed
from dlscale.learn.training.gradients import RankGradients, Reduction
from dlscale.learn.training.loop import Training
from dlscale.learn.training.shards import Share
from dlscale.learn.training.task import Task
from dlscale.sparse_rows import SparseRows, rows_of, stacked
from dlscale.storage.matrix import Matrix, View

#: Parts of a batch, each of them one task; the sums depend on it, so it does not depend on the cluster.
N_PARTS = 8


class BatchRows(View):
    """Rows of a matrix, in any order, as a matrix: the tasks of a step read them for themselves.

    Parameters
    ----------
    base : Matrix
    rows : (b,)
    unit_rows : int, optional
        Rows that are read together, from the first to the last wanted one of them; those of a stored unit unless told.
    """

    def __init__(self, base: Matrix, rows: Array, unit_rows: int | None = None) -> None:
        super().__init__(base)
        self.row_ids, self.shape, self.in_memory = rows, (len(rows), base.shape[1]), base.in_memory
        self.any_range, self.row_unit, self.column_unit = True, 1, 1
        self.unit_rows, self.is_sparse = unit_rows or max(1, base.row_unit), is_compressed(base)

    @property
    def n_entries(self) -> int:
        return self.base.n_entries * len(self.row_ids) // self.base.shape[0]

    def expect(self, start: int, stop: int) -> None:
        """Nothing: the rows lie anywhere."""

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        wanted = self.row_ids[rows[0] : rows[1]]
        if out is None:
            out = np.empty((len(wanted), columns[1] - columns[0]), self.dtype)
        for places, first, last in self._units(wanted):
            block = self.base.region((first, last), columns)
            out[places] = block[wanted[places] - first]
        return out

    def sparse_rows(self, start: int, stop: int) -> SparseRows:
        wanted = self.row_ids[start:stop]
        units = list(self._units(wanted))
        found = stacked([self.base.sparse_rows(first, last)[wanted[places] - first] for places, first, last in units])
        return found[np.argsort(np.concatenate([places for places, _, _ in units]))]

    def _units(self, wanted: Array) -> Iterator[tuple[Array, int, int]]:
        """Places of the rows of each unit, with the first of them in the matrix and the one behind the last."""
        units = wanted // self.unit_rows
        for unit in np.unique(units):
            places = np.flatnonzero(units == unit)
            yield places, int(wanted[places].min()), int(wanted[places].max()) + 1

    def place(self, row: int, column: int) -> tuple[int, int]:
        return self.base.place(int(self.row_ids[row]), column)


class BatchFold(Fold):
    """Sums over rows of a batch: loss and gradients, or statistics, or factors, or moments from an origin, ``statistics``."""

    takes_sparse = True

    def __init__(self, what: str, model: Model, parameters: Parameters, share: Share, statistics: Array | None = None) -> None:
        self.what, self.model, self.parameters, self.statistics = what, model, parameters, statistics
        self.y, self.weights, self.normalizer = share.y, share.weights, share.normalizer

    def start(self) -> State:
        if self.what == "gradients":
            return {"sum": backward_buffer(self.parameters)[0], "loss": np.zeros(1)}
        if self.what == "factors":
            return {"sum": factor_buffer(self.parameters)[0]}
        if self.what == "moments":
            return {"sum": np.zeros((2, len(self.parameters["layer-0/weight"])))}
        return {}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        rows = slice(first_row, first_row + len(A))
        y, weights = self.y[rows], None if self.weights is None else self.weights[rows]
        X = rows_of(A, self.parameters["layer-0/weight"].dtype)
        if self.what == "gradients":
            buffer, gradients = self._views("gradients")
            loss, _ = self.model.loss_and_gradients(
                self.parameters, X, y, weights=weights, normalizer=self.normalizer, room=Room(gradients),
                statistics=self.statistics,
            )  # fmt: skip
            state["sum"] += buffer
            state["loss"] += loss
        elif self.what == "factors":
            buffer, factors = self._views("factors")
            factor_sums(self.model, self.parameters, X, y, weights=weights, normalizer=self.normalizer, factors=factors)
            state["sum"] += buffer
        elif self.what == "moments":
            assert self.statistics is not None
            state["sum"] += moments(A, weights, self.statistics)
        else:
            found = self.model.statistics(self.parameters, X, weights)
            assert found is not None
            state["sum"] = state["sum"] + found if "sum" in state else found
        return ()

    def _views(self, what: str) -> tuple[Array, Parameters]:
        make = backward_buffer if what == "gradients" else factor_buffer
        buffer, views = make(self.parameters)
        kept = workspace(f"learn/{what}-of-task", buffer.shape, buffer.dtype)
        kept[:] = 0
        start, placed = 0, {}
        order = reversed(list(views.items())) if what == "gradients" else views.items()
        for name, view in order:
            placed[name] = kept[start : start + view.size].reshape(view.shape)
            start += view.size
        return kept, {name: placed[name] for name in views}


class PassGradients(RankGradients):
    """Gradients of whole batches, from tasks of a cluster."""

    def __init__(self, run: Run, task: Task, model: Model, parameters: Parameters) -> None:
        super().__init__(Communicator(), model, parameters)
        self._features = task.features
        self._unit_rows = task.order.unit_rows if is_compressed(task.features) else None
        # A step is short and not told; the checkpoint is where large models lie for the tasks of a step.
        self._passes = Passes(Run(run.cluster, checkpoint=run.checkpoint, stall_seconds=run.stall_seconds))

    def _sweep(self, what: str, parameters: Parameters, share: Share, statistics: Array | None = None) -> State:
        n_rows = len(share.rows)
        part = -(-n_rows // N_PARTS)
        grid = RowGrid(n_rows, part, part)
        fold = BatchFold(what, self.model, parameters, share, statistics)
        batch = BatchRows(self._features, share.rows, self._unit_rows)
        return self._passes.sweep(what, batch, fold, grid, keep="none")

    def statistics(self, parameters: Parameters, share: Share) -> Array | None:
        return self._sweep("statistics", parameters, share)["sum"] if self.model.decorrelation else None

    def moments(self, share: Share, columns: Array) -> Array:
        return self._sweep("moments", self.gradients, share, columns)["sum"]

    def factors(self, parameters: Parameters, share: Share) -> Parameters:
        buffer, factors = self._factors = self._factors or factor_buffer(parameters)
        buffer[:] = self._sweep("factors", parameters, share)["sum"]
        return factors

    def start(self, parameters: Parameters, share: Share) -> Reduction:
        return Reduction(self, self._local(parameters, share, self.statistics(parameters, share)), [])

    def _local(self, parameters: Parameters, share: Share, statistics: Array | None) -> float:
        state = self._sweep("gradients", parameters, share, statistics)
        self.buffer[:] = state["sum"]
        return float(state["loss"][0])


def train_on_passes(run: Run, task: Task) -> dict[str, Any]:
    """Train with the tasks of a cluster; as `dlscale.learn.training.loop.train`."""

    def gradients(_: Communicator, model: Model, parameters: Parameters) -> RankGradients:
        return PassGradients(run, task, model, parameters)

    communicator = Communicator()
    progress.listen(task.token, run.emit)
    try:
        with (
            closing(Training(communicator, task, gradients=gradients, reads_features=False)) as training,
            Guard(communicator),
        ):
            return training.run()
    finally:
        progress.unlisten(task.token)
