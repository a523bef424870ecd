"""Gradients of a batch, added up over ranks while backpropagation still goes on.

Backpropagation finishes the last layers first, and lays them side by side in one flat array; a slice of it that has become
large enough is a bucket, whose reduction starts at once. What is not hidden behind backpropagation hides behind the update of
the parameters that are there already.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.ranks import Communicator
from dlscale.engine.ranks.communicator import Pending
from dlscale.learn.models.coordinates import moments
from dlscale.learn.models.model import Model, Room
from dlscale.learn.models.parameters import Parameters, backward_buffer
from dlscale.learn.optimizers.kfac import factor_buffer, factor_sums
from dlscale.learn.training.shards import Share

#: A bucket is an eighth of the gradients, within these bounds: small ones cost latency, large ones leave nothing to hide behind.
SMALLEST_BUCKET_BYTES, LARGEST_BUCKET_BYTES = 2**20, 25 * 2**20
#: Bytes that the activations of rows taken together may have; larger shares go through in parts.
_ACTIVATION_BYTES = 128 * 2**20


@dataclass
class Seconds:
    """Where the time of the steps went on one rank.

    Parameters
    ----------
    read : float
        Waiting for rows.
    compute : float
        Forward, backward, update: what is none of the others.
    communicate : float
        Reducing, from when all ranks were there.
    exposed : float
        The part of ``communicate`` during which nothing was computed. A sum that cannot overlap with anything is all exposed,
        with the wait for other ranks.
    wait : float
        Waiting for ranks that were late, with nothing to compute.
    total : float
    rows, steps : float
        How many.
    """

    read: float = 0.0
    compute: float = 0.0
    communicate: float = 0.0
    exposed: float = 0.0
    wait: float = 0.0
    total: float = 0.0
    rows: float = 0.0
    steps: float = 0.0

    def to_array(self) -> Array:
        return np.array([getattr(self, field.name) for field in fields(self)])

    @classmethod
    def names(cls) -> list[str]:
        return [field.name for field in fields(cls)]


class RankGradients:
    """Computes this rank's share of a batch and meets the other ranks in the sum.

    Parameters
    ----------
    communicator : Communicator
    model : Model
    parameters : Parameters
        For their shapes.
    """

    def __init__(self, communicator: Communicator, model: Model, parameters: Parameters) -> None:
        self.communicator, self.model = communicator, model
        self.buffer, self.gradients = backward_buffer(parameters)
        self._names = list(reversed(parameters))
        ends = np.cumsum([parameters[name].size for name in self._names])
        self._ends = dict(zip(self._names, ends.tolist(), strict=True))
        bucket_bytes = min(max(self.buffer.nbytes // 8, SMALLEST_BUCKET_BYTES), LARGEST_BUCKET_BYTES)
        self._bucket_size = bucket_bytes // self.buffer.itemsize
        widths = sum(array.shape[0] for name, array in parameters.items() if name.endswith("/bias"))
        self._most_rows = max(256, _ACTIVATION_BYTES // (3 * widths * self.buffer.itemsize))
        self._scalars = np.zeros(1)
        self._factors: tuple[Array, Parameters] | None = None
        self.seconds = Seconds()

    def statistics(self, parameters: Parameters, share: Share) -> Array | None:
        """The first phase of a step, added up over ranks; None where the model needs none."""
        statistics = self.model.statistics(parameters, share.X, share.weights)
        return None if statistics is None else self._reduce(statistics, "statistics")

    def factors(self, parameters: Parameters, share: Share) -> Parameters:
        """The factors of K-FAC, added up over ranks."""
        if self._factors is None:
            self._factors = factor_buffer(parameters)
        buffer, factors = self._factors
        buffer[:] = 0
        for part in self._parts(share):
            factor_sums(self.model, parameters, part.X, part.y, weights=part.weights, normalizer=share.normalizer, factors=factors)
        self._reduce(buffer, "factors")
        return factors

    def start(self, parameters: Parameters, share: Share) -> Reduction:
        """Backpropagate this rank's share; its sum over ranks is under way when this returns."""
        statistics = self.statistics(parameters, share)
        if self.communicator.size == 1 or self.buffer.nbytes < SMALLEST_BUCKET_BYTES or len(share.X) > self._most_rows:
            return Reduction(self, self._local(parameters, share, statistics), [])
        buckets: list[tuple[int, Pending]] = []
        started = end = 0

        def ready(name: str, gradient: Array) -> None:
            nonlocal started, end
            end += gradient.size
            if end - started >= self._bucket_size or end == self.buffer.size:
                bucket = self.buffer[started:end]
                buckets.append((end, self.communicator.start_allreduce(bucket, name=f"gradients to {end}")))
                started = end

        loss, _ = self.model.loss_and_gradients(
            parameters, share.X, share.y, weights=share.weights, normalizer=share.normalizer,
            room=Room(self.gradients, ready), statistics=statistics,
        )  # fmt: skip
        return Reduction(self, loss, buckets)

    def sum_up(self, array: Array) -> Array:
        """An array of statistics, added up over ranks in place."""
        return self._reduce(array, "statistics")

    def start_late(self, parameters: Parameters, share: Share) -> Reduction:
        """As `start`, but nothing is reduced before backpropagation has ended: what overlap is measured against."""
        return Reduction(self, self._local(parameters, share, self.statistics(parameters, share)), [])

    def add_up(
        self, several: Sequence[Parameters], shares: Iterator[Share], normalizer: float, *, statistics: Sequence[Array | None]
    ) -> Iterator[tuple[float, Parameters]]:
        """Loss and gradients of many shares together at several parameters, in one sweep, added up over ranks at the end.

        The gradients of each are overwritten by the next.
        """
        totals, losses = [np.zeros_like(self.buffer) for _ in several], [0.0] * len(several)
        for share in shares:
            whole = Share(share.X, share.y, share.weights, normalizer, share.rows)
            for i, parameters in enumerate(several):
                losses[i] += self._local(parameters, whole, statistics[i])
                totals[i] += self.buffer
        for loss, total in zip(losses, totals, strict=True):
            self.buffer[:] = total
            reduction = Reduction(self, loss, [])
            yield reduction.loss(), {name: reduction.gradient(name) for name in self.gradients}

    def moments(self, share: Share, columns: Array) -> Array:
        """`dlscale.learn.models.coordinates.moments` of this rank's rows."""
        return moments(share.X, share.weights, columns)

    def _local(self, parameters: Parameters, share: Share, statistics: Array | None) -> float:
        """This rank's loss, and its gradients in the buffer."""
        loss, total = 0.0, None
        parts = list(self._parts(share))
        for i, part in enumerate(parts):
            value, _ = self.model.loss_and_gradients(
                parameters, part.X, part.y, weights=part.weights, normalizer=share.normalizer,
                room=Room(self.gradients), statistics=statistics,
            )  # fmt: skip
            loss += value
            if len(parts) > 1:
                total = self.buffer.copy() if total is None else np.add(total, self.buffer, out=total)
            if total is not None and i == len(parts) - 1:
                self.buffer[:] = total
        return loss

    def _parts(self, share: Share) -> Iterator[Share]:
        for start in range(0, max(1, len(share.X)), self._most_rows):
            rows = slice(start, start + self._most_rows)
            weights = None if share.weights is None else share.weights[rows]
            yield Share(share.X[rows], share.y[rows], weights, share.normalizer, share.rows[rows])

    def _reduce(self, array: Array, name: str) -> Array:
        """A blocking sum over ranks, timed."""
        if self.communicator.size > 1:
            started = time.perf_counter()
            self.communicator.allreduce(array, name=name)
            seconds = time.perf_counter() - started
            self.seconds.communicate += seconds
            self.seconds.exposed += seconds
        return array


