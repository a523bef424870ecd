"""A matrix times a power of two, as a view."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlscale.kernels import times_power_of_two
from dlscale.storage.matrices import Array, Matrix


class Scaled(Matrix):
    """``2^exponent A``: the same digits in a range where products neither overflow nor vanish.

    Parameters
    ----------
    base : Matrix
    exponent : int
    """

    def __init__(self, base: Matrix, exponent: int) -> None:
        self.base, self.exponent = base, exponent
        self.shape, self.stored_dtype, self.uri = base.shape, base.dtype, base.uri
        self.row_unit, self.column_unit, self.any_range = base.row_unit, base.column_unit, base.any_range
        self.is_vector = base.is_vector

    @property
    def T(self) -> Matrix:
        return Scaled(self.base.T, self.exponent)

    @property
    def attributes(self) -> dict[str, Any]:
        return self.base.attributes

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        block = self.base.region(rows, columns, out)
        # In place only where the block was read into what the caller gave: it may be the user's own array.
        place = block if out is not None and np.may_share_memory(block, out) else out
        return times_power_of_two(block, self.exponent, out=place)

    def expect(self, start: int, stop: int) -> None:
        self.base.expect(start, stop)

    def place(self, row: int, column: int) -> tuple[int, int]:
        return self.base.place(row, column)

    def check(self) -> None:
        self.base.check()

    def describe(self) -> dict[str, Any]:
        return self.base.describe()


def scaled(A: Matrix, exponent: int) -> Matrix:
    """``2^exponent A``; A itself where the exponent is 0."""
    return Scaled(A, exponent) if exponent else A
