"""Factors that solve: P A = L U and A = L L^H, on disk or in memory, as LAPACK and the results of jobs hold them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.columns import SLAB_COLUMNS, Tell, untold
from dlscale.engine.grids import blocks
from dlscale.engine.passes.reading import read_regions
from dlscale.engine.run import Cost
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.methods import Factored, Transform
from dlscale.kernels import one_blas_thread, sharing, times_power_of_two
from dlscale.lapack import Op, interchanges
from dlscale.linalg.panels.reflectors import reflect
from dlscale.linalg.solve.substitution import Substitution, loaded
from dlscale.linalg.solve.triangular import How, solve_triangular
from dlscale.storage.matrix import Matrix, RowRange

#: Columns whose rows are exchanged at a time.
_MOVED_COLUMNS = 64


class Factorization(Protocol):
    """A square matrix that was factored."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def cost(self) -> Cost:
        """Of solving with one column; the bytes are those of any number of columns."""
        ...

    @property
    def stored_bytes(self) -> int: ...

    def inverse_cost(self, column: int) -> Cost:
        """Of a column of the inverse of the adjoint, or of this and some behind it, which leaves out what is zero."""
        ...

    def loaded(self, *, tell: Tell = untold) -> Factorization:
        """The same factors in memory, with which solves have the same bits."""
        ...

    def solve(self, B: Array, *, adjoint: bool = False, width: int = SLAB_COLUMNS, tell: Tell = untold) -> Array:
        """``A^-1 B``, or ``A^-H B``, for B (n, k), in the dtype of the factors; see `solve_triangular` for the width."""
        ...


class Rounding(Factorization, Protocol):
    """Factors with which solves are computed in another precision on request."""

    def loaded(self, *, tell: Tell = untold) -> Rounding: ...

    def computing_in(self, dtype: np.dtype[Any]) -> Rounding: ...


@dataclass(frozen=True)
class LUFactors:
    """``P A = L U``.

    Parameters
    ----------
    lu : Matrix (n, n)
        U on and above the diagonal, L below it without its unit diagonal.
    pivots : (n,)
        Row i was exchanged with row ``pivots[i]``, in this order.
    n_threads : int
        That a solve uses.
    precision : numpy.dtype, optional
        What a solve computes in; that of the factors if absent.
    """

    lu: Matrix
    pivots: Array
    n_threads: int = 1
    precision: np.dtype[Any] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.lu.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.precision or self.lu.dtype

    @property
    def cost(self) -> Cost:
        return triangles(Substitution.of(self.lu), alike=False)

    @property
    def stored_bytes(self) -> int:
        return self.lu.n_bytes

    def inverse_cost(self, column: int) -> Cost:
        return inverse_by_lu(Substitution.of(self.lu), column)

    def loaded(self, *, tell: Tell = untold) -> LUFactors:
        return replace(self, lu=loaded(self.lu, tell))

    def computing_in(self, dtype: np.dtype[Any]) -> LUFactors:
        return replace(self, precision=dtype)

    def solve(
        self, B: Array, *, adjoint: bool = False, width: int = SLAB_COLUMNS, tell: Tell = untold, overwrite: bool = False
    ) -> Array:
        """Two triangular solves and a permutation; B may become the adjoint solution on request."""
        targets, sources = interchanges(self.pivots)
        dtype = with_imaginary(self.dtype, B)
        solve = partial(solve_triangular, self.lu, how=How(dtype, self.n_threads, width, tell))
        if adjoint:
            X = solve(solve(B, lower=False, op="C", overwrite=overwrite), lower=True, op="C", unit=True, overwrite=True)
            for start, stop in blocks(0, X.shape[1], _MOVED_COLUMNS):
                X[sources, start:stop] = X[targets, start:stop]
            return X
        X = np.array(B, dtype)
        for start, stop in blocks(0, X.shape[1], _MOVED_COLUMNS):
            X[targets, start:stop] = X[sources, start:stop]
        return solve(solve(X, lower=True, unit=True, overwrite=True), lower=False, overwrite=True)


