"""Norms, condition, rank, pseudo-inverse, determinant and trace as functions, with the names of `numpy.linalg`, in this process."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import scaled as scaled_check
from dlscale.declaration.kind import run_here
from dlscale.errors import CertificateError, InexactNote, NonFiniteError, NumericalError, SpecError
from dlscale.kernels import safe_exponent
from dlscale.linalg.scaling import exponent_of
from dlscale.linalg.solve.inverse import KIND as INVERSE
from dlscale.linalg.solve.inverse import InverseOptions
from dlscale.linalg.solve_functions import slogdet
from dlscale.linalg.statistics.kind import KIND, NormOptions
from dlscale.linalg.svd.kind import KIND as SVD
from dlscale.linalg.svd.kind import SVDOptions
from dlscale.storage.exactness import inexact_words
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import scaled

#: What NumPy calls the norms of a matrix, and of a vector as a column.
_OF_MATRICES: dict[Any, str] = {
    None: "fro",
    "fro": "fro",
    "nuc": "nuc",
    1: "1",
    -1: "-1",
    2: "2",
    -2: "-2",
    np.inf: "inf",
    -np.inf: "-inf",
}
_OF_VECTORS: dict[Any, str] = {None: "fro", 2: "fro", 1: "1", np.inf: "inf", -np.inf: "-inf"}
_OF_CONDITIONS = (2, -2, 1, -1, np.inf, -np.inf, "fro")
#: Of a relative error beyond which a norm that was estimated is told of.
_TOLD = 1e-10
#: Random vectors that a pseudo-inverse is checked on.
_N_PROBES = 4


def norm(x: Any, ord: Any = None) -> Any:  # NumPy's name of the argument
    """A norm of a matrix or a vector.

    Parameters
    ----------
    x : (m, n) or (n,) NumPy, Dask or Zarr array, path or URL
    ord : optional
        Of a matrix: None or ``fro``, ``nuc``, 1, -1, 2, -2, ``inf`` or ``-inf``, as for `numpy.linalg.norm`; of a vector: None, 2,
        1, ``inf`` or ``-inf``.

    Returns
    -------
    float of the precision of x

    Raises
    ------
    SpecError, InputError
        If the norm is none of these, or x cannot be read.
    NonFiniteError
        Naming the place of a NaN or infinity.
    CertificateError
        If it fails its own check.

    Warns
    -----
    RuntimeWarning
        If the norm is too large for its precision, and infinite; or if it is an estimate (2 of a matrix with more than 4,096 rows
        and columns).

    Notes
    -----
    No sum of squares overflows or vanishes. One read; singular values take 3 to 5.
    """
    A = open_matrix(x, vectors=True)
    known = _OF_VECTORS if A.is_vector else _OF_MATRICES
    try:
        name = known[ord]
    except (KeyError, TypeError):
        what = "a vector" if A.is_vector else "a matrix"
        raise SpecError(f"ord: got {ord!r:.40}; norms of {what} here: {', '.join(map(str, known))}.") from None
    outcome, arrays = run_here(KIND, KIND.inputs({"matrix": A}), NormOptions(ord=name))  # type: ignore[arg-type]
    value, error = float(arrays["norm"][0]), outcome.estimates.get("error", 0.0)
    if (error is None or error > _TOLD * value) and "s" not in arrays and np.dtype(A.dtype).itemsize >= 8:
        off = "by more than what was read determines" if error is None else f"by about {error:.1e}"
        warnings.warn(f"The 2-norm is an estimate, off {off}.", RuntimeWarning, stacklevel=2)
    return _in_precision_of(A, value, "The norm")


def _in_precision_of(A: Matrix, value: complex, what: str, *, real: bool = True) -> Any:
    """A number as one of the matrix's precision, infinite with a warning where it overflows."""
    dtype = np.dtype(A.dtype.char.lower()) if real else A.dtype
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        found = dtype.type(value)
    if not np.isfinite(found):
        warnings.warn(f"{what} overflows {dtype} and is infinite.", RuntimeWarning, stacklevel=3)
    return found


