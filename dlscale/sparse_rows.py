"""A block of compressed rows, less one row of all of them that is never subtracted from what is not stored.

    B = R - 1 s,   B W = R W - 1 (s W),   B^H Y = R^H Y - s^H (1^H Y)

Products are made in double precision, whatever the entries are, unless less is asked for: SciPy's release the interpreter, so
that one thread a task is enough. Where all rows have an entry in a column, s is subtracted from these entries themselves, so
that no digit is lost beside a large mean; elsewhere a column holds zeros, and its mean is no larger than its spread allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy

from dlscale.arrays import Array
from dlscale.lapack import add_hermitian_square, multiply_add

#: Rows that are transposed at a time.
_TURNED_ROWS = 512
#: Bytes that stay in a thread's share of the last cache, and the columns below which their product is slower.
_SCATTERED_BYTES, _LEAST_WIDTH = 2**23, 16
#: Rows that are looked at for columns that may be full, before all are.
_LOOKED_AT_ROWS = 16
#: Up to this density ``R^H R`` is faster from what is stored: 1.2e8 products a second, 4e10 flops of dense tiles.
_SPARSE_GRAM_UNTIL = 0.05
#: Bytes of what is made of it at a time: a strip of ``R^H R``, or a tile of R.
_GRAM_BYTES = 2**23


@dataclass(frozen=True)
class SparseRows:
    """A block ``R - 1 s`` (b, n).

    Parameters
    ----------
    rows : scipy.sparse.csr_array (b, n)
        R: columns in order, none twice.
    shift : (n,), optional
        s, in double precision.
    """

    rows: Any
    shift: Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.rows.shape[0]), int(self.rows.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Array) -> SparseRows:
        """Some of its rows, in the order asked for."""
        return SparseRows(self.rows[rows], self.shift)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.rows.dtype
        return dtype

    @cached_property
    def full(self) -> Array:
        """Whether a column has an entry in each row (n,), bool."""
        pointers, candidates = self.rows.indptr, np.arange(self.shape[1])
        for i in range(min(len(self), _LOOKED_AT_ROWS)):
            candidates = np.intersect1d(candidates, self.rows.indices[pointers[i] : pointers[i + 1]], assume_unique=True)
            if not candidates.size:
                return np.zeros(self.shape[1], bool)
        full: Array = self.counts == len(self)
        return full

    @cached_property
    def counts(self) -> Array:
        """How many entries each column has."""
        return np.bincount(self.rows.indices, minlength=self.shape[1])

    def with_data(self, data: Array) -> SparseRows:
        """The same places with other numbers, less the same row."""
        rows = self.rows
        return SparseRows(type(rows)((data, rows.indices, rows.indptr), shape=rows.shape), self.shift)

    def times_columns(self, factors: Array) -> SparseRows:
        """Each column times a power of two, in double precision."""
        found = self.with_data(self.wide().rows.data * factors[self.rows.indices])
        return found if self.shift is None else SparseRows(found.rows, self.shift * factors)

    def entries(self) -> Array:
        """What of B stands where R has entries, in their order and in double precision."""
        data: Array = self.wide().rows.data
        return data if self.shift is None else data - self.shift[self.rows.indices]

    def beside(self) -> Array:
        """What of B stands in each column where R has no entry; nothing does in a column that is full (n,)."""
        shift = np.zeros(self.shape[1]) if self.shift is None else self.shift
        return np.where(self.full, 0, -shift)

    def moduli(self, ceiling: float = np.inf) -> SparseRows:
        """``min(|B|, ceiling)`` entry by entry, in double precision."""
        beside = np.minimum(np.abs(self.beside()), ceiling)
        more = self.with_data(np.minimum(np.abs(self.entries()), ceiling) - beside[self.rows.indices]).rows
        return SparseRows(more, None if self.shift is None else -beside)

    def toarray(self) -> Array:
        """B as a dense array."""
        dense: Array = self.rows.toarray()
        return dense if self.shift is None else dense - self.shift

    def astype(self, dtype: Any) -> SparseRows:
        """The same with what is stored in another dtype, and less the same row."""
        return self.with_data(self.rows.data.astype(dtype, copy=False))

    def wide(self) -> SparseRows:
        """The same in double precision."""
        return self.astype(np.result_type(self.dtype, np.float64))

    def part(self, start: int, stop: int) -> SparseRows:
        """Some of its rows."""
        return self[start:stop]

    def all_finite(self) -> bool:
        """Whether no entry is NaN or infinite."""
        return bool(np.isfinite(self.rows.data).all())

    def less(self, row: Array) -> SparseRows:
        """``R - 1 (s + row)``, in double precision."""
        wide, full = self.wide(), self.full
        left = row.astype(wide.dtype)
        if full.any():
            wide = wide.with_data(wide.rows.data - np.where(full, left, 0)[self.rows.indices])
            left = np.where(full, 0, left)
        return SparseRows(wide.rows, left if self.shift is None else self.shift + left)

    def typical_row(self) -> Array:
        """The mean of the rows, and what stands in all of them where a column is constant; in double precision."""
        wide, full = self.wide(), self.full
        mean = wide.sums() / len(self)
        if full.any():
            columns = wide.rows[:, full].toarray()
            mean[full] = np.where((columns == columns[0]).all(axis=0), columns[0], mean[full])
        return mean

    def times(self, W: Array, *, halved: bool = False) -> Array:
        """``B W`` (b, l) in double precision, or in that of W."""
        block = self.astype(W.dtype) if halved else self.wide()
        W = np.ascontiguousarray(W, np.result_type(block.dtype, W.dtype))
        Y: Array = block.rows @ W
        if self.shift is not None:
            Y -= self.shift.astype(W.dtype, copy=False) @ W
        return Y

    def transposed_times(self, Y: Array) -> Array:
        """``B^T Y`` (n, l) in double precision."""
        wide = self.wide()
        Z: Array = wide.rows.T @ np.ascontiguousarray(Y, np.result_type(wide.dtype, Y.dtype))
        if self.shift is not None:
            Z -= np.multiply.outer(self.shift, Y.sum(axis=0, dtype=Z.dtype))
        return Z

    def adjoint_times(self, Y: Array) -> Array:
        """``Y^H B`` (l, n) in double precision."""
        ZH: Array = np.zeros((Y.shape[1], self.shape[1]), np.result_type(self.dtype, Y.dtype, np.float64))
        self.add_adjoint(Y, ZH)
        return ZH

    def add_adjoint(self, Y: Array, ZH: Array, *, halved: bool = False) -> None:
        """``Z^H += Y^H B`` (l, n), best in Fortran's order, in double precision; products perhaps in that of Y."""
        block, n = self.astype(Y.dtype) if halved else self.wide(), self.shape[1]
        Y = np.ascontiguousarray(Y.conj(), np.result_type(block.dtype, Y.dtype))
        RT, total = block.rows.T, Y.sum(axis=0, dtype=ZH.dtype)
        for some in _scattered(n, Y.shape[1], Y.itemsize):
            Z, sums = RT @ np.ascontiguousarray(Y[:, some]), ZH.T[:, some]
            for piece in _pieces(n):
                sums[piece] += Z[piece]
                if self.shift is not None:
                    sums[piece] -= np.multiply.outer(self.shift[piece], total[some])

    def sums(self) -> Array:
        """The sums of the columns, in double precision."""
        wide = self.wide()
        sums: Array = wide.rows.T @ np.ones(len(self))
        return sums if self.shift is None else sums - len(self) * self.shift

    def squares(self) -> float:
        """``||B||_F^2``, no term of which is negative."""
        data = self.entries()
        if self.shift is None:
            return float(np.vdot(data, data).real)
        beside = (len(self) - self.counts) * np.abs(self.shift) ** 2
        return float(np.vdot(data, data).real + beside.sum())

    def column_squares(self) -> Array:
        """The squared norms of the columns, in double precision."""
        squares = np.bincount(self.rows.indices, np.abs(self.entries()) ** 2, minlength=self.shape[1])
        return squares if self.shift is None else squares + (len(self) - self.counts) * np.abs(self.shift) ** 2

    def column_moments(self) -> tuple[Array, Array]:
        """Of real columns: means, and sums of squares beside them."""
        (b, n), columns, data, absent = self.shape, self.rows.indices, self.entries(), self.beside()
        n_absent = b - self.counts
        mean = (np.bincount(columns, data, minlength=n) + n_absent * absent) / b
        left = data - mean[columns]
        rest = np.bincount(columns, left, minlength=n) + n_absent * (absent - mean)
        squares = np.bincount(columns, left**2, minlength=n) + n_absent * (absent - mean) ** 2 - rest**2 / b
        return mean + rest / b, squares

    def column_extremes(self) -> tuple[Array, Array, Array]:
        """Of real columns: counts of what is not zero, smallest and largest entries."""
        (b, n), columns, data, absent = self.shape, self.rows.indices, self.entries(), self.beside()
        n_absent = b - self.counts
        nonzeros = np.bincount(columns, data != 0, minlength=n) + n_absent * (absent != 0)
        smallest, largest = (np.where(n_absent > 0, absent, sign * np.inf) for sign in (1, -1))
        np.minimum.at(smallest, columns, data)
        np.maximum.at(largest, columns, data)
        return nonzeros, smallest, largest

    def blocks_beside(self, first_row: int, width: int) -> Array:
        """The parts (b, width) of the rows in blocks of so many columns on the diagonal, where B begins in this row."""
        b, n = self.shape
        rows = np.repeat(np.arange(b), np.diff(self.rows.indptr))
        columns = self.rows.indices - (first_row + rows) // max(width, 1) * width
        inside = (columns >= 0) & (columns < width)
        blocks = np.zeros((b, width), self.dtype)
        blocks[rows[inside], columns[inside]] = self.rows.data[inside]
        if self.shift is not None and width:
            places = (first_row + np.arange(b))[:, None] // width * width + np.arange(width)
            blocks = blocks - np.where(places < n, self.shift[np.minimum(places, n - 1)], 0)
        return blocks

    def trace(self, first_row: int) -> Any:
        """The sum of the diagonal, where B begins in this row, in double precision."""
        total = self.wide().rows.diagonal(first_row).sum()
        return total if self.shift is None else total - self.shift[first_row : first_row + len(self)].sum()

    def __sizeof__(self) -> int:
        return int(self.rows.data.nbytes + self.rows.indices.nbytes + self.rows.indptr.nbytes)

    def places_not_finite(self) -> Array:
        """Rows and columns of the entries that are NaN or infinite, row by row (any, 2)."""
        bad = np.flatnonzero(~np.isfinite(self.rows.data))
        return np.column_stack([np.searchsorted(self.rows.indptr, bad, side="right") - 1, self.rows.indices[bad]])

    def first_not_finite(self) -> tuple[int, int, Any] | None:
        """Row, column and number of the first entry that is NaN or infinite."""
        places = self.places_not_finite()
        if not len(places):
            return None
        row, column = map(int, places[0])
        return row, column, self.rows.data[~np.isfinite(self.rows.data)][0].item()


