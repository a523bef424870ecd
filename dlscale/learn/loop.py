"""The loop of training, the same on every rank: batches, steps, validation, checkpoints.

All that decides what happens next (parameters, state of the optimizer, history, position) is the same on every rank, so rank 0
saves it alone, and a run goes on from there on any number of ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from dlscale.engine.progress import send
from dlscale.engine.ranks import Communicator
from dlscale.errors import NonFiniteError, NumericalError
from dlscale.kernels import Array, one_blas_thread
from dlscale.learn.clipping import clip_by_norm
from dlscale.learn.data import Column, Order, Shard, Share, in_memory_if_small
from dlscale.learn.gradients import RankGradients, Seconds
from dlscale.learn.history import History
from dlscale.learn.kfac import KFAC
from dlscale.learn.lbfgs import LBFGS
from dlscale.learn.metrics import METRICS, metrics_of
from dlscale.learn.parameters import Parameters, norm
from dlscale.learn.proximal import ProximalGradient
from dlscale.learn.saving import FINISHED, Position, Saver
from dlscale.learn.task import Recipe, Task

#: Rows that a validation, or an evaluation on all rows, takes at a time over all ranks.
_BLOCK_ROWS = 8192
#: Steps of which the norms of the gradients are kept, at most.
_N_NORMS = 2000
_EVENT_SECONDS = 0.25


def train(communicator: Communicator, task: Task) -> dict[str, Any]:
    """Train on every rank; the program of a job of kind ``train``.

    Returns
    -------
    dict
        ``stopped``, and on rank 0 the times of all ranks and the reason of the end. What was learned is in the checkpoint.
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
        generator = np.random.default_rng([task.options.seed, 2**32 - 1])
        self.parameters = self.model.initialize(
            task.features.shape[1], task.n_outputs, init=task.options.model.get("init"), rng=generator, dtype=self.dtype
        )
        self.state = self.recipe.optimizer.start(self.parameters)
        self.history = History()
        self.at = Position()
        saved = {f"parameters/{name}": array for name, array in self.parameters.items()}
        saved |= {f"optimizer/{name}": array for name, array in self.state.items()}
        self.best: Parameters = {}
        if self.recipe.early_stopping is not None:
            self.best = {name: array.copy() for name, array in self.parameters.items()}
            saved |= {f"best/{name}": array for name, array in self.best.items()}
        self.saver = Saver(communicator, task, saved, self.at, self.history)
        self.source = self._source()
        self.seconds = self.source.seconds
        self.shard = self._shard(task.order)
        self.validation = self._validation()
        self.log: list[tuple[int, Array]] = []
        self._sent_at = time.perf_counter()
        self._sent = Seconds()

    def _source(self) -> RankGradients:
        return RankGradients(self.communicator, self.model, self.parameters)

    def close(self) -> None:
        self.shard.close()
        if self.validation is not None:
            self.validation.close()

    def run(self) -> dict[str, Any]:
        self.saver.restore()
        started, self._began = time.perf_counter(), self.at.step
        reason = "finished before" if self.at.finished else ""
        steps_in_epoch = 1 if self.recipe.full_batch else self.task.order.steps_per_epoch
        while not reason and self.at.epoch < self.task.options.epochs:
            first_step = self.at.step - self.at.epoch * steps_in_epoch
            reason = self._iterate() if self.recipe.full_batch else self._epoch(first_step)
            if reason == "stopped":
                self.saver.save_step()
                break
            self.at.epoch += 1
            reason = self._after_epoch() or reason
            self.saver.save_when_due()
        self.seconds.total += time.perf_counter() - started
        self.seconds.steps += self.at.step - self._began
        self.seconds.compute = self.seconds.total - self.seconds.read - self.seconds.exposed - self.seconds.wait
        self._write_log()
        stopped = reason == "stopped"
        if not stopped and not self.at.finished:
            self.at.finished = True
            self.saver.save(FINISHED)
        self._report(last=True)
        table = self.communicator.allgather(self.seconds.to_array(), name="seconds of all ranks")
        return {"stopped": stopped, "reason": reason, "seconds": table.tolist() if self.communicator.rank == 0 else None}

    # Steps.

    def _epoch(self, first_step: int) -> str:
        """The rest of an epoch."""
        if first_step == 0:
            self.at.loss_sum = self.at.weight_sum = 0.0
        shares = self.shard.shares(self.at.epoch, first_step)
        for share in self._timed(shares):
            self._take_step(share)
            self.at.step += 1
            if self.communicator.stopping:
                return "stopped"
            self.saver.save_when_due()
        return ""

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
        assert not isinstance(optimizer, LBFGS | ProximalGradient)
        rate = recipe.learning_rate * recipe.schedule(self.at.step)
        reduction = self.source.start(self.parameters, share)
        keeps_norms = self.at.step % self._norms_every == 0
        norms: dict[str, float] = {}
        penalty = 0.0
        if isinstance(optimizer, KFAC) or self.task.options.clip_norm is not None:
            gradients = {name: reduction.gradient(name) for name in self.parameters}
            loss = reduction.loss()
            self._require_finite(loss, share)
            penalty = recipe.regularization.add(self.parameters, gradients)
            norms = clip_by_norm(gradients, self.task.options.clip_norm or math.inf)
            if isinstance(optimizer, KFAC) and optimizer.needs_factors(self.state):
                optimizer.absorb(self.source.factors(self.parameters, share), self.state)
            optimizer.update(self.parameters, gradients, self.state, learning_rate=rate)
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
                optimizer.step(name, parameter, gradient, kept, rate, n)
            loss = reduction.loss()
            self._require_finite(loss, share)
        recipe.regularization.shrink(self.parameters, rate)
        self.at.loss_sum += loss * share.normalizer
        self.at.weight_sum += share.normalizer
        self.history.append("loss", loss + penalty)
        self.history.append("learning_rate", rate)
        if keeps_norms:
            self._keep_norms(norms)
        self._report()

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
        """One iteration of an optimizer that reads all rows several times."""
        optimizer = self.recipe.optimizer
        assert isinstance(optimizer, LBFGS | ProximalGradient)
        found = optimizer.iterate(self._evaluate, self.parameters, self.state, regularization=self.recipe.regularization)
        self.at.step += 1
        self.history.append("loss", found.loss)
        self.history.append("optimality", found.optimality)
        self.history.append("evaluations", found.n_evaluations)
        self.at.loss_sum, self.at.weight_sum = found.loss, 1.0
        if not math.isfinite(found.loss):
            raise NumericalError(f"The loss became {found.loss} in iteration {self.at.step}; look for huge features or targets.")
        self._report()
        if self.communicator.stopping:
            return "stopped"
        if found.converged:
            return "converged"
        return "stalled" if found.stalled else ""

    def _evaluate(self, parameters: Parameters) -> tuple[float, Parameters]:
        normalizer = self.shard.total_weight()
        statistics = None
        if self.model.decorrelation:
            for share in self.shard.shares(0):
                part = self.model.statistics(parameters, share.X, share.weights)
                statistics = part if statistics is None or part is None else statistics + part
            assert statistics is not None
            statistics = self.source.sum_up(statistics)
        return self.source.add_up(parameters, self._timed(self.shard.shares(0)), normalizer, statistics=statistics)

    def _require_finite(self, loss: float, share: Share) -> None:
        """Every rank sees the same loss, so every rank comes here or none."""
        if math.isfinite(loss):
            return
        bad = np.argwhere(~np.isfinite(share.X))
        found = np.full(3, np.inf)
        if len(bad):
            row, column = bad[0]
            found[:2] = share.rows[row], column
        table = self.communicator.allgather(found[:2], name="places of NaN")
        first = table[np.argmin(table[:, 0])]
        if np.isfinite(first[0]):
            place = int(first[0]), int(first[1])
            value = self.task.features.read(place[0], place[0] + 1)[0, place[1]].item()
            raise NonFiniteError(*place, value)
        raise NumericalError(
            f"The loss became {loss} in step {self.at.step}; lower optimizer.learning_rate, set params.clip_norm, "
            "or scale the features."
        )

    # After an epoch.

    def _after_epoch(self) -> str:
        history = self.history
        history.append("epoch_step", self.at.step)
        history.append("epoch_loss", self.at.loss_sum / self.at.weight_sum if self.at.weight_sum else math.nan)
        watched = history.values("epoch_loss")
        if self.validation is not None:
            for name, value in self._validate(self.validation).items():
                history.append(f"validation_{name}", value)
            watched = history.values("validation_loss")
        if self.communicator.rank == 0:
            names = ["epoch_loss", *(name for name in history.names() if name.startswith("validation_"))]
            values = {name: history.values(name)[-1] for name in names}
            send(self.task.token, {"event": "epoch", "epoch": self.at.epoch, **values})
        stopping = self.recipe.early_stopping
        if stopping is None:
            return ""
        if stopping.best(watched) == len(watched) - 1:
            for name, array in self.parameters.items():
                self.best[name][...] = array
        return "early stopping" if stopping.stops(watched) else ""

    def _validate(self, shard: Shard) -> dict[str, float]:
        metrics = {name: METRICS[name] for name in metrics_of(self.model.loss)}
        sums = {name: np.zeros(metric.n_sums) for name, metric in metrics.items()}
        for share in shard.shares(0):
            S = self.model.scores(self.parameters, share.X)
            for name, metric in metrics.items():
                sums[name] += metric.sums(self.model.loss, S, share.y)
        together = self.communicator.allreduce(np.concatenate(list(sums.values())), name="metrics")
        values, start = {}, 0
        for name, metric in metrics.items():
            values[name] = metric.value(together[start : start + metric.n_sums])
            start += metric.n_sums
        return values

    # What is read.

    def _shard(self, order: Order) -> Shard:
        task = self.task
        if self.recipe.full_batch:
            order = Order(order.n_rows, order.unit_rows, order.n_lanes, min(order.n_rows, _BLOCK_ROWS), shuffle=False)
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
        order = Order(features.shape[0], unit, self.task.order.n_lanes, min(features.shape[0], _BLOCK_ROWS), shuffle=False)
        return Shard(
            in_memory_if_small(features), Column(targets), weights=None, order=order, rank=self.communicator.rank,
            size=self.communicator.size, dtype=self.dtype,
        )  # fmt: skip

    # Messages.

    def _report(self, *, last: bool = False) -> None:
        """What rank 0 did since the last message, for progress and for the report."""
        now = time.perf_counter()
        if self.communicator.rank != 0 or (not last and now - self._sent_at < _EVENT_SECONDS):
            return
        rows = self.seconds.rows - self._sent.rows
        read = self.seconds.read - self._sent.read
        features = self.task.features
        # All ranks do alike: their rows together.
        everyone = rows * self.communicator.size
        send(
            self.task.token,
            {
                "event": "blocks",
                "step": "training",
                "worker": "rank 0",
                "rows": int(everyone),
                "bytes": int(everyone * features.shape[1] * features.stored_dtype.itemsize),
                "read_seconds": read,
                "compute_seconds": now - self._sent_at - read,
                "flops": everyone * flops_per_row(self.parameters),
            },
        )
        self._sent = Seconds(**vars(self.seconds))
        self._sent_at = now

    def _write_log(self) -> None:
        if not self.task.options.log_rows:
            return
        folder = Path(self.task.directory).parent / "rows"
        folder.mkdir(exist_ok=True)
        path = folder / f"from-step-{self._began}-rank-{self.communicator.rank}-of-{self.communicator.size}.npz"
        steps = np.concatenate([np.full(len(rows), step) for step, rows in self.log]) if self.log else np.zeros(0, int)
        rows = np.concatenate([rows for _, rows in self.log]) if self.log else np.zeros(0, int)
        np.savez(path, step=steps, row=rows)


def flops_per_row(parameters: Parameters) -> float:
    """Of a forward and a backward sweep: 6 for each weight, 2 less in the first layer."""
    return 3 * forward_flops_per_row(parameters) - 2.0 * parameters["layer-0/weight"].size


def forward_flops_per_row(parameters: Parameters) -> float:
    """Of a forward sweep: 2 for each weight."""
    return 2.0 * sum(array.size for name, array in parameters.items() if name.endswith("/weight"))
