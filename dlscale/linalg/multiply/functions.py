"""Products as functions: arrays or URIs in, arrays out, in this process."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.declaration.kind import run_here
from dlscale.errors import NonFiniteError, SpecError
from dlscale.linalg.multiply.kind import KIND, MatmulOptions, Symmetric
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import ArrayMatrix, Matrix


def matmul(
    a: Any,
    b: Any = None,
    *,
    adjoint_a: bool = MatmulOptions.adjoint_a,
    adjoint_b: bool = MatmulOptions.adjoint_b,
    symmetric: Symmetric = MatmulOptions.symmetric,
) -> Array:
    """``A B``, or with the adjoints of one or both.

    Parameters
    ----------
    a : (m, k) NumPy, Dask or Zarr array, path or URL; (k, m) with ``adjoint_a``
        Of one dimension: a row.
    b : (k, n), the same; (n, k) with ``adjoint_b``
        Of one dimension: a column. Absent: A itself, for ``A^H A`` and ``A A^H``.
    adjoint_a, adjoint_b : bool
    symmetric : str
        ``auto``: ``A^H A`` and ``A A^H`` take half of the products, and are exactly Hermitian; ``never``.

    Returns
    -------
    (m, n); as for `numpy.matmul`, without the dimensions that vectors do not have

    Raises
    ------
    SpecError, InputError
        If the operands do not fit each other, or cannot be read.
    NonFiniteError
        Naming the place of a NaN or infinity.
    NumericalError
        If the product overflows, or is too small for the digits of its dtype.
    CertificateError
        If it fails its own check.

    Notes
    -----
    2 m n k flops. Integers are computed with in double precision; what that does not hold exactly is warned of.

    References
    ----------
    Freivalds (1979), for the check.
    """
    A, a_is_vector = _opened(a, "a", row=not adjoint_a)
    if b is None:
        B, b_is_vector = None, a_is_vector
    else:
        B, b_is_vector = (A, a_is_vector) if b is a and not a_is_vector else _opened(b, "b", row=adjoint_b)
    sources = {"a": A} | ({"b": B} if B is not None else {})
    options = MatmulOptions(adjoint_a=adjoint_a, adjoint_b=adjoint_b, symmetric=symmetric)
    product = run_here(KIND, KIND.inputs(sources), options).arrays["product"]
    product = product[0] if a_is_vector else product
    return np.asarray(product[..., 0] if b_is_vector else product)


def matrix_power(a: Any, n: int) -> Array:
    """``A^n`` of a square matrix, by squaring; of a negative n that of its inverse.

    Parameters
    ----------
    a : (m, m) NumPy, Dask or Zarr array, path or URL
    n : int

    Returns
    -------
    (m, m), as `numpy.linalg.matrix_power`

    Raises
    ------
    SpecError
        If A is not square, or n is no integer.
    NumericalError
        If a power overflows, or n is negative and A is singular.
    InputError, NonFiniteError, CertificateError
        As for `matmul`.

    Notes
    -----
    2 m^3 flops for each digit and each one of n in binary.
    """
    from dlscale.linalg.solve_functions import inverse

    try:
        power = n.__index__()
    except AttributeError:
        raise SpecError(f"n must be an integer; got {n!r:.60}.") from None
    A = open_matrix(a)
    if A.shape[0] != A.shape[1]:
        raise SpecError(f"a must be square to have powers; got {A.shape[0]} x {A.shape[1]}.")
    if power == 0:
        return np.eye(A.shape[0], dtype=A.dtype)
    square: Any = A if power > 0 else inverse(A)
    power, found = abs(power), None
    while power > 1:
        if power & 1:
            found = square if found is None else matmul(found, square)
        power, square = power >> 1, matmul(square, square)
    whole = square if found is None else matmul(found, square)
    return _all_of(whole) if isinstance(whole, Matrix) else np.array(whole)


def _all_of(A: Matrix) -> Array:
    """The entries as they are, which must be numbers as in every product."""
    whole = np.array(A.read(0, A.shape[0]))
    if not (finite := np.isfinite(whole)).all():
        i, j = (int(index) for index in np.argwhere(~finite)[0])
        raise NonFiniteError(*A.place(i, j), whole[i, j].item(), matrix="input.a")
    return whole


def _opened(source: Any, name: str, *, row: bool) -> tuple[Matrix, bool]:
    """A matrix, and whether it was a vector, which is read as a row or as a column."""
    M = open_matrix(source, vectors=True)
    if not M.is_vector:
        return M, False
    column = M.read(0, M.shape[0])
    return (ArrayMatrix(np.ascontiguousarray(column.T)) if row else M), True
