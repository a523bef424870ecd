"""Products whose inner dimension is long: one pass over the rows of ``op(A)^T`` and ``op(B)``, which are read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import Layout, bytes_of, lay_out
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Fold, Passes, State
from dlscale.errors import DoesNotFitError
from dlscale.kernels import accumulator_dtype, tiles
from dlscale.linalg.folds.products import Gram
from dlscale.linalg.multiply.operands import Operand
from dlscale.sparse_rows import SparseRows
from dlscale.storage.matrix import Matrix

#: The inner dimension is long from so many times the larger side of the product on.
CLEARLY_LONG = 4


@dataclass(frozen=True)
class LongProduct(Fold):
    """``P^T Q``, or ``P^H Q``, in a pass over P (k, m) and Q (k, n); sums in double precision.

    Parameters
    ----------
    m, n : int
    dtype : numpy.dtype
    conjugate : bool
        Whether P is conjugated.
    """

    m: int
    n: int
    dtype: np.dtype[Any]
    conjugate: bool

    takes_sparse = True

    @property
    def flops_per_row(self) -> float:
        return 2.0 * self.m * self.n

    def start(self) -> State:
        return {"product": np.zeros((self.m, self.n), accumulator_dtype(self.dtype))}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        P, Q = A
        Q = Q.toarray() if isinstance(Q, SparseRows) else Q
        if isinstance(P, SparseRows):
            found = P.adjoint_times(Q if self.conjugate else Q.conj())
            state["product"] += found.conj().T if self.conjugate else found.T
            return ()
        for i, tile in tiles(P):
            left = tile.conj().T if self.conjugate else tile.T
            state["product"] += left @ Q[i : i + len(tile)]
        return ()


def by_inner_rows(operand: Operand, *, left: bool) -> Matrix:
    """The operand, not conjugated, as a matrix whose rows go along the inner dimension."""
    return operand.matrix.T if operand.adjoint != left else operand.matrix


def lay_out_long(a: Operand, b: Operand, facts: ClusterFacts) -> Layout | None:
    """A grid for the pass; None where the inner dimension is not long, or the partial products do not fit."""
    (m, k), n = a.shape, b.shape[1]
    if k < CLEARLY_LONG * max(m, n):
        return None
    try:
        # Beside a block of A are the same rows of B.
        state_bytes = bytes_of(m, n, dtype=accumulator_dtype(a.dtype))
        return lay_out(by_inner_rows(a, left=True), facts, state_bytes=state_bytes, block_factor=3 + 2 * n / m)
    except DoesNotFitError:
        return None


def multiply_long(passes: Passes, a: Operand, b: Operand, grid: RowGrid, *, symmetric: bool) -> Array:
    """``A B`` (m, n), in double precision; with ``symmetric`` exactly Hermitian, by half of the flops."""
    P, Q = by_inner_rows(a, left=True), by_inner_rows(b, left=False)
    if symmetric:
        gram = Gram(P.shape[1], P.dtype)
        product = gram.matrix(passes.sweep("product", P, gram, grid))
        diagonal = np.arange(len(product))
        product[diagonal, diagonal] = product[diagonal, diagonal].real
        return product.conj() if b.adjoint else product
    # (conj P)^T Q, P^T conj(Q) = conj((conj P)^T Q), and so on.
    fold = LongProduct(P.shape[1], Q.shape[1], P.dtype, a.adjoint != b.adjoint)
    found: Any = passes.sweep("product", (P, Q), fold, grid)["product"]
    return np.asarray(found.conj() if b.adjoint else found)