class Reduction:
    """Gradients of a batch that are on their way."""

    def __init__(self, source: RankGradients, loss: float, buckets: list[tuple[int, Pending]]) -> None:
        self._source, self._buckets, self._arrived = source, buckets, 0
        source._scalars[0] = loss
        self._loss_pending: Pending | None = None
        if buckets:
            self._loss_pending = source.communicator.start_allreduce(source._scalars, name="loss")
        else:
            source._reduce(source.buffer, "gradients")
            source._reduce(source._scalars, "loss")
            self._arrived = source.buffer.size

    def names(self) -> list[str]:
        """The parameters in the order in which their gradients arrive."""
        return self._source._names

    def gradient(self, name: str) -> Array:
        """The gradient of a parameter over the whole batch; waits for it."""
        end = self._source._ends[name]
        while self._arrived < end:
            self._arrived, pending = self._buckets.pop(0)
            self._await(pending)
        return self._source.gradients[name]

    def loss(self) -> float:
        """The loss of the whole batch, without penalties; waits for everything."""
        if self._loss_pending is not None:
            self.gradient(self._source._names[-1])
            self._await(self._loss_pending)
            self._loss_pending = None
        return float(self._source._scalars[0])

    def _await(self, pending: Pending) -> None:
        pending.wait()
        self._source.seconds.communicate += pending.seconds
        self._source.seconds.exposed += pending.exposed_seconds
        self._source.seconds.wait += pending.waited_seconds - pending.exposed_seconds
