"""The triangle of a matrix that was factored, with more rows of it: R of [R; W], which is backward stable.

References
----------
Golub and Van Loan (2013), section 6.5.4.
"""

from __future__ import annotations

from dlscale.errors import InputError
from dlscale.storage.inputs import StoredResult
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import Stacked, conjugated


class MoreRows(Stacked):
    """A triangle R with more rows below; a fault is in these."""

    def place(self, row: int, column: int) -> tuple[int, int]:
        return self.below.place(row - self.above.shape[0], column)


def with_rows(factors: StoredResult, W: Matrix) -> MoreRows:
    """The triangle in the result of a ``qr`` or ``cholesky`` job with the rows of W (p, n) below.

    Raises
    ------
    InputError
        If the result holds no such triangle.
    """
    names = factors.arrays
    if is_cholesky(factors):
        R = conjugated(factors.matrix("l").T)
    elif "r" in names and "p" not in names:
        R = factors.matrix("r")
    else:
        got = "was pivoted" if "p" in names else "has mode raw"
        raise InputError(f"input.factors: must be of a qr job of mode r or reduced, or of a cholesky job; {factors.uri} {got}.")
    if R.shape[1] != W.shape[1]:
        raise InputError(f"input.matrix: must have {R.shape[1]} columns like what was factored in {factors.uri}; got {W.shape[1]}.")
    return MoreRows(R, W)


def is_cholesky(factors: StoredResult) -> bool:
    """Whether the triangle is the L of a positive definite matrix, with more rows or not."""
    return "l" in factors.arrays
