"""An orthonormal basis of a tall matrix, as a recipe: Q = A X, applied block by block.

Cholesky QR costs two matrix products and is accurate as long as the squared condition number is harmless; a second and a
third round, the first of them shifted, carry it further; beyond, TSQR works at any condition. The condition is measured,
and decides.

References
----------
Yamamoto, Nakatsukasa, Yanagisawa, Fukaya (2015), CholeskyQR2; Fukaya et al. (2020), shifted CholeskyQR3, algorithm 4.2;
Demmel, Grigori, Hoemmen, Langou (2012), TSQR, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.linalg import solve_triangular

from dlscale.arrays import Array
from dlscale.buffers import workspace
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Fold, Passes, State
from dlscale.engine.passes.row_results import RowsFold, add_rows
from dlscale.kernels import accumulator_dtype, add_gram, mirror_upper, one_blas_thread, tile_rows, tiles
from dlscale.lapack import solve_right
from dlscale.linalg.folds.triangles import times_q, triangle
from dlscale.showing import several
from dlscale.storage.matrix import Matrix

#: A factor of a matrix of this condition leaves an orthogonality of about eps * 25: no further round is needed.
WELL_CONDITIONED = 5.0
#: Times ``eps^-1/2``: above this condition the Gram matrix, which squares it, is no longer safely positive definite.
GRAM_LIMIT = 0.03
#: Squares of columns that are less than this part of the largest, by the bits of the dtype, may lose digits at the lower end of
#: the range that `dlscale.linalg.folds.products` takes for safe; no Gram matrix is trusted with them.
_SPANS = {32: 2.0**-55, 64: 2.0**-560}
MAX_ROUNDS = 3
#: By how much rounding in ``A X``, with the inverse X of a factor, may be expected to grow where the factor is multiplied back.
#: It is twice as fast as to solve with the factor, which loses as little whatever its condition.
INVERSE_LIMIT = 4.0


class Basis(Protocol):
    """How to turn blocks of A into blocks of an orthonormal Q with A = Q R."""

    @property
    def R(self) -> Array: ...

    def rotated(self, X: Array) -> Basis:
        """The recipe of ``Q X``."""
        ...

    def pieces(self, A: Array) -> Iterator[tuple[int, Array]]:
        """The pieces of a block that `apply` takes: (offset, rows)."""
        ...

    def apply(self, A: Array, first_row: int, *, out: Array | None = None) -> Array:
        """Rows of Q for a piece of A, in ``out`` where that saves a copy; may be a workspace."""
        ...


@dataclass(frozen=True)
class TriangularFactor:
    """An upper triangular R (n, n) that blocks are divided by, and its inverse where that is harmless.

    References
    ----------
    Higham (2002), Accuracy and Stability of Numerical Algorithms, section 14.1.
    """

    R: Array
    inverse: Array | None = None

    @classmethod
    def of(cls, R: Array, dtype: np.dtype[Any]) -> TriangularFactor:
        """The factor for blocks of a dtype, with its inverse X where that is harmless.

        Notes
        -----
        Rounding in an entry of column l of ``A X`` is about ``eps ||x_l||`` of the row, and independent of that in others: of
        column j, with columns of unit length, ``(A X) R`` is off by ``eps (sum_l |r_lj|^2 ||x_l||^2)^1/2``. The bound
        ``n eps |A| |X| |R|`` grows with n where the error does not.
        """
        # The bits of a solve depend on how many threads share it.
        with one_blas_thread():
            lengths = np.linalg.norm(R, axis=0)
            scaled = solve_triangular(R / lengths, np.eye(len(R), dtype=R.dtype))
        growth = np.linalg.norm(np.linalg.norm(scaled, axis=0)[:, None] * (R / lengths), axis=0).max()
        inverse = np.ascontiguousarray(scaled / lengths[:, None], dtype)
        usual = (np.abs(np.diagonal(inverse)) > np.finfo(dtype).tiny / np.finfo(dtype).eps).all()
        return cls(R, inverse if growth <= INVERSE_LIMIT and usual and np.isfinite(inverse).all() else None)

    def divide(self, A: Array, *, out: Array) -> Array:
        """``A R^-1`` (b, n)."""
        if self.inverse is not None:
            return np.matmul(A, self.inverse, out=out)
        np.copyto(out, A)
        return solve_right(out, np.ascontiguousarray(self.R, A.dtype), uplo="U")


@dataclass(frozen=True)
class TriangularBasis:
    """``Q = A R_1^-1 R_2^-1 ...``, factor by factor.

    Parameters
    ----------
    factors : tuple of TriangularFactor
    dtype : numpy.dtype
        Of A.
    last : (n, k), optional
        What a rotated recipe multiplies by in the end: ``R_last^-1 X`` in place of the last solve, which is harmless because
        the last factor is well conditioned.
    """

    factors: tuple[TriangularFactor, ...]
    dtype: np.dtype[Any]
    last: Array | None = None

    @property
    def R(self) -> Array:
        R = self.factors[0].R
        for factor in self.factors[1:]:
            R = factor.R @ R
        return R

    def rotated(self, X: Array) -> TriangularBasis:
        with one_blas_thread():
            last = solve_triangular(self.factors[-1].R, X)
        return TriangularBasis(self.factors[:-1], self.dtype, np.ascontiguousarray(last, self.dtype))

    def pieces(self, A: Array) -> Iterator[tuple[int, Array]]:
        return tiles(A, rows=max(2 * A.shape[1], tile_rows(A.shape[1], A.itemsize)))

    def apply(self, A: Array, first_row: int, *, out: Array | None = None) -> Array:
        Q = A
        for i, factor in enumerate(self.factors):
            Q = factor.divide(Q, out=workspace("QP"[i % 2], A.shape, self.dtype))
        if self.last is None:
            return Q
        return np.matmul(Q, self.last, out=workspace("U", (len(A), self.last.shape[1]), self.dtype) if out is None else out)


@dataclass(frozen=True)
class TreeBasis:
    """TSQR: each block's own Q times its part of the Q of the stacked R factors.

    Parameters
    ----------
    R : (n, n)
    coefficients : (rows of all R factors, n)
    block_rows : int
    """

    R: Array
    coefficients: Array
    block_rows: int

    def rotated(self, X: Array) -> TreeBasis:
        with one_blas_thread():
            return TreeBasis(self.R, self.coefficients @ X, self.block_rows)

    def pieces(self, A: Array) -> Iterator[tuple[int, Array]]:
        # The coefficients belong to whole blocks.
        yield 0, A

    def apply(self, A: Array, first_row: int, *, out: Array | None = None) -> Array:
        first = first_row // self.block_rows * min(self.block_rows, A.shape[1])
        return times_q(A, self.coefficients[first : first + min(A.shape)].astype(A.dtype))


@dataclass(frozen=True)
class BasisGram(Fold):
    """``Q^H Q`` of a basis as it stands after the factors found so far."""

    basis: TriangularBasis

    @property
    def n(self) -> int:
        return len(self.basis.factors[0].R)

    @property
    def flops_per_row(self) -> float:
        return float(self.n) * self.n * (1 + len(self.basis.factors))

    def start(self) -> State:
        return {"gram": np.zeros((self.n, self.n), accumulator_dtype(self.basis.dtype))}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        for i, tile in self.basis.pieces(A[:, : self.n]):
            add_gram(self.basis.apply(tile, first_row + i), state["gram"])
        return ()

    def finish(self, state: State) -> State:
        mirror_upper(state["gram"])
        return state


@dataclass(frozen=True)
class BlockQR(RowsFold):
    """The R factors of the first n columns of all blocks, one below the other; of b < n rows there are b rows."""

    n: int
    dtype: np.dtype[Any]

    rows_name = "stack"

    @property
    def flops_per_row(self) -> float:
        return 2.0 * self.n * self.n

    def start(self) -> State:
        return {"stack": np.zeros((0, self.n), self.dtype)}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        add_rows(state, triangle(A[:, : self.n]).astype(self.dtype, copy=False))
        return ()


def scaled_condition(gram: Array, eps: float) -> float:
    """Condition number of A with its columns scaled to unit length, from ``A^H A``; infinite if that is numerically singular.

    Parameters
    ----------
    gram : (n, n)
    eps : float
        Of the dtype in which its products were made.

    Notes
    -----
    Column scaling does not change how well Cholesky QR does (van der Sluis): only the scaled condition matters.
    """
    # Rounding may leave less than nothing of a column that is constant.
    lengths = np.sqrt(np.maximum(np.diag(gram).real, 0.0))
    if not (lengths > 0).all():
        return float("inf")
    eigenvalues = np.linalg.eigvalsh(gram / np.outer(lengths, lengths))
    smallest = eigenvalues[0]
    noise = len(gram) * eps * eigenvalues[-1]
    return float(np.sqrt(eigenvalues[-1] / smallest)) if smallest > noise else float("inf")


def cholesky_factor(gram: Array, *, shift: float = 0.0) -> Array | None:
    """Upper triangular R with ``R^H R = gram``, plus a shift relative to the columns' lengths; None where there is none."""
    lengths = np.sqrt(np.diag(gram).real)
    scaled = gram / np.outer(lengths, lengths) + shift * np.eye(len(gram))
    try:
        return np.asarray(np.linalg.cholesky(scaled).conj().T * lengths)
    except np.linalg.LinAlgError:
        return None


