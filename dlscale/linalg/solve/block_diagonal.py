"""The block diagonal factor of a symmetric indefinite matrix, and the signs of the eigenvalues that it tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.kernels import largest_part
from dlscale.lapack import multiply_triangular, solve_upper

#: Vectors that are measured at a time, at most, and what they take; what all that are kept take.
_COLUMNS, _BLOCK_BYTES, _KEPT_BYTES = 256, 2**25, 2**27


class Inertia(NamedTuple):
    """How many eigenvalues are positive, negative, and not told from zero: nearer to it than n eps ``||A||``.

    To working precision: the counts of positive and negative ones are no larger than those of a matrix that is no further away.
    """

    n_positive: int
    n_negative: int
    n_zero: int


@dataclass(frozen=True)
class Blocks:
    """D, with blocks of order 1 and 2.

    Parameters
    ----------
    d : (n,), real
        Its diagonal.
    e : (n,)
        ``D[i, i + 1]``; zero where no block of order 2 begins.
    """

    d: Array
    e: Array

    @property
    def pivots(self) -> Array:
        """Numbers (n,) whose product is the determinant, none of which overflows where D does not."""
        pivots, first = self.d.copy(), np.flatnonzero(self.e)
        sizes = np.abs(self.e[first])
        pivots[first] = sizes
        pivots[first + 1] = sizes * (self.d[first] / sizes * (self.d[first + 1] / sizes) - 1)
        return pivots

    def times(self, X: Array) -> Array:
        """``D X``."""
        Y, e = self.d[:, None] * X, self.e[:-1, None]
        Y[:-1] += e * X[1:]
        Y[1:] += e.conj() * X[:-1]
        return Y

    def solve(self, B: Array) -> Array:
        """``D^-1 B`` in the dtype of B."""
        first, alone = np.flatnonzero(self.e), np.ones(len(self.d), bool)
        alone[first] = alone[first + 1] = False
        X = np.empty_like(B)
        real = np.dtype(B.dtype.char.lower())
        X[alone] = B[alone] / self.d[alone, None].astype(real, copy=False)
        # As LAPACK's sytrs: rows are divided by what stands beside the diagonal, the larger one, before they are combined.
        e = self.e[first, None].astype(B.dtype if self.e.dtype.kind == "c" else real, copy=False)
        upper, lower = self.d[first, None].astype(real) / e, self.d[first + 1, None].astype(real) / e.conj()
        b, c = B[first] / e, B[first + 1] / e.conj()
        determinant = upper * lower - 1
        X[first], X[first + 1] = (lower * b - c) / determinant, (upper * c - b) / determinant
        return X


def inertia_of(U: Array, blocks: Blocks, size: float) -> Inertia:
    """The inertia of ``A = U^H D U`` (Sylvester), less what rounding does not tell from zero.

    Parameters
    ----------
    U : (n, n)
        Unit upper triangular, whatever is stored on its diagonal and below.
    blocks : Blocks
    size : float
        No more than ``||A||``.

    Notes
    -----
    Without its small values D is that of a matrix of lower rank, whose inertia is told where it is within n eps times the size of
    A. Else, where Z is an orthonormal basis of k vectors, at least k eigenvalues of A are within ``||A Z||`` of zero. It is looked
    for among ``U^-1 q``, where q is an eigenvector of a block of D with a small value: several of these may be near one
    eigenvector of A, and count as one. They are made orthogonal, a lot at a time, and the directions that are short under A are
    kept, so that ``||A Z||`` is at most that; those that are left have the signs that A has on them. Where Z
    would take more than 128 MiB, the signs of D stay. n^2 + n k flops for each of k small values, or 4 n^2 + 10^4 n.
    """
    n, eps = len(blocks.d), float(np.finfo(blocks.d.dtype).eps)
    told = n * eps * size
    values, vectors, place = _eigenpairs(blocks)
    small = np.flatnonzero(np.abs(values) <= eps**0.5 * size)
    small = small[np.argsort(np.abs(values[small]), kind="stable")]
    if not values[small].any():
        return Inertia(int((values > 0).sum()), int((values < 0).sum()), int((values == 0).sum()))
    width, most = min(_COLUMNS, max(1, _BLOCK_BYTES // (n * U.itemsize))), _KEPT_BYTES // (n * U.itemsize)
    lots = [small[start : start + width] for start in range(0, len(small), width)]
    columns = [_columns(lot, vectors, place, U.dtype) for lot in lots] if len(small) <= most // 2 else []
    if columns and _size(U, columns, values[small] / told) <= 1:
        return _counted(values, values[small], len(small), 0)
    # What the lots have together is no longer than that.
    limit = told / len(lots) ** 0.5
    measured, kept, n_kept, n_positive = list[Array](), list[Array](), 0, 0
    for block in lots:
        if n_kept + width > max(most, width):
            break
        X = solve_upper(U, _columns(block, vectors, place, U.dtype), unit=True)
        finite = np.isfinite(X).all(axis=0)
        Z = _orthonormal(X[:, finite], kept)
        AZ = product(U, blocks, Z)
        if not (finite.any() and np.isfinite(AZ).all()):
            continue
        _, lengths, VH = np.linalg.svd(AZ, full_matrices=False)
        k = int((lengths <= limit).sum())
        left, short = np.split(VH.conj().T, [len(lengths) - k], axis=1)
        H = left.conj().T @ (Z.conj().T @ AZ) @ left
        n_positive += int((np.linalg.eigvalsh((H + H.conj().T) / 2) > 0).sum())
        measured.append(values[block[finite]])
        kept.append(Z @ short)
        n_kept += k
    return _counted(values, np.concatenate(measured or [values[:0]]), n_kept, n_positive)


def _size(U: Array, lots: Sequence[Array], values: Array) -> float:
    """No less than ``||U^H Q V Q^H U||``, by which A is away from a matrix without the values V of the eigenvectors Q of D."""
    rows = np.hstack([multiply_triangular(U, X, uplo="U", op="C", unit=True) for X in lots])
    with np.errstate(all="ignore"):
        R = np.asarray(np.linalg.qr(rows.astype(np.result_type(rows, float)), mode="r"))
        S, around = (R * values) @ R.conj().T, (np.abs(R) * np.abs(values)) @ np.abs(R).T
        # The fourth root of the sum of the fourth powers of the eigenvalues, and rounding where larger terms cancel.
        of_rounding = len(U) * float(np.finfo(float).eps) * float(np.linalg.norm(around))
        return math.sqrt(float(np.linalg.norm(S @ S))) + of_rounding


def _counted(values: Array, measured: Array, n_zero: int, n_positive: int) -> Inertia:
    """The inertia where so many of the measured values count as zero, and of the others so many as positive as D has."""
    positive, negative = (int((sign * values > 0).sum()) for sign in (1, -1))
    most, least = (int((sign * measured > 0).sum()) for sign in (1, -1))
    n_left = min(len(measured) - n_zero, most + least)
    n_positive = min(max(n_positive, n_left - least), n_left, most)
    positive, negative = positive - most + n_positive, negative - least + n_left - n_positive
    return Inertia(positive, negative, len(values) - positive - negative)


def _eigenpairs(blocks: Blocks) -> tuple[Array, Array, Array]:
    """Eigenvalues (n,) of the blocks of D, the two entries (n, 2) of each eigenvector, and the place of the first one."""
    e, n = blocks.e, len(blocks.d)
    first, place = np.flatnonzero(e), np.arange(n)
    values, vectors = blocks.d.astype(float), np.ones((n, 2), e.dtype)
    vectors[:, 1] = 0
    if len(first):
        D = np.empty((len(first), 2, 2), np.result_type(e, float))
        D[:, 0, 0], D[:, 1, 1], D[:, 0, 1], D[:, 1, 0] = blocks.d[first], blocks.d[first + 1], e[first], e[first].conj()
        found, Q = np.linalg.eigh(D)
        values[first], values[first + 1] = found.T
        vectors[first], vectors[first + 1] = Q[:, :, 0], Q[:, :, 1]
        place[first + 1] = first
    return values, vectors, place


def _columns(block: Array, vectors: Array, place: Array, dtype: np.dtype[Any]) -> Array:
    """Eigenvectors of D as columns."""
    X, columns = np.zeros((len(place), len(block)), dtype), np.arange(len(block))
    X[place[block], columns] = vectors[block, 0]
    pairs = vectors[block, 1] != 0
    X[place[block[pairs]] + 1, columns[pairs]] = vectors[block[pairs], 1]
    return X


def _orthonormal(X: Array, kept: Sequence[Array]) -> Array:
    """An orthonormal basis of the columns of X, or a larger space, orthogonal to what is kept already."""
    Z = X / largest_part(X, axis=0)
    # Columns that depend on others become what rounding makes of them, and lose what they then share with the kept ones.
    for _ in range(3):
        for K in kept:
            Z = Z - K @ (K.conj().T @ Z)
        Z = np.linalg.qr(Z).Q
    return np.asarray(Z)


def product(U: Array, blocks: Blocks, X: Array) -> Array:
    """``U^H D U X``, which overflows where its parts do."""
    Y = multiply_triangular(U, np.array(X, order="C"), uplo="U", unit=True)
    with np.errstate(all="ignore"):
        Y = np.ascontiguousarray(blocks.times(Y))
    return multiply_triangular(U, Y, uplo="U", op="C", unit=True)
