"""QR of a tall block by a tree of small pieces, in double precision.

    A_i = Q_i R_i for each piece;   [R_1; R_2; ...; the rows that are left] = Q' R by the same again, until it is one piece

Rounding errors of equal terms go one way: in a column of m equal entries they grow with m, up to where BLAS cuts its sums. In a
tree only those of one piece on each level do. A piece stays in the cache while it is factored.

References
----------
Demmel, Grigori, Hoemmen, Langou (2012), TSQR, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dlscale.arrays import Array
from dlscale.kernels import accumulator_dtype

#: Rows of a piece, and times as many as columns, where that is more: what is left is at most a sixteenth, and costs no more.
_ROWS = 128
_TALL = 16
#: Of pieces that are factored at a time, in double precision.
_BYTES = 2**18


def triangle(A: Array) -> Array:
    """R (min(m, n), n) of A (m, n)."""
    rows = _piece_rows(A)
    while len(A) > rows:
        whole = len(A) // rows * rows
        A = np.concatenate(
            [*(_rows_of(np.asarray(np.linalg.qr(pieces, mode="r"))) for pieces in _pieces(A[:whole], rows)), A[whole:]]
        )
    # LAPACK does not say so when an entry is not finite; the pass does.
    return np.asarray(np.linalg.qr(_wide(A), mode="r"))


def below(above: Array, A: Array) -> Array:
    """R of a triangle and A below it; a tall A is factored alone first, so that its rows do not all meet a far larger triangle."""
    return triangle(np.concatenate([above, triangle(A) if len(A) >= _TALL * A.shape[1] else A]))


def times_q(A: Array, C: Array) -> Array:
    """``Q C`` (m, k) of the tree by which `triangle` finds R of A (m, n); C (min(m, n), k)."""
    rows = _piece_rows(A)
    if len(A) <= rows:
        return np.asarray(np.linalg.qr(A).Q @ C)
    whole, n = len(A) // rows * rows, A.shape[1]
    Q, R = np.empty((whole // rows, rows, n), A.dtype), np.empty((whole // rows, n, n), accumulator_dtype(A.dtype))
    first = 0
    for pieces in _pieces(A[:whole], rows):
        some = slice(first, first := first + len(pieces))
        Q[some], R[some] = np.linalg.qr(pieces)
    D = times_q(np.concatenate([_rows_of(R), A[whole:]]), C).astype(A.dtype, copy=False)
    found = np.empty((len(A), C.shape[1]), A.dtype)
    left = len(A) - whole
    np.matmul(Q, D[: len(D) - left].reshape(len(Q), n, -1), out=found[:whole].reshape(len(Q), rows, -1))
    found[whole:] = D[len(D) - left :]
    return found


def _piece_rows(A: Array) -> int:
    return max(_ROWS, _TALL * int(A.shape[1]))


def _pieces(A: Array, rows: int) -> Iterator[Array]:
    """Some pieces (any, rows, n) at a time, in double precision."""
    step = max(1, _BYTES // (accumulator_dtype(A.dtype).itemsize * A.shape[1] * rows)) * rows
    for first in range(0, len(A), step):
        yield _wide(A[first : first + step]).reshape(-1, rows, A.shape[1])


def _rows_of(R: Array) -> Array:
    return R.reshape(-1, R.shape[-1])


def _wide(A: Array) -> Array:
    return A.astype(accumulator_dtype(A.dtype), copy=False)
