"""Quartiles of the columns of a matrix, exactly: digit by digit of the order in which floating-point numbers stand.

A read counts, of the entries that begin with the digits that are known, how many have which next digit; the counts say in which
one the entry of a rank is. Counts are whole numbers, so that no grid and no number of workers changes what is found.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Fold, Passes, State
from dlscale.kernels import tiles
from dlscale.sparse_rows import SparseRows
from dlscale.storage.matrix import Matrix
from dlscale.storage.sparse.steps import Quartiles

#: Bytes of the counts of all columns, and bits of a digit at least, where this is exceeded, and at most.
_COUNTS_BYTES, _LEAST_BITS, _MOST_BITS = 2**23, 4, 16
#: Entries of compressed rows that are looked at together.
_PIECE = 2**16
#: Quartiles that are found together.
_N = 3
_LARGEST = float(np.finfo(np.float64).max)


def digits_of(n: int, dtype: np.dtype[Any]) -> list[tuple[int, int]]:
    """The digits of the numbers of n columns: bits below each, and its own; a read takes one."""
    whole = 8 * dtype.itemsize
    bits = int(np.clip(math.log2(_COUNTS_BYTES / (8 * _N * n)), _LEAST_BITS, _MOST_BITS))
    places = [whole, *range(whole - bits, 0, -bits), 0]
    return [(below, above - below) for above, below in itertools.pairwise(places)]


def counts_bytes(n: int, dtype: np.dtype[Any]) -> int:
    """Bytes of the partial result of a read."""
    return 8 * _N * n * (1 + (1 << max(bits for _, bits in digits_of(n, dtype))))


def quartiles_of(passes: Passes, A: Matrix, grid: RowGrid, steps: Sequence[str]) -> Quartiles:
    """The quartiles of each column of a real matrix; between two entries they are interpolated, as NumPy does.

    Parameters
    ----------
    passes : Passes
    A : Matrix (m, n)
    grid : RowGrid of m rows
    steps : sequence of str
        Names of the passes, one for each of `digits_of`.
    """
    (m, n), digits = A.shape, digits_of(A.shape[1], A.dtype)
    quarters = np.arange(1, 4) * (m - 1)
    ranks, shares = np.repeat(quarters[:, None] // 4, n, axis=1), (quarters % 4 / 4)[:, None]
    known = np.zeros((_N, n), _unsigned(A.dtype))
    for step, (below, bits) in zip(steps, digits, strict=True):
        fold = DigitCounts(n, A.dtype, below, bits, None if (below, bits) == digits[0] else known)
        state = passes.sweep(step, A, fold, grid)
        counts = np.broadcast_to(state["counts"], (_N, n, 2**bits))
        ends = counts.cumsum(axis=2)
        found = (ends <= ranks[:, :, None]).sum(axis=2)
        ranks = ranks - np.where(found > 0, _at(ends, np.maximum(found - 1, 0)), 0).astype(ranks.dtype)
        digit, n_same = found, _at(counts, found)
        known = (known << known.dtype.type(bits)) | digit.astype(known.dtype)
    low = _numbers(known, A.dtype)
    # The entry of the next rank: an equal one, the next number of the same digits but the last, or one of others.
    later = np.where(np.arange(counts.shape[2]) > digit[:, :, None], counts, 0) > 0
    beside = (known - digit.astype(known.dtype)) | later.argmax(axis=2).astype(known.dtype)
    following = np.where(later.any(axis=2), _numbers(beside, A.dtype), state["above"])
    high = np.where((ranks + 1 < n_same) | (shares == 0), low, following)
    quartiles = np.where(low == high, low, low * (1 - shares) + high * shares)
    return Quartiles(*quartiles)


def _at(table: Array, places: Array) -> Array:
    found: Array = np.take_along_axis(table, places[:, :, None], axis=2)[:, :, 0]
    return found


def _unsigned(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"u{dtype.itemsize}")


def _keys(values: Array) -> Array:
    """Whole numbers in the order of floating-point ones; both zeros are one."""
    unsigned = _unsigned(values.dtype)
    bits = (values + values.dtype.type(0)).view(unsigned)
    below = 8 * unsigned.itemsize - 1
    # All bits of a negative number are turned, and the sign of the others.
    turned = (bits.view(f"i{unsigned.itemsize}") >> below).view(unsigned) | unsigned.type(1 << below)
    keys: Array = bits ^ turned
    return keys


def _numbers(keys: Array, dtype: np.dtype[Any]) -> Array:
    """The numbers of keys, in double precision."""
    sign = keys.dtype.type(1 << (8 * keys.dtype.itemsize - 1))
    bits = np.where(keys & sign, keys ^ sign, ~keys)
    return bits.astype(keys.dtype).view(dtype).astype(np.float64)


@dataclass(frozen=True, eq=False)
class DigitCounts(Fold):
    """How often each digit comes next after the digits that are known, in each column; the least entry above all that begin so.

    Parameters
    ----------
    n : int
    dtype : numpy.dtype
        Of the entries: single or double precision.
    below, bits : int
        Bits below the digit, and its own.
    known : (3, n) of unsigned integers or None
        The digits before it, for each quartile; None where there are none.
    """

    n: int
    dtype: np.dtype[Any]
    below: int
    bits: int
    known: Array | None

    takes_sparse = True

    @property
    def flops_per_row(self) -> float:
        return 8.0 * self.n * (1 if self.known is None else _N)

    def start(self) -> State:
        counts = np.zeros((1 if self.known is None else _N, self.n, 2**self.bits))
        # Whatever is no number is so in its product with 0 too.
        return {"counts": counts, "above": np.full((_N, self.n), _LARGEST), "not_finite": np.zeros(1)}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        for values, columns, weights in self._entries(A):
            with np.errstate(invalid="ignore"):
                state["not_finite"] += (values * 0).sum()
            keys = _keys(values)
            digits = (keys >> keys.dtype.type(self.below)) & keys.dtype.type(2**self.bits - 1)
            places = columns * 2**self.bits + digits.astype(np.intp)
            if self.known is None:
                np.add.at(state["counts"][0].reshape(-1), places, weights)
                continue
            before = keys >> keys.dtype.type(self.below + self.bits)
            for counts, above, known in zip(state["counts"], state["above"], self.known, strict=True):
                same = before == known[columns]
                np.add.at(counts.reshape(-1), places[same], weights if np.isscalar(weights) else weights[same])
                if self.below == 0:
                    larger = before > known[columns]
                    np.minimum.at(above, columns[larger], values[larger].astype(np.float64))
        return ()

    def _entries(self, A: Any) -> Iterator[tuple[Array, Array, Any]]:
        """Entries of a block with their columns, and how often each is there; what compressed rows do not hold comes together."""
        if not isinstance(A, SparseRows):
            for _, tile in tiles(A):
                columns = np.broadcast_to(np.arange(self.n), tile.shape).reshape(-1)
                yield np.ascontiguousarray(tile, self.dtype).reshape(-1), columns, 1.0
            return
        entries, indices = A.entries(), A.rows.indices
        for i in range(0, len(entries), _PIECE):
            yield entries[i : i + _PIECE].astype(self.dtype), indices[i : i + _PIECE].astype(np.intp), 1.0
        absent = len(A) - A.counts
        columns = np.flatnonzero(absent)
        yield A.beside().astype(self.dtype)[columns], columns, absent[columns].astype(np.float64)

    def merge(self, left: State, right: State) -> State:
        np.minimum(left["above"], right["above"], out=left["above"])
        left["counts"] += right["counts"]
        left["not_finite"] += right["not_finite"]
        return left