@dataclass(frozen=True)
class CholeskyFactors:
    """``A = L L^H``.

    Parameters
    ----------
    l : Matrix (n, n)
        Lower triangular.
    n_threads : int
        That a solve uses.
    precision : numpy.dtype, optional
        As for `LUFactors`.
    """

    l: Matrix  # noqa: E741
    n_threads: int = 1
    precision: np.dtype[Any] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.l.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.precision or self.l.dtype

    @property
    def cost(self) -> Cost:
        return triangles(Substitution.of(self.l), alike=True)

    @property
    def stored_bytes(self) -> int:
        return self.l.n_bytes

    def inverse_cost(self, column: int) -> Cost:
        return inverse_by_cholesky(Substitution.of(self.l), column)

    def loaded(self, *, tell: Tell = untold) -> CholeskyFactors:
        return replace(self, l=loaded(self.l, tell))

    def computing_in(self, dtype: np.dtype[Any]) -> CholeskyFactors:
        return replace(self, precision=dtype)

    def solve(self, B: Array, *, adjoint: bool = False, width: int = SLAB_COLUMNS, tell: Tell = untold) -> Array:
        """Two triangular solves; A is its own adjoint."""
        dtype = with_imaginary(self.dtype, B)
        solve = partial(solve_triangular, self.l, lower=True, how=How(dtype, self.n_threads, width, tell))
        return solve(solve(B), op="C", overwrite=True)


