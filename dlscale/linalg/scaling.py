"""Matrices of any scale, by powers of two: an answer is computed near 1 and multiplied back, both exactly.

Passes multiply entries with entries, and squares leave the range of a dtype long before the entries do. Where the first sums
of squares tell that they did, or might, the same computation is made of ``2^-e A``, whose entries are near 1. A factor of a
power of two changes exponents only, so that the answer has the same bits at every scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Fold, Passes, State
from dlscale.errors import NumericalError, OutOfRange
from dlscale.kernels import largest_part, times_power_of_two
from dlscale.sparse_rows import SparseRows
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import scaled

T = TypeVar("T")

#: More than the error of a decimal logarithm, so that what is rounded up from it is no less than it was.
_UP = 1e-9


@dataclass(frozen=True)
class Largest(Fold):
    """The largest modulus of a real or imaginary part."""

    takes_sparse = True

    @property
    def flops_per_row(self) -> float:
        return 0.0

    def start(self) -> State:
        return {"largest": np.zeros(1)}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        for entries in [A] if not isinstance(A, SparseRows) else [A.rows.data] if A.shift is None else [A.entries(), A.beside()]:
            np.maximum(state["largest"], largest_part(entries), out=state["largest"])
        return ()

    def merge(self, left: State, right: State) -> State:
        return {"largest": np.maximum(left["largest"], right["largest"])}


def exponent_of(size: float) -> int:
    """e with ``2^(e-1) <= size < 2^e``; 0 for 0."""
    return int(np.frexp(size)[1])


def at_safe_scale(
    passes: Passes, A: Matrix, grid: RowGrid, compute: Callable[[Passes, Matrix], T], *, step: str = "largest"
) -> tuple[T, int]:
    """``compute(passes, 2^-e A)`` with e = 0 wherever that is safe.

    Parameters
    ----------
    passes : Passes
    A : Matrix (m, n)
    grid : RowGrid of m rows
    compute : callable
        From passes and a matrix to an answer; runs again from its first pass on, under other names of steps, where its sums
        of squares (`Fold.squares_in`) leave the safe range. It writes outputs of the result only behind its first sums of squares.
    step : str
        Name of the pass that looks for the largest entry.

    Returns
    -------
    answer : T
        Of ``2^-e A``.
    e : int

    Notes
    -----
    No read of its own where the squares are in range; one where they overflow or vanish.
    """
    exponent, watching = 0, passes.watching_range()
    while True:
        try:
            return compute(watching, scaled(A, -exponent)), exponent
        except OutOfRange as error:
            squares = error.squares
        if squares:
            exponent += exponent_of(squares) // 2
        else:
            largest = float(passes.sweep(step, A, Largest(), grid)["largest"][0])
            measured = exponent_of(largest)
            if largest == 0 or measured == exponent:
                # The squares are zero in truth: of a matrix of zeros, or of one that is constant.
                return compute(passes.apart(f"scaled-{exponent}-") if exponent else passes, scaled(A, -exponent)), exponent
            exponent = measured
        watching = passes.watching_range().apart(f"scaled-{exponent}-")


def published(values: Array, exponent: int, dtype: np.dtype[Any]) -> Array:
    """``2^exponent values`` in a dtype, times ``2^-exponent``: the values with the digits that `scaled_back` leaves them.

    Those that overflow the dtype stay as they are.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        found = times_power_of_two(_multiplied(values, exponent, dtype).astype(values.dtype), -exponent)
    return np.where(np.isfinite(found), found, values)


def _multiplied(values: Array, exponent: int, dtype: np.dtype[Any]) -> Array:
    """``2^exponent values``, rounded to a dtype once."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.asarray(times_power_of_two(values.astype(np.result_type(values, dtype)), exponent).astype(dtype))


def scaled_back(values: Array, exponent: int, dtype: np.dtype[Any], *, what: str, of: str = "the matrix") -> Array:
    """``2^exponent values``, rounded to a dtype.

    Parameters
    ----------
    values : ndarray
    exponent : int
    dtype : numpy.dtype
    what : str
        What they are, in the plural, for the message.
    of : str
        What they are proportional to.

    Raises
    ------
    NumericalError
        If the largest of them overflows the dtype, or has fewer digits there than the others of its size.
    """
    largest, found = float(np.abs(values).max(initial=0.0)), _multiplied(values, exponent, dtype)
    if not np.isfinite(found).all():
        near = f": the largest is near {power_words(largest, exponent)}" if np.isfinite(largest) else ""
        raise NumericalError(f"{what} overflow {dtype}{near}; divide {of}.")
    require_digits(largest, exponent, dtype, what=what, of=of)
    return found


def require_digits(largest: float, exponent: int, dtype: np.dtype[Any], *, what: str, of: str = "the matrix") -> None:
    """NumericalError if even the largest of some numbers, ``2^exponent largest``, has fewer digits than its dtype."""
    tiny = float(np.finfo(dtype).tiny)
    if largest > 0 and np.ldexp(largest, exponent) < tiny:
        raise NumericalError(
            f"{what} are too small for the digits of {dtype}: the largest is near {power_words(largest, exponent)}, and "
            f"numbers below {tiny:.1e} have fewer; multiply {of} by a power of two."
        )


def power_words(value: float, exponent: int) -> str:
    """About ``value 2^exponent`` for people, also where that is out of range."""
    return f"1e{round(float(np.log10(value)) + exponent * np.log10(2.0))}"


def bound_words(value: float, exponent: int) -> str:
    """``value 2^exponent``, rounded up to two digits, for people, also where that is out of range."""
    if not 0 < value < np.inf:
        return f"{value:g}"
    power, digits = divmod(float(np.log10(value)) + exponent * np.log10(2.0) + _UP, 1)
    return f"{np.ceil(10 * 10**digits) / 10:.2g}e{int(power)}" if 10**digits <= 9.9 else f"1e{int(power) + 1}"


def scale_words(exponent: int) -> tuple[str, ...]:
    """What to note of a computation at another scale."""
    if not exponent:
        return ()
    return (f"computed on 2^{-exponent} times the matrix, as its squares are out of range: {digits_kept(exponent)}",)


def digits_kept(exponent: int) -> str:
    """What entries lose that are taken to ``2^-exponent`` of their size."""
    return "exactly, but for entries that are below the smallest normal number there" if exponent > 0 else "exactly"
