"""What ridge regression does with a block of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.passes import Fold, State
from dlscale.engine.passes.row_results import RowsFold, add_rows
from dlscale.errors import NonFiniteError
from dlscale.kernels import accumulator_dtype, tile_rows, tiles
from dlscale.linalg.folds.centering import row_means
from dlscale.linalg.folds.least_squares import finite
from dlscale.linalg.folds.triangles import below, triangle
from dlscale.storage.matrix import Matrix, View

#: Rows that leave less than this of 1 beside their leverage would lose more digits in a difference than a fit may.
_DECISIVE = 1e-4


@dataclass(frozen=True)
class FoldTriangles(Fold):
    """Triangles of ``[1 A B]``, one for each fold of neighbouring rows, of a pass over A and B.

    Each leaf subtracts one of its rows, and triangles of two leaves are merged by the difference of theirs, so that no digits are
    lost to a large offset: ``[1 A - s] = [1 A - t] [1 t - s; 0 I]``.

    Parameters
    ----------
    n, k : int
        Columns of A, and of B.
    dtype : numpy.dtype
        Of both together.
    bounds : tuple of int
        First row of each fold, and the number of rows.
    intercept : bool
        Whether there is a column of ones, and something is subtracted.
    first_column : int
        Of B among all right-hand sides.
    without : (d,), optional
        Rows that no fold has.

    Notes
    -----
    State: ``shift`` (w,), what is subtracted, and ``fold-i``, the triangles of the folds that were met.
    """

    n: int
    k: int
    dtype: np.dtype[Any]
    bounds: tuple[int, ...]
    intercept: bool
    first_column: int = 0
    without: Array | None = None

    @property
    def width(self) -> int:
        return int(self.intercept) + self.n + self.k

    @property
    def flops_per_row(self) -> float:
        return 2.0 * self.width**2

    def start(self) -> State:
        return {"shift": np.zeros(0, accumulator_dtype(self.dtype))}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        A, B = A[0], finite(A[1], first_row, self.first_column)
        rows = np.empty((len(A), self.width), state["shift"].dtype)
        first = int(self.intercept)
        rows[:, :first] = 1
        rows[:, first : first + self.n] = A
        rows[:, first + self.n :] = B
        numbers = np.arange(first_row, first_row + len(rows))
        keeps = np.isin(numbers, [] if self.without is None else self.without, invert=True)
        if len(state["shift"]) == 0:
            shift = _typical(rows[keeps] if keeps.any() else rows)
            state["shift"] = np.where(np.arange(self.width) < first, 0, shift) if first else np.zeros_like(shift)
        rows -= state["shift"]
        for i, (start, stop) in enumerate(pairwise(self.bounds)):
            mine = slice(max(start - first_row, 0), max(stop - first_row, 0))
            some = rows[mine][keeps[mine]]
            if len(some):
                _add(state, _name(i), some)
        return ()

    def merge(self, left: State, right: State) -> State:
        move = right["shift"] - left["shift"]
        for name, rows in right.items():
            if name != "shift":
                _add(left, name, rows + rows[:, :1] * move if self.intercept else rows)
        return left

    def pieces(self, state: State) -> list[Array]:
        """The triangles, in the order of the folds."""
        return [state.get(_name(i), np.zeros((0, self.width))) for i in range(len(self.bounds) - 1)]


def _typical(rows: Array) -> Array:
    """A row that is none of the largest: beside these, the others would have fewer digits."""
    return np.asarray(rows[np.argsort(np.abs(rows).max(axis=1))[len(rows) // 2]])


def _name(fold: int) -> str:
    return f"fold-{fold}"


def _add(state: State, name: str, rows: Array) -> None:
    state[name] = below(state[name], rows) if name in state else triangle(rows)


@dataclass(frozen=True)
class LeaveOneOut(RowsFold):
    """What each row's own value differs from what the others say of it, ``e / (1 - h)``, for every penalty; over A and B.

    Parameters
    ----------
    V : (n, p)
        Right singular vectors of the centred A.
    inverses : (q, p)
        ``(s^2 + a)^-1``: leverages are ``h = |a V|^2 (s^2 + a)^-1``.
    fits : (p, q, k)
        The coefficients in the basis V.
    shift : (n,)
        Column means of A, or zeros.
    means : (k,)
        Of B, or zeros.
    share : float
        The leverage of the intercept, 1 / m or 0.

    Notes
    -----
    State: ``squares`` (q, k), of all rows but those whose leverage is near 1; of these ``decisive``, their numbers and
    ``[A B]``.
    """

    V: Array
    inverses: Array
    fits: Array
    shift: Array
    means: Array
    share: float

    rows_name = "decisive"

    @property
    def flops_per_row(self) -> float:
        return 2.0 * self.V.size + 2.0 * self.inverses.size + 2.0 * self.fits.size

    def start(self) -> State:
        width = 1 + len(self.V) + self.fits.shape[2]
        return {
            "squares": np.zeros(self.fits.shape[1:]),
            self.rows_name: np.zeros((0, width), np.result_type(self.V, self.fits)),
        }

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        A, B = A[0], finite(A[1], first_row)
        p, q, k = self.fits.shape
        for i, tile in tiles(A, rows=tile_rows(max(A.shape[1], q * k), 8)):
            Z = (tile - self.shift) @ self.V
            E = (Z @ self.fits.reshape(p, q * k)).reshape(len(Z), q, k)
            values = B[i : i + len(tile)]
            np.subtract((values - self.means)[:, None, :], E, out=E)
            left = 1 - self.share - (np.abs(Z) ** 2) @ self.inverses.T
            decisive = left.min(axis=1) <= _DECISIVE
            if decisive.any():
                numbers = first_row + i + np.flatnonzero(decisive)
                add_rows(state, np.hstack([numbers[:, None], tile[decisive], values[decisive]]))
                left[decisive] = np.inf
            state["squares"] += ((np.abs(E) / left[:, :, None]) ** 2).sum(axis=0)
        return ()


@dataclass(frozen=True)
class NormalEquations(Fold):
    """``(A - s)^H R`` with ``R = (B - t) - (A - s) W``, and sums of R and of squares, of a pass over A and B.

    Parameters
    ----------
    W : (n, k)
    shift : (n,)
        s.
    means : (k,)
        t.
    dtype : numpy.dtype
        Of A, B and W together.
    """

    W: Array
    shift: Array
    means: Array
    dtype: np.dtype[Any]

    @property
    def flops_per_row(self) -> float:
        return 4.0 * self.W.size

    def start(self) -> State:
        k, wide = self.W.shape[1], accumulator_dtype(self.dtype)
        return {
            "gradient": np.zeros(self.W.shape, wide),
            "sums": np.zeros(k, wide),
            "residuals": np.zeros(k),
            "matrix": np.zeros(1),
            "rhs": np.zeros(k),
        }

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        A, B = A[0], finite(A[1], first_row)
        for i, tile in tiles(A):
            rows, values = tile - self.shift, B[i : i + len(tile)] - self.means
            R = values - rows @ self.W
            state["gradient"] += rows.conj().T @ R
            state["sums"] += R.sum(axis=0)
            state["residuals"] += (np.abs(R) ** 2).sum(axis=0)
            state["matrix"] += np.linalg.norm(rows) ** 2
            state["rhs"] += (np.abs(values) ** 2).sum(axis=0)
        return ()


@dataclass(frozen=True)
class WideProduct(Fold):
    """Of a wide A (m, n) that is read by columns, with W: ``C W``, ``mean' W``, ``|mean'| |W|`` and ``||C||_F^2``; C = A - 1 mean'.

    Parameters
    ----------
    m : int
    k : int
    dtype : numpy.dtype
    centred : bool
        Without, the mean counts as zero.
    """

    m: int
    k: int
    dtype: np.dtype[Any]
    centred: bool

    @property
    def flops_per_row(self) -> float:
        return 2.0 * self.m * self.k

    def start(self) -> State:
        wide = accumulator_dtype(self.dtype)
        return {
            "product": np.zeros((self.m, self.k), wide),
            "means": np.zeros(self.k, wide),
            "reach": np.zeros(self.k),
            "matrix": np.zeros(1),
        }

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        T, W = A
        T = T.astype(accumulator_dtype(T.dtype), copy=False)
        if self.centred:
            mean = row_means(T)
            state["means"] += mean @ W
            state["reach"] += np.abs(mean) @ np.abs(W)
            T = T - mean[:, None]
        state["product"] += T.T @ W
        state["matrix"] += np.linalg.norm(T) ** 2
        return ()


@dataclass(frozen=True)
class WideNormalEquations(Fold):
    """Of a wide A (m, n) that is read by columns, with W: the squares of ``(A - 1 mean')^H R - W a``, column by column.

    Parameters
    ----------
    R : (m, k)
    penalty : float
        a.
    centred : bool
    """

    R: Array
    penalty: float
    centred: bool

    @property
    def flops_per_row(self) -> float:
        return 2.0 * self.R.size

    def start(self) -> State:
        return {"gradient": np.zeros(self.R.shape[1])}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        T, W = A
        T = T.astype(accumulator_dtype(T.dtype), copy=False)
        if self.centred:
            T = T - row_means(T)[:, None]
        state["gradient"] += (np.abs(T.conj() @ self.R - self.penalty * W) ** 2).sum(axis=0)
        return ()


class Contrasts(View):
    """The rows of a matrix, each less its mean, in an orthonormal basis of what is orthogonal to constants: one column fewer.

    Notes
    -----
    The basis is the Householder reflector that maps constants to the first coordinate, without that one.
    """

    def __init__(self, base: Matrix) -> None:
        super().__init__(base)
        self.shape = (base.shape[0], base.shape[1] - 1)

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        block = self.base.region(rows, (0, self.base.shape[1]))
        found = to_contrasts(block.T).T
        # Every entry is in all contrasts of its row: where it spoils them, they do not tell which it was.
        if not np.isfinite(found[:, 0]).all() and len(bad := np.argwhere(~np.isfinite(block))):
            i, j = (int(index) for index in bad[0])
            raise NonFiniteError(*self.base.place(rows[0] + i, j), block[i, j].item())
        found = found[:, slice(*columns)]
        if out is None:
            return np.ascontiguousarray(found, self.dtype)
        out[...] = found
        return out


def to_contrasts(B: Array) -> Array:
    """The columns of B (m, k), less their means, in that basis: (m - 1, k), as long as they were."""
    root = np.sqrt(len(B))
    # What overflows is infinite or NaN, and seen by whoever sums it.
    with np.errstate(over="ignore", invalid="ignore"):
        # Differences first: they keep the digits beside a large offset.
        less = B[1:] - B[0]
        return np.asarray(less - less.sum(axis=0) / (len(B) + root))


def from_contrasts(C: Array) -> Array:
    """(m, k) of the columns of C (m - 1, k), in that basis."""
    root = np.sqrt(len(C) + 1)
    sums = C.sum(axis=0) / root
    return np.concatenate([-sums[None, :], C - sums / (root + 1)])
