"""Operators that users give by their products: functions of Python, or a LinearOperator of SciPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dlscale.arrays import Array
from dlscale.errors import InputError, NumericalError, SpecError
from dlscale.kernels import accumulator_dtype, largest_part, times_power_of_two
from dlscale.linalg import operators
from dlscale.linalg.scaling import exponent_of
from dlscale.storage.matrix import compute_dtype

Product = Callable[[Array], Any]


class Operator(operators.Operator):
    """A linear map that is known by its products.

    Parameters
    ----------
    shape : (m, n)
    matmat : callable
        ``A X`` (m, k) of an array X (n, k); called in this process, from one thread at a time. X is not to be changed.
    rmatmat : callable, optional
        ``A^H Y`` (n, k) of Y (m, k); of a symmetric or Hermitian map it is ``matmat``, and need not be given.
    dtype : dtype
        Of A: real or complex, in single or double precision.

    Raises
    ------
    SpecError
        If the shape or the dtype is none.
    """

    def __init__(
        self, shape: tuple[int, int], matmat: Product, *, rmatmat: Product | None = None, dtype: npt.DTypeLike = np.float64
    ) -> None:
        sizes = tuple(shape)
        if len(sizes) != 2 or not all(isinstance(size, int | np.integer) and size > 0 for size in sizes):
            raise SpecError(f"shape must be two numbers of at least 1, rows and columns; got {shape!r}.")
        if not callable(matmat) or not (rmatmat is None or callable(rmatmat)):
            raise SpecError("matmat and rmatmat must be functions of an array (n, k) or (m, k).")
        self.shape, self.dtype = (int(sizes[0]), int(sizes[1])), compute_dtype(np.dtype(dtype))
        self.matmat, self.rmatmat = matmat, rmatmat

    def __repr__(self) -> str:
        return f"dlscale.Operator({self.shape[0]} x {self.shape[1]}, {self.dtype})"

    def apply(self, X: Array) -> Array:
        return self._product("matmat", self.matmat, X, self.shape[0])

    def adjoint(self, Y: Array) -> Array:
        """``A^H Y`` (SpecError if it was not given)."""
        if self.rmatmat is None:
            raise SpecError(f"{self!r} has no rmatmat, which A^H Y needs; give it.")
        return self._product("rmatmat", self.rmatmat, Y, self.shape[1])

    def _product(self, name: str, product: Product, X: Array, n_rows: int) -> Array:
        """The product of X in the dtype of A, all of it finite.

        Raises
        ------
        InputError
            If what comes is no array of the right shape and dtype.
        NumericalError
            If it is not finite.
        """
        shape = (n_rows, X.shape[1])
        found = np.asarray(product(X))
        if found.shape != shape or found.dtype.kind not in "biufc":
            raise InputError(f"{name} must return numbers of shape {shape}; got shape {found.shape}, dtype {found.dtype}.")
        if found.dtype.kind == "c" and np.result_type(self.dtype, X.dtype).kind != "c":
            raise InputError(f"{name} returned complex numbers where dtype says {self.dtype}.")
        # A copy, since a function may fill the same array anew each time.
        found = found.astype(np.result_type(self.dtype, X.dtype))
        if not np.isfinite(found).all():
            row, column = (int(index) for index in np.argwhere(~np.isfinite(found))[0])
            raise NumericalError(f"{name} returned {found[row, column].item()} at row {row}, column {column}; it must be finite.")
        return found


def as_operator(A: Any) -> Operator | None:
    """An operator of a user, or a LinearOperator of SciPy as one; None of anything else."""
    if isinstance(A, Operator):
        return A
    from scipy.sparse.linalg import LinearOperator

    if not isinstance(A, LinearOperator):
        return None
    if A.dtype is None:
        raise SpecError("The LinearOperator must say its dtype; give it where it is made.")
    return Operator(A.shape, A.matmat, rmatmat=A.rmatmat, dtype=A.dtype)


class Measured(NamedTuple):
    """What random vectors tell of a square operator.

    Parameters
    ----------
    A : Operator
        ``2^-exponent`` times it, so that its norm is near 1.
    product : (n, k), double precision
        Of A and the random vectors.
    size, skew : float
        ``||A||_F`` and ``||A - A^H||_F``, estimated.
    mean : float
        Of the eigenvalues.
    exponent : int
    """

    A: Operator
    product: Array
    size: float
    skew: float
    mean: float
    exponent: int


def measure(A: Operator, X: Array) -> Measured:
    """Multiply a square operator with normal vectors X (n, k), which tells its size and how far it is from Hermitian.

    Notes
    -----
    Of normal x and y the mean of ``|x^H M y|^2`` is ``||M||_F^2``, and that of ``||M x||^2`` too.
    """
    n, k = X.shape
    first = A.apply(X)
    exponent = exponent_of(largest_part(first))
    if exponent:
        A = scaled_operator(A, -exponent)
    Y = times_power_of_two(first, -exponent).astype(accumulator_dtype(A.dtype))
    T = X.conj().T.astype(Y.dtype) @ Y
    # Of a complex normal number the two parts have unit variance each.
    each = 2 if A.dtype.kind == "c" else 1
    size = float(np.linalg.norm(Y)) / (k * each) ** 0.5
    if k > 1:
        difference = T - T.conj().T
        np.fill_diagonal(difference, 0)
        skew = float(np.linalg.norm(difference)) / ((k * (k - 1)) ** 0.5 * each)
    else:
        skew = abs(float(T[0, 0].imag)) / each
    return Measured(A, Y, size, skew, float(np.trace(T).real) / (k * n * each), exponent)


def scaled_operator(A: Operator, exponent: int) -> Operator:
    """``2^exponent A``."""

    def times(product: Product) -> Product:
        return lambda X: times_power_of_two(np.asarray(product(X)).astype(np.result_type(A.dtype, X.dtype), copy=False), exponent)

    return Operator(A.shape, times(A.matmat), rmatmat=None if A.rmatmat is None else times(A.rmatmat), dtype=A.dtype)
