"""Losses of scores: value, derivative, prediction and curvature, a row at a time.

Scores are what the last layer puts out, before any link function. Targets of regression are numbers, (b,) or (b, k); of
classification, labels 0 .. k-1, (b,), with a single score for two classes (label 1 is the positive one).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import scipy
from pydantic import Field

from dlscale.arrays import Array
from dlscale.declaration.options import Options
from dlscale.errors import InputError, SpecError
from dlscale.learn.options import choose


@dataclass(frozen=True)
class Loss(Options, ABC):
    """A function of a row's scores and target."""

    section: ClassVar[str] = "loss"

    classifies: ClassVar[bool] = False

    @abstractmethod
    def differentiate(self, S: Array, y: Array) -> Array:
        """Overwrite the scores with the derivatives of the loss.

        Parameters
        ----------
        S : (b, k), overwritten
        y : (b,) or (b, k)

        Returns
        -------
        (b,) : the loss of each row
        """

    def link(self, S: Array) -> Array:
        """Overwrite scores with predictions: probabilities for cross-entropy, the scores themselves for the others."""
        return S

    def decide(self, S: Array) -> Array:
        """Labels (b,) of predictions (b, k) for classification; for regression the predictions themselves."""
        return S

    @abstractmethod
    def curvature_roots(self, S: Array, y: Array) -> Iterator[Array]:
        """Arrays B_c (b, k) with ``sum_c B_c[r] B_c[r]^T`` the Hessian of row r's loss in its scores; S is not overwritten."""

    def check_targets(self, y: Array, n_outputs: int, *, first_row: int = 0) -> None:
        """Refuse targets that do not fit this loss and model.

        Parameters
        ----------
        y : (b,) or (b, k)
        n_outputs : int
            Of the model.
        first_row : int
            The number of the first of them, for the message.

        Raises
        ------
        InputError
            Labels that are not whole numbers from 0 to the number of classes less one; shapes that do not fit; NaN.
        """
        if y.ndim not in (1, 2) or (1 if y.ndim == 1 else y.shape[1]) != n_outputs:
            raise InputError(f"Targets of a model with {n_outputs} outputs must be (n, {n_outputs}); got {y.shape}.")
        bad = np.argwhere(~np.isfinite(y))
        if len(bad):
            place = tuple(int(index) for index in bad[0])
            where = f"row {first_row + place[0]}" + (f", column {place[1]}" if y.ndim > 1 else "")
            raise InputError(f"Targets must be finite; got {y[place]} in {where}. Drop such rows and run again.")


@dataclass(frozen=True)
class Squared(Loss):
    """``sum_j (s_j - y_j)^2 / 2``."""

    def differentiate(self, S: Array, y: Array) -> Array:
        S -= y.reshape(S.shape)
        return np.asarray(0.5 * np.einsum("rj,rj->r", S, S))

    def curvature_roots(self, S: Array, y: Array) -> Iterator[Array]:
        for column in range(S.shape[1]):
            root = np.zeros_like(S)
            root[:, column] = 1
            yield root


@dataclass(frozen=True)
class Huber(Loss):
    """``sum_j r_j^2 / 2`` where ``|r_j| <= delta``, else ``delta (|r_j| - delta / 2)``, with ``r = s - y`` (Huber 1964)."""

    delta: Annotated[float, Field(gt=0, description="a number above 0: where huber turns from square to linear")] = 1.0

    def differentiate(self, S: Array, y: Array) -> Array:
        residual = (S - y.reshape(S.shape)).astype(S.dtype, copy=False)
        np.clip(residual, -self.delta, self.delta, out=S)
        residual -= 0.5 * S
        return np.asarray(np.einsum("rj,rj->r", S, residual))

    def curvature_roots(self, S: Array, y: Array) -> Iterator[Array]:
        for column in range(S.shape[1]):
            root = np.zeros_like(S)
            root[:, column] = np.abs(S[:, column] - y.reshape(S.shape)[:, column]) <= self.delta
            yield root


