"""LU, QR and Cholesky as functions: arrays or URIs in, named results out, in this process."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.declaration.kind import Kind, run_here
from dlscale.errors import NumericalError, SpecError
from dlscale.host import n_cores
from dlscale.linalg.cholesky.kind import KIND as CHOLESKY
from dlscale.linalg.cholesky.kind import CholeskyOptions
from dlscale.linalg.folds.least_squares import read_rhs
from dlscale.linalg.lu.kind import KIND as LU
from dlscale.linalg.lu.kind import LUOptions
from dlscale.linalg.qr.kind import KIND as QR
from dlscale.linalg.qr.kind import Mode, QROptions
from dlscale.linalg.qr.update import MoreRows
from dlscale.linalg.solve.factors import CholeskyFactors, LUFactors
from dlscale.linalg.solve.stored import singular_words, zero_pivot
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import ArrayMatrix


class LUResult(NamedTuple):
    """``P A = L U``.

    Parameters
    ----------
    lu : (m, n)
        U on and above the diagonal, L below it without its unit diagonal.
    piv : (min(m, n),)
        Row i was exchanged with row ``piv[i]``; both exactly as `scipy.linalg.lu_factor` returns them.
    """

    lu: Array
    piv: Array

    def solve(self, b: Any, trans: int = 0) -> Array:
        """Solve ``A x = b`` for b (n,) or (n, k), in the wider precision of the two; as `scipy.linalg.lu_solve`.

        Parameters
        ----------
        b : (n,) or (n, k)
        trans : int
            0: ``A x = b``; 1: ``A^T x = b``; 2: ``A^H x = b``.

        Raises
        ------
        SpecError
            If A is not square, b has not its length, or trans is another number.
        NonFiniteError
            Naming the place of a NaN or infinity in b.
        NumericalError
            If A is singular to working precision, or the solution is no number of this precision.
        """
        if trans not in (0, 1, 2):
            raise SpecError(f"trans must be 0, 1 or 2; got {trans!r}.")
        factors = LUFactors(ArrayMatrix(self.lu), self.piv.astype(np.intp), n_cores())
        # A^T x = b is A^H conj(x) = conj(b).
        return _solve(factors, b, adjoint=bool(trans), conjugated=trans == 1)


class CholeskyResult(NamedTuple):
    """``A = L L^H``.

    Parameters
    ----------
    l : (n, n), lower triangular
    """

    l: Array  # noqa: E741  (the field's name for it)

    def solve(self, b: Any) -> Array:
        """Solve ``A x = b`` for b (n,) or (n, k); as `LUResult.solve`."""
        return _solve(CholeskyFactors(ArrayMatrix(self.l), n_cores()), b)

    def with_rows(self, W: Any) -> CholeskyResult:
        """The factor of ``A + W^H W`` for W (p, n), by the QR factorization of L^H above W, which is backward stable."""
        r = _with_rows(self.l.conj().T, W, "r")["r"]
        return CholeskyResult(np.ascontiguousarray(r.conj().T))


class QRResult(NamedTuple):
    """``A = q r``.

    Parameters
    ----------
    q : (m, k), orthonormal columns, k = min(m, n)
    r : (k, n), upper triangular, its diagonal real and not negative
    """

    q: Array
    r: Array

    def with_rows(self, W: Any) -> QRResult:
        """The factors of A above W for W (p, n), by the QR factorization of R above W, which is backward stable."""
        arrays, k = _with_rows(self.r, W, "reduced"), len(self.r)
        return QRResult(np.concatenate([self.q @ arrays["q"][:k], arrays["q"][k:]]), arrays["r"])


def lu(A: Any, *, panel: int | None = None) -> LUResult:
    """LU factorization with partial pivoting, ``P A = L U``.

    Parameters
    ----------
    A : (m, n) NumPy, Dask or Zarr array, path or URL
    panel : int, optional
        Columns of a panel.

    Returns
    -------
    LUResult
        The same ``(lu, piv)`` as `scipy.linalg.lu_factor`; ``.solve(b)`` uses them.

    Raises
    ------
    SpecError, InputError
        If an argument does not suit the matrix, or it cannot be read.
    NonFiniteError
        Naming the row and column of a NaN or infinity.
    CertificateError
        If the answer fails its own check.

    Notes
    -----
    2 n^3 / 3 flops for a square matrix.
    """
    arrays = _run(LU, A, LUOptions(panel=panel))
    return LUResult(arrays["lu"], arrays["piv"])


def cholesky(A: Any, *, panel: int | None = None) -> CholeskyResult:
    """Cholesky factorization of a Hermitian positive definite matrix, ``A = L L^H``.

    Parameters
    ----------
    A : (n, n) NumPy, Dask or Zarr array, path or URL
    panel : int, optional
        Columns of a panel.

    Returns
    -------
    CholeskyResult

    Raises
    ------
    NumericalError
        Naming the leading minor that is not positive, or if the matrix is not Hermitian.
    SpecError, InputError, NonFiniteError, CertificateError
        As for `lu`.

    Notes
    -----
    n^3 / 3 flops.
    """
    return CholeskyResult(_run(CHOLESKY, A, CholeskyOptions(panel=panel))["l"])


class PivotedQRResult(NamedTuple):
    """``A[:, p] = q r``.

    Parameters
    ----------
    q : (m, k), orthonormal columns, k = min(m, n)
    r : (k, n), upper triangular, its diagonal real and not negative, and not increasing but for rounding
    p : (n,)
        Column j of ``q r`` is column ``p[j]`` of A, as `scipy.linalg.qr` returns it.
    """

    q: Array
    r: Array
    p: Array


def qr(
    A: Any, *, mode: Mode = QROptions.mode, pivoting: bool = QROptions.pivoting, panel: int | None = None
) -> QRResult | PivotedQRResult | Array | tuple[Array, Array]:
    """QR factorization of a matrix of any shape, ``A = Q R``.

    Parameters
    ----------
    A : (m, n) NumPy, Dask or Zarr array, path or URL
    mode : str
        ``reduced`` for Q and R, ``r`` for R alone, ``raw`` for the reflectors as LAPACK's ``geqrt`` stores them.
    pivoting : bool
        Exchange columns so that the diagonal of R does not increase, and tells the rank.
    panel : int, optional
        Columns of a panel; a tall matrix then goes by panels too.

    Returns
    -------
    QRResult, the array R, or (qr, t); PivotedQRResult or (r, p) with pivoting

    Raises
    ------
    SpecError, InputError, NonFiniteError, CertificateError
        As for `lu`.

    Notes
    -----
    Tall matrices (at least 4 times more rows than columns): 2 to 4 reads, 3 m n^2 flops and up. Others: 2 n^2 (m - n / 3)
    flops for R, and as many for Q.
    """
    arrays = _run(QR, A, QROptions(mode=mode, pivoting=pivoting, panel=panel))
    if pivoting:
        r, p = arrays["r"], arrays["p"]
        return PivotedQRResult(arrays["q"], r, p) if mode == "reduced" else (r, p)
    if mode == "reduced":
        return QRResult(arrays["q"], arrays["r"])
    return arrays["r"] if mode == "r" else (arrays["qr"], arrays["t"])


def _with_rows(R: Array, W: Any, mode: Mode) -> dict[str, Array]:
    """The factors of R above W."""
    rows = open_matrix(W)
    if rows.shape[1] != R.shape[1]:
        raise SpecError(f"The rows must have {R.shape[1]} columns like the matrix that was factored; got {rows.shape[1]}.")
    return run_here(QR, Inputs({"matrix": MoreRows(ArrayMatrix(R), rows)}), QROptions(mode=mode)).arrays


def _run(kind: Kind, A: Any, options: Any) -> dict[str, Array]:
    return run_here(kind, kind.inputs({"matrix": A}), options).arrays


def _solve(factors: LUFactors | CholeskyFactors, b: Any, *, adjoint: bool = False, conjugated: bool = False) -> Array:
    (m, n), B = factors.shape, open_matrix(b, vectors=True)
    if m != n:
        raise SpecError(f"The factors of a square matrix solve systems; these are of {m} x {n}. Use lstsq.")
    if B.shape[0] != n:
        raise SpecError(f"b must have {n} rows like the matrix that was factored; got {B.shape[0]}.")
    if isinstance(factors, LUFactors) and (step := zero_pivot(factors.lu)) is not None:
        raise NumericalError(f"The matrix is {singular_words(step)}")
    rhs = read_rhs(B, 0, n)
    wide = factors.computing_in(np.result_type(factors.dtype, rhs))
    X = wide.solve(rhs.conj() if conjugated else rhs, adjoint=adjoint)
    if not np.isfinite(X).all():
        raise NumericalError(f"The solution has entries that overflow {X.dtype}; use dlscale.solve, which scales.")
    X = X.conj() if conjugated else X
    return X[:, 0] if B.is_vector else X
