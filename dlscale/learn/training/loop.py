"""The loop of training, the same on every rank: batches, steps, validation, checkpoints.

All that decides what happens next (parameters, state of the optimizer, history, position) is the same on every rank, so rank 0
saves it alone, and a run goes on from there on any number of ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.events import EpochFinished
from dlscale.engine.progress import send
from dlscale.engine.ranks import Communicator
from dlscale.errors import NumericalError
from dlscale.kernels import one_blas_thread
from dlscale.learn.models.coordinates import Coordinates, origin, standard_coordinates
from dlscale.learn.models.model import Model
from dlscale.learn.models.parameters import Parameters
from dlscale.learn.optimizers.measuring import Measured, require_range
from dlscale.learn.optimizers.regularization import Regularization
from dlscale.learn.training.data import Column, Order, in_memory_if_small, is_compressed, is_kept
from dlscale.learn.training.gradients import RankGradients, Reduction, Seconds
from dlscale.learn.training.history import History
from dlscale.learn.training.judging import all_rows, first_bad_of, name_place, refuse_non_finite, validate
from dlscale.learn.training.saving import ENDINGS, Position, Saver
from dlscale.learn.training.shards import Shard, Share
from dlscale.learn.training.task import IF_IT_DIVERGES, Recipe, Task, measured_apart, measuring_dtype
from dlscale.learn.training.telling import Teller, flops_per_row, used_density

#: Steps of which the norms of the gradients are kept, at most.
_N_NORMS = 2000
#: Rows that tell roughly where columns are.
_HEAD_ROWS = 64

MakeGradients = Callable[[Communicator, Model, Parameters], RankGradients]


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

    Parameters
    ----------
    communicator : Communicator
    task : Task
    gradients : callable
        Makes what gradients come from, for parameters of some shapes and dtype.
    reads_features : bool
        Whether the shares of batches carry their rows, or only say which they are.
    """

    def __init__(
        self, communicator: Communicator, task: Task, *, gradients: MakeGradients = RankGradients, reads_features: bool = True
    ) -> None:
        self.communicator, self.task, self.gradients, self.reads_features = communicator, task, gradients, reads_features
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
        self.source = gradients(communicator, self.model, self.parameters)
        self.seconds = self.source.seconds
        self.shard = self._shard(task.order)
        self.validation = self._validation()
        self.log: list[tuple[int, Array]] = []
        self._share: Share | None = None
        self._rows_before = np.zeros(0, int)
        self._steps_per_epoch = 1 if self.recipe.full_batch else task.order.steps_per_epoch
        kept = reads_features and is_kept(task.features)
        self._row_flops = flops_per_row(self.parameters, used_density(task.features))
        self.teller = Teller(communicator, task, self.seconds, self._row_flops, kept=kept)

    def _first_parameters(self) -> Parameters:
        task = self.task
        generator = np.random.default_rng([task.options.seed, 2**32 - 1])
        return self.model.initialize(
            task.features.shape[1], task.n_outputs, init=task.options.model.get("init"), rng=generator, dtype=self.dtype
        )

    def close(self) -> None:
        self.shard.close()
        if self.validation is not None:
            self.validation.close()

    def run(self) -> dict[str, Any]:
        # What overflows is found in the loss, and told in words.
        with np.errstate(over="ignore", invalid="ignore"):
            return self._run()

    def _run(self) -> dict[str, Any]:
        if self.saver.restore():
            self.teller.goes_on(self.at.step, self.at.epoch, self.at.step * self.task.order.n_rows / self._steps_per_epoch)
        started, self._began = time.perf_counter(), self.at.step
        resumed, stopped = bool(self.at.ended), False
        ending = ENDINGS[self.at.ended]
        while not ending and not stopped:
            if self.at.epoch == self.task.options.epochs:
                ending = "all epochs"
            elif (found := self._epoch()) is None:
                stopped = True
            else:
                self.at.epoch += 1
                ending = self._after_epoch() or found
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
            self.saver.save_end()
        return {"stopped": stopped, "seconds": table.tolist() if self.communicator.rank == 0 else None}

    # Steps.

    def _epoch(self) -> str | None:
        """The rest of an epoch; what its last step ended, or None if it was stopped."""
        first_step = self.at.step - self.at.epoch * self._steps_per_epoch
        if first_step == 0:
            self.at.loss_sum = self.at.weight_sum = 0.0
        for share in self._batches(first_step):
            self._share = share
            if ending := self._step():
                return ending
            if self.communicator.stopping:
                return None
            self.saver.save_when_due()
        return ""

    def _batches(self, first_step: int) -> Iterator[Share | None]:
        """This rank's share of each batch of an epoch; None where the optimizer asks for all rows by itself."""
        if self.recipe.full_batch:
            return iter([None][first_step:])
        return self._timed(self.shard.shares(self.at.epoch, first_step))

    def _timed(self, shares: Iterator[Share]) -> Iterator[Share]:
        while True:
            started = time.perf_counter()
            share = next(shares, None)
            self.seconds.read += time.perf_counter() - started
            if share is None:
                return
            self.seconds.rows += len(share.rows)
            if self.task.rows_directory is not None:
                self.log.append((self.at.step, share.rows))
            yield share

    def _step(self) -> str:
        """One step of the optimizer; what it ended."""
        taken, share = self.recipe.optimizer.advance(self), self._share
        weight = 1.0 if share is None else share.normalizer
        self.at.loss_sum += taken.loss * weight
        self.at.weight_sum += weight
        self.history.append("loss", taken.loss + taken.penalty)
        for name, value in taken.curves.items():
            self.history.append(name, value)
        if self.keeps_norms and taken.norms:
            self._keep_norms(taken.norms)
        if taken.measured is not None:
            self.measured[:] = taken.measured
        if share is not None:
            self._rows_before = share.rows
        self.at.step += 1
        self.teller.tell()
        return taken.ending

    def _keep_norms(self, norms: Mapping[str, float]) -> None:
        self.history.append("norm_step", self.at.step)
        for layer in dict.fromkeys(name.split("/")[0] for name in self.parameters):
            parts = [norms[name] for name in self.parameters if name.startswith(f"{layer}/")]
            self.history.append(f"gradient_norm/{layer}", math.hypot(*parts))

    # What the optimizer sees (`dlscale.learn.optimizers.stepping.Stepping`).

    @property
    def regularization(self) -> Regularization:
        return self.recipe.regularization

    @property
    def learning_rate(self) -> float:
        return self.recipe.learning_rate * self.recipe.schedule(self.at.step)

    @property
    def clip_norm(self) -> float | None:
        return self.task.options.clip_norm

    @property
    def keeps_norms(self) -> bool:
        every = max(1, self.task.order.steps_per_epoch * self.task.options.epochs // _N_NORMS)
        return self.at.step % every == 0

    def reduce(self) -> Reduction:
        assert self._share is not None
        return self.source.start(self.parameters, self._share)

    def factors(self) -> Parameters:
        assert self._share is not None
        return self.source.factors(self.parameters, self._share)

    def evaluate(self, parameters: Parameters) -> tuple[float, Parameters]:
        return self._evaluate(parameters, iter)

    def evaluate_first(self) -> tuple[float, Parameters, Coordinates]:
        features, n_rows = self.task.features, min(_HEAD_ROWS, self.task.order.n_rows)
        columns = origin((features.sparse_rows if is_compressed(features) else features.read)(0, n_rows))
        sums = np.zeros_like(columns)

        def watched(shares: Iterator[Share]) -> Iterator[Share]:
            for share in shares:
                np.add(sums, self.source.moments(share, columns), out=sums)
                yield share

        loss, gradients = self._evaluate(self.parameters, watched)
        self.source.sum_up(sums)
        return loss, gradients, standard_coordinates(sums, columns, self.shard.total_weight(), self.regularization.l2)

    def refuse(self, loss: float) -> NoReturn:
        # Every rank sees the same loss, so every rank comes here or none.
        features = self.task.features
        if self._share is None:
            refuse_non_finite(self.communicator, features, self.shard.shares(0), role="features")
            raise NumericalError(f"The loss became {loss} in iteration {self.at.step + 1}; scale the features or the targets.")
        refuse_non_finite(self.communicator, features, [self._share], role="features")
        # An infinity that relu hid from the loss of the step before is in its gradients.
        name_place(self.communicator, features, first_bad_of(features, self._rows_before), role="features")
        raise NumericalError(f"The loss became {loss} in step {self.at.step}; {IF_IT_DIVERGES}")

    def _evaluate(self, parameters: Parameters, watched: Callable[[Iterator[Share]], Iterator[Share]]) -> tuple[float, Parameters]:
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

    def _measure(self) -> None:
        """The objective on all rows, at the first and at the published parameters, in one read."""
        started = time.perf_counter()
        self.teller.start("measure", 2 * self._row_flops)
        dtype = measuring_dtype(self.model, self.dtype)
        both = [self._first_parameters(), self.best or self.parameters]
        both = [{name: array.astype(dtype, copy=False) for name, array in parameters.items()} for parameters in both]
        source = self.source if dtype == self.dtype else self.gradients(self.communicator, self.model, both[0])
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
            features, targets, weights=weights, order=order, communicator=self.communicator,
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
            in_memory_if_small(features), Column(targets), weights=None, order=order, communicator=self.communicator,
            dtype=self.dtype,
        )  # fmt: skip

    def _write_log(self) -> None:
        if self.task.rows_directory is None:
            return
        folder = Path(self.task.rows_directory)
        folder.mkdir(exist_ok=True)
        path = folder / f"from-step-{self._began}-rank-{self.communicator.rank}-of-{self.communicator.size}.npz"
        steps = np.concatenate([np.full(len(rows), step) for step, rows in self.log]) if self.log else np.zeros(0, int)
        rows = np.concatenate([rows for _, rows in self.log]) if self.log else np.zeros(0, int)
        np.savez(path, step=steps, row=rows)
