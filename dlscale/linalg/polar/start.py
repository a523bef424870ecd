"""Where Newton's iteration starts, as a view that is made while it is read; and matrices of which a plan knows the shape alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.storage.matrix import Matrix, View

_TILE = 512


class Start(View):
    """The upper triangle of a stored matrix, ``R + ridge I + noise G``.

    Parameters
    ----------
    base : Matrix (n, n)
        What is below its diagonal is left out.
    ridge : float
        For a matrix of zeros, whose iteration starts at the identity.
    noise : float
        For a triangle that is singular to working precision. G is Gaussian: the smallest singular value of a sum with it is seldom
        below ``noise n^-1/2``, whatever R is.

    References
    ----------
    Sankar, Spielman and Teng (2006), Smoothed analysis of the condition numbers and growth factors of matrices, theorem 3.3.
    """

    def __init__(self, base: Matrix, *, ridge: float = 0.0, noise: float = 0.0) -> None:
        super().__init__(base)
        self.ridge, self.noise = ridge, noise

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        block: Array = np.triu(self.base.region(rows, columns), rows[0] - columns[0])
        if self.noise:
            block += self.noise * Gaussian(self.shape, self.dtype).region(rows, columns)
        if self.ridge:
            i = np.arange(max(rows[0], columns[0]), min(rows[1], columns[1]))
            block[i - rows[0], i - columns[0]] += self.ridge
        return block


class AtRest(Matrix):
    """A matrix as it will be stored, for a plan of what reads it."""

    uri = "scratch"

    def __init__(self, shape: tuple[int, int], dtype: np.dtype[Any], chunks: tuple[int, int] = (1, 1)) -> None:
        self.shape, self.stored_dtype = shape, dtype
        self.row_unit, self.column_unit = chunks

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        return np.ones((rows[1] - rows[0], columns[1] - columns[0]), self.dtype)


class Gaussian(AtRest):
    """Normal numbers, in tiles that have a seed each: the same on any worker."""

    uri = "random"

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        tops, lefts = (range(span[0] // _TILE, -(-span[1] // _TILE)) for span in (rows, columns))
        block = np.block([[self._tile(i, j) for j in lefts] for i in tops])
        top, left = tops.start * _TILE, lefts.start * _TILE
        return block[rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]

    def _tile(self, i: int, j: int) -> Array:
        rng = np.random.default_rng([i, j])
        tile = rng.standard_normal((_TILE, _TILE))
        if self.dtype.kind == "c":
            tile = (tile + 1j * rng.standard_normal((_TILE, _TILE))) * np.sqrt(0.5)
        return tile.astype(self.dtype)
