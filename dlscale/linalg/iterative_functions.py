"""Iterative methods as functions, with SciPy's names and order of arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.declaration.kind import run_here
from dlscale.errors import InputError, SpecError
from dlscale.kernels import accumulator_dtype
from dlscale.linalg.given_operators import Operator, as_operator
from dlscale.linalg.iterative.given import solve_with_operator
from dlscale.linalg.iterative.options import Method
from dlscale.linalg.iterative.preconditioners import Preconditioner
from dlscale.linalg.iterative.recurrence import Map
from dlscale.linalg.iterative.systems import Starting, compute_system
from dlscale.linalg.solve.kind import KIND, SolveOptions, operands
from dlscale.storage.matrices import open_matrix

#: A preconditioner: by its name, or approximately the inverse of A as a function of an array (n, k), or as an operator.
Given = Preconditioner | Callable[[Array], Any] | Operator | None


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


def cg(A: Any, b: Any, *, x0: Any = None, rtol: float = 1e-5, maxiter: int | None = None, M: Given = None) -> IterativeResult:
    """Solve ``A x = b`` by conjugate gradients, for a Hermitian positive definite matrix.

    Parameters
    ----------
    A : (n, n) NumPy, Dask or Zarr array, path or URL; or an operator, `dlscale.Operator` or SciPy's LinearOperator
    b : (n,) or (n, k) NumPy, Dask or Zarr array, path or URL
    x0 : (n,) or (n, k), optional
        Where x starts; at zeros if absent.
    rtol : float
        ``||b - A x|| / ||b||`` is at most this, of every column, as a product with x measures it.
    maxiter : int, optional
        Iterations at most; 1000 when absent, or 10 n where that is less.
    M : str, callable or operator, optional
        The preconditioner: ``none``, ``jacobi``, ``block_jacobi`` or ``nystrom``; or approximately the inverse of A, Hermitian
        and positive definite: a function that is given an array (n, k) and returns one, a matrix, a `dlscale.Operator` or
        SciPy's LinearOperator.

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
    return _solved("cg", A, b, x0, M, SolveOptions(method="cg", tolerance=rtol, max_iterations=maxiter))


def minres(A: Any, b: Any, *, x0: Any = None, rtol: float = 1e-5, maxiter: int | None = None, M: Given = None) -> IterativeResult:
    """Solve ``A x = b`` by minimal residuals, for a symmetric or Hermitian matrix, definite or not.

    Parameters
    ----------
    A, b, x0, rtol, maxiter, M
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
    return _solved("minres", A, b, x0, M, SolveOptions(method="minres", tolerance=rtol, max_iterations=maxiter))


def gmres(A: Any, b: Any, *, x0: Any = None, rtol: float = 1e-5, maxiter: int | None = None, M: Given = None) -> IterativeResult:
    """Solve ``A x = b`` by generalized minimal residuals, begun anew after 30 to 100 iterations, for any square matrix.

    Parameters
    ----------
    A, b, x0, rtol, maxiter, M
        As for `cg`; ``maxiter`` counts products, and not how often it is begun anew. M is any matrix, and not ``nystrom``.

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
    return _solved("gmres", A, b, x0, M, SolveOptions(method="gmres", tolerance=rtol, max_iterations=maxiter))


def _solved(method: Method, A: Any, b: Any, x0: Any, M: Given, options: SolveOptions) -> IterativeResult:
    by_name = M is None or isinstance(M, str)
    if isinstance(M, str):
        options = replace(options, preconditioner=M)
    rhs, operator = open_matrix(b, vectors=True), as_operator(A)
    matrix = operator or open_matrix(A)
    begun = starting(x0, None if by_name else M, shape=rhs.shape, dtype=np.result_type(matrix.dtype, rhs.dtype, float))
    if operator is not None:
        return IterativeResult(solve_with_operator(operator, b, method, options, begun), 0)
    kind = replace(
        KIND, compute=lambda run, inputs, options, plan: compute_system(run, *operands(inputs, options), options, plan, begun)
    )
    return IterativeResult(run_here(kind, KIND.inputs({"matrix": A, "rhs": b}), options).arrays["x"], 0)


def starting(x0: Any, M: Any, *, shape: tuple[int, int], dtype: np.dtype[Any]) -> Starting:
    """Check what was given.

    Parameters
    ----------
    x0 : array of the right-hand sides' shape, optional
    M : callable or operator, optional
        Approximately the inverse of A: a function from an array (n, k) to one, a matrix, or an operator.
    shape : (n, k)
        Of the right-hand sides.
    dtype : numpy.dtype
        What is computed in.

    Raises
    ------
    SpecError, InputError
    """
    return Starting(None if x0 is None else _first(x0, shape, dtype), None if M is None else _preconditioner(M, shape[0], dtype))


def _first(x0: Any, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    X = np.asarray(x0)
    if X.shape not in (shape, shape[:1]) or X.size != shape[0] * shape[1] or X.dtype.kind not in "biufc":
        raise SpecError(f"x0 must be {shape[0]} x {shape[1]} numbers like b; got shape {X.shape}, dtype {X.dtype}.")
    if X.dtype.kind == "c" and dtype.kind != "c":
        raise SpecError("x0 must be real where A and b are; it is complex.")
    if not np.isfinite(X).all():
        raise InputError("x0 must be finite.")
    return X.reshape(shape).astype(dtype)


def _preconditioner(M: Any, n: int, dtype: np.dtype[Any]) -> Map:
    operator = as_operator(M)
    if operator is None:
        if getattr(M, "ndim", 0) == 2:
            operator = Operator(M.shape, lambda R: M @ R, dtype=M.dtype)
        elif callable(M):
            operator = Operator((n, n), M, dtype=dtype)
        else:
            raise SpecError(
                "M must be none, jacobi, block_jacobi or nystrom, a function of an array (n, k), a matrix or an operator; got "
                f"{M!r}."
            )
    if operator.shape != (n, n):
        raise SpecError(f"M must be {n} x {n} like A; got {operator.shape[0]} x {operator.shape[1]}.")
    if operator.dtype.kind == "c" and dtype.kind != "c":
        raise SpecError("M must be real where A and b are; it is complex.")
    wide, apply = accumulator_dtype(np.result_type(dtype, operator.dtype)), operator.apply
    return lambda R: apply(R).astype(wide, copy=False)