@dataclass(frozen=True)
class QRFactors:
    """``A = Q R`` with Q as the reflectors of its panels (`dlscale.linalg.qr.panels`).

    Parameters
    ----------
    factored : Factored (m, n), m >= n
    n_threads : int
        That a triangular solve uses.
    """

    factored: Factored
    n_threads: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        return self.factored.matrix.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.factored.matrix.dtype

    @property
    def cost(self) -> Cost:
        return self.rotation_cost + Substitution.of(self.triangle).cost(lower=False)

    @property
    def rotation_cost(self) -> Cost:
        """Of a product of Q with one column."""
        stored = self.factored.matrix
        return rotation(self.factored.grid, 1 if stored.any_range else stored.row_unit, stored.dtype.itemsize)

    @property
    def stored_bytes(self) -> int:
        return self.factored.matrix.n_bytes

    @property
    def triangle(self) -> Matrix:
        """R, with what is below it."""
        return RowRange(self.factored.matrix, 0, self.shape[1])

    def inverse_cost(self, column: int) -> Cost:
        return self.rotation_cost + Substitution.of(self.triangle).cost(lower=False, op="C", first=column)

    def loaded(self, *, tell: Tell = untold) -> QRFactors:
        return replace(self, factored=replace(self.factored, matrix=loaded(self.factored.matrix, tell)))

    def solve(self, B: Array, *, adjoint: bool = False, width: int = SLAB_COLUMNS, tell: Tell = untold) -> Array:
        """``R^-1 Q^H B``, or ``Q R^-H B``; of a tall matrix the least squares solution."""
        n = self.shape[1]
        dtype = with_imaginary(self.dtype, B)
        solve = partial(solve_triangular, self.triangle, lower=False, how=How(dtype, self.n_threads, width, tell))
        if not adjoint:
            return solve(self.rotated(B, width=width, tell=tell)[:n], overwrite=True)
        X = np.zeros((self.shape[0], B.shape[1]), dtype)
        X[:n] = solve(B, op="C")
        return self.unrotated(X, width=width, tell=tell)

    def rotated(self, B: Array, *, width: int = SLAB_COLUMNS, tell: Tell = untold) -> Array:
        """``Q^H B``, all m rows."""
        return self._product(B, width, tell, adjoint=True)

    def unrotated(self, B: Array, *, width: int = SLAB_COLUMNS, tell: Tell = untold) -> Array:
        """``Q B``."""
        return self._product(B, width, tell, adjoint=False)

    def _product(self, B: Array, width: int, tell: Tell, *, adjoint: bool) -> Array:
        # Complex right-hand sides of a real matrix go as their real and imaginary parts.
        parts = [B.real, B.imag] if B.dtype.kind == "c" and self.dtype.kind != "c" else [B]
        slabs = [[np.array(part[:, a:b], self.dtype, order="C") for a, b in blocks(0, B.shape[1], width)] for part in parts]
        self.rotate([C for part in slabs for C in part], adjoint=adjoint, tell=tell)
        whole = [np.hstack(part) if len(part) > 1 else part[0] for part in slabs]
        return whole[0] if len(whole) == 1 else whole[0] + 1j * whole[1]

    def rotate(self, slabs: Sequence[Array], *, adjoint: bool, tell: Tell = untold) -> None:
        """``C <- Q^H C``, or ``Q C``, for slabs C (m, k) of the dtype of Q whose rows are contiguous."""
        factored, k = self.factored, sum(C.shape[1] for C in slabs)
        op: Op = "C" if adjoint else "N"
        stored, (m, _) = factored.matrix, self.shape
        steps = range(factored.grid.n_steps)[:: 1 if adjoint else -1]
        tops = [factored.grid.columns(j)[0] for j in steps]
        # Whole chunks.
        firsts = [top if stored.any_range else top // stored.row_unit * stored.row_unit for top in tops]
        regions = [((first, m), factored.grid.columns(j)) for first, j in zip(firsts, steps, strict=True)]
        with one_blas_thread(), closing(read_regions(stored, regions, ahead=1)) as read, sharing(self.n_threads) as share:
            for j, top, first in zip(steps, tops, firsts, strict=True):
                block = next(read)
                transform = Transform(j, top, block[top - first :], factored.facts[j])
                share([partial(reflect, transform, C[top:], op=op) for C in slabs])
                rows, b = transform.panel.shape
                tell(float((4 * rows * b + b * b) * k), 0 if stored.in_memory else block.nbytes)


def rotation(grid: PanelGrid, row_unit: int, itemsize: int) -> Cost:
    """Of a product of Q with one column; the bytes of any number of columns, from panels stored in chunks of so many rows."""
    m, flops, n_read = grid.shape[0], 0.0, 0
    for j in range(grid.n_steps):
        top, b = grid.columns(j)[0], grid.width(j)
        flops += 4.0 * (m - top) * b + b * b
        n_read += (m - top // row_unit * row_unit) * b
    return Cost(flops, n_read * itemsize)


@dataclass(frozen=True)
class ScaledFactors:
    """Factors of ``scale A`` in lower precision, as approximate ones of A in double precision.

    Right-hand sides are divided by their largest entry before they are rounded, so that tiny residuals keep their digits.
    """

    factors: Rounding
    scale: float
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, int]:
        return self.factors.shape

    @property
    def cost(self) -> Cost:
        return self.factors.cost

    @property
    def stored_bytes(self) -> int:
        return self.factors.stored_bytes

    def inverse_cost(self, column: int) -> Cost:
        return self.factors.inverse_cost(column)

    def loaded(self, *, tell: Tell = untold) -> ScaledFactors:
        return replace(self, factors=self.factors.loaded(tell=tell))

    def widened(self) -> ScaledFactors:
        """The same factors, computed with in double precision."""
        return replace(self, factors=self.factors.computing_in(self.dtype))

    def solve(self, B: Array, *, adjoint: bool = False, width: int = SLAB_COLUMNS, tell: Tell = untold) -> Array:
        """Solve in the precision of the factors."""
        sizes = np.abs(B).max(axis=0, initial=0)
        sizes = np.where(sizes > 0, sizes, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            X = self.factors.solve(B / sizes, adjoint=adjoint, width=width, tell=tell)
            return np.asarray(X.astype(with_imaginary(self.dtype, X)) * (self.scale * sizes))


@dataclass(frozen=True)
class TimesPower:
    """Factors of ``2^-exponent A``, as those of A."""

    factors: Factorization
    exponent: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.factors.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.factors.dtype

    @property
    def cost(self) -> Cost:
        return self.factors.cost

    @property
    def stored_bytes(self) -> int:
        return self.factors.stored_bytes

    def inverse_cost(self, column: int) -> Cost:
        return self.factors.inverse_cost(column)

    def loaded(self, *, tell: Tell = untold) -> TimesPower:
        return replace(self, factors=self.factors.loaded(tell=tell))

    def solve(self, B: Array, *, adjoint: bool = False, width: int = SLAB_COLUMNS, tell: Tell = untold) -> Array:
        return times_power_of_two(self.factors.solve(B, adjoint=adjoint, width=width, tell=tell), -self.exponent)


def triangles(way: Substitution, *, alike: bool) -> Cost:
    """Of solving with two triangles of a matrix, the upper one after the lower one or the lower one twice."""
    return way.cost(lower=True) + way.cost(lower=alike, op="C" if alike else "N")


def triangles_of_symmetric(way: Substitution) -> Cost:
    """Of solving with the adjoint of the upper triangle and then with itself."""
    return way.cost(lower=False, op="C") + way.cost(lower=False)


def inverse_by_lu(way: Substitution, column: int) -> Cost:
    """See `Factorization.inverse_cost`."""
    return way.cost(lower=False, op="C", first=column) + way.cost(lower=True, op="C")


def inverse_by_cholesky(way: Substitution, column: int) -> Cost:
    """See `Factorization.inverse_cost`."""
    return way.cost(lower=True, first=column) + way.cost(lower=True, op="C")


def with_imaginary(dtype: np.dtype[Any], B: Array) -> np.dtype[Any]:
    """A dtype, or its complex counterpart where the right-hand sides are complex."""
    return np.dtype(dtype.char.upper()) if B.dtype.kind == "c" and dtype.kind == "f" else dtype
