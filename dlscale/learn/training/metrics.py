"""Metrics of a set of rows as sums that add up over blocks and ranks, and the rule of early stopping."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from dlscale.arrays import Array
from dlscale.declaration.options import Options
from dlscale.declaration.sections import NotNegative
from dlscale.errors import SpecError
from dlscale.learn.models.losses import CrossEntropy, Loss


@dataclass(frozen=True)
class Metric(ABC):
    """A number that follows from sums over rows."""

    n_sums: ClassVar[int] = 2
    higher_is_better: ClassVar[bool] = False

    def sums(self, loss: Loss, S: Array, y: Array, *, weights: Array | None = None) -> Array:
        """What to add up over blocks and ranks.

        Parameters
        ----------
        loss : Loss
            The loss of the model that made the scores.
        S : (b, k)
            Scores (`Model.scores`), not overwritten.
        y : (b,) or (b, k)
        weights : (b,), optional
            None is ones.

        Returns
        -------
        (n_sums,) : double precision
            The sum of weights first.
        """
        w = np.ones(len(S)) if weights is None else np.asarray(weights, np.float64)
        return np.array([w.sum(), *self.row_sums(loss, S, y, w)])

    @abstractmethod
    def row_sums(self, loss: Loss, S: Array, y: Array, w: Array) -> list[float]:
        """The other sums."""

    def value(self, sums: Array) -> float:
        """The metric of all rows whose sums were added up; NaN when there were none."""
        return float(sums[1] / sums[0]) if sums[0] else math.nan

    def check(self, loss: Loss) -> None:
        """Refuse a loss whose predictions the metric does not understand."""


@dataclass(frozen=True)
class MeanLoss(Metric):
    """Weighted mean of the model's own loss, without penalties."""

    def row_sums(self, loss: Loss, S: Array, y: Array, w: Array) -> list[float]:
        # Single precision would round the targets, and overflow where their squares do not.
        return [float(np.dot(loss.differentiate(S.astype(np.float64), y), w))]


@dataclass(frozen=True)
class Accuracy(Metric):
    """Weighted share of rows whose label is predicted."""

    higher_is_better: ClassVar[bool] = True

    def row_sums(self, loss: Loss, S: Array, y: Array, w: Array) -> list[float]:
        return [float(np.dot(loss.decide(loss.link(S.copy())) == y.reshape(-1), w))]

    def check(self, loss: Loss) -> None:
        if not loss.classifies:
            raise SpecError("The metric accuracy is for classification; this model predicts numbers. Use mean_squared_error or r2.")


@dataclass(frozen=True)
class LogLoss(Metric):
    """Weighted mean of the negative log-likelihood, from the scores, so that confident mistakes keep their digits."""

    def row_sums(self, loss: Loss, S: Array, y: Array, w: Array) -> list[float]:
        return [float(np.dot(loss.differentiate(S.astype(np.float64), y), w))]

    def check(self, loss: Loss) -> None:
        if not isinstance(loss, CrossEntropy):
            raise SpecError(
                "The metric log_loss needs probabilities, which only the loss cross_entropy gives. Use accuracy, or that loss."
            )


@dataclass(frozen=True)
class MeanSquaredError(Metric):
    """Weighted mean over rows and outputs of ``(s - y)^2`` (without the half of the squared loss)."""

    def row_sums(self, loss: Loss, S: Array, y: Array, w: Array) -> list[float]:
        residual = S.astype(np.float64) - y.reshape(S.shape)
        return [float(w @ (residual**2).mean(axis=1))]

    def check(self, loss: Loss) -> None:
        _require_regression("mean_squared_error", loss)


@dataclass(frozen=True)
class R2(Metric):
    """``1 - residual sum of squares / total sum of squares``, over all outputs together with one mean.

    Parameters
    ----------
    origin : float
        A number near the targets' mean, the same for all blocks; it changes nothing but the rounding: targets far from
        zero lose digits when their squares are added up about zero.
    """

    origin: float = 0.0
    n_sums: ClassVar[int] = 4
    higher_is_better: ClassVar[bool] = True

    def row_sums(self, loss: Loss, S: Array, y: Array, w: Array) -> list[float]:
        target = y.reshape(S.shape).astype(np.float64)
        residual = S - target
        target -= self.origin
        return [float(w @ (residual**2).mean(axis=1)), float(w @ target.mean(axis=1)), float(w @ (target**2).mean(axis=1))]

    def value(self, sums: Array) -> float:
        if not sums[0]:
            return math.nan
        with np.errstate(over="ignore", invalid="ignore"):
            total = sums[3] - sums[2] ** 2 / sums[0]
            return float(1 - sums[1] / total) if total > 0 else math.nan

    def check(self, loss: Loss) -> None:
        _require_regression("r2", loss)


def _require_regression(name: str, loss: Loss) -> None:
    if loss.classifies:
        raise SpecError(f"The metric {name} is for regression; this model predicts classes. Use accuracy or log_loss.")


METRICS: dict[str, Metric] = {
    "loss": MeanLoss(),
    "accuracy": Accuracy(),
    "log_loss": LogLoss(),
    "mean_squared_error": MeanSquaredError(),
    "r2": R2(),
}


def metrics_of(loss: Loss) -> tuple[str, ...]:
    """The metrics that fit a model with this loss."""
    fitting = []
    for name, metric in METRICS.items():
        try:
            metric.check(loss)
        except SpecError:
            continue
        fitting.append(name)
    return tuple(fitting)


def metrics_near(loss: Loss, first: Array) -> dict[str, Metric]:
    """The metrics that fit a model with this loss, for targets of which these are some: one of them is near their mean."""
    metrics = {name: METRICS[name] for name in metrics_of(loss)}
    return metrics | ({"r2": R2(origin=float(first.flat[0]))} if "r2" in metrics else {})


@dataclass(frozen=True)
class EarlyStopping(Options):
    """Stop when the last ``patience`` values brought no improvement of at least ``min_improvement``.

    A pure function of the history, so that a resumed run decides as the uninterrupted one.

    Parameters
    ----------
    patience : int
        Evaluations without improvement that are borne.
    min_improvement : float
        What counts as better than the best so far must be better by more than this.
    """

    section: ClassVar[str] = "early_stopping"

    patience: Annotated[int, Field(ge=1, description="an integer of at least 1: epochs without improvement that are borne")] = 5
    min_improvement: NotNegative = 0.0

    def best(self, history: Sequence[float], *, higher_is_better: bool = False) -> int:
        """Index of the last value that improved; -1 for none (an empty history, or NaN all along)."""
        best, index = -math.inf, -1
        for i, value in enumerate(history):
            score = value if higher_is_better else -value
            if score > best + (self.min_improvement if index >= 0 else 0.0):
                best, index = score, i
        return index

    def stops(self, history: Sequence[float], *, higher_is_better: bool = False) -> bool:
        """Whether the run ends after this history of one metric."""
        return len(history) - 1 - self.best(history, higher_is_better=higher_is_better) >= self.patience