def _singular_values(A: Matrix) -> tuple[Array, int]:
    """All of ``2^-e A``, in double precision, and e, which is 0 unless those of A are out of its range."""
    s, limits = _spectrum(A), np.finfo(float)
    if s[0] == 0 or limits.tiny / limits.eps**2 < s[0] < np.inf:
        return s, 0
    exponent = exponent_of(float(s[0])) if s[0] < np.inf else limits.maxexp
    return _spectrum(scaled(A, -exponent)), exponent


def _times_power(value: float, exponent: int) -> Any:
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(value, exponent)


def _spectrum(A: Matrix) -> Array:
    return np.asarray(run_here(KIND, Inputs({"matrix": A}), NormOptions(ord="-2")).arrays["s"])


def cond(x: Any, p: Any = None) -> Any:
    """The condition number ``||A|| ||A^-1||``.

    Parameters
    ----------
    x : (m, n) NumPy, Dask or Zarr array, path or URL
    p : optional
        None or 2: the largest singular value over the smallest; -2: the other way round; 1, -1, ``inf``, ``-inf``, ``fro``: by the
        inverse of a square matrix.

    Returns
    -------
    float of the precision of x; infinite of a matrix that is singular to working precision

    Raises
    ------
    SpecError
        If p is none of these, or the matrix is not square where it must be, or has more than 4,096 rows and columns for 2 and -2.
    InputError, NonFiniteError, CertificateError
        As for `norm`.

    Notes
    -----
    Exact up to rounding, which hides all beyond 1 / eps. 2 to 5 reads for p = 2 and -2, 8/3 n^3 flops for the others.

    References
    ----------
    Higham (2002), chapter 6 and section 15.
    """
    A = open_matrix(x)
    if p is not None and not (isinstance(p, str | int | float | np.number) and p in _OF_CONDITIONS):
        raise SpecError(f"p: got {p!r:.40}; allowed: None, {', '.join(map(str, _OF_CONDITIONS))}.")
    if p is None or p in (2, -2):
        s, _ = _singular_values(A)
        over, under = (s[-1], s[0]) if p == -2 else (s[0], s[-1])
        return _ratio(A, float(over), float(under))
    if A.shape[0] != A.shape[1]:
        raise SpecError(f"x: must be square for the condition number of p = {p}; got {A.shape[0]} x {A.shape[1]}.")
    largest = float(run_here(KIND, Inputs({"matrix": A}), NormOptions(ord="max")).arrays["norm"][0])
    A = scaled(A, -safe_exponent(largest, A.dtype))
    try:
        X = run_here(INVERSE, Inputs({"matrix": A}), InverseOptions()).arrays["inverse"]
    except NumericalError:
        if slogdet(A).sign == 0:
            return np.dtype(A.dtype.char.lower()).type(np.inf)
        raise
    return _quietly(A, float(norm(A, p)) * float(norm(X, p)))


def _ratio(A: Matrix, over: float, under: float) -> Any:
    return _quietly(A, over / under if under > 0 else math.inf)


def _quietly(A: Matrix, value: float) -> Any:
    """A condition number in the precision of A, which may be infinite."""
    with np.errstate(over="ignore"):
        return np.dtype(A.dtype.char.lower()).type(value)


