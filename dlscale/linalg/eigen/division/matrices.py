"""Matrices that a division makes while they are read."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import CorruptionError
from dlscale.linalg.polar.start import AtRest, Gaussian
from dlscale.storage.matrix import Matrix, View


class Hermitian(View):
    """``(A + A^H) / 2``."""

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        block, mirrored = self.base.region(rows, columns), self.base.region(columns, rows)
        return np.asarray((block + mirrored.conj().T) * block.real.dtype.type(0.5))


class Shifted(View):
    """``A - sigma I``."""

    def __init__(self, base: Matrix, sigma: float) -> None:
        super().__init__(base)
        self.sigma = sigma

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        block = np.array(self.base.region(rows, columns))
        i = np.arange(max(rows[0], columns[0]), min(rows[1], columns[1]))
        block[i - rows[0], i - columns[0]] -= block.real.dtype.type(self.sigma)
        return block


class Projected(View):
    """``[(G - U G) / 2, (G + U G) / 2]`` for a Gaussian G: random vectors of both invariant subspaces of a Hermitian unitary U.

    Parameters
    ----------
    base : Matrix (n, n)
        ``U G``.
    n_below : int
        Columns of the first one.
    """

    def __init__(self, base: Matrix, n_below: int) -> None:
        super().__init__(base)
        self.n_below, self.gaussian = n_below, Gaussian(base.shape, base.dtype)

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        signs = np.where(np.arange(*columns) < self.n_below, -0.5, 0.5).astype(self.dtype)
        half = self.dtype.type(0.5)
        return np.asarray(self.gaussian.region(rows, columns) * half + self.base.region(rows, columns) * signs)


class Identity(AtRest):
    """Columns of the identity (n, n) in an order."""

    uri = "identity"

    def __init__(self, n: int, dtype: np.dtype[Any], order: Array | None = None) -> None:
        super().__init__((n, n), dtype)
        self.order = np.arange(n) if order is None else order

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        return np.asarray(np.arange(*rows)[:, None] == self.order[slice(*columns)], self.dtype)


class Removed(AtRest):
    """A matrix whose factors are kept, and itself is not."""

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        raise CorruptionError("the factors of a division are damaged, and what they were made of is removed: start the job again")
