"""Solves as functions: arrays or URIs in, arrays out, in this process."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

from scipy.linalg import LinAlgWarning

from dlscale.arrays import Array
from dlscale.certificates import leaves_no_digit
from dlscale.declaration.kind import Here, Kind, run_here
from dlscale.errors import SpecError
from dlscale.linalg.lstsq.kind import KIND as LSTSQ
from dlscale.linalg.lstsq.kind import LstsqOptions
from dlscale.linalg.solve.factoring import Assume
from dlscale.linalg.solve.inverse import KIND as INVERSE
from dlscale.linalg.solve.inverse import InverseOptions
from dlscale.linalg.solve.kind import KIND as SOLVE
from dlscale.linalg.solve.kind import Precision, Refine, SolveOptions
from dlscale.linalg.solve.options import AssumeOfSystem, Transposed
from dlscale.linalg.solve.slogdet import KIND as SLOGDET
from dlscale.linalg.solve.slogdet import SlogdetOptions

_TRANSPOSED: dict[int | str, Transposed] = {0: False, "N": False, 1: True, "T": True, 2: "conjugate", "C": "conjugate"}


class LstsqResult(NamedTuple):
    """A least squares solution, in the order of `numpy.linalg.lstsq`.

    Parameters
    ----------
    x : (n,) or (n, k)
        Of minimum norm.
    residuals : list of k floats
        ``||b_j - A x_j||^2``, whatever the rank.
    rank : int
    s : (min(m, n),), optional
        Singular values of A; None of a matrix that is large both ways and of full rank, which did not need them.
    """

    x: Array
    residuals: list[float]
    rank: int
    s: Array | None


class SlogdetResult(NamedTuple):
    """``det A = sign exp(logabsdet)``."""

    sign: complex
    logabsdet: float


def solve(
    A: Any,
    b: Any,
    *,
    assume: AssumeOfSystem = SolveOptions.assume,
    transposed: Transposed = SolveOptions.transposed,
    precision: Precision = SolveOptions.precision,
    refine: Refine = SolveOptions.refine,
    panel: int | None = None,
) -> Array:
    """Solve ``A x = b``.

    Parameters
    ----------
    A : (n, n) NumPy, Dask or Zarr array, path or URL
    b : (n,) or (n, k), the same
    assume : str
        ``general``; ``pos``: Hermitian positive definite, half of the work; ``sym`` or ``her``: symmetric,
        Hermitian where it is complex, half of the work too, in memory; ``lower`` or ``upper``: triangular.
    transposed : bool or str
        True: solve ``A^T x = b`` instead; ``conjugate``: ``A^H x = b``.
    precision : str
        ``mixed`` factors in single precision, in half of the time, and refines to double precision; where that does not
        converge the matrix is factored in double precision.
    refine : str
        ``auto``: while the backward error asks for it; ``never``.
    panel : int, optional
        Columns of a panel.

    Returns
    -------
    x : (n,) or (n, k)

    Raises
    ------
    NumericalError
        If the matrix is singular to working precision (naming the step), or not positive definite where that was assumed.
    SpecError, InputError
        If an argument does not suit the matrix, or it cannot be read.
    NonFiniteError
        Naming the row and column of a NaN or infinity.
    CertificateError
        If the backward error is not at rounding level.

    Warns
    -----
    scipy.linalg.LinAlgWarning
        If the matrix is so nearly singular that no digit of x is sure.

    Notes
    -----
    2/3 n^3 flops. x has the wider precision of A and b.

    References
    ----------
    Golub and Van Loan (2013), section 3.5; Carson and Higham (2018) for mixed precision.
    """
    options = SolveOptions(assume=assume, transposed=transposed, precision=precision, refine=refine, panel=panel)
    return _run(SOLVE, options, matrix=A, rhs=b).arrays["x"]


def solve_triangular(a: Any, b: Any, trans: int | str = 0, lower: bool = False, *, unit_diagonal: bool = False) -> Array:
    """Solve ``a x = b`` for a triangular matrix, as `scipy.linalg.solve_triangular`.

    Parameters
    ----------
    a : (n, n) NumPy, Dask or Zarr array, path or URL
        What stands in its other triangle is no part of it.
    b : (n,) or (n, k), the same
    trans : int or str
        0 or ``N``: ``a x = b``; 1 or ``T``: ``a^T x = b``; 2 or ``C``: ``a^H x = b``.
    lower : bool
        Whether a is the lower triangle.
    unit_diagonal : bool
        Whether the diagonal counts as ones.

    Returns
    -------
    x : (n,) or (n, k)

    Raises
    ------
    NumericalError
        If a is exactly singular, naming the entry of its diagonal that is zero.
    SpecError, InputError, NonFiniteError, CertificateError
        As for `solve`, which refuses a matrix whose other triangle is not zero.

    Notes
    -----
    n^2 flops of a right-hand side.
    """
    transposed = _TRANSPOSED.get(trans)
    if transposed is None:
        raise SpecError(f"trans must be 0, 1, 2, N, T or C; got {trans!r}.")
    options = SolveOptions(
        assume="lower" if lower else "upper", transposed=transposed, only_triangle=True, unit_diagonal=unit_diagonal
    )
    return _run(SOLVE, options, matrix=a, rhs=b).arrays["x"]


def lstsq(A: Any, b: Any, *, rcond: float | None = None) -> LstsqResult:
    """The x of minimum norm among those that minimize ``||b - A x||``.

    Parameters
    ----------
    A : (m, n) NumPy, Dask or Zarr array, path or URL
    b : (m,) or (m, k), the same
    rcond : float, optional
        Singular values up to this part of the largest count as zero; eps max(m, n) when absent.

    Returns
    -------
    LstsqResult

    Raises
    ------
    SpecError, InputError, NonFiniteError, CertificateError
        As for `solve`.

    Notes
    -----
    2 m n^2 flops of a tall matrix, and 2 reads of it.

    References
    ----------
    Golub and Van Loan (2013), section 5.5.
    """
    outcome, arrays = _run(LSTSQ, LstsqOptions(rcond=rcond), matrix=A, rhs=b)
    return LstsqResult(arrays["x"], outcome.estimates["residuals"], outcome.estimates["rank"], arrays.get("s"))


def inverse(A: Any, *, assume: Assume = InverseOptions.assume) -> Array:
    """The inverse of a square matrix.

    Parameters
    ----------
    A : (n, n) NumPy, Dask or Zarr array, path or URL
    assume : str
        As for `solve`, which needs a quarter of the work and is more accurate where a product with the inverse is wanted.

    Returns
    -------
    (n, n)

    Raises
    ------
    NumericalError, SpecError, InputError, NonFiniteError, CertificateError
        As for `solve`.

    Notes
    -----
    8/3 n^3 flops.
    """
    return _run(INVERSE, InverseOptions(assume=assume), matrix=A).arrays["inverse"]


def slogdet(A: Any, *, assume: Assume = SlogdetOptions.assume) -> SlogdetResult:
    """Sign and logarithm of the determinant of a square matrix.

    Parameters
    ----------
    A : (n, n) NumPy, Dask or Zarr array, path or URL
    assume : str
        As for `solve`.

    Returns
    -------
    SlogdetResult
        0 and -inf of a matrix that is singular to working precision.

    Raises
    ------
    SpecError, InputError, NonFiniteError, CertificateError
        As for `solve`.

    Notes
    -----
    2/3 n^3 flops.
    """
    arrays = _run(SLOGDET, SlogdetOptions(assume=assume), matrix=A).arrays
    return SlogdetResult(arrays["sign"][0].item(), arrays["logabsdet"][0].item())


def _run(kind: Kind, options: Any, **sources: Any) -> Here:
    """Compute in this process, and warn of a matrix that leaves no digit sure."""
    here = run_here(kind, kind.inputs(sources), options)
    for note in here.outcome.notes:
        if leaves_no_digit(note):
            warnings.warn(f"{note[0].upper()}{note[1:]}.", LinAlgWarning, stacklevel=3)
    return here
