"""What is done with all rows of a shard beside training on them: validation, and naming an entry that is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.ranks import Communicator
from dlscale.errors import InputError, NonFiniteError, NumericalError
from dlscale.learn.models.model import Model
from dlscale.learn.models.parameters import Parameters
from dlscale.learn.training.data import Order, bytes_of_row
from dlscale.learn.training.metrics import metrics_near
from dlscale.learn.training.shards import Shard, Share
from dlscale.learn.training.task import IF_IT_DIVERGES
from dlscale.sparse_rows import SparseRows, all_finite
from dlscale.storage.matrix import Matrix

#: Rows that an evaluation on all rows takes at a time over all ranks: so many, of so many bytes together.
_BLOCK_ROWS, _BLOCK_BYTES = 8192, 64 * 2**20


def all_rows(features: Matrix, unit_rows: int, n_lanes: int) -> Order:
    """The order of one sweep over all rows, as they are stored."""
    block_rows = min(features.shape[0], _BLOCK_ROWS, max(1, _BLOCK_BYTES // bytes_of_row(features)))
    return Order(features.shape[0], unit_rows, n_lanes, block_rows, shuffle=False)


def validate(model: Model, parameters: Parameters, shard: Shard, communicator: Communicator) -> dict[str, float]:
    """Every metric that fits the model, over the validation rows of all ranks (collective).

    Raises
    ------
    NonFiniteError, NumericalError
        A row that is not finite, or predictions that are not.
    """
    metrics = metrics_near(model.loss, shard.targets.rows(0, 1))
    sums = {name: np.zeros(metric.n_sums) for name, metric in metrics.items()}
    finite = 0.0
    for share in shard.shares(0):
        S = model.scores(parameters, share.X)
        # A score can hide an entry that is not finite: no relu lets minus infinity through.
        finite += float(all_finite(share.X)) - 1.0
        for name, metric in metrics.items():
            sums[name] += metric.sums(model.loss, S, share.y)
    together = communicator.allreduce(np.array([finite, *np.concatenate(list(sums.values()))]), name="metrics")
    if together[0] != 0 or not np.isfinite(together).all():
        refuse_non_finite(communicator, shard.features, shard.shares(0), role="validation_features")
        raise NumericalError(f"The predictions of the validation rows are not finite; {IF_IT_DIVERGES}")
    values, start = {}, 1
    for name, metric in metrics.items():
        values[name] = metric.value(together[start : start + metric.n_sums])
        start += metric.n_sums
    return values


def refuse_non_finite(communicator: Communicator, features: Matrix, shares: Iterable[Share], *, role: str) -> None:
    """Name the first entry of these rows that is not finite, on every rank, if there is one (collective).

    Raises
    ------
    NonFiniteError
        With its row and column.
    InputError
        An entry that is finite and larger than the dtype of the training holds.
    """
    found = np.full(2, np.inf)
    for share in shares:
        found = min(found, _first_place(share.X, share.rows), key=tuple)
    name_place(communicator, features, found, role=role)


def name_place(communicator: Communicator, features: Matrix, found: Array, *, role: str) -> None:
    """Refuse the first of the places (row, column) that the ranks found; infinity is none (collective)."""
    table = communicator.allgather(found, name="places of NaN")
    first = min(table, key=tuple)
    if not math.isfinite(first[0]):
        return
    row, column = int(first[0]), int(first[1])
    value = features.read(row, row + 1)[0, column].item()
    row, column = features.place(row, column)
    if math.isfinite(value):
        raise InputError(
            f"input.{role}: {value:g} at row {row}, column {column} is larger than float32 holds; scale the features, or set "
            "params.dtype to float64."
        )
    raise NonFiniteError(row, column, value, matrix=f"input.{role}")


def first_bad_of(features: Matrix, rows: Array) -> Array:
    """The first place in some rows that is not finite, each read anew; infinity is none."""
    found = np.full(2, np.inf)
    for row in rows.tolist():
        found = min(found, _first_place(features.read(row, row + 1), np.array([row])), key=tuple)
    return found


def _first_place(X: Any, rows: Array) -> Array:
    bad = X.places_not_finite() if isinstance(X, SparseRows) else np.argwhere(~np.isfinite(X))
    if not len(bad):
        return np.full(2, np.inf)
    places = np.column_stack([rows[bad[:, 0]], bad[:, 1]])
    return np.asarray(places[np.lexsort((places[:, 1], places[:, 0]))[0]], np.float64)
