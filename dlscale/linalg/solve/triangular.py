"""Triangular systems op(T) X = B with T on disk or in memory, read once, panel by panel.

    for each panel j, in the order of the substitution:
        X_j = op(T_jj)^-1 (B_j - what the panels before contribute)

A panel is a block of columns of T, or of rows where T is stored so. What couples it to the other unknowns is read in pieces by
several threads. Panels and pieces depend on T alone, so that the bits do not depend on the threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.columns import Tell, untold
from dlscale.engine.grids import blocks
from dlscale.kernels import one_blas_thread
from dlscale.lapack import Op, multiply_add, solve_lower, solve_upper
from dlscale.storage.matrix import Matrix

#: Unknowns of a panel: its own triangle, which one thread solves, is small beside the rest.
PANEL = 512
#: Bytes of a piece of a panel: one long read, and enough to share among threads.
PIECE_BYTES = 8 * 2**20


def solve_triangular(
    T: Matrix,
    B: Array,
    *,
    lower: bool,
    op: Op = "N",
    unit: bool = False,
    dtype: np.dtype[Any] | None = None,
    n_threads: int = 1,
    panel: int = PANEL,
    tell: Tell = untold,
) -> Array:
    """Solve ``op(T) X = B``.

    Parameters
    ----------
    T : Matrix (n, n)
        Only one triangle is used.
    B : (n, k)
    lower : bool
        Which triangle.
    op : str
        ``N``: T; ``T``: its transpose; ``C``: its conjugate transpose.
    unit : bool
        Whether the diagonal counts as ones, whatever is stored there.
    dtype : numpy.dtype, optional
        What is computed in; T's if absent.
    n_threads : int
        Threads that read and multiply.
    panel : int
        Unknowns of a panel; a stored chunk that is wider is read once for each of its panels.
    tell : callable
        Told of the flops that were done, and the bytes that were read.

    Returns
    -------
    X : (n, k), of this dtype
        Not finite where a diagonal entry is zero, or where it overflows.

    Notes
    -----
    n^2 k flops, one read of the triangle; memory for X and, a thread, a piece of `PIECE_BYTES`.

    References
    ----------
    Golub and Van Loan (2013), section 3.1.4.
    """
    n = T.shape[0]
    by_rows = T.column_unit >= n > T.row_unit and not T.in_memory
    if by_rows:
        panel = max(1, panel // T.row_unit) * T.row_unit if T.row_unit > 1 else panel
    X = np.array(B, dtype or T.dtype, order="C")
    forward = lower == (op == "N")
    # The panel's block of T either carries its unknowns to the others (scatter), or collects what the others contribute.
    scatters = by_rows == (op != "N")
    after = lower != by_rows
    spans = list(blocks(0, n, panel))
    with np.errstate(all="ignore"), one_blas_thread(), ThreadPoolExecutor(n_threads) as pool:
        for start, stop in spans if forward else reversed(spans):
            mine, work = X[start:stop], partial(_couple, T, X, (start, stop), by_rows, scatters, op)
            couplings = list(_pieces(T, (stop, n) if after else (0, start), stop - start, by_rows))
            if not scatters:
                for part in pool.map(work, couplings):
                    mine -= part
            triangle = np.ascontiguousarray(T.region((start, stop), (start, stop)), X.dtype)
            (solve_lower if lower else solve_upper)(triangle, mine, op=op, unit=unit)
            if scatters:
                list(pool.map(work, couplings))
            width, others = stop - start, sum(last - first for first, last in couplings)
            tell(float(width * (width + 2 * others) * X.shape[1]), width * (width + others) * T.dtype.itemsize)
    return X


def _pieces(T: Matrix, others: tuple[int, int], width: int, by_rows: bool) -> Iterator[tuple[int, int]]:
    """Cut the other unknowns in pieces of whole stored chunks."""
    unit = T.column_unit if by_rows else T.row_unit
    length = max(1, PIECE_BYTES // (width * T.dtype.itemsize))
    length = max(1, length // unit) * unit if unit < others[1] - others[0] else length
    first = others[0]
    while first < others[1]:
        last = min((first // length + 1) * length, others[1])
        yield first, last
        first = last


def _couple(T: Matrix, X: Array, panel: tuple[int, int], by_rows: bool, scatters: bool, op: Op, piece: tuple[int, int]) -> Array:
    """Subtract the panel's contribution from the unknowns of a piece, or return the piece's contribution to the panel."""
    block = T.region(panel, piece) if by_rows else T.region(piece, panel)
    if block.dtype != X.dtype or block.strides[1] != block.itemsize:
        block = np.ascontiguousarray(block, X.dtype)
    mine, other = X[slice(*panel)], X[slice(*piece)]
    if scatters:
        return multiply_add(block, mine, other, op_a=op)
    return multiply_add(block, other, np.empty_like(mine), alpha=1.0, beta=0.0, op_a=op)
