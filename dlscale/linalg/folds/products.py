"""Folds that multiply: the normal product of a power iteration, and Gram and covariance matrices.

A matrix whose column means are not yet known is centred leaf by leaf: each leaf by its own mean, and two partial results
are combined with the difference of their means, so that a large column offset costs no digits.

References
----------
Chan, Golub, LeVeque (1983), Algorithms for computing the sample variance, equation 2.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import workspace
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Passes, State
from dlscale.engine.passes.fold import Fold, Squares
from dlscale.kernels import Moments, accumulator_dtype, add_gram, add_normal_product, mirror_upper
from dlscale.lapack import add_outer_packed, multiply_add, pack_upper, unpack_upper
from dlscale.sparse_rows import SparseRows, turned
from dlscale.storage.matrix import Matrix

#: Rows whose mean a leaf subtracts before it takes squares; what that leaves is corrected when the leaf is complete.
_SHIFT_ROWS = 256
#: Nothing is subtracted where the squares of all means together are at most so many variances: in n columns with means,
#: products lose the digits of n such squares, not of one.
_HARMLESS_SQUARES = 1.0
#: Binary exponents of sums of squares, by the bits of the products that are made of the same entries. LAPACK's drivers rescale,
#: by what is no power of two, single precision matrices whose norm is beyond 2^40 or below 2^-40, and double beyond 2^240.
_SAFE_EXPONENTS = {32: (-48, 80), 64: (-400, 400)}
#: The same for single precision products of double precision entries, whose sums no driver sees in single precision.
_HALVED_HIGH = 100
#: A square of at most so many bytes is kept from leaf to leaf: memory touched for the first time is slow.
_KEPT_BYTES = 2**25


def squares_of(value: float, dtype: np.dtype[Any], *, halved: bool = False) -> Squares:
    """A sum of squares with the range in which products in a dtype are safe beside it."""
    low, high = _SAFE_EXPONENTS[np.finfo(dtype).bits]
    return Squares(max(value, 0.0), low, _HALVED_HIGH if halved else high)


def start_means(n: int, dtype: np.dtype[Any]) -> State:
    """The part of a state that counts rows, holds their mean, and meets it on a probe: of no rows."""
    wide = accumulator_dtype(dtype)
    return {
        "count": np.zeros(1),
        "mean": np.zeros(n, wide),
        "mean_low": np.zeros(n, wide),
        "rest": np.zeros(n, wide),
        "met": np.zeros(2, wide),
    }


def shift_rows(state: State, A: Any) -> Array | None:
    """Count a block's rows in; returns what to subtract from them, the same for all of a leaf.

    Parameters
    ----------
    state : State
    A : (b, n)

    Returns
    -------
    (n,) or None
        A row near the mean, and equal to it in columns that are constant; None where that is near zero already.
    """
    if isinstance(A, SparseRows):
        if state["count"][0] == 0:
            state["mean"] = A.part(0, _SHIFT_ROWS).typical_row().astype(state["mean"].dtype)
        state["count"] += len(A)
        return state["mean"]
    if state["count"][0] == 0:
        first = A[:_SHIFT_ROWS]
        mean = first.mean(axis=0, dtype=state["mean"].dtype)
        rest = np.subtract(first, mean, out=workspace("shift", first.shape, mean.dtype))
        if _has_means(mean, np.einsum("ij,ij->j", rest, rest.conj()).real / len(first), len(first)):
            # Of equal numbers the mean may be rounded; what is subtracted must leave zeros.
            shift = np.where((first == first[0]).all(axis=0), first[0], mean.astype(A.dtype))
            state["mean"] = shift.astype(state["mean"].dtype)
    state["count"] += len(A)
    return state["mean"].astype(A.dtype) if state["mean"].any() else None


def _has_means(mean: Array, variance: Array, n_rows: int) -> bool:
    """Whether means are more than what n_rows of a matrix without any would show by chance."""
    squares, n = np.abs(mean) ** 2, len(mean)
    varies = variance > 0
    if squares[~varies].any():
        return True
    by_chance = (n + 4 * math.sqrt(2 * n)) / n_rows
    return bool((squares[varies] / variance[varies]).sum() > _HARMLESS_SQUARES + by_chance)


def settle_means(state: State) -> tuple[float, Array]:
    """Turn the shift and the sum of what it left into the mean; returns the count, and the mean of what was left."""
    count = float(state["count"][0])
    low = state.pop("rest") / count
    mean = state["mean"] + low
    # In two parts, so that the difference of two means keeps its digits beside a large offset.
    state["mean_low"] = low - (mean - state["mean"])
    state["mean"] = mean
    return count, low


@dataclass(frozen=True)
class NormalProduct(Fold):
    """``Z = A^H (A W)`` in one read of A, and on request Y = A W, its Gram matrix and ``||A||_F^2``.

    Parameters
    ----------
    W : (n, w), of A's dtype, or half its precision
    center : bool
        Subtract the column means, found on the way (states then hold ``count`` and ``mean``).
    squares : bool
        Sum ``||A||_F^2`` (of the centred matrix).
    keep_Y : bool
        Hand Y to the first output of the pass, and sum its Gram matrix ``Y^H Y``.
    halved : bool
        Whether W, and so the products, are in half the precision of A.
    probe : (n,), optional
        Of A's dtype: with ``center``, what the mean is met on.
    """

    W: Array
    center: bool = False
    squares: bool = False
    keep_Y: bool = False
    halved: bool = False
    probe: Array | None = None

    takes_sparse = True

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

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        shift = shift_rows(state, A) if self.center else None
        if isinstance(A, SparseRows):
            state["ZH"] = np.asfortranarray(state["ZH"])  # the order in which their products are made
        moments = Moments(state.get("rest"), 0.0 if self.squares else None, probe=self.probe)
        Y = add_normal_product(A, self.W, state["ZH"], mean=shift, moments=moments, halved=self.halved)
        if self.center:
            state["met"] += (moments.met, moments.met_low)
        if self.squares:
            state["squares"] += moments.squares
        if self.keep_Y:
            Y_wide = Y.astype(state["gram"].dtype, copy=False)
            state["gram"] += Y_wide.conj().T @ Y_wide
        return (Y,) if self.keep_Y else ()

    def finish(self, state: State) -> State:
        if not state["ZH"].flags.c_contiguous:
            state["ZH"] = turned(state["ZH"].T)
        if self.center:
            count, low = settle_means(state)
            add_outer(low @ self.W, low, state["ZH"], alpha=-count)
            if self.squares:
                state["squares"] -= count * np.vdot(low, low).real
        return state

    def squares_in(self, state: State) -> Squares | None:
        return squares_of(float(state["squares"][0]), self.W.dtype, halved=self.halved) if self.squares else None

    def merge(self, left: State, right: State) -> State:
        if self.center:
            delta, weight = combine_means(left, right)
            # A_c^H A_c of the union = sum of both + weight conj(delta)' delta (delta a row), so Z gains this times W.
            add_outer(delta @ self.W, delta, left["ZH"], alpha=weight)
            if self.squares:
                left["squares"] += weight * np.vdot(delta, delta).real
        for name in left.keys() - {"count", "mean", "mean_low"}:
            left[name] += right[name]
        return left


@dataclass(frozen=True)
class Gram(Fold):
    """``G = A^H A``, centred on request: the covariance matrix times (m - 1).

    Partial results hold the upper triangle alone, half as much to keep, to move and to add; `matrix` is G itself.

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

    takes_sparse = True

    @property
    def flops_per_row(self) -> float:
        return float(self.n) * self.n + (4.0 * self.n if self.probe is not None else 0.0)

    def start(self) -> State:
        wide = accumulator_dtype(self.dtype)
        state: State = {"gram": _square(self.n, wide)}
        if self.probe is not None:
            state["probed"] = np.zeros(self.n, wide)
        if self.center:
            state |= start_means(self.n, self.dtype)
        return state

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        shift = shift_rows(state, A) if self.center else None
        moments = Moments(state.get("rest"), probe=self.probe, probed=state.get("probed"))
        add_gram(A, state["gram"], mean=shift, moments=moments)
        if self.center:
            state["met"] += (moments.met, moments.met_low)
        return ()

    def finish(self, state: State) -> State:
        state["gram"] = pack_upper(state["gram"])
        if self.center:
            count, low = settle_means(state)
            add_outer_packed(low, state["gram"], alpha=-count)
            if self.probe is not None:
                state["probed"] -= count * (low @ self.probe).conj() * low
        return state

    def squares_in(self, state: State) -> Squares | None:
        # Nothing in a positive semidefinite matrix exceeds its diagonal: this is the largest column's.
        return squares_of(float(np.abs(state["gram"]).max(initial=0.0)), self.dtype)

    def merge(self, left: State, right: State) -> State:
        if self.center:
            delta, weight = combine_means(left, right)
            add_outer_packed(delta, left["gram"], alpha=weight)
            if self.probe is not None:
                left["probed"] += weight * (delta @ self.probe).conj() * delta
        for name in left.keys() - {"count", "mean", "mean_low"}:
            left[name] += right[name]
        return left

    def matrix(self, state: State) -> Array:
        """G (n, n) of the result of a pass."""
        return mirror_upper(unpack_upper(state["gram"], self.n))


