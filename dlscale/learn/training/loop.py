"""The loop of training, the same on every rank: batches, steps, validation, checkpoints.

All that decides what happens next (parameters, state of the optimizer, history, position) is the same on every rank, so rank 0
saves it alone, and a run goes on from there on any number of ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.events import EpochFinished
from dlscale.engine.progress import send
from dlscale.engine.ranks import Communicator
from dlscale.errors import NumericalError
from dlscale.kernels import one_blas_thread
from dlscale.learn.models.coordinates import origin, standard_coordinates
from dlscale.learn.models.parameters import Parameters, is_weight, norm
from dlscale.learn.optimizers.clipping import clip_by_norm
from dlscale.learn.optimizers.full_batch import FullBatch, Iteration
from dlscale.learn.optimizers.kfac import KFAC
from dlscale.learn.optimizers.measuring import Measured, require_range
from dlscale.learn.training.data import Column, Order, Shard, Share, in_memory_if_small, is_kept
from dlscale.learn.training.gradients import RankGradients, Seconds
from dlscale.learn.training.history import History
from dlscale.learn.training.judging import all_rows, first_bad_of, name_place, refuse_non_finite, validate
from dlscale.learn.training.saving import ENDINGS, FINISHED, Position, Saver
from dlscale.learn.training.task import Recipe, Task, measured_apart, measuring_dtype
from dlscale.learn.training.telling import Teller, flops_per_row

#: Steps of which the norms of the gradients are kept, at most.
_N_NORMS = 2000
#: Rows that tell roughly where columns are.
_HEAD_ROWS = 64


def train(communicator: Communicator, task: Task) -> dict[str, Any]:
    """Train on every rank; the program of a job of kind ``train``.

    Returns
    -------
    dict
        ``stopped``, and on rank 0 the times of all ranks. What was learned is in the checkpoint.
    """
    with one_blas_thread(), closing(Training(communicator, task)) as training:
        return training.run()


class Training:
    """One training on one rank.

    Attributes
    ----------
    reads_features : bool
        Whether the shares of batches carry their rows, or only say which they are.
    """

    reads_features = True

    def __init__(self, communicator: Communicator, task: Task) -> None:
        self.communicator, self.task = communicator, task
        self.recipe = Recipe.of(task.options)
        self.model = self.recipe.model
        self.dtype = np.dtype(task.dtype)
        self.parameters = self._first_parameters()
        self.state = self.recipe.optimizer.start(self.parameters)
        self.history = History()
        self.at = Position()
        saved = {f"parameters/{name}": array for name, array in self.parameters.items()}
        saved |= {f"optimizer/{name}": array for name, array in self.state.items()}
        #: The objective at the first parameters and at those that are published, see `Measured`.
        self.measured = saved["measured"] = np.zeros((2, 3))
        self.best: Parameters = {}
        if self.recipe.early_stopping is not None:
            self.best = {name: array.copy() for name, array in self.parameters.items()}
            saved |= {f"best/{name}": array for name, array in self.best.items()}
        self.saver = Saver(communicator, task, saved, self.at, self.history)
        self.source = self._source(self.parameters)
        self.seconds = self.source.seconds
        self.shard = self._shard(task.order)
        self.validation = self._validation()
        self.log: list[tuple[int, Array]] = []
        self._rows_before = np.zeros(0, int)
        kept = self.reads_features and is_kept(task.features)
        self.teller = Teller(communicator, task, self.seconds, flops_per_row(self.parameters), kept=kept)

    def _first_parameters(self) -> Parameters:
        task = self.task
        generator = np.random.default_rng([task.options.seed, 2**32 - 1])
        return self.model.initialize(
            task.features.shape[1], task.n_outputs, init=task.options.model.get("init"), rng=generator, dtype=self.dtype
        )

    def _source(self, parameters: Parameters) -> RankGradients:
        return RankGradients(self.communicator, self.model, parameters)

    def close(self) -> None:
        self.shard.close()
        if self.validation is not None:
            self.validation.close()

    def run(self) -> dict[str, Any]:
        # What overflows is found in the loss, and told in words.
        with np.errstate(over="ignore", invalid="ignore"):
            return self._run()

    def _run(self) -> dict[str, Any]:
        self.saver.restore()
        started, self._began = time.perf_counter(), self.at.step
        resumed, stopped = bool(self.at.ended), False
        ending = ENDINGS[self.at.ended]
        while not ending and not stopped:
            if self.at.epoch == self.task.options.epochs:
                ending = "all epochs"
            elif not self.recipe.full_batch and not self._epoch():
                stopped = True
            else:
                ending = self._iterate() if self.recipe.full_batch else ""
                self.at.epoch += 1
                ending = self._after_epoch() or ending
                stopped = self.recipe.full_batch and not ending and self.communicator.stopping
                self.saver.save_when_due()
        self.seconds.total += time.perf_counter() - started
        self.seconds.steps += self.at.step - self._began
        self.seconds.compute = self.seconds.total - self.seconds.read - self.seconds.exposed - self.seconds.wait
        self._write_log()
        if stopped:
            self.saver.save_step()
        self.teller.tell(last=True)
        table = self.communicator.allgather(self.seconds.to_array(), name="seconds of all ranks")
        self.teller.finish(self.seconds.total, table[:, Seconds.names().index("rows")].sum(), resumed=resumed)
        if not stopped and not resumed:
            if measured_apart(self.recipe, self.dtype):
                self._measure()
            self.at.ended = ENDINGS.index(ending)
            self.saver.save(FINISHED)
        return {"stopped": stopped, "seconds": table.tolist() if self.communicator.rank == 0 else None}

    # Steps.

    def _epoch(self) -> bool:
        """The rest of an epoch; False if it was stopped."""
        first_step = self.at.step - self.at.epoch * self.task.order.steps_per_epoch
        if first_step == 0:
            self.at.loss_sum = self.at.weight_sum = 0.0
        shares = self.shard.shares(self.at.epoch, first_step)
        for share in self._timed(shares):
            self._take_step(share)
            self.at.step += 1
            if self.communicator.stopping:
                return False
            self.saver.save_when_due()
        return True

    def _timed(self, shares: Iterator[Share]) -> Iterator[Share]:
        while True:
            started = time.perf_counter()
            share = next(shares, None)
            self.seconds.read += time.perf_counter() - started
            if share is None:
                return
            self.seconds.rows += len(share.rows)
            if self.task.options.log_rows:
                self.log.append((self.at.step, share.rows))
            yield share

    def _take_step(self, share: Share) -> None:
        optimizer, recipe = self.recipe.optimizer, self.recipe
        assert not isinstance(optimizer, FullBatch)
        rate = recipe.learning_rate * recipe.schedule(self.at.step)
        reduction = self.source.start(self.parameters, share)
        keeps_norms = self.at.step % self._norms_every == 0
        norms: dict[str, float] = {}
        penalty, l1 = 0.0, recipe.regularization.l1
        if isinstance(optimizer, KFAC) or self.task.options.clip_norm is not None:
            gradients = {name: reduction.gradient(name) for name in self.parameters}
            loss = reduction.loss()
            self._require_finite(loss, share)
            penalty = recipe.regularization.add(self.parameters, gradients)
            limit = self.task.options.clip_norm or math.inf
            norms = clip_by_norm(gradients, limit)
            if isinstance(optimizer, KFAC):
                if optimizer.needs_factors(self.state):
                    optimizer.absorb(self.source.factors(self.parameters, share), self.state)
                optimizer.update(self.parameters, gradients, self.state, learning_rate=rate)
            else:
                # Both parts of the objective are scaled alike, so that clipping does not move its minimum.
                l1 *= min(1.0, limit / max(math.hypot(*norms.values()), np.finfo(float).tiny))
                optimizer.update(self.parameters, gradients, self.state, learning_rate=rate, l1=l1)
        else:
            # One parameter after the other, in the order in which the gradients arrive.
            self.state["step"] += 1
            n = int(self.state["step"][0])
            for name in reduction.names():
                parameter, gradient = self.parameters[name], reduction.gradient(name)
                penalty += recipe.regularization.add({name: parameter}, {name: gradient})
                if keeps_norms:
                    norms[name] = norm(gradient)
                kept = [self.state[f"{moment}/{name}"] for moment in optimizer.moments]
                optimizer.step(name, parameter, gradient, kept, rate, n, l1=l1 if is_weight(name) else 0.0)
            loss = reduction.loss()
            self._require_finite(loss, share)
        self._rows_before = share.rows
        self.at.loss_sum += loss * share.normalizer
        self.at.weight_sum += share.normalizer
        self.history.append("loss", loss + penalty)
        self.history.append("learning_rate", rate)
        if keeps_norms:
            self._keep_norms(norms)
        self.teller.tell()

    @property
    def _norms_every(self) -> int:
        order = self.task.order
        return max(1, order.steps_per_epoch * self.task.options.epochs // _N_NORMS)

    def _keep_norms(self, norms: dict[str, float]) -> None:
        self.history.append("norm_step", self.at.step)
        for layer in dict.fromkeys(name.split("/")[0] for name in self.parameters):
            parts = [norms[name] for name in self.parameters if name.startswith(f"{layer}/")]
            self.history.append(f"gradient_norm/{layer}", math.hypot(*parts))

    def _iterate(self) -> str:
        """One iteration of an optimizer that reads all rows several times; what it ended."""
        optimizer, regularization = self.recipe.optimizer, self.recipe.regularization
        assert isinstance(optimizer, FullBatch)
        if not self.state["begun"][0]:
            self._begin(optimizer)
        found = optimizer.iterate(self._evaluate, self.parameters, self.state, regularization=regularization)
        self.at.step += 1
        self.history.append("loss", found.loss)
        self.history.append("optimality", found.optimality)
        self.history.append("evaluations", found.n_evaluations)
        self.at.loss_sum, self.at.weight_sum = found.loss, 1.0
        self._require_measurable(found)
        self.measured[:] = self.state["measured"]
        self.teller.tell()
        if found.converged:
            return "converged"
        return "converged to rounding" if found.to_rounding else "stalled" if found.stalled else ""

    def _begin(self, optimizer: FullBatch) -> None:
        """Evaluate the first parameters, and get to know the columns in the same read."""
        columns = origin(self.task.features.read(0, min(_HEAD_ROWS, self.task.order.n_rows)))
        sums = np.zeros_like(columns)

        def watched(shares: Iterator[Share]) -> Iterator[Share]:
            for share in shares:
                np.add(sums, self.source.moments(share, columns), out=sums)
                yield share

        loss, gradients = self._evaluate(self.parameters, watched)
        self.source.sum_up(sums)
        coordinates = standard_coordinates(sums, columns, self.shard.total_weight(), self.recipe.regularization.l2)
        optimizer.begin(
            self.parameters, self.state, loss, gradients, regularization=self.recipe.regularization, coordinates=coordinates
        )

    def _evaluate(
        self, parameters: Parameters, watched: Callable[[Iterator[Share]], Iterator[Share]] = iter
    ) -> tuple[float, Parameters]:
        shares = watched(self._timed(self.shard.shares(0)))
        statistics = [self._statistics(self.source, parameters)]
        return next(self.source.add_up([parameters], shares, self.shard.total_weight(), statistics=statistics))

    def _statistics(self, source: RankGradients, parameters: Parameters) -> Array | None:
        """Of all rows, where the model needs them."""
        if not self.model.decorrelation:
            return None
        statistics: Array | None = None
        for share in self.shard.shares(0):
            part = source.statistics(parameters, share)
            statistics = part if statistics is None or part is None else statistics + part
        return statistics

    def _require_measurable(self, found: Iteration) -> None:
        if math.isfinite(found.loss) and math.isfinite(found.optimality):
            return
        refuse_non_finite(self.communicator, self.task.features, self.shard.shares(0), role="features")
        raise NumericalError(f"The loss became {found.loss} in iteration {self.at.step}; scale the features or the targets.")

    def _require_finite(self, loss: float, share: Share) -> None:
        """Every rank sees the same loss, so every rank comes here or none."""
        if math.isfinite(loss):
            return
        features = self.task.features
        refuse_non_finite(self.communicator, features, [share], role="features")
        # An infinity that relu hid from the loss of the step before is in its gradients.
        name_place(self.communicator, features, first_bad_of(features, self._rows_before), role="features")
        raise NumericalError(
            f"The loss became {loss} in step {self.at.step}; lower optimizer.learning_rate, set params.clip_norm, "
            "or scale the features."
        )

    def _measure(self) -> None:
        """The objective on all rows, at the first and at the published parameters, in one read."""
        started = time.perf_counter()
        self.teller.start("measure", 2 * flops_per_row(self.parameters))
        dtype = measuring_dtype(self.model, self.dtype)
        both = [self._first_parameters(), self.best or self.parameters]
        both = [{name: array.astype(dtype, copy=False) for name, array in parameters.items()} for parameters in both]
        source = self.source if dtype == self.dtype else self._source(both[0])
        order = self.task.order
        self.shard.reorder(all_rows(self.task.features, order.unit_rows, order.n_lanes), dtype)
        statistics = [self._statistics(source, parameters) for parameters in both]
        shares, before = self._timed(self.shard.shares(0)), self.seconds.rows
        found = source.add_up(both, shares, self.shard.total_weight(), statistics=statistics)
        for i, (parameters, (loss, gradients)) in enumerate(zip(both, found, strict=True)):
            self.measured[i] = Measured.of(loss, parameters, gradients, self.recipe.regularization).to_array()
        if not np.isfinite(self.measured).all():
            refuse_non_finite(self.communicator, self.task.features, self.shard.shares(0), role="features")
        require_range(Measured(*self.measured[0]))
        self.teller.tell(last=True)
        rows = (self.seconds.rows - before) * self.communicator.size
        self.teller.finish(time.perf_counter() - started, rows)

    # After an epoch.

    def _after_epoch(self) -> str:
        history = self.history
        history.append("epoch_step", self.at.step)
        history.append("epoch_loss", self.at.loss_sum / self.at.weight_sum if self.at.weight_sum else math.nan)
        watched = history.values("epoch_loss")
        if self.validation is not None:
            for name, value in validate(self.model, self.parameters, self.validation, self.communicator).items():
                history.append(f"validation_{name}", value)
            watched = history.values("validation_loss")
        if self.communicator.rank == 0:
            names = ["epoch_loss", *(name for name in history.names() if name.startswith("validation_"))]
            values = {name: history.values(name)[-1] for name in names}
            send(self.task.token, EpochFinished(self.at.epoch, values))
        stopping = self.recipe.early_stopping
        if stopping is None:
            return ""
        if stopping.best(watched) == len(watched) - 1:
            for name, array in self.parameters.items():
                self.best[name][...] = array
        return "early stopping" if stopping.stops(watched) else ""

    # What is read.

    def _shard(self, order: Order) -> Shard:
        task = self.task
        if self.recipe.full_batch:
            order = all_rows(task.features, order.unit_rows, order.n_lanes)
        features = in_memory_if_small(task.features) if self.reads_features else task.features
        weights = None if task.weights is None else Column(task.weights, keep=True)
        targets = Column(task.targets)
        return Shard(
            features, targets, weights=weights, order=order, rank=self.communicator.rank, size=self.communicator.size,
            dtype=self.dtype, reads_features=self.reads_features,
        )  # fmt: skip

    def _validation(self) -> Shard | None:
        features, targets = self.task.validation_features, self.task.validation_targets
        if features is None or targets is None:
            return None
        unit = max(1, min(features.shape[0], self.task.order.unit_rows))
        if not features.any_range:
            unit = features.row_unit
        order = all_rows(features, unit, self.task.order.n_lanes)
        return Shard(
            in_memory_if_small(features), Column(targets), weights=None, order=order, rank=self.communicator.rank,
            size=self.communicator.size, dtype=self.dtype,
        )  # fmt: skip

    def _write_log(self) -> None:
        if not self.task.options.log_rows:
            return
        folder = Path(self.task.directory).parent / "rows"
        folder.mkdir(exist_ok=True)
        path = folder / f"from-step-{self._began}-rank-{self.communicator.rank}-of-{self.communicator.size}.npz"
        steps = np.concatenate([np.full(len(rows), step) for step, rows in self.log]) if self.log else np.zeros(0, int)
        rows = np.concatenate([rows for _, rows in self.log]) if self.log else np.zeros(0, int)
        np.savez(path, step=steps, row=rows)