def stacked(parts: Sequence[SparseRows]) -> SparseRows:
    """Blocks below each other, all of them less the same row (ValueError if they are not).

    Notes
    -----
    Where one of them is full in a column it holds its entries less that number, to which it is added again if another has zeros
    there: of a column with zeros the spread is not small beside the mean.
    """
    if len(parts) == 1:
        return parts[0]
    shift = None
    if any(part.shift is not None for part in parts):
        shifts = np.stack([np.zeros(part.shape[1]) if part.shift is None else part.shift for part in parts])
        shift = np.take_along_axis(shifts, np.abs(shifts).argmax(axis=0)[None], axis=0)[0]
        parts = [_less_anew(part, shift - row) for part, row in zip(parts, shifts, strict=True)]
    return SparseRows(scipy.sparse.vstack([part.rows for part in parts], format="csr"), shift)


def _less_anew(part: SparseRows, more: Array) -> SparseRows:
    """A block from which so much more is to be subtracted as is added to its entries, in columns that are full."""
    if not more.any():
        return part
    if (part.counts[more != 0] < len(part)).any():
        raise ValueError("Blocks that are stacked must be less the same row.")
    return part.with_data(part.rows.data + more[part.rows.indices])


def rows_of(X: Any, dtype: Any) -> Any:
    """A block of rows in a dtype: compressed ones stay so."""
    return X.astype(dtype) if isinstance(X, SparseRows) else np.asarray(X, dtype)