def _square(n: int, dtype: np.dtype[Any]) -> Array:
    """Zeros (n, n); where they are not many, in memory of this thread, which each leaf uses until it is finished."""
    if n * n * dtype.itemsize > _KEPT_BYTES:
        return np.zeros((n, n), dtype)
    G = workspace("square", (n, n), dtype)
    G.fill(0)
    return G


def sweep_gram(passes: Passes, A: Matrix, grid: RowGrid) -> Array:
    """``A^H A`` (n, n), by a pass of the name gram."""
    fold = Gram(A.shape[1], A.dtype)
    return fold.matrix(passes.sweep("gram", A, fold, grid))


def add_outer(x: Array, y: Array, C: Array, *, alpha: float) -> None:
    """``C <- C + alpha conj(x)' y`` for rows x and y, without a temporary array of the size of C."""
    multiply_add(x.astype(C.dtype).conj()[:, None], y.astype(C.dtype)[None, :], C, alpha=alpha)


def combine_means(left: State, right: State) -> tuple[Array, float]:
    """Put the mean of the union into ``left``; return the difference of the means and the weight of its square.

    Notes
    -----
    The means are sums of two numbers, so that their difference keeps its digits beside a large offset.
    """
    n_left, n_right = float(left["count"][0]), float(right["count"][0])
    delta = (right["mean"] - left["mean"]) + (right["mean_low"] - left["mean_low"])
    step = left["mean_low"] + delta * (n_right / (n_left + n_right))
    mean = left["mean"] + step
    left["mean_low"] = step - (mean - left["mean"])
    left["mean"] = mean
    left["count"] = left["count"] + right["count"]
    return delta, n_left * n_right / (n_left + n_right)
