"""Eigenpairs of a Hermitian matrix in memory, by way of a tridiagonal one with the same eigenvalues:

    A = Q T Q^H,    T S = S L,    V = Q S

LAPACK reduces A and divides T. Its own product with Q takes 32 reflectors at a time, which leaves most of a core idle: here
they are taken by hundreds, as two products with V.

References
----------
Golub and Van Loan (2013), sections 8.3 and 8.4. Joffrain, Low, Quintana-Orti, van de Geijn, Van Zee (2006), Accumulating
Householder transformations, revisited. Higham (2008), Functions of Matrices.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cython_lapack

from dlscale.arrays import Array
from dlscale.lapack import call, multiply_add, solve_right

#: Reflectors that are applied at a time, at most, and as a part of the order.
WIDTH, PART = 256, 8
#: Columns that LAPACK reduces at a time.
_PANEL = 64
#: Columns that are multiplied at a time where the result takes the place of a factor, and random vectors of a norm.
_STRIP, _N_PROBES = 256, 8


def evd(A: Array) -> tuple[Array, Array, int]:
    """All eigenpairs of a Hermitian matrix (n, n), both triangles, which is overwritten: divide and conquer.

    Returns
    -------
    values : (n,), real, ascending
    vectors : (n, n)
        As rows, conjugated: ``V^H``.
    info : int
        0, or that of LAPACK where it did not converge.

    Notes
    -----
    14/3 n^3 flops or less; works in 2 n^2 more entries. Lengths are 32-bit numbers in LAPACK, which takes n up to 32,766.
    """
    n, is_complex = len(A), A.dtype.kind == "c"
    # In Fortran's eyes A is its transpose, the conjugate, whose eigenvectors are the conjugates, one a column there and a row here.
    values, beside, tau = np.empty(n, A.real.dtype), np.empty(n, A.real.dtype), np.empty(n, A.dtype)
    work = np.empty(_PANEL * n, A.dtype)
    call(cython_lapack, "hetrd" if is_complex else "sytrd", A.dtype, "L", n, A, n, values, beside, tau, work, len(work))
    S, work, integers = np.empty((n, n), values.dtype), np.empty(1 + 4 * n + n * n, values.dtype), np.empty(3 + 5 * n, np.intc)
    info = call(cython_lapack, "stedc", S.dtype, "I", n, values, beside, S, n, work, len(work), integers, len(integers))
    del work
    VH = S.astype(A.dtype, copy=False)
    if not info:
        apply_reflectors_right(A, tau, VH)
    return values, VH, info


def evr(A: Array, first: int, stop: int) -> tuple[Array, Array, int]:
    """As `evd`, of a range of values in ascending order, with no more memory than the vectors.

    Notes
    -----
    LAPACK ``evr``: all pairs by relatively robust representations, and some by bisection and inverse iteration. The vectors of the
    former are orthonormal up to tens of ``n eps`` in general, and are made so to working precision.
    """
    n, k, real, is_complex = len(A), stop - first, A.real.dtype, A.dtype.kind == "c"
    zero, count = np.zeros(1, real), np.zeros(1, np.intc)
    values, VH, support = np.empty(n, real), np.empty((k, n), A.dtype), np.empty(2 * n, np.intc)
    work = [np.empty(70 * n, A.dtype), *([np.empty(24 * n, real)] if is_complex else []), np.empty(10 * n, np.intc)]
    spaces = [item for space in work for item in (space, len(space))]
    which = ("A" if k == n else "I", "L", n, A, n, zero, zero, first + 1, stop, zero)
    name = "heevr" if is_complex else "syevr"
    info = call(cython_lapack, name, A.dtype, "V", *which, count, values, VH, n, support, *spaces)
    info = info or (0 if count[0] == k else 1)
    del work, spaces
    if not info and departure(VH) > n * np.finfo(A.dtype).eps:
        orthonormalize(VH, A[:k, :k])
    return values[:k], VH, info


def departure(VH: Array) -> float:
    """About the Frobenius norm of ``V^H V - I``, from a few random vectors."""
    C = np.random.default_rng(0).standard_normal((_N_PROBES, len(VH))).astype(VH.dtype)
    CV, lost = np.empty((_N_PROBES, VH.shape[1]), VH.dtype), -C
    multiply_add(C, VH, CV, alpha=1.0, beta=0.0)
    multiply_add(CV, VH, lost, alpha=1.0, op_b="C")
    return float(np.linalg.norm(lost) / _N_PROBES**0.5)


def orthonormalize(VH: Array, room: Array) -> None:
    """``V^H <- (3 I - V^H V) / 2 V^H`` in place: columns that are orthonormal up to d are so up to about d^2.

    Parameters
    ----------
    VH : (k, n)
    room : (k, k)
        Memory, of the same dtype.

    Notes
    -----
    The iteration of Newton and Schulz for the nearest orthonormal columns (Higham 2008, section 8.3); 4 n k^2 flops.
    """
    k, n = VH.shape
    multiply_add(VH, VH, room, alpha=-0.5, beta=0.0, op_b="C")
    room[np.arange(k), np.arange(k)] += 1.5
    for left in range(0, n, _STRIP):
        strip = VH[:, left : left + _STRIP]
        multiply_add(room, strip.copy(), strip, alpha=1.0, beta=0.0)


def apply_reflectors_right(A: Array, tau: Array, SH: Array) -> None:
    """``S^H <- S^H Q^T`` in place, for the Q of ``sytrd``, whose reflectors are the rows of A from beyond its diagonal on.

    Notes
    -----
    2 n^2 k flops for k rows. The ``I - V T V^H`` of some reflectors has ``T = D (I + U D)^-1``, with D of their factors and U the
    part of ``V^H V`` above its diagonal.
    """
    n = len(A)
    width = min(WIDTH, n // PART + 1)
    for j in reversed(range(0, n - 1, width)):
        VT = np.triu(A[j : min(j + width, n - 1), j + 1 :])
        k = len(VT)
        np.fill_diagonal(VT, 1)
        D, L, W = tau[j : j + k], np.empty((k, k), A.dtype), np.empty((len(SH), k), A.dtype)
        multiply_add(VT, VT, L, alpha=1.0, beta=0.0, op_b="C")
        L = np.tril(L, -1) * D[:, None]
        np.fill_diagonal(L, 1)
        multiply_add(SH[:, j + 1 :], VT, W, alpha=1.0, beta=0.0, op_b="C")
        solve_right(W, L, uplo="L")
        W *= D
        multiply_add(W, VT, SH[:, j + 1 :])