def turned(Z: Array) -> Array:
    """``Z'`` (l, n) of Z (n, l), in C order."""
    ZT = np.empty(Z.shape[::-1], Z.dtype)
    for piece in _pieces(len(Z)):
        ZT[:, piece] = Z[piece].T
    return ZT


def _scattered(n: int, width: int, itemsize: int) -> list[slice]:
    """Columns of a product (n, width) whose rows are added to in any order: so many at a time as a cache holds, or all."""
    step = _SCATTERED_BYTES // (n * itemsize) if n else width
    step = width if step < _LEAST_WIDTH else min(step // _LEAST_WIDTH * _LEAST_WIDTH, width)
    return [slice(start, min(start + step, width)) for start in range(0, width, max(1, step))]


def _pieces(n: int) -> list[slice]:
    """Some of n rows after another, so many as the cache holds."""
    return [slice(start, min(start + _TURNED_ROWS, n)) for start in range(0, n, _TURNED_ROWS)]


def all_finite(X: Any) -> bool:
    """Whether no entry of a block of rows, dense or compressed, is NaN or infinite."""
    return X.all_finite() if isinstance(X, SparseRows) else bool(np.isfinite(X).all())


def add_normal_product(
    A: SparseRows, W: Array, ZH: Array, *, mean: Array | None = None, halved: bool = False
) -> tuple[Array, SparseRows]:
    """``Z += (A - 1 mean)^H Y`` with ``Y = (A - 1 mean) W``: one step of a power iteration.

    Parameters
    ----------
    A : SparseRows (b, n)
    W : (n, l)
        In whose precision Y is given back, and multiplied; sums are in double precision.
    ZH : (l, n), double precision, updated in place
    mean : (n,), optional
    halved : bool
        Whether the products of a block are made in the precision of W.

    Returns
    -------
    Y : (b, l)
    centred : SparseRows
        ``A - 1 mean``.

    Notes
    -----
    4 nnz l flops.
    """
    centred = A.wide() if mean is None else A.less(mean)
    block = centred.astype(W.dtype) if halved else centred
    Y = block.times(W, halved=halved).astype(W.dtype, copy=False)
    block.add_adjoint(Y, ZH, halved=halved)
    return Y, centred


def add_gram(A: SparseRows, G: Array, *, mean: Array | None = None) -> SparseRows:
    """At least the upper triangle of ``G += (A - 1 mean)^H (A - 1 mean)``.

    Parameters
    ----------
    A : SparseRows (b, n)
    G : (n, n), double precision, updated in place
    mean : (n,), optional

    Returns
    -------
    centred : SparseRows
        ``A - 1 mean``.

    Notes
    -----
    The products of the entries of each row with each other, or b n^2 flops where they are many.
    """
    centred = A.wide() if mean is None else A.less(mean)
    R, s, (b, n) = centred.rows, centred.shift, centred.shape
    if R.nnz <= _SPARSE_GRAM_UNTIL * b * n:
        RH = R.T.conj().tocsr()
        height = max(1, _GRAM_BYTES // (2 * n * G.itemsize))
        for i in range(0, n, height):
            G[i : i + height] += (RH[i : i + height] @ R).toarray()
    else:
        height = max(64, _GRAM_BYTES // (n * G.itemsize))
        for i in range(0, b, height):
            add_hermitian_square(R[i : i + height].toarray(), G)
    if s is not None:
        # B^H B = R^H R - (1^H R)^H s - s^H (1^H R) + b s^H s
        total = R.T @ np.ones(b)
        half = (total - (b / 2) * s).conj()
        multiply_add(np.stack([half, s.conj()], axis=1), np.stack([s, half.conj()]), G, alpha=-1.0)
    return centred
