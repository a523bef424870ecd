"""Eigenvalues as functions: arrays or URIs in, arrays out, in this process."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from dlscale.arrays import Array
from dlscale.declaration.kind import run_here
from dlscale.errors import SpecError
from dlscale.linalg.eigen.given import pairs_of_operator
from dlscale.linalg.eigen.kind import KIND, EighOptions
from dlscale.linalg.eigen.pairs import Which
from dlscale.linalg.given_operators import Operator, as_operator

_SIDES: dict[str, Which] = {"LA": "largest", "SA": "smallest", "LM": "magnitude"}


class EighResult(NamedTuple):
    """``A V = V L``.

    Parameters
    ----------
    eigenvalues : (k,), ascending
    eigenvectors : (n, k)
        Orthonormal columns.
    """

    eigenvalues: Array
    eigenvectors: Array


def eigh(a: Any, b: Any = None, *, subset_by_index: tuple[int, int] | None = None) -> EighResult:
    """Eigenvalues and eigenvectors of a symmetric or Hermitian matrix, or of ``a x = lambda b x``: all, or those at one end.

    Parameters
    ----------
    a : (n, n) NumPy, Dask or Zarr array, path or URL
        Both triangles are read, and must agree.
    b : (n, n), optional
        Positive definite; the vectors are then orthonormal with respect to it.
    subset_by_index : (first, last), optional
        As in SciPy, both included and counted from 0 in ascending order; one of them is 0 or n - 1.

    Returns
    -------
    EighResult

    Raises
    ------
    SpecError, InputError
        If an argument does not suit the matrix, or it is not symmetric.
    CertificateError
        If the answer fails its own check, or an eigenvalue was missed.

    Notes
    -----
    About 14/3 n^3 flops for all, 4/3 n^3 for a few and n^3 / 3 for the proof that none is missing among these.
    """
    return _pairs(a, b, subset_by_index)


def eigvalsh(a: Any, b: Any = None, *, subset_by_index: tuple[int, int] | None = None) -> Array:
    """Eigenvalues of a symmetric or Hermitian matrix, ascending; as `eigh`, whose vectors they are checked with."""
    return _pairs(a, b, subset_by_index).eigenvalues


def eigsh(
    A: Any,
    k: int = 6,
    *,
    M: Any = None,
    sigma: float | None = None,
    which: Literal["LM", "LA", "SA"] = "LM",
    tol: float = 0.0,
    return_eigenvectors: bool = True,
) -> EighResult | Array:
    """The k eigenpairs of largest modulus, the largest or smallest ones, or those nearest to sigma, of a Hermitian matrix.

    Parameters
    ----------
    A : (n, n) NumPy, Dask or Zarr array, path or URL; or an operator, `dlscale.Operator` or SciPy's LinearOperator
    k : int
    M : (n, n), optional
        Positive definite, of ``A x = lambda M x``; the vectors are then orthonormal with respect to it.
    sigma : float, optional
        The eigenvalues nearest to it are wanted; which is then LM, as in SciPy. A is factored in memory, and no operator.
    which : str
        ``LM``, ``LA`` or ``SA``, as in SciPy.
    tol : float
        Residuals, beside the norm of A, with which an iteration ends; 0: working precision, by LAPACK where that is quicker,
        and always with M or sigma.
    return_eigenvectors : bool

    Returns
    -------
    EighResult, or the (k,) eigenvalues alone

    Raises
    ------
    SpecError, InputError, CertificateError
        As for `eigh`.
    NumericalError
        If an iteration does not converge.
    """
    if which not in _SIDES:
        raise SpecError(f"which must be LM, LA or SA; got {which!r}.")
    operator = as_operator(A)
    if operator is not None and (sigma is not None or M is not None):
        raise SpecError("sigma and M go with a matrix, which is factored; A is an operator.")
    if sigma is None:
        options = EighOptions(n_components=k, which=_SIDES[which], tolerance=(tol or None) if M is None else None)
    elif which != "LM":
        raise SpecError(f"which must be LM with sigma; got {which}.")
    else:
        options = EighOptions(n_components=k, sigma=sigma)
    found = _compute(A, options, M) if operator is None else _of_operator(operator, options)
    return found if return_eigenvectors else found.eigenvalues


def _pairs(a: Any, b: Any, subset: tuple[int, int] | None) -> EighResult:
    if subset is None:
        return _compute(a, EighOptions(), b)
    first, last = subset
    n = KIND.inputs({"matrix": a})["matrix"].shape[0]
    if not 0 <= first <= last < n or (first > 0 and last < n - 1):
        raise SpecError(f"subset_by_index must be (0, last) or (first, {n - 1}) for a matrix of {n} rows; got {tuple(subset)}.")
    return _compute(a, EighOptions(n_components=last - first + 1, which="smallest" if first == 0 else "largest"), b)


def _of_operator(A: Operator, options: EighOptions) -> EighResult:
    k, tolerance = options.count(A.shape[0]), options.tolerance
    return EighResult(*pairs_of_operator(A, k, options.which, tolerance=tolerance, max_reads=options.max_reads, seed=options.seed))


def _compute(a: Any, options: EighOptions, b: Any = None) -> EighResult:
    arrays = run_here(KIND, KIND.inputs({"matrix": a} | ({} if b is None else {"b": b})), options).arrays
    return EighResult(arrays["eigenvalues"], arrays["eigenvectors"])
