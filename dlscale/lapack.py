"""BLAS and LAPACK routines on C-ordered arrays, in place, without the interpreter lock.

SciPy's Python wrappers hold the lock while they compute, and NumPy's products cannot add to their target. These go through
the C pointers that SciPy exports. They trust their arguments: arrays of one dtype (f4 f8 c8 c16), 2-D, rows contiguous.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Literal

import numpy as np
import scipy.linalg
from scipy.linalg import cython_blas, cython_lapack

from dlscale.arrays import Array, is_laid_out
from dlscale.buffers import workspace

Op = Literal["N", "T", "C"]

_LETTER = {"f4": "s", "f8": "d", "c8": "c", "c16": "z"}
_WITHOUT_INFO = ("laswp",)


def multiply_add(A: Array, B: Array, C: Array, *, alpha: float = -1.0, beta: float = 1.0, op_a: Op = "N", op_b: Op = "N") -> Array:
    """``C <- beta C + alpha op(A) op(B)``.

    Parameters
    ----------
    A, B : (m, k) and (k, n), after their op
    C : (m, n), overwritten
    op_a, op_b : str
        N: as it is; T: transposed; C: transposed and conjugated.

    Returns
    -------
    C

    Notes
    -----
    2 m n k flops. BLAS ``gemm``; in Fortran's eyes all arrays are transposed, so it computes ``C' = op(B)' op(A)'``.
    """
    m, n = C.shape
    k = A.shape[1] if op_a == "N" else A.shape[0]
    if m and n and k:
        a, b = np.array([alpha], C.dtype), np.array([beta], C.dtype)
        call(
            cython_blas, "gemm", C.dtype, op_b, op_a, n, m, k, a, B, _leading(B), A, _leading(A), b, C, _leading(C)
        )  # fmt: skip
    return C


def add_hermitian_square(A: Array, G: Array, *, beta: float = 1.0) -> Array:
    """The upper triangle of ``G <- beta G + A^H A`` for A (m, n) and G (n, n); m n^2 flops (BLAS ``syrk``, ``herk``).

    Returns
    -------
    G
    """
    m, n = A.shape
    if m and n:
        A = A if A.strides[1] == A.itemsize and is_laid_out(A) else A.copy("C")
        name = "herk" if A.dtype.kind == "c" else "syrk"
        # Of herk the factors are real.
        one, b = np.ones(1, A.real.dtype), np.array([beta], A.real.dtype)
        call(cython_blas, name, A.dtype, "L", "N", n, m, one, A, _leading(A), b, G, _leading(G))
    return G


def pack_upper(G: Array) -> Array:
    """The upper triangle of G (n, n), row by row: (n (n + 1) / 2,) (LAPACK ``trttp``)."""
    n = len(G)
    packed = np.empty(n * (n + 1) // 2, G.dtype)
    if n:
        call(cython_lapack, "trttp", G.dtype, "L", n, G, _leading(G), packed)
    return packed


def unpack_upper(packed: Array, n: int) -> Array:
    """A matrix (n, n) with this upper triangle, and zeros below (LAPACK ``tpttr``)."""
    G = np.zeros((n, n), packed.dtype)
    if n:
        call(cython_lapack, "tpttr", G.dtype, "L", n, packed, G, n)
    return G


def add_outer_packed(x: Array, packed: Array, *, alpha: float) -> Array:
    """The upper triangle, as of `pack_upper`, of ``G <- G + alpha conj(x)' x`` for a row x (n,); n^2 flops (BLAS ``spr``, ``hpr``).

    Returns
    -------
    packed
    """
    x = np.ascontiguousarray(x, packed.dtype)
    if len(x):
        name = "hpr" if x.dtype.kind == "c" else "spr"
        call(cython_blas, name, x.dtype, "L", len(x), np.array([alpha], x.real.dtype), x, 1, packed)
    return packed


def subtract_hermitian_product(L: Array, C: Array) -> Array:
    """The lower triangle of ``C <- C - L L^H`` for L (n, k) and C (n, n); n^2 k flops (BLAS ``syrk``, ``herk``).

    Returns
    -------
    C
    """
    n, k = L.shape
    if n and k:
        name, op = ("herk", "C") if L.dtype.kind == "c" else ("syrk", "T")
        one = np.ones(1, L.real.dtype)
        call(cython_blas, name, L.dtype, "U", op, n, k, -one, L, _leading(L), one, C, _leading(C))
    return C


def solve_lower(L: Array, B: Array, *, op: Op = "N", unit: bool = False) -> Array:
    """``B <- op(L)^-1 B`` for a lower triangular L (n, n) and B (n, k), in place; n^2 k flops (BLAS ``trsm``)."""
    return _triangular("trsm", L, B, uplo="L", op=op, unit=unit)


def solve_upper(R: Array, B: Array, *, op: Op = "N", unit: bool = False) -> Array:
    """``B <- op(R)^-1 B`` for an upper triangular R (n, n) and B (n, k), in place; n^2 k flops (BLAS ``trsm``)."""
    return _triangular("trsm", R, B, uplo="U", op=op, unit=unit)


def multiply_triangular(T: Array, B: Array, *, uplo: Literal["L", "U"], op: Op = "N", unit: bool = False) -> Array:
    """``B <- op(T) B`` for a triangular T (n, n) and B (n, k), in place; n^2 k flops (BLAS ``trmm``)."""
    return _triangular("trmm", T, B, uplo=uplo, op=op, unit=unit)


def solve_right(B: Array, T: Array, *, uplo: Literal["L", "U"], op: Op = "N", unit: bool = False) -> Array:
    """``B <- B op(T)^-1`` for a triangular T (n, n) and B (m, n), in place; m n^2 flops (BLAS ``trsm``)."""
    m, n = B.shape
    if m and n:
        flipped = "U" if uplo == "L" else "L"
        one, diagonal = np.ones(1, B.dtype), "U" if unit else "N"
        call(cython_blas, "trsm", B.dtype, "L", flipped, op, diagonal, n, m, one, T, _leading(T), B, _leading(B))
    return B


def factor_lu(panel: Array) -> tuple[Array, int]:
    """LU with partial pivoting of a panel (m, b), in place.

    Returns
    -------
    pivots : (min(m, b),) intp
        Row i was exchanged with row ``pivots[i]``, in this order.
    singular : int
        1 + the first step whose pivot is zero; 0 if there is none.

    Notes
    -----
    m b^2 - b^3 / 3 flops. LAPACK ``getrf``, on a copy in Fortran order.
    """
    m, b = panel.shape
    if not m:
        return np.empty(0, np.intp), 0
    work = _fortran(panel)
    pivots = np.empty(min(m, b), np.intc)
    info = call(cython_lapack, "getrf", panel.dtype, m, b, work, _leading(work.T), pivots)
    sizes, limits = np.abs(np.diagonal(work)), np.finfo(panel.dtype)
    if ((sizes > 0) & (sizes < limits.tiny)).any() and np.abs(panel).max() < np.ldexp(1.0, limits.maxexp // 2):
        # OpenBLAS leaves out the exchange of a subnormal pivot. Of a multiple whose pivots are normal, L is the same.
        power = np.ldexp(panel.real.dtype.type(1), limits.nmant + 8)
        work[...] = panel
        work *= power
        info = call(cython_lapack, "getrf", panel.dtype, m, b, work, _leading(work.T), pivots)
        for i in range(min(m, b)):
            work[: i + 1, i] /= power
        work[:, min(m, b) :] /= power
    _copy_back(work, panel)
    return pivots.astype(np.intp) - 1, info


def factor_qr(panel: Array) -> Array:
    """Householder QR of a panel (m, b) in compact WY form, in place: R on and above the diagonal, the reflectors below.

    Returns
    -------
    T : (k, k), k = min(m, b), upper triangular
        ``Q = I - V T V^H``.

    Notes
    -----
    2 m b^2 - 2 b^3 / 3 flops and as much as m b^2 for T. LAPACK ``geqrt3`` (recursive), on a copy in Fortran order.
    """
    m, b = panel.shape
    k = min(m, b)
    work = _fortran(panel)
    T = np.zeros((k, k), panel.dtype, order="F")
    call(cython_lapack, "geqrt3", panel.dtype, m, k, work, _leading(work.T), T, k)
    _copy_back(work, panel)
    T = np.ascontiguousarray(np.triu(T))
    if b > k:
        apply_reflectors(panel[:, :k], T, panel[:, k:], op="C")
    return T


def apply_reflectors(V: Array, T: Array, C: Array, *, op: Op) -> None:
    """``C <- (I - V op(T) V^H) C`` in place (LAPACK ``larfb``).

    Parameters
    ----------
    V : (m, k)
        A factored panel: the reflectors below the diagonal, whose ones are not stored.
    T : (k, k), upper triangular
    C : (m, n), overwritten

    Notes
    -----
    4 m k n - k^2 n flops.
    """
    k = len(T)
    W = workspace("reflected", (k, C.shape[1]), C.dtype)
    W[...] = C[:k]
    multiply_triangular(V[:k], W, uplo="L", op="C", unit=True)
    multiply_add(V[k:], C[k:], W, alpha=1.0, op_a="C")
    multiply_triangular(T, W, uplo="U", op=op)
    multiply_add(V[k:], W, C[k:])
    C[:k] -= multiply_triangular(V[:k], W, uplo="L", unit=True)


def factor_cholesky(block: Array) -> int:
    """Cholesky factor L of the lower triangle of a Hermitian block (n, n), in place; zeros above the diagonal.

    Returns
    -------
    int
        0, or the order of the leading minor that is not positive definite.

    Notes
    -----
    n^3 / 3 flops. LAPACK ``potrf``: a lower factor in C order is the upper factor of the transpose in Fortran order.
    """
    n = len(block)
    info = call(cython_lapack, "potrf", block.dtype, "U", n, block, _leading(block))
    block[np.triu_indices(n, 1)] = 0
    return info


def largest_eigenpairs(G: Array, k: int) -> tuple[Array, Array]:
    """The largest eigenvalues of a Hermitian matrix, descending, and their eigenvectors.

    Parameters
    ----------
    G : (n, n), both triangles
    k : int
        How many, 1 to n.

    Returns
    -------
    values : (k,), real
    vectors : (n, k)

    Notes
    -----
    4/3 n^3 flops where few are wanted (LAPACK ``evx``); 9 n^3 where many are, or where ``evx`` does not find all of them.
    """
    n = len(G)
    if 8 * k <= n:
        real, is_complex = np.dtype(G.dtype.char.lower()), G.dtype.kind == "c"
        copy, zero = np.array(G, order="F"), np.zeros(1, real)
        count, values, vectors = np.zeros(1, np.intc), np.empty(n, real), np.empty((n, k), G.dtype, order="F")
        real_work = [np.empty(7 * n, real)] if is_complex else []
        work: list[int | Array] = [np.empty(67 * n, G.dtype), 67 * n, *real_work, np.empty(5 * n, np.intc), np.empty(n, np.intc)]
        name = "heevx" if is_complex else "syevx"
        wanted = (zero, zero, n - k + 1, n, zero)
        info = call(cython_lapack, name, G.dtype, "V", "I", "L", n, copy, n, *wanted, count, values, vectors, n, *work)
        if info == 0 and count[0] == k:
            return values[:k][::-1], vectors[:, ::-1]
    values, vectors = np.linalg.eigh(G)
    return values[::-1][:k], vectors[:, ::-1][:, :k]


def svd(A: Array, *, full_matrices: bool = True) -> tuple[Array, Array, Array]:
    """U, s and V^H of a finite matrix, or of a stack of them, as `numpy.linalg.svd` gives them.

    With some kernels of OpenBLAS divide and conquer does not converge for one matrix in many thousand; QR iteration does.
    """
    try:
        U, s, VH = np.linalg.svd(A, full_matrices=full_matrices)
    except np.linalg.LinAlgError:
        if A.ndim > 2:
            U, s, VH = (np.stack(parts) for parts in zip(*(svd(B, full_matrices=full_matrices) for B in A), strict=True))
        else:
            U, s, VH = scipy.linalg.svd(A, full_matrices=full_matrices, lapack_driver="gesvd")
    return U, s, VH


def interchanges(pivots: Array) -> tuple[Array, Array]:
    """The net effect of exchanging row i with row ``pivots[i] >= i``, in this order (LAPACK ``laswp``).

    Returns
    -------
    targets, sources : arrays of intp
        ``A[targets] = A[sources]`` does all the exchanges at once.
    """
    n_rows = int(pivots.max(initial=-1)) + 1
    rows = np.arange(n_rows, dtype=float)
    if n_rows:
        call(cython_lapack, "laswp", rows.dtype, 1, rows, n_rows, 1, len(pivots), np.asarray(pivots + 1, np.intc), 1)
    sources = rows.astype(np.intp)
    targets = np.flatnonzero(sources != np.arange(n_rows))
    return targets, sources[targets]


def _triangular(name: str, T: Array, B: Array, *, uplo: str, op: Op, unit: bool) -> Array:
    n, k = B.shape
    if n and k:
        flipped = "U" if uplo == "L" else "L"
        one, diagonal = np.ones(1, B.dtype), "U" if unit else "N"
        call(cython_blas, name, B.dtype, "R", flipped, op, diagonal, k, n, one, T, _leading(T), B, _leading(B))
    return B


def _leading(A: Array) -> int:
    """The leading dimension: elements from one row to the next."""
    return A.strides[0] // A.itemsize if len(A) > 1 else max(1, A.shape[1])


def call(library: Any, name: str, dtype: np.dtype[Any], *arguments: str | int | Array) -> int:
    """Call a routine; integers and letters go by reference, and an ``info`` stands behind the arguments of most LAPACK routines.

    Returns
    -------
    int
        ``info``.

    Raises
    ------
    ValueError
        If an argument was wrong (info < 0), which is a fault of this module.
    """
    info = ctypes.c_int(0)
    values: list[Any] = []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            values.append(argument.ctypes.data)
        elif isinstance(argument, str):
            values.append(ctypes.cast(ctypes.c_char_p(argument.encode()), ctypes.c_void_p))
        else:
            values.append(ctypes.byref(ctypes.c_int(argument)))
    if library is cython_lapack and name not in _WITHOUT_INFO:
        values.append(ctypes.byref(info))
    _routine(library, _LETTER[dtype.str[1:]] + name, len(values))(*values)
    if info.value < 0:
        raise ValueError(f"Argument {-info.value} of LAPACK {name} is wrong.")
    return info.value


@cache
def _routine(library: Any, name: str, n_arguments: int) -> Any:
    """A routine as a ctypes function, which releases the interpreter lock while it runs."""
    capsule = vars(library)["__pyx_capi__"][name]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype, api.PyCapsule_GetPointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * n_arguments)(address)


#: Rows that are transposed at a time, so that both copies stay in the cache.
_STRIP = 64
#: What is put between columns whose lengths are multiples of it.
_PAD = 8


def _fortran(panel: Array) -> Array:
    """A workspace of this thread with the panel in Fortran order; columns a power of two apart would make the caches thrash."""
    m, b = panel.shape
    pad = _PAD if m % _PAD == 0 else 0
    work = workspace("panel", (b, m + pad), panel.dtype)[:, :m].T
    for i in range(0, m, _STRIP):
        work[i : i + _STRIP] = panel[i : i + _STRIP]
    return work


def _copy_back(work: Array, panel: Array) -> None:
    for i in range(0, len(panel), _STRIP):
        panel[i : i + _STRIP] = work[i : i + _STRIP]
