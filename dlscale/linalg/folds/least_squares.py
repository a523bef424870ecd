"""What least squares problems do with a block of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.passes import Fold, State
from dlscale.engine.passes.row_results import RowsFold, add_rows
from dlscale.errors import NonFiniteError
from dlscale.kernels import accumulator_dtype, times_power_of_two
from dlscale.linalg.folds.operators import ProductAcross
from dlscale.linalg.folds.orthogonal import Basis
from dlscale.linalg.folds.triangles import below
from dlscale.storage.matrix import Matrix, View


def read_rhs(B: Matrix, start: int, stop: int, *, role: str = "rhs") -> Array:
    """Rows of the right-hand sides, all of them finite (NonFiniteError)."""
    return finite(B.read(start, stop), start, role=role)


def finite(B: Array, first_row: int, first_column: int = 0, *, role: str = "rhs") -> Array:
    """A block of the right-hand sides, or of an input of another role, whose entries are all finite (NonFiniteError)."""
    if not np.isfinite(B).all():
        i, j = (int(index) for index in np.argwhere(~np.isfinite(B))[0])
        raise NonFiniteError(first_row + i, first_column + j, B[i, j].item(), f"input.{role}")
    return B


@dataclass(frozen=True)
class AugmentedQR(Fold):
    """The triangle of ``[A B]``, of a pass over both: R of A, and Q^H B beside it; TSQR (Demmel et al. 2012).

    Parameters
    ----------
    n, k : int
        Columns of A, and of B.
    dtype : numpy.dtype
        Of both together.
    first_column : int
        Of B among all right-hand sides.
    """

    n: int
    k: int
    dtype: np.dtype[Any]
    first_column: int = 0

    @property
    def width(self) -> int:
        return self.n + self.k

    @property
    def flops_per_row(self) -> float:
        return 2.0 * self.width**2

    def start(self) -> State:
        return {"triangle": np.zeros((0, self.width), accumulator_dtype(self.dtype))}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        A, B = A[0], finite(A[1], first_row, self.first_column)
        rows = np.empty((len(A), self.width), state["triangle"].dtype)
        rows[:, : self.n] = A
        rows[:, self.n :] = B
        state["triangle"] = below(state["triangle"], rows)
        return ()

    def merge(self, left: State, right: State) -> State:
        return {"triangle": below(left["triangle"], right["triangle"])}


@dataclass(frozen=True)
class Rotation(RowsFold):
    """The rows of ``Q Z``; Q is a basis of the matrix that is read, and ``basis`` the recipe of Q Z.

    Parameters
    ----------
    basis : Basis
    Z : (n, k)
    """

    basis: Basis
    Z: Array

    rows_name = "rows"

    @property
    def flops_per_row(self) -> float:
        return 2.0 * self.Z.size + float(len(self.Z)) ** 2

    def start(self) -> State:
        return {"rows": np.zeros((0, self.Z.shape[1]), self.Z.dtype)}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        for i, tile in self.basis.pieces(A):
            add_rows(state, np.array(self.basis.apply(tile, first_row + i)))
        return ()


@dataclass(frozen=True)
class NormalResidual(Fold):
    """``A^H R`` with ``R = B - A X``, and the squares of the entries of A, R and B, of a pass over A and B.

    Parameters
    ----------
    X : (n, k)
    rhs_dtype : numpy.dtype
        Of B (m, k).
    """

    X: Array
    rhs_dtype: np.dtype[Any]

    @property
    def flops_per_row(self) -> float:
        return 4.0 * self.X.size

    def start(self) -> State:
        dtype = np.result_type(self.X, self.rhs_dtype)
        return {
            "gradient": np.zeros(self.X.shape, dtype),
            "residuals": np.zeros(self.X.shape[1]),
            "matrix": np.zeros(1),
            "rhs": np.zeros(self.X.shape[1]),
        }

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        A, B = A[0].astype(accumulator_dtype(A[0].dtype), copy=False), finite(A[1], first_row)
        R = B - A @ self.X
        state["gradient"] += A.conj().T @ R
        state["residuals"] += (np.abs(R) ** 2).sum(axis=0)
        state["matrix"] += np.linalg.norm(A) ** 2
        state["rhs"] += (np.abs(B) ** 2).sum(axis=0)
        return ()


@dataclass(frozen=True)
class WideProduct(ProductAcross):
    """``A X`` for a wide A (m, n) that is read by columns, and the squares of its entries."""

    def start(self) -> State:
        return super().start() | {"matrix": np.zeros(1)}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        wide = A[0].astype(accumulator_dtype(A[0].dtype), copy=False)
        state["matrix"] += np.linalg.norm(wide) ** 2
        return super().update(state, [wide, A[1]], first_row)


@dataclass(frozen=True)
class WideGradient(Fold):
    """Of a wide A (m, n) that is read by columns: the squares of ``A^H R`` and of ``X - A^H Y``, column by column.

    X is a combination of the rows of A, and so of minimum norm, where the second is zero.
    """

    R: Array
    X: Array
    Y: Array

    @property
    def flops_per_row(self) -> float:
        return 4.0 * self.R.size

    def start(self) -> State:
        return {"gradient": np.zeros(self.R.shape[1]), "outside": np.zeros(self.R.shape[1])}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        adjoint = A.astype(accumulator_dtype(A.dtype), copy=False).conj()
        state["gradient"] += (np.abs(adjoint @ self.R) ** 2).sum(axis=0)
        state["outside"] += (np.abs(self.X[first_row : first_row + len(A)] - adjoint @ self.Y) ** 2).sum(axis=0)
        return ()


@dataclass(frozen=True)
class LargestOfColumns(Fold):
    """The largest modulus of a real or imaginary part in each of n columns."""

    n: int

    def start(self) -> State:
        return {"largest": np.zeros(self.n)}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        for part in (A.real, A.imag) if A.dtype.kind == "c" else (A,):
            np.maximum(state["largest"], np.abs(part).max(axis=0), out=state["largest"])
        return ()

    def merge(self, left: State, right: State) -> State:
        return {"largest": np.maximum(left["largest"], right["largest"])}


class ColumnsTimesPowers(View):
    """A matrix each of whose columns is multiplied by a power of two."""

    def __init__(self, base: Matrix, exponents: Sequence[int]) -> None:
        super().__init__(base)
        self.exponents, self.stored_dtype = tuple(exponents), base.dtype

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        block = np.array(self.base.region(rows, columns))
        for j, exponent in enumerate(self.exponents[slice(*columns)]):
            times_power_of_two(block[:, j], exponent, out=block[:, j])
        return block
