"""Eigenpairs of a pencil with an ill-conditioned B: what rounds small eigenvalues to the size of the largest one is avoided.

    P^T B P = L L^H with pivots that do not increase, so that the entries of C = L^-1 P^T A P L^-H grow from its top to its bottom

The reduction to a tridiagonal matrix begins at the bottom, and QR iterations, whose direction LAPACK chooses by the sizes at both
ends, keep the digits of every size, where divide and conquer is accurate in the norm of C alone.

References
----------
Davies, Higham, Tisseur (2001), Analysis of the Cholesky method with iterative refinement for solving the symmetric definite
generalized eigenproblem; Golub and Van Loan (2013), section 8.7.2.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cython_lapack

from dlscale.arrays import Array
from dlscale.lapack import call

#: Columns that LAPACK takes at a time.
_BLOCK = 64


def pivoted_cholesky(B: Array) -> tuple[Array, int]:
    """Leave L of ``B[p][:, p] = L L^H`` in B (n, n), zeros above its diagonal; p, and the rank."""
    n = len(B)
    p, rank = np.zeros(n, np.intc), np.zeros(1, np.intc)
    # A tolerance of 0: any pivot above it is taken.
    call(cython_lapack, "pstrf", B.dtype, "U", n, B, n, p, rank, np.zeros(1, B.real.dtype), np.empty(2 * n, B.real.dtype))
    B[np.triu_indices(n, 1)] = 0
    return p.astype(np.intp) - 1, int(rank[0])


def graded_eigenpairs(C: Array) -> tuple[Array, Array, int]:
    """As `dlscale.linalg.eigen.tridiagonal.evd`, of a matrix whose entries grow from its top to its bottom."""
    n, values = len(C), np.empty(len(C), C.real.dtype)
    work = np.empty((_BLOCK + 2) * n, C.dtype)
    real = [np.empty(3 * n, values.dtype)] if C.dtype.kind == "c" else []
    info = call(cython_lapack, "heev" if real else "syev", C.dtype, "V", "U", n, C, n, values, work, len(work), *real)
    return values, C, info
