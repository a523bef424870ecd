"""The exponential of a matrix, by scaling and squaring: products and one solve, each of them checked."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from scipy.linalg import LinAlgWarning

from dlscale.arrays import Array
from dlscale.declaration.kind import run_here
from dlscale.errors import NonFiniteError, NumericalError, SpecError
from dlscale.kernels import times_power_of_two
from dlscale.linalg.multiply.functions import matmul
from dlscale.linalg.solve.kind import KIND as SOLVE
from dlscale.linalg.solve.kind import SolveOptions
from dlscale.linalg.solve_functions import solve
from dlscale.linalg.statistics.functions import norm
from dlscale.storage.matrices import open_matrix

#: Numerator of the Pade approximant of degree 13, and up to which size of the matrix it is exact to rounding (Al-Mohy and Higham
#: 2009, table 3.1); the leading coefficient of the error, of the power 27.
_PADE = (
    64764752532480000, 32382376266240000, 7771770303897600, 1187353796428800, 129060195264000, 10559470521600, 670442572800,
    33522128640, 1323241920, 40840800, 960960, 16380, 182, 1,
)  # fmt: skip
_THETA = 4.25
_ERROR = 1 / (math.comb(26, 13) * math.factorial(27))
#: What all coefficients are multiplied by, so that no matrix that is in range leaves it.
_NEAR_1 = 2.0**-56
#: The same of degree 3, whose powers keep their digits however small the matrix is (Higham 2005, table 2.3).
_PADE_3, _THETA_3 = (120, 60, 12, 1), 1.495585217958292e-2
#: Power of eps: what is lost beyond it is told.
_TOLD = 0.25


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
        If the exponential, or a power of A, is out of range.
    InputError, NonFiniteError, CertificateError
        As for `dlscale.matmul`, of each product and of the solve.

    Warns
    -----
    scipy.linalg.LinAlgWarning
        If rounding may have changed more than the fourth root of eps of it, as the condition of the solve and the norms of what
        was squared tell.

    Notes
    -----
    6 products, one solve, and a product for each time that the matrix was halved: 15 n^3 flops and up. How often it is halved is
    told by the norms of its powers, since digits are lost by each time too many.

    References
    ----------
    Al-Mohy and Higham (2009), A new scaling and squaring algorithm for the matrix exponential, algorithm 5.1 for degree 13.
    """
    M = open_matrix(A)
    if M.shape[0] != M.shape[1]:
        raise SpecError(f"A: must be square to have an exponential; got {M.shape[0]} x {M.shape[1]}.")
    size, limits = float(norm(M, 1)), np.finfo(M.dtype)
    if size <= limits.eps:
        return np.asarray(np.eye(M.shape[0], dtype=M.dtype) + M.read(0, M.shape[0]), M.dtype)
    if size <= _THETA_3:
        numerator, denominator = _pade_3(np.asarray(M.read(0, M.shape[0])))
        return solve(denominator, numerator)
    try:
        found, lost = _by_squaring(np.asarray(M.read(0, M.shape[0])), size)
    except (NonFiniteError, NumericalError) as error:
        raise NumericalError(
            f"The exponential of a matrix of 1-norm {size:.1e}, or a power of it on the way, is out of the range of {M.dtype}."
        ) from error
    if lost > float(limits.eps) ** _TOLD:
        by = f"up to {lost:.0e} of its 1-norm" if lost < 1 else "all of it, so that no digit is sure"
        warnings.warn(f"Rounding may have put the exponential off by {by}.", LinAlgWarning, stacklevel=2)
    return found


def _by_squaring(A: Array, size: float) -> tuple[Array, float]:
    """The exponential of a matrix of this 1-norm, and by which part of its own norm rounding may have put it off."""
    limits, n = np.finfo(A.dtype), len(A)
    # So that no entry of a sixth power overflows.
    exponent = max(0, math.ceil(math.log2(size)) - limits.maxexp // 7)
    if 2.0**exponent * float(limits.smallest_subnormal) ** 0.5 > 1:
        raise NumericalError("What underflows of the powers counts.")
    B = times_power_of_two(A, -exponent)
    B2 = matmul(B, B)
    B4 = matmul(B2, B2)
    B6 = matmul(B4, B2)
    n_squarings = _n_squarings(B, B4, B6, exponent)
    X, X2, X4, X6 = (times_power_of_two(P, k * (exponent - n_squarings)) for k, P in ((1, B), (2, B2), (4, B4), (6, B6)))
    numerator, denominator = _pade(X, X2, X4, X6)
    here = run_here(SOLVE, SOLVE.inputs({"matrix": denominator, "rhs": numerator}), SolveOptions())
    found, eps = here.arrays["x"], float(limits.eps)
    lost = n * eps * float(here.outcome.estimates["condition"] or np.inf)
    for _ in range(n_squarings):
        before = _size(found)
        found = matmul(found, found)
        # What is lost relative to the norm of a factor is so much more beside the product.
        lost = (2 * lost + n * eps) * before / _size(found) * before
    return found, lost


def _size(A: Array) -> float:
    """The 1-norm."""
    return float(np.abs(A).astype(float).sum(axis=0).max())


def _n_squarings(B: Array, B4: Array, B6: Array, exponent: int) -> int:
    """How often to halve ``A = 2^exponent B``, by the powers 4 and 6 of B."""
    eta = max(_size(B4) ** (1 / 4), _size(B6) ** (1 / 6))
    n_squarings = max(0, exponent + math.ceil(math.log2(eta / _THETA))) if eta else 0
    # |A|^27 against A, in logarithms: what the powers of A hide in cancellation.
    sums, logarithm = np.ones(len(B)), 0.0
    moduli = np.abs(B).astype(float)
    first = float(moduli.sum(axis=0).max())
    for _ in range(27):
        sums = sums @ moduli
        largest = float(sums.max())
        if not largest:
            return n_squarings
        sums, logarithm = sums / largest, logarithm + math.log2(largest)
    alpha = math.log2(_ERROR) + logarithm - math.log2(first) + 26 * (exponent - n_squarings)
    return n_squarings + max(0, math.ceil((alpha - math.log2(float(np.finfo(B.dtype).eps) / 2)) / 26))


def _pade(A: Array, A2: Array, A4: Array, A6: Array) -> tuple[Array, Array]:
    """``V + U`` and ``V - U``, where U holds the odd powers of A and V the even ones."""
    b, eye = [A.real.dtype.type(c * _NEAR_1) for c in _PADE], np.eye(len(A), dtype=A.dtype)
    U = matmul(A, matmul(A6, b[13] * A6 + b[11] * A4 + b[9] * A2) + b[7] * A6 + b[5] * A4 + b[3] * A2 + b[1] * eye)
    V = matmul(A6, b[12] * A6 + b[10] * A4 + b[8] * A2) + b[6] * A6 + b[4] * A4 + b[2] * A2 + b[0] * eye
    return V + U, V - U


def _pade_3(A: Array) -> tuple[Array, Array]:
    """The same for a small A."""
    b, eye = [A.real.dtype.type(c) for c in _PADE_3], np.eye(len(A), dtype=A.dtype)
    A2 = matmul(A, A)
    U, V = matmul(A, b[3] * A2 + b[1] * eye), b[2] * A2 + b[0] * eye
    return V + U, V - U
