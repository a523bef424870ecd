"""What iterations on a least squares problem measure of a stored matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.passes import Fold, State
from dlscale.engine.passes.fold import Squares
from dlscale.kernels import accumulator_dtype, safe_norm, tiles
from dlscale.linalg.folds.products import squares_of
from dlscale.linalg.iterative.recurrence import Map, Problem
from dlscale.linalg.iterative.stored import Stored, by_parts, rounding_of
from dlscale.linalg.operators import MatrixOperator
from dlscale.sparse_rows import SparseRows


@dataclass(frozen=True)
class Gradient(Fold):
    """``A^H R`` with ``R = B - A X``, and the squares of R and, on request, of the columns of A.

    Parameters
    ----------
    X : (n, k), double precision
    B : (m, k), double precision
    squares : bool
    """

    X: Array
    B: Array
    squares: bool = True

    takes_sparse = True

    @property
    def flops_per_row(self) -> float:
        return 4.0 * self.X.size

    def start(self) -> State:
        n, k = self.X.shape
        state = {"gradient": np.zeros((n, k), self.X.dtype), "residuals": np.zeros(k)}
        return state | ({"squares": np.zeros(n)} if self.squares else {})

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        if isinstance(A, SparseRows):
            R = self.B[first_row : first_row + len(A)] - A.times(self.X)
            state["gradient"] += A.adjoint_times(R).conj().T
            state["residuals"] += (np.abs(R) ** 2).sum(axis=0)
            if self.squares:
                state["squares"] += A.column_squares()
            return ()
        for i, tile in tiles(A):
            tile = tile.astype(accumulator_dtype(tile.dtype), copy=False)
            R = self.B[first_row + i : first_row + i + len(tile)] - tile @ self.X
            state["gradient"] += tile.conj().T @ R
            state["residuals"] += (np.abs(R) ** 2).sum(axis=0)
            if self.squares:
                state["squares"] += np.einsum("ij,ij->j", tile, tile.conj()).real
        return ()

    def squares_in(self, state: State) -> Squares | None:
        return squares_of(float(state["squares"].sum()), self.X.dtype) if self.squares else None


class StoredLeastSquares(Stored, Problem):
    """A least squares problem with a stored matrix.

    What is held against the tolerance is ``||A^H r|| / (||A|| ||r||)``, or ``||r|| / ||b||`` where that is less.

    Parameters
    ----------
    operator : MatrixOperator (m, n)
    rhs : (m, k), double precision
    handed_out : callable
        From solutions to what is left of them when they are handed out.
    start : (n, k), optional
        What X is begun with; zeros by default.
    """

    def __init__(self, operator: MatrixOperator, rhs: Array, handed_out: Map, start: Array | None = None) -> None:
        (_, n), k = operator.shape, rhs.shape[1]
        self.rhs, self.lengths, self.n_measured = rhs, safe_norm(rhs, axis=0), 0
        Stored.__init__(self, operator, 4.0 * operator.shape[0] * n * k, handed_out)
        self.start, self.hidden = np.zeros((n, k), rhs.dtype) if start is None else handed_out(start), np.zeros(k)
        gradient = self.residual(self.start)
        Problem.__init__(self, self._product, gradient)
        self.sizes = (self.sizes > 0).astype(float)

    def first(self) -> tuple[Array, Array]:
        return self.start, self.B

    def _product(self, X: Array) -> Array:
        return by_parts(self.operator.normal, X, self.operator.dtype)

    def residual(self, X: Array) -> Array:
        """``A^H (b - A x)``."""
        self.n_measured += 1
        first = self.n_measured == 1
        state = self.operator.read(Gradient(np.ascontiguousarray(X), self.rhs, first), f"gradient-{self.n_measured}")
        self.residuals = np.sqrt(state["residuals"])
        if first:
            self.squares = state["squares"]
            self.norm = float(np.sqrt(self.squares.sum()))
        return np.asarray(state["gradient"])

    def relative(self, S: Array, residuals: Array, columns: Array) -> Array:
        """Of columns with the gradient S what is held against the tolerance."""
        slopes, lengths, reach = safe_norm(S, axis=0), self.lengths[columns], self.norm * residuals
        return np.asarray(np.fmin(slopes / np.where(reach > 0, reach, np.inf), residuals / np.where(lengths > 0, lengths, 1)))

    def reached(self, R: Array, X: Array) -> tuple[Array, Array]:
        # Rounding errors of A x are part of the residual, and as large a part of the gradient as of the residual.
        rounding, lengths = rounding_of(self.operator.A, self.squares, X), np.where(self.lengths > 0, self.lengths, 1)
        found = self.relative(R, self.residuals, np.arange(X.shape[1]))
        by_length, of_length = self.residuals / lengths, rounding / lengths
        of_slope = rounding / np.where(self.residuals > 0, self.residuals, np.inf)
        shorter = (found >= by_length) | (by_length + of_length <= found + of_slope)
        self.hidden = np.where(shorter, of_length, of_slope) * self.sizes
        return np.where(shorter, by_length, found) * self.sizes, self.hidden