def matrix_rank(A: Any, tol: float | None = None, hermitian: bool = False, *, rtol: float | None = None) -> int:
    """The number of singular values above a tolerance.

    Parameters
    ----------
    A : (m, n) NumPy, Dask or Zarr array, path or URL
        A vector has rank 1, or 0 where it is zero.
    tol : float, optional
        ``eps max(m, n)`` times the largest singular value when absent; 0 counts what rounding makes of zero too, as NumPy's does.
    hermitian : bool
        Changes nothing: the singular values are computed in the same way.
    rtol : float, optional
        Relative to the largest singular value, in the place of ``tol``.

    Returns
    -------
    int

    Raises
    ------
    SpecError
        If both tolerances are given, one is no number of at least 0, or the matrix has more than 4,096 rows and columns.
    InputError, NonFiniteError, CertificateError
        As for `norm`.

    Notes
    -----
    Singular values are right to ``eps max(m, n)`` times the largest: a smaller tolerance counts what rounding makes of others.
    """
    if tol is not None and rtol is not None:
        raise SpecError("tol and rtol: give one of them.")
    tol, rtol = _tolerance("tol", tol), _tolerance("rtol", rtol)
    M = open_matrix(A, vectors=True)
    if M.is_vector:
        return int(norm(M, np.inf) > 0)
    s, exponent = _singular_values(M)
    if tol is None:
        tol = float(s[0]) * (float(np.finfo(M.dtype).eps) * max(M.shape) if rtol is None else rtol)
    else:
        tol = float(_times_power(tol, -exponent))
    return int((s > tol).sum())


def _tolerance(name: str, value: Any) -> float | None:
    if value is not None and not (isinstance(value, int | float | np.number) and not isinstance(value, bool) and value >= 0):
        raise SpecError(f"{name}: must be a number of at least 0; got {value!r:.40}.")
    return None if value is None else float(value)


def pinv(a: Any, rcond: float | None = None, hermitian: bool = False, *, rtol: float | None = None) -> Array:
    """The Moore-Penrose inverse, by singular values.

    Parameters
    ----------
    a : (m, n) NumPy, Dask or Zarr array, path or URL
    rcond, rtol : float, optional
        Singular values up to this part of the largest count as zero; ``eps max(m, n)`` when both are absent (NumPy's is 1e-15
        where none is given, which is below rounding).
    hermitian : bool
        Changes nothing: the singular values are computed in the same way.

    Returns
    -------
    (n, m)

    Raises
    ------
    SpecError
        If both tolerances are given, or one is no number of at least 0.
    NumericalError
        If an entry overflows.
    InputError, NonFiniteError, CertificateError
        As for `norm`; the answer is checked on random vectors x: ``A^+ A x`` must be what is left of x in the row space.

    Notes
    -----
    6 m n^2 flops of a tall matrix, 2 m n^2 more for the product.

    References
    ----------
    Golub and Van Loan (2013), section 5.5.2.
    """
    if rcond is not None and rtol is not None:
        raise SpecError("rcond and rtol: give one of them.")
    given, A = (_tolerance("rcond", rcond), _tolerance("rtol", rtol)), open_matrix(a)
    cutoff = next((c for c in given if c is not None), float(np.finfo(A.dtype).eps) * max(A.shape))
    found = run_here(SVD, SVD.inputs({"matrix": A}), SVDOptions(method="exact")).arrays
    u, s, vh = found["u"], found["s"], found["vh"]
    kept = int((s > cutoff * s[0]).sum())
    V, U = vh[:kept].conj().T, u[:, :kept]
    with np.errstate(over="ignore", invalid="ignore"):
        X = np.asarray((V / s[:kept]) @ U.conj().T, A.dtype)
    if not np.isfinite(X).all():
        raise NumericalError(f"The pseudo-inverse overflows {A.dtype}: multiply the matrix by a power of two.")
    _check_pseudo_inverse(X, U, V, s[:kept])
    return X


def _check_pseudo_inverse(X: Array, U: Array, V: Array, s: Array) -> None:
    """On random w, X must take U S w to V w: the singular vectors have been checked against the matrix themselves."""
    if not len(s):
        return
    w = np.random.default_rng(0).standard_normal((len(s), _N_PROBES)).astype(s.dtype)
    # Of X s_1 and S / s_1, so that no scale takes a product out of range.
    R = (X * s[0]) @ (U @ ((s / s[0])[:, None] * w)) - V @ w
    check = scaled_check(
        "||(X U S - V) w|| / (cond ||w|| max(m, n) eps)",
        float(np.linalg.norm(R)) * float(s[-1]) / float(s[0]),
        float(np.linalg.norm(w)),
        size=max(X.shape),
        dtype=X.dtype,
        meaning="on random vectors of the row space, the pseudo-inverse undoes the matrix",
    )
    if not check.passed:
        raise CertificateError(f"The answer failed its certificate: {check.name} = {check.value:.3g} ({check.meaning}).")


