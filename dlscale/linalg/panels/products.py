"""Products with stored factors for certificates: T X for the upper or lower part of a matrix.

Each is a pass over the rows of the factor's transpose, or goes tile by tile where no worker can hold a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Fold, Passes, State
from dlscale.engine.plan import Plan
from dlscale.engine.tiles.grid import Ways
from dlscale.engine.tiles.methods import largest_modulus
from dlscale.engine.tiles.products import Part, Product, tile_product
from dlscale.kernels import safe_norm
from dlscale.linalg.svd.subspace import gaussian
from dlscale.storage.matrix import Matrix

#: Random vectors of a certificate.
N_PROBES = 4


@dataclass(frozen=True)
class TriangularProduct(Fold):
    """``Y = T X`` for the upper (with the diagonal) or lower part of a matrix (m, n) that is read by columns.

    Of the columns beyond the m-th, on which no panel stands, it finds the largest modulus.

    Parameters
    ----------
    X : (n, k)
    n_rows : int
        m.
    lower : bool
    unit : bool
        Whether the diagonal counts as ones.
    adjoint : bool
        ``Y = T^H X`` instead, with X (m, k).
    """

    X: Array
    n_rows: int
    lower: bool
    unit: bool = False
    adjoint: bool = False
    n_columns: int = 0

    @property
    def flops_per_row(self) -> float:
        return float(self.n_rows * self.X.shape[1])

    def start(self) -> State:
        rows = self.n_columns if self.adjoint else self.n_rows
        return {"product": np.zeros((rows, self.X.shape[1]), self.X.dtype), "largest": np.zeros(1)}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        # The rows of A are columns of the matrix; the diagonal cuts a square of this size.
        first, size = first_row, max(0, min(len(A), self.n_rows - first_row))
        stop, columns, diagonal = first + size, slice(first, first + len(A)), slice(first, first + size)
        square = A[:size, diagonal].T
        square = np.tril(square, -1 if self.unit else 0) if self.lower else np.triu(square, 1 if self.unit else 0)
        if self.unit:
            square = square + np.eye(size, dtype=A.dtype)
        rest = slice(stop, self.n_rows) if self.lower else slice(0, min(first, self.n_rows))
        Y, X = state["product"], self.X
        if self.adjoint:
            Y[columns] += A[:, rest].conj() @ X[rest]
            Y[diagonal] += square.conj().T @ X[diagonal]
            return ()
        X = X[columns]
        inside = A[:size] if self.lower else A
        Y[rest] += inside[:, rest].T @ X[: len(inside)]
        Y[diagonal] += square @ X[:size]
        if not self.lower and size < len(A):
            Y[diagonal] += A[size:, diagonal].T @ X[size:]
            np.maximum(state["largest"], largest_modulus(A[size:]), out=state["largest"])
        return ()

    def merge(self, left: State, right: State) -> State:
        return {"product": left["product"] + right["product"], "largest": np.maximum(left["largest"], right["largest"])}


def triangular_product(passes: Passes, step: str, factor: Matrix, grid: RowGrid, fold: TriangularProduct) -> Array:
    """Run a `TriangularProduct` over a stored factor (m, n)."""
    return passes.sweep(step, factor.T, fold, grid)["product"]


def _by_columns(passes: Passes, step: str, T: Matrix, plan: Plan, X: Array, part: Part) -> Product:
    """By a pass, where a worker can hold a column; the largest modulus is that of the columns on which no panel stands."""
    (m, n), lower = T.shape, part.name == "lower"
    fold = TriangularProduct(X, m, lower=lower, unit=part.unit, adjoint=part.adjoint, n_columns=n)
    found = passes.sweep(step, T.T, fold, plan.columns)
    return Product(found["product"], float(found["largest"][0]))


def _by_tiles(passes: Passes, step: str, T: Matrix, plan: Plan, X: Array, part: Part) -> Product:
    return tile_product(passes.run, step, T, plan.panels, X, part=part)


_PRODUCTS = Ways(_by_columns, _by_tiles)


def part_product(passes: Passes, step: str, T: Matrix, plan: Plan, X: Array, *, part: Part) -> Product:
    """``T X``, or ``T^H X``, for the upper or lower part of a stored factor (m, n), as its panels are cut (`tile_product`)."""
    return _PRODUCTS.of(plan.panels)(passes, step, T, plan, X, part)


def probes(n: int, dtype: np.dtype[Any]) -> Array:
    """The random vectors of a certificate, in the precision of the matrix."""
    return np.ascontiguousarray(gaussian(n, N_PROBES, 0, dtype).astype(dtype))


def scaled_residual(residual: Array, product: Array, n: int, dtype: np.dtype[Any]) -> float:
    """``||R|| / (||A X|| n eps)`` for a residual on the same random vectors X; 0 where it is zero."""
    if not residual.any():
        return 0.0
    size = safe_norm(product)
    return float(safe_norm(residual) / size / (n * float(np.finfo(dtype).eps))) if 0 < size < np.inf else float("inf")
