"""Folds that multiply: the normal product of a power iteration, and Gram and covariance matrices.

A matrix whose column means are not yet known is centred block by block: each block by its own mean, and two partial
results are combined with the difference of their means, so that a large column offset costs no digits.

References
----------
Chan, Golub, LeVeque (1983), Algorithms for computing the sample variance, equation 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.engine.passes import Fold, State
from dlscale.kernels import accumulator_dtype, add_gram, add_normal_product, sum_of_squares, tiles
from dlscale.storage.matrices import Array


def block_mean(A: Array) -> tuple[Array, Array]:
    """Column means of a block in two parts, ``mean + low``: the second holds the digits that the first rounds away.

    Returns
    -------
    mean : (n,), of A's dtype
    low : (n,), double precision
        The mean of what is left when ``mean`` is subtracted.
    """
    m, dtype = A.shape[0], A.dtype
    ones = np.ones((1, m), dtype)
    mean = (np.matmul(ones, A)[0].astype(accumulator_dtype(dtype)) / m).astype(dtype)
    low = np.zeros(A.shape[1], accumulator_dtype(dtype))
    for _, tile in tiles(A, mean):
        low += np.matmul(ones[:, : len(tile)], tile)[0]
    low /= m
    # A sum in single precision may miss the mean by more than its spacing; now the nearest number is known.
    nearest = (mean + low).astype(dtype)
    return nearest, low - (nearest.astype(low.dtype) - mean)


def start_means(n: int, dtype: np.dtype[Any]) -> State:
    """The part of a state that counts rows and holds their mean, of no rows."""
    wide = accumulator_dtype(dtype)
    return {"count": np.zeros(1), "mean": np.zeros(n, wide), "mean_low": np.zeros(n, wide)}


def block_means(A: Array, mean: Array, low: Array) -> State:
    """The same of a block, from `block_mean`; ``mean`` alone is the mean in double precision."""
    total = mean + low
    return {"count": np.array([float(len(A))]), "mean": total, "mean_low": low - (total - mean)}


@dataclass(frozen=True)
class NormalProduct(Fold):
    """``Z = A^H (A W)`` in one read of A, and on request Y = A W, its Gram matrix and ``||A||_F^2``.

    Parameters
    ----------
    W : (n, w), of A's dtype
    center : bool
        Subtract the column means, found on the way (states then hold ``count`` and ``mean``).
    squares : bool
        Sum ``||A||_F^2`` (of the centred matrix).
    keep_Y : bool
        Hand Y to the first output of the pass, and sum its Gram matrix ``Y^H Y``.
    """

    W: Array
    center: bool = False
    squares: bool = False
    keep_Y: bool = False

    @property
    def flops_per_row(self) -> float:
        n, w = self.W.shape
        return float(4 * n * w + (w * w if self.keep_Y else 0))

    def start(self) -> State:
        n, w = self.W.shape
        wide = accumulator_dtype(self.W.dtype)
        state: State = {"ZH": np.zeros((w, n), wide)}
        if self.keep_Y:
            state["gram"] = np.zeros((w, w), wide)
        if self.squares:
            state["squares"] = np.zeros(1)
        if self.center:
            state |= start_means(n, self.W.dtype)
        return state

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        shift, target = None, state
        if self.center:
            shift, low = block_mean(A)
            target = self.start() | block_means(A, shift, low)
        Y = add_normal_product(A, self.W, target["ZH"], mean=shift)
        if self.squares:
            target["squares"] += sum(sum_of_squares(tile) for _, tile in tiles(A, shift))
        if self.keep_Y:
            Y_wide = Y.astype(target["gram"].dtype, copy=False)
            target["gram"] += Y_wide.conj().T @ Y_wide
        if self.center:
            target["ZH"] -= len(A) * np.outer((low @ self.W).conj(), low)
            self.merge(state, target)
        return (Y,) if self.keep_Y else ()

    def merge(self, left: State, right: State) -> State:
        if self.center:
            delta, weight = combine_means(left, right)
            # A_c^H A_c of the union = sum of both + weight conj(delta)' delta (delta a row), so Z gains this times W.
            left["ZH"] += weight * np.outer((delta @ self.W).conj(), delta)
            if self.squares:
                left["squares"] += weight * np.vdot(delta, delta).real
        for name in left.keys() - {"count", "mean", "mean_low"}:
            left[name] += right[name]
        return left


@dataclass(frozen=True)
class Gram(Fold):
    """``G = A^H A``, centred on request: the covariance matrix times (m - 1).

    Parameters
    ----------
    n : int
        Columns of A.
    dtype : numpy.dtype
        Of A.
    center : bool
        Subtract the column means, found on the way.
    probe : (n,), optional
        Also sum ``A^H (A probe)``, an independent check of G.
    """

    n: int
    dtype: np.dtype[Any]
    center: bool = False
    probe: Array | None = None

    @property
    def flops_per_row(self) -> float:
        return float(self.n) * self.n + (4.0 * self.n if self.probe is not None else 0.0)

    def start(self) -> State:
        wide = accumulator_dtype(self.dtype)
        state: State = {"gram": np.zeros((self.n, self.n), wide)}
        if self.probe is not None:
            state["probed"] = np.zeros((1, self.n), wide)
        if self.center:
            state |= start_means(self.n, self.dtype)
        return state

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        shift, target = None, state
        if self.center:
            shift, low = block_mean(A)
            target = self.start() | block_means(A, shift, low)
        add_gram(A, target["gram"], mean=shift)
        if self.probe is not None:
            add_normal_product(A, self.probe[:, None], target["probed"], mean=shift)
        if self.center:
            target["gram"] -= len(A) * np.outer(low.conj(), low)
            if self.probe is not None:
                target["probed"] -= len(A) * (low @ self.probe).conj() * low
            self.merge(state, target)
        return ()

    def merge(self, left: State, right: State) -> State:
        if self.center:
            delta, weight = combine_means(left, right)
            left["gram"] += weight * np.outer(delta.conj(), delta)
            if self.probe is not None:
                left["probed"] += weight * (delta @ self.probe).conj() * delta
        for name in left.keys() - {"count", "mean", "mean_low"}:
            left[name] += right[name]
        return left


def combine_means(left: State, right: State) -> tuple[Array, float]:
    """Put the mean of the union into ``left``; return the difference of the means and the weight of its square.

    Notes
    -----
    The means are sums of two numbers, so that their difference keeps its digits beside a large offset.
    """
    n_left, n_right = float(left["count"][0]), float(right["count"][0])
    delta = (right["mean"] - left["mean"]) + (right["mean_low"] - left["mean_low"])
    if n_left == 0:
        left["mean"], left["mean_low"] = right["mean"], right["mean_low"]
    else:
        step = left["mean_low"] + delta * (n_right / (n_left + n_right))
        mean = left["mean"] + step
        left["mean_low"] = step - (mean - left["mean"])
        left["mean"] = mean
    left["count"] = left["count"] + right["count"]
    return delta, n_left * n_right / (n_left + n_right)