def det(a: Any) -> Any:
    """The determinant of a square matrix.

    Parameters
    ----------
    a : (n, n) NumPy, Dask or Zarr array, path or URL

    Returns
    -------
    number of the precision of a

    Raises
    ------
    SpecError, InputError, NonFiniteError, CertificateError
        As for `slogdet`.

    Warns
    -----
    RuntimeWarning
        If it overflows, and is infinite; `slogdet` has its logarithm.

    Notes
    -----
    2/3 n^3 flops.
    """
    A = open_matrix(a)
    sign, logarithm = slogdet(A)
    # In two factors, of which neither overflows where the determinant does not.
    half = math.exp(min(logarithm / 2, math.log(np.finfo(float).max))) if logarithm > -math.inf else 0.0
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        size = float(np.float64(half) * np.float64(half))
        parts = [float(np.float64(part) * size) if part else 0.0 for part in (complex(sign).real, complex(sign).imag)]
    return _in_precision_of(A, complex(*parts) if A.dtype.kind == "c" else parts[0], "The determinant", real=False)


def trace(a: Any, offset: int = 0) -> Any:
    """The sum of a diagonal.

    Parameters
    ----------
    a : (m, n) NumPy, Dask or Zarr array, path or URL
    offset : int
        Columns that the diagonal begins right of the main one; rows below it where negative.

    Returns
    -------
    number of the precision of a

    Raises
    ------
    SpecError, InputError
        If the offset is no integer, or a cannot be read.
    NonFiniteError
        Naming the place of a NaN or infinity.

    Warns
    -----
    InexactNote
        If it is of integers that double precision does not hold.
    RuntimeWarning
        If it overflows, and is infinite.

    Notes
    -----
    Summed without rounding, then rounded to double precision, and to that of a. Only blocks on the diagonal are read.

    References
    ----------
    Shewchuk (1997), Adaptive precision floating-point arithmetic (`math.fsum`).
    """
    if not isinstance(offset, int | np.integer) or isinstance(offset, bool):
        raise SpecError(f"offset: must be an integer; got {offset!r:.40}.")
    A = open_matrix(a)
    row, column = max(0, -int(offset)), max(0, int(offset))
    entries = [np.zeros(0, A.dtype)]
    size, step = max(0, min(A.shape[0] - row, A.shape[1] - column)), 512
    for first in range(0, size, step):
        last = min(first + step, size)
        block = np.diagonal(A.region((row + first, row + last), (column + first, column + last)))
        if not np.isfinite(block).all():
            i = first + int(np.isfinite(block).argmin())
            raise NonFiniteError(*A.place(row + i, column + i), block[i - first].item())
        entries.append(block.copy())
    for uri in A.inexact():
        warnings.warn(inexact_words(uri), InexactNote, stacklevel=2)
    diagonal = np.concatenate(entries)
    parts = [_exact_sum(part) for part in ((diagonal.real, diagonal.imag) if A.dtype.kind == "c" else (diagonal,))]
    return _in_precision_of(A, complex(*parts) if len(parts) == 2 else parts[0], "The trace", real=False)


def _exact_sum(values: Array) -> float:
    try:
        return math.fsum(values.astype(float))
    except OverflowError:  # of a sum on the way, or of the whole
        whole = sum(map(Fraction, values.astype(float).tolist()))
    try:
        return float(whole)
    except OverflowError:
        return math.inf if whole > 0 else -math.inf
