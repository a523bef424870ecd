"""Iterative methods as functions, with SciPy's names and order of arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

from dlscale.arrays import Array
from dlscale.declaration.kind import run_here
from dlscale.linalg.given_operators import as_operator
from dlscale.linalg.iterative.given import solve_with_operator
from dlscale.linalg.iterative.options import Method
from dlscale.linalg.iterative.preconditioners import Preconditioner
from dlscale.linalg.solve.kind import KIND, SolveOptions


class IterativeResult(NamedTuple):
    """A solution as SciPy's iterative functions return it.

    Parameters
    ----------
    x : (n,) or (n, k)
    info : int
        0: iterations that do not converge raise an error that says how they ended.
    """

    x: Array
    info: int


def cg(A: Any, b: Any, *, rtol: float = 1e-5, maxiter: int | None = None, M: Preconditioner = "none") -> IterativeResult:
    """Solve ``A x = b`` by conjugate gradients, for a Hermitian positive definite matrix.

    Parameters
    ----------
    A : (n, n) NumPy, Dask or Zarr array, path or URL; or an operator, `dlscale.Operator` or SciPy's LinearOperator
    b : (n,) or (n, k) NumPy, Dask or Zarr array, path or URL
    rtol : float
        ``||b - A x|| / ||b||`` is at most this, of every column, as a product with x measures it.
    maxiter : int, optional
        Iterations at most; 1000 when absent, or 10 n where that is less.
    M : str
        The preconditioner: ``none``, ``jacobi`` or ``block_jacobi``.

    Returns
    -------
    IterativeResult
        ``x, info``.

    Raises
    ------
    NumericalError
        If the iterations end otherwise than converged, naming the end and the true residual.
    InputError
        If the matrix is not symmetric.

    Notes
    -----
    2 n^2 k flops an iteration; all columns share a read.

    References
    ----------
    Hestenes and Stiefel (1952).
    """
    return _solved("cg", A, b, rtol, maxiter, M)


def minres(A: Any, b: Any, *, rtol: float = 1e-5, maxiter: int | None = None, M: Preconditioner = "none") -> IterativeResult:
    """Solve ``A x = b`` by minimal residuals, for a symmetric or Hermitian matrix, definite or not.

    Parameters
    ----------
    A, b, rtol, maxiter, M
        As for `cg`; blocks of the preconditioner are taken by the moduli of their eigenvalues.

    Returns
    -------
    IterativeResult
        ``x, info``.

    Raises
    ------
    NumericalError, InputError
        As for `cg`.

    References
    ----------
    Paige and Saunders (1975).
    """
    return _solved("minres", A, b, rtol, maxiter, M)


def gmres(A: Any, b: Any, *, rtol: float = 1e-5, maxiter: int | None = None, M: Preconditioner = "none") -> IterativeResult:
    """Solve ``A x = b`` by generalized minimal residuals, begun anew after 30 to 100 iterations, for any square matrix.

    Parameters
    ----------
    A, b, rtol, maxiter, M
        As for `cg`; ``maxiter`` counts products, and not how often it is begun anew.

    Returns
    -------
    IterativeResult
        ``x, info``.

    Raises
    ------
    NumericalError
        As for `cg`.

    References
    ----------
    Saad and Schultz (1986).
    """
    return _solved("gmres", A, b, rtol, maxiter, M)


def _solved(method: Method, A: Any, b: Any, rtol: float, maxiter: int | None, M: Preconditioner) -> IterativeResult:
    options = SolveOptions(method=method, tolerance=rtol, max_iterations=maxiter, preconditioner=M)
    operator = as_operator(A)
    if operator is not None:
        return IterativeResult(solve_with_operator(operator, b, method, options), 0)
    return IterativeResult(run_here(KIND, KIND.inputs({"matrix": A, "rhs": b}), options).arrays["x"], 0)
