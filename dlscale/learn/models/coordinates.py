"""Coordinates in which features have mean 0 and scale 1, for methods that read all rows.

With ``z = (x - mean) / scale`` the first layer's ``W' z + b'`` is ``W x + b``, so any parameters of the one model are parameters of
the other: the objective, its penalties and its optimum stay, and only the shape of its valley changes. Rows are not rewritten;
parameters and gradients are mapped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.learn.models.parameters import Parameters, flatten, unflatten
from dlscale.sparse_rows import SparseRows

#: Rows that are centred together: they stay in a core's cache.
_TILE_ROWS = 128


@dataclass(frozen=True)
class Coordinates:
    """A linear map between flat parameters and a vector in which a method moves; empty arrays are the identity.

    Parameters
    ----------
    mean, scale : (n_features,)
    """

    mean: Array
    scale: Array

    def vector(self, parameters: Parameters) -> Array:
        """``scale * W`` and ``b + mean W`` of the first layer, the rest as it is."""
        vector = flatten(parameters)
        if self.scale.size:
            W, b = self._first(vector, parameters)
            b += self.mean @ W
            W *= self.scale[:, None]
        return vector

    def place(self, vector: Array, parameters: Parameters) -> None:
        """Write the parameters that a vector stands for, in place."""
        if self.scale.size:
            vector = vector.copy()
            W, b = self._first(vector, parameters)
            W /= self.scale[:, None]
            b -= self.mean @ W
        unflatten(vector, parameters)

    def gradient(self, gradients: Parameters) -> Array:
        """The gradient in the vector, from the gradients in the parameters."""
        vector = flatten(gradients)
        if self.scale.size:
            W, b = self._first(vector, gradients)
            W -= np.outer(self.mean, b)
            W /= self.scale[:, None]
        return vector

    def thresholds(self, l1: float, parameters: Parameters) -> Array:
        """What the L1 penalty takes from each entry of the vector: ``l1 |W|`` is ``(l1 / scale) |W'|``."""
        weights = {
            name: np.full(array.shape, l1 if name.endswith("/weight") else 0.0, np.float64) for name, array in parameters.items()
        }
        vector = flatten(weights)
        if self.scale.size:
            self._first(vector, parameters)[0][...] /= self.scale[:, None]
        return vector

    @staticmethod
    def _first(vector: Array, parameters: Parameters) -> tuple[Array, Array]:
        W, b = (parameters[f"layer-0/{part}"] for part in ("weight", "bias"))
        return vector[: W.size].reshape(W.shape), vector[W.size : W.size + b.size]


def origin(head: Any) -> Array:
    """Shift and unit of each column, from the first rows: near its mean, and a power of two near its scale.

    Parameters
    ----------
    head : (b, n)
        Or compressed.

    Returns
    -------
    (2, n) : double precision
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(head, SparseRows):
            shift = np.asarray(head[:1].toarray()[0], np.float64)
            size = np.abs(head.less(shift).column_extremes()[1:]).max(axis=0)
        else:
            shift = np.asarray(head[0], np.float64)
            size = np.abs(head - shift).max(axis=0)
    size = np.where((size > 0) & np.isfinite(size), size, np.abs(shift))
    usable = (size > 0) & np.isfinite(size)
    return np.array([shift, np.ldexp(1.0, np.frexp(np.where(usable, size, 1.0))[1])])


def moments(X: Any, weights: Array | None, columns: Array) -> Array:
    """``sum_r w_r d_r`` and ``sum_r w_r d_r^2`` of some rows, ``d_r = (x_r - shift) / unit``, to be added up over ranks.

    Parameters
    ----------
    X : (b, n)
        Or compressed.
    weights : (b,) or None
    columns : (2, n)
        `origin`.

    Returns
    -------
    (2, n) : double precision
    """
    if isinstance(X, SparseRows):
        return _sparse_moments(X, np.ones(len(X)) if weights is None else weights.astype(np.float64), *columns)
    sums = np.zeros((2, X.shape[1]))
    ones, (shift, unit) = np.ones(min(len(X), _TILE_ROWS)), columns
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(X), _TILE_ROWS):
            D = X[start : start + _TILE_ROWS] - shift
            D /= unit
            w = ones[: len(D)] if weights is None else weights[start : start + _TILE_ROWS].astype(np.float64)
            sums[0] += w @ D
            D *= D
            sums[1] += w @ D
    return sums


def _sparse_moments(X: SparseRows, weights: Array, shift: Array, unit: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        left, n = X.less(shift), X.shape[1]
        columns, entries, beside = left.rows.indices, left.entries(), left.beside() / unit
        entries /= unit[columns]
        w = np.repeat(weights, np.diff(left.rows.indptr))
        # What the rows weigh that have no entry in a column.
        rest = np.where(left.counts < len(X), weights.sum() - np.bincount(columns, w, minlength=n), 0)
        return np.stack([np.bincount(columns, w * entries**power, minlength=n) + rest * beside**power for power in (1, 2)])


def standard_coordinates(sums: Array, columns: Array, total_weight: float, l2: float) -> Coordinates:
    """Coordinates from `moments`; the scale ``sqrt(var + l2)`` makes the curvature of loss and penalty together about 1."""
    mean, (shift, unit) = sums[0] / total_weight, columns
    with np.errstate(over="ignore", invalid="ignore"):
        scale = np.hypot(unit * np.sqrt(np.maximum(sums[1] / total_weight - mean**2, 0)), np.sqrt(l2))
    # A constant column is a second intercept: only the penalty gives it a scale.
    scale[~np.isfinite(scale) | (scale == 0)] = 1.0
    return Coordinates(np.asarray(shift + unit * mean), np.asarray(scale))