class _Classification(Loss):
    classifies: ClassVar[bool] = True

    def check_targets(self, y: Array, n_outputs: int, *, first_row: int = 0) -> None:
        n_classes = max(2, n_outputs)
        if y.ndim != 1 and y.shape[1:] != (1,):
            raise InputError(f"Labels must be (n,); got {y.shape}.")
        labels = y.reshape(-1)
        wrong = ~((labels >= 0) & (labels < n_classes) & (labels == np.floor(labels)))
        if wrong.any():
            row = int(np.argmax(wrong))
            got = f"got {labels[row]} in row {first_row + row}"
            if labels[row] < 0 or labels[row] != np.floor(labels[row]):
                raise InputError(
                    f"Labels must be whole numbers that count from 0; {got}. Number the classes 0, 1, ..., or, where the targets "
                    "are numbers and no classes, take model type linear."
                )
            raise InputError(
                f"Labels must be whole numbers from 0 to {n_classes - 1}; {got}. "
                "Number the classes from 0, or set the number of classes."
            )

    def decide(self, S: Array) -> Array:
        return np.asarray(S.argmax(axis=1) if S.shape[1] > 1 else S[:, 0] > self.threshold, np.intp)

    #: A single prediction above it means label 1.
    threshold: ClassVar[float] = 0.0


@dataclass(frozen=True)
class CrossEntropy(_Classification):
    """Negative log-likelihood of the label: ``logsumexp(s) - s_y``, or with a single score ``log(1 + e^s) - y s``.

    Computed from the scores, so that nothing overflows and small probabilities keep their digits.
    """

    threshold: ClassVar[float] = 0.5

    def differentiate(self, S: Array, y: Array) -> Array:
        if S.shape[1] == 1:
            score, label = S[:, 0], y.reshape(-1).astype(S.dtype, copy=False)
            losses = np.log1p(np.exp(-np.abs(score)))
            losses += np.maximum(score, 0)
            losses -= score * label
            scipy.special.expit(score, out=score)
            score -= label
            return losses
        rows, labels = np.arange(len(S)), y.reshape(-1).astype(np.intp, copy=False)
        S -= S.max(axis=1, keepdims=True)
        chosen = S[rows, labels]
        np.exp(S, out=S)
        total = S.sum(axis=1)
        S /= total[:, None]
        S[rows, labels] -= 1
        return np.asarray(np.log(total, out=total) - chosen)

    def link(self, S: Array) -> Array:
        if S.shape[1] == 1:
            return np.asarray(scipy.special.expit(S, out=S))
        S -= S.max(axis=1, keepdims=True)
        np.exp(S, out=S)
        S /= S.sum(axis=1, keepdims=True)
        return S

    def curvature_roots(self, S: Array, y: Array) -> Iterator[Array]:
        p = self.link(S.copy())
        if p.shape[1] == 1:
            yield np.sqrt(p * (1 - p))
            return
        for column in range(p.shape[1]):
            # diag(p) - p p^T = sum_c p_c (e_c - p) (e_c - p)^T
            root = -p
            root[:, column] += 1
            root *= np.sqrt(p[:, column : column + 1])
            yield root


@dataclass(frozen=True)
class Hinge(_Classification):
    """``sum_j max(0, 1 - t_j s_j)`` with ``t_j = 1`` for the label and -1 for every other class (one against the rest)."""

    def differentiate(self, S: Array, y: Array) -> Array:
        labels = y.reshape(-1, 1)
        sign = np.where(labels == (np.arange(S.shape[1]) if S.shape[1] > 1 else 1), S.dtype.type(1), S.dtype.type(-1))
        margin = 1 - sign * S
        np.maximum(margin, 0, out=margin)
        np.multiply(sign, margin > 0, out=S)
        np.negative(S, out=S)
        return np.asarray(margin.sum(axis=1))

    def curvature_roots(self, S: Array, y: Array) -> Iterator[Array]:
        raise SpecError("loss.type hinge has no curvature for K-FAC to use. Choose another optimizer, or the loss cross_entropy.")


LOSSES: dict[str, type[Loss]] = {"squared": Squared, "huber": Huber, "cross_entropy": CrossEntropy, "hinge": Hinge}


def loss(options: Mapping[str, Any] | str) -> Loss:
    """The loss that ``{"type": "huber", "delta": 1.5}`` or ``"squared"`` asks for."""
    return choose("loss", options, LOSSES)
