"""Factors that solve: P A = L U and A = L L^H, on disk or in memory, as LAPACK and the results of jobs hold them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.columns import Tell, untold
from dlscale.engine.run import Cost
from dlscale.engine.tiles.methods import Factored
from dlscale.errors import InputError, NumericalError
from dlscale.kernels import one_blas_thread, times_power_of_two
from dlscale.lapack import Op, interchanges
from dlscale.linalg.panels.reflectors import reflect
from dlscale.linalg.solve.triangular import solve_triangular
from dlscale.storage.inputs import StoredResult
from dlscale.storage.matrix import Matrix, RowRange


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

    def solve(self, B: Array, *, adjoint: bool = False, tell: Tell = untold) -> Array:
        """``A^-1 B``, or ``A^-H B``, for B (n, k); in the dtype of the factors."""
        ...


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
        return _cost_of_triangles(self.lu)

    def computing_in(self, dtype: np.dtype[Any]) -> LUFactors:
        return replace(self, precision=dtype)

    def solve(self, B: Array, *, adjoint: bool = False, tell: Tell = untold) -> Array:
        """Two triangular solves and a permutation."""
        targets, sources = interchanges(self.pivots, self.shape[0])
        dtype = _with_imaginary(self.dtype, B)
        solve = partial(solve_triangular, self.lu, dtype=dtype, n_threads=self.n_threads, tell=tell)
        if adjoint:
            X = solve(solve(B, lower=False, op="C"), lower=True, op="C", unit=True)
            X[sources] = X[targets]
            return X
        X = np.array(B, dtype)
        X[targets] = X[sources]
        return solve(solve(X, lower=True, unit=True), lower=False)


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
        return _cost_of_triangles(self.l)

    def computing_in(self, dtype: np.dtype[Any]) -> CholeskyFactors:
        return replace(self, precision=dtype)

    def solve(self, B: Array, *, adjoint: bool = False, tell: Tell = untold) -> Array:
        """Two triangular solves; A is its own adjoint."""
        dtype = _with_imaginary(self.dtype, B)
        solve = partial(solve_triangular, self.l, lower=True, dtype=dtype, n_threads=self.n_threads, tell=tell)
        return solve(solve(B), op="C")


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
        (_, n), rotation = self.shape, self.rotation_cost
        return Cost(rotation.flops + float(n * n), rotation.bytes_read + n * n * self.dtype.itemsize // 2)

    @property
    def rotation_cost(self) -> Cost:
        """Of a product of Q with one column."""
        (m, _), grid = self.shape, self.factored.grid
        sizes = [(m - grid.columns(j)[0], min(grid.width(j), m - grid.columns(j)[0])) for j in range(grid.n_steps)]
        flops = sum(float(4 * rows * b + b * b) for rows, b in sizes)
        return Cost(flops, sum(rows * b for rows, b in sizes) * self.dtype.itemsize)

    def solve(self, B: Array, *, adjoint: bool = False, tell: Tell = untold) -> Array:
        """``R^-1 Q^H B``, or ``Q R^-H B``; of a tall matrix the least squares solution."""
        n = self.shape[1]
        dtype = _with_imaginary(self.dtype, B)
        R = RowRange(self.factored.matrix, 0, n)
        solve = partial(solve_triangular, R, lower=False, dtype=dtype, n_threads=self.n_threads, tell=tell)
        if not adjoint:
            return solve(self.rotated(B, tell=tell)[:n])
        X = np.zeros((self.shape[0], B.shape[1]), dtype)
        X[:n] = solve(B, op="C")
        return self.unrotated(X, tell=tell)

    def rotated(self, B: Array, *, tell: Tell = untold) -> Array:
        """``Q^H B``, all m rows."""
        return self._reflected(B, range(self.factored.grid.n_steps), "C", tell)

    def unrotated(self, B: Array, *, tell: Tell = untold) -> Array:
        """``Q B``."""
        return self._reflected(B, reversed(range(self.factored.grid.n_steps)), "N", tell)

    def _reflected(self, B: Array, steps: Iterable[int], op: Op, tell: Tell) -> Array:
        # Complex right-hand sides of a real matrix go as their real and imaginary parts.
        parts = [B.real, B.imag] if B.dtype.kind == "c" and self.dtype.kind != "c" else [B]
        C = np.array(np.hstack(parts), self.dtype, order="C")
        with one_blas_thread():
            for j in steps:
                transform = self.factored.transform(j)
                reflect(transform, C[transform.top :], op=op)
                (m, b), k = transform.panel.shape, C.shape[1]
                tell(float((4 * m * b + b * b) * k), transform.panel.nbytes)
        return C if len(parts) == 1 else C[:, : B.shape[1]] + 1j * C[:, B.shape[1] :]


@dataclass(frozen=True)
class ScaledFactors:
    """Factors of ``scale A`` in lower precision, as approximate ones of A in double precision.

    Right-hand sides are divided by their largest entry before they are rounded, so that tiny residuals keep their digits.
    """

    factors: LUFactors | CholeskyFactors
    scale: float
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, int]:
        return self.factors.shape

    @property
    def cost(self) -> Cost:
        return self.factors.cost

    def widened(self) -> ScaledFactors:
        """The same factors, computed with in double precision."""
        return replace(self, factors=self.factors.computing_in(self.dtype))

    def solve(self, B: Array, *, adjoint: bool = False, tell: Tell = untold) -> Array:
        """Solve in the precision of the factors."""
        sizes = np.abs(B).max(axis=0, initial=0)
        sizes = np.where(sizes > 0, sizes, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            X = self.factors.solve(B / sizes, adjoint=adjoint, tell=tell)
            return np.asarray(X.astype(_with_imaginary(self.dtype, X)) * (self.scale * sizes))


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

    def solve(self, B: Array, *, adjoint: bool = False, tell: Tell = untold) -> Array:
        return times_power_of_two(self.factors.solve(B, adjoint=adjoint, tell=tell), -self.exponent)


def _cost_of_triangles(T: Matrix) -> Cost:
    """Of solving with two triangles of a matrix."""
    n = T.shape[0]
    return Cost(2.0 * n * n, n * n * T.dtype.itemsize)


def _with_imaginary(dtype: np.dtype[Any], B: Array) -> np.dtype[Any]:
    """A dtype, or its complex counterpart where the right-hand sides are complex."""
    return np.dtype(dtype.char.upper()) if B.dtype.kind == "c" and dtype.kind == "f" else dtype


def stored_factors(result: StoredResult, *, n_threads: int) -> LUFactors | CholeskyFactors:
    """The factors in the result of a ``lu`` or ``cholesky`` job.

    Raises
    ------
    InputError
        If the result is of another kind, or not of a square matrix.
    NumericalError
        If the factored matrix is exactly singular.
    """
    factors: LUFactors | CholeskyFactors
    if result.kind == "lu":
        lu = result.matrix("lu")
        _check_square(lu.shape, result)
        piv = result.read("piv")
        if piv.shape != lu.shape[:1] or piv.dtype.kind not in "iu" or ((piv < 0) | (piv >= lu.shape[0])).any():
            raise InputError(
                f"input.factors: {result.uri}/piv must hold the {lu.shape[0]} row numbers of its pivots; it is damaged."
            )
        factors = LUFactors(lu, piv.astype(np.intp), n_threads)
        step = zero_pivot(lu)
        if step is not None:
            raise NumericalError(f"The matrix that was factored in {result.uri} is {singular_words(step)}")
    elif result.kind == "cholesky":
        factors = CholeskyFactors(result.matrix("l"), n_threads)
        _check_square(factors.shape, result)
    else:
        raise InputError(
            f"input.factors: must be the result of a job of kind lu or cholesky; {result.uri} is of kind {result.kind}."
        )
    return factors


def _check_square(shape: Sequence[int], result: StoredResult) -> None:
    if shape[0] != shape[1]:
        raise InputError(f"input.factors: must be of a square matrix; {result.uri} is of {shape[0]} x {shape[1]}.")


def singular_words(step: int) -> str:
    return (
        f"exactly singular: the pivot of step {step + 1} of its LU factorization is zero, so no unique solution exists. "
        "Use lstsq for the solution of minimum norm, or correct the matrix."
    )


def diagonal(T: Matrix, *, block: int = 512) -> Array:
    """The diagonal of a matrix (n, n), read by blocks."""
    n = T.shape[0]
    spans = [(i, min(i + block, n)) for i in range(0, n, block)]
    return np.concatenate([np.diagonal(T.region(span, span)) for span in spans])


def zero_pivot(lu: Matrix) -> int | None:
    """The first step (from 0) whose pivot is zero, if any."""
    zeros = np.flatnonzero(diagonal(lu) == 0)
    return int(zeros[0]) if len(zeros) else None