def find_basis(passes: Passes, A: Matrix, grid: RowGrid, gram: Array, *, step: str) -> tuple[Basis, str]:
    """Find an orthonormal basis of the columns of a tall matrix.

    Parameters
    ----------
    passes : Passes
    A : Matrix (m, n or more)
        Its first n columns are meant.
    grid : RowGrid
        Of the passes over A.
    gram : (n, n)
        ``A^H A``, which the caller has summed already.
    step : str
        Prefix of the names of the passes.

    Returns
    -------
    basis : Basis
    method : str
        What was used and why, in words.

    Notes
    -----
    0 to 2 further reads of A for Cholesky QR with 1 to 3 rounds; one for TSQR.
    """
    eps = float(np.finfo(A.dtype).eps)
    limit, smallest = GRAM_LIMIT * eps**-0.5, _SPANS[np.finfo(A.dtype).bits]
    factors: list[TriangularFactor] = []
    first_condition = 0.0
    while True:
        with one_blas_thread():
            condition = scaled_condition(gram, eps)
            first_condition = first_condition or condition
            squares = np.diag(gram).real
            if (condition > limit and factors) or (squares <= smallest * squares.max()).any():
                break
            shift = 30 * len(gram) * eps if condition > limit else 0.0
            factor = cholesky_factor(gram, shift=shift)
            if factor is None:
                break
            factors.append(TriangularFactor.of(factor, A.dtype))
        basis = TriangularBasis(tuple(factors), A.dtype)
        if condition <= WELL_CONDITIONED:
            shifted = "shifted " if first_condition > limit else ""
            rounds = several(len(factors), "round")
            return basis, f"{shifted}Cholesky QR, {rounds}; condition of the scaled columns {first_condition:.2g}"
        if len(factors) == MAX_ROUNDS:
            break
        gram = passes.sweep(f"{step}-round-{len(factors) + 1}", A, BasisGram(basis), grid)["gram"]
    stack = passes.sweep(f"{step}-tsqr", A, BlockQR(len(gram), A.dtype), grid)["stack"]
    with one_blas_thread():
        Q, R = np.linalg.qr(stack)
        phases = np.where(np.diag(R) == 0, 1.0, np.sign(np.diag(R)))
    # The diagonal of R is made positive, as Cholesky QR leaves it.
    tree = TreeBasis(phases.conj()[:, None] * R, Q * phases, grid.block_rows)
    return tree, f"TSQR: condition of the scaled columns {first_condition:.2g}, too large for Gram matrices"
