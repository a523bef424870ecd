"""The exponential of a matrix, by scaling and squaring: products and one solve, each of them checked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import NumericalError, SpecError
from dlscale.linalg.multiply.functions import matmul
from dlscale.linalg.solve_functions import solve
from dlscale.linalg.statistics.functions import norm
from dlscale.storage.matrices import open_matrix

#: Numerator of the Pade approximant of degree 13, and the 1-norm up to which it is exact to rounding (Higham 2005, table 2.3).
_PADE = (
    64764752532480000, 32382376266240000, 7771770303897600, 1187353796428800, 129060195264000, 10559470521600, 670442572800,
    33522128640, 1323241920, 40840800, 960960, 16380, 182, 1,
)  # fmt: skip
_THETA = 5.371920351148152
#: The same of degree 3, whose powers keep their digits however small the matrix is.
_PADE_3, _THETA_3 = (120, 60, 12, 1), 1.495585217958292e-2


def expm(A: Any) -> Array:
    """The exponential ``e^A`` of a square matrix.

    Parameters
    ----------
    A : (n, n) NumPy, Dask or Zarr array, path or URL

    Returns
    -------
    (n, n), as `scipy.linalg.expm`

    Raises
    ------
    SpecError
        If A is not square.
    NumericalError
        If the exponential overflows.
    InputError, NonFiniteError, CertificateError
        As for `dlscale.matmul`, of each product and of the solve.

    Notes
    -----
    6 products, one solve, and a product for each time that the matrix was halved: 15 n^3 flops and up.

    References
    ----------
    Higham (2005), The scaling and squaring method for the matrix exponential revisited, algorithm 2.3.
    """
    M = open_matrix(A)
    if M.shape[0] != M.shape[1]:
        raise SpecError(f"A: must be square to have an exponential; got {M.shape[0]} x {M.shape[1]}.")
    size, limits = float(norm(M, 1)), np.finfo(M.dtype)
    if size <= limits.eps:
        return np.asarray(np.eye(M.shape[0], dtype=M.dtype) + M.read(0, M.shape[0]), M.dtype)
    n_squarings = max(0, math.ceil(math.log2(size / _THETA)))
    if n_squarings > limits.maxexp:
        raise NumericalError(f"The exponential of a matrix of 1-norm {size:.1e} is out of the range of {M.dtype}.")
    X = np.ldexp(1.0, -n_squarings).astype(limits.dtype) * M.read(0, M.shape[0])
    numerator, denominator = (_pade_3 if size <= _THETA_3 else _pade)(np.asarray(X, M.dtype))
    found = solve(denominator, numerator)
    for _ in range(n_squarings):
        found = matmul(found, found)
    return found


def _pade(A: Array) -> tuple[Array, Array]:
    """``V + U`` and ``V - U``, where U holds the odd powers of A and V the even ones."""
    b, eye = [A.real.dtype.type(c) for c in _PADE], np.eye(len(A), dtype=A.dtype)
    A2 = matmul(A, A)
    A4 = matmul(A2, A2)
    A6 = matmul(A4, A2)
    U = matmul(A, matmul(A6, b[13] * A6 + b[11] * A4 + b[9] * A2) + b[7] * A6 + b[5] * A4 + b[3] * A2 + b[1] * eye)
    V = matmul(A6, b[12] * A6 + b[10] * A4 + b[8] * A2) + b[6] * A6 + b[4] * A4 + b[2] * A2 + b[0] * eye
    return V + U, V - U


def _pade_3(A: Array) -> tuple[Array, Array]:
    """The same for a small A."""
    b, eye = [A.real.dtype.type(c) for c in _PADE_3], np.eye(len(A), dtype=A.dtype)
    A2 = matmul(A, A)
    U, V = matmul(A, b[3] * A2 + b[1] * eye), b[2] * A2 + b[0] * eye
    return V + U, V - U
