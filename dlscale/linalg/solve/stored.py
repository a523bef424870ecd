"""Factors in the results of jobs, and what their diagonal says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError, NumericalError
from dlscale.linalg.solve.factors import CholeskyFactors, LUFactors
from dlscale.storage.inputs import StoredResult
from dlscale.storage.matrix import Matrix


def stored_factors(result: StoredResult, *, n_threads: int) -> LUFactors | CholeskyFactors:
    """The factors in the result of a ``lu`` or ``cholesky`` job.

    Raises
    ------
    InputError
        If the result is of another kind, or not of a square matrix.
    NumericalError
        If the factored matrix is singular to working precision.
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
        f"singular to working precision: the pivot of step {step + 1} of its LU factorization is zero, so no digit of a "
        "solution is sure. Use lstsq for the solution of minimum norm, or correct the matrix."
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
