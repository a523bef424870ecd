"""Factorizations by panels at any scale: of ``2^-k A`` where the entries of A are out of range, and multiplied back, both exactly.

Whether they are is known when the panels have been read, so that a matrix in range is not read once more for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Passes
from dlscale.engine.tiles.factorizer import Factorizer
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.methods import Factored
from dlscale.engine.tiles.whole_tasks import STRIP_BYTES
from dlscale.errors import NumericalError, OutOfRange
from dlscale.kernels import largest_part, safe_exponent, times_power_of_two
from dlscale.linalg.panels.plan import factor_target
from dlscale.linalg.scaling import Largest, power_words, require_digits
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import scaled

T = TypeVar("T")


def largest_entry(passes: Passes, step: str, A: Matrix) -> float:
    """The largest modulus of the real and imaginary parts of the entries; one read of A."""
    m, n = A.shape
    rows = max(1, STRIP_BYTES // (n * A.dtype.itemsize) // A.row_unit) * A.row_unit
    rows = min(rows, m)
    return float(passes.sweep(step, A, Largest(), RowGrid(m, rows, rows * max(1, m // rows // 16)))["largest"][0])


def panels_at_safe_scale(passes: Passes, A: Matrix, compute: Callable[[Passes, Matrix, int], T], *, factor: str = "") -> T:
    """``compute(passes, 2^-k A, k)`` with k = 0 wherever that is safe.

    Parameters
    ----------
    passes : Passes
    A : Matrix
    compute : callable
        Is called again, its steps under other names, where it fails and the entries turn out to be out of range; it calls
        `require_safe` when it has seen them.
    factor : str
        What has entries as large as those of A and is stored: they must have the digits of its dtype.
    """
    try:
        return compute(passes, A, 0)
    except NumericalError as error:
        largest = error.largest if isinstance(error, _Seen) else largest_entry(passes, "largest", A)
        exponent = safe_exponent(largest, A.dtype)
        if exponent == 0:
            raise
    if factor:
        require_digits(largest, 0, A.dtype, what=f"The entries of the matrix and of {factor}")
    return compute(passes.apart("scaled-"), scaled(A, -exponent), exponent)


class _Seen(OutOfRange):
    def __init__(self, largest: float) -> None:
        super().__init__(f"The largest entry is {largest:.1e}.")
        self.largest = largest


def require_safe(largest: float, dtype: np.dtype[Any]) -> None:
    """Raise `OutOfRange` unless products of entries up to this size neither overflow nor vanish."""
    if not np.isfinite(largest):
        raise OutOfRange("The moduli of the entries overflow.")
    if safe_exponent(largest, dtype):
        raise _Seen(largest)


def require_room(largest: float, dtype: np.dtype[Any]) -> None:
    """`require_safe` for triangular factors, which are no products of two entries of the matrix.

    Large ones stay as they are, so that no small ones vanish beside them; sums of them that overflow are for who calls to see.
    """
    if not 1 <= largest < np.inf:
        require_safe(largest, dtype)


@dataclass(frozen=True)
class TimesPower:
    """Multiplies a tile, or its part on and above the diagonal of the matrix, by ``2^exponent``.

    Parameters
    ----------
    grid : PanelGrid
    exponent : int
    upper : bool
        Whether what stands below the diagonal stays as it is.
    """

    grid: PanelGrid
    exponent: int
    upper: bool

    def __call__(self, i: int, k: int, tile: Array) -> None:
        shift = self.grid.rows(i)[0] - self.grid.columns(k)[0]
        if self.upper:
            tile[...] = np.tril(tile, shift - 1) + times_back(np.triu(tile, shift), self.exponent)
        else:
            tile[...] = times_back(tile, self.exponent)


def times_back(factor: Array, exponent: int) -> Array:
    """``2^exponent`` times a factor of a scaled matrix.

    Raises
    ------
    NumericalError
        If an entry overflows.
    """
    back = times_power_of_two(factor, exponent)
    if not np.isfinite(back).all() and np.isfinite(factor).all():
        raise NumericalError(
            f"The matrix is finite, but its factors overflow {factor.dtype}: they reach about "
            f"{power_words(largest_part(factor), exponent)}. Divide the matrix by a power of two."
        )
    return back


def place_times(passes: Passes, step: str, factors: Matrix, name: str, grid: PanelGrid, exponent: int, *, upper: bool) -> Matrix:
    """Copy stored factors, or their upper part, times a power of two to an array of the result."""
    target = factor_target(passes.run, name, factors.shape, factors.dtype, grid)
    Factorizer(passes.run).copy(step, Factored(grid, factors, []), target, TimesPower(grid, exponent, upper))
    return target.matrix()
