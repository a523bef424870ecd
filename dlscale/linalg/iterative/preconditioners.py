"""Approximate inverses: of the diagonal or of blocks on it, from one read, or of what some columns tell (Nystrom), from a few."""

from __future__ import annotations

from itertools import count
from typing import Literal

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError, NumericalError
from dlscale.kernels import accumulator_dtype
from dlscale.lapack import svd
from dlscale.linalg.folds.operators import Product
from dlscale.linalg.iterative import nystrom
from dlscale.linalg.iterative.nystrom import Nystrom
from dlscale.linalg.iterative.recurrence import Map
from dlscale.linalg.operators import MatrixOperator

Preconditioner = Literal["none", "jacobi", "block_jacobi", "nystrom"]
#: Rows of a block on the diagonal.
BLOCK = 64
#: Columns for the Nystrom preconditioner at most where nothing is said, or a quarter of them.
USUAL_RANK = 256


def block_width(name: Preconditioner, n: int) -> int:
    """Columns of the blocks on the diagonal that a preconditioner is made of, or begins with."""
    return {"none": 0, "jacobi": 1, "block_jacobi": min(BLOCK, n), "nystrom": 1}[name]


def rank_for(rank: int | None, n: int) -> int:
    """Columns that the Nystrom preconditioner is made of."""
    return min(n, rank or min(USUAL_RANK, -(-n // 4)))


def columns_at_once(rank: int) -> int:
    """Columns that are read together where there are so many."""
    return min(nystrom.BLOCK, max(1, rank // 4))


def inverse_by_nystrom(operator: MatrixOperator, diagonal: Array, rank: int) -> Map:
    """``M R`` with the inverse of what columns of a Hermitian positive definite matrix tell of it.

    Parameters
    ----------
    operator : MatrixOperator (n, n)
    diagonal : (n,)
    rank : int
        Columns.

    Raises
    ------
    NumericalError
        If an entry of the diagonal is negative.

    Notes
    -----
    Columns are read some at a time, by products with unit vectors. Beside their space M is one number.
    """
    if not (diagonal >= 0).all():
        first = int(np.argmin(diagonal >= 0))
        raise NumericalError(
            f"The matrix is not positive definite, which preconditioner nystrom is for: its entry ({first}, {first}) is negative. "
            "Use another one, or none."
        )
    n, numbers = len(diagonal), count(1)

    def columns_of(chosen: Array) -> Array:
        E = np.zeros((len(chosen), n), operator.dtype)
        E[np.arange(len(chosen)), chosen] = 1
        return np.array(operator.read(Product(E), f"columns-{next(numbers)}")["product"], accumulator_dtype(operator.dtype))

    dtype = accumulator_dtype(operator.dtype)
    found = Nystrom.of(nystrom.partial_cholesky(diagonal, columns_of, rank, 0, dtype=dtype), ())
    return lambda R: found.apply(R, np.zeros(R.shape[1]), -1)


def inverse_of_blocks(blocks: Array, *, definite: bool, symmetric: bool, nonsingular: bool = False) -> Map:
    """``M R`` with the inverses of blocks on the diagonal.

    Parameters
    ----------
    blocks : (n, w)
        Row i has the entries of row i of A in the columns of its block.
    definite : bool
        The method needs a definite matrix, which has such blocks.
    symmetric : bool
        The method needs a definite M: eigenvalues of the blocks are taken by their moduli.
    nonsingular : bool
        The method needs the inverses themselves.

    Raises
    ------
    NumericalError
        If a block is not definite, and has to be; if the inverse of one overflows.
    InputError
        If a block is singular to working precision, and must not be.
    """
    n, w = blocks.shape
    padded = np.zeros((-(-n // w), w, w), blocks.dtype)
    padded.reshape(-1, w)[:n] = blocks
    lone = np.arange(len(padded) * w)[n:] % w
    padded[-1, lone, lone] = 1
    if definite or symmetric:
        values, vectors = np.linalg.eigh((padded + padded.conj().transpose(0, 2, 1)) / 2)
        if definite and not (values > 0).all():
            first = int(np.argwhere(~(values > 0))[0][0]) * w
            told = f"entry ({first}, {first}) on its diagonal is not positive"
            if w > 1:
                told = f"{_rows(first, w, n)} on its diagonal is not, to working precision"
            raise NumericalError(f"The matrix is not positive definite: {told}. Use method minres.")
        with np.errstate(over="ignore", invalid="ignore"):
            inverse = (vectors / _away_from_zero(np.abs(values))[:, None, :]) @ vectors.conj().transpose(0, 2, 1)
    else:
        U, s, Vh = svd(padded)
        singular = np.flatnonzero(s[:, -1] <= w * float(np.finfo(float).eps) * s[:, 0])
        if nonsingular and len(singular):
            rows = _rows(int(singular[0]) * w, w, n)
            raise InputError(f"input.matrix: {rows} on the diagonal is singular, and it is divided by; use method gmres or direct.")
        with np.errstate(over="ignore", invalid="ignore"):
            inverse = Vh.conj().transpose(0, 2, 1) @ (U.conj().transpose(0, 2, 1) / _away_from_zero(s)[:, :, None])
    if not np.isfinite(inverse).all():
        raise NumericalError(
            "The diagonal of the matrix is so small beside its largest entry that an inverse of a part of it overflows; use method "
            "direct, or gmres without a preconditioner."
        )

    def apply(R: Array) -> Array:
        stacked = np.zeros((len(inverse) * w, R.shape[1]), np.result_type(inverse, R))
        stacked[:n] = R
        return np.ascontiguousarray((inverse @ stacked.reshape(len(inverse), w, -1)).reshape(-1, R.shape[1])[:n])

    return apply


def _rows(first: int, w: int, n: int) -> str:
    return f"the block of rows {first} to {min(first + w, n) - 1}"


def _away_from_zero(sizes: Array) -> Array:
    """Sizes of directions of each block; one that is zero beside the largest is left as large as that."""
    largest = sizes.max(axis=1, keepdims=True)
    largest = np.where(largest > 0, largest, 1.0)
    return np.where(sizes > sizes.shape[1] * float(np.finfo(float).eps) * largest, sizes, largest)
