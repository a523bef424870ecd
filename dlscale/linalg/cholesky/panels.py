"""Cholesky, panel by panel: A = L L^H."""

from __future__ import annotations

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.tiles.methods import Facts, Method, Transform
from dlscale.errors import NumericalError
from dlscale.lapack import factor_cholesky, multiply_add, solve_right, subtract_hermitian_product


class Cholesky(Method):
    """Blocked Cholesky of the lower triangle (Golub and Van Loan, section 4.2.6); a panel begins at its diagonal."""

    def first_row(self, top: int) -> int:
        return top

    def factor(self, panel: Array, top: int) -> Facts:
        L = panel[: panel.shape[1]]
        facts = factor_diagonal(L, top)
        solve_right(panel[len(L) :], L, uplo="L", op="C")
        return facts

    def apply(self, transform: Transform, panel: Array, top: int) -> None:
        L, b = transform.panel[top - transform.top :], panel.shape[1]
        subtract_hermitian_product(L[:b], panel[:b])
        multiply_add(L[b:], L[:b], panel[b:], op_b="C")

    def factor_flops(self, m: int, b: int) -> float:
        return float(m * b * b - 2 * b**3 / 3)

    def apply_flops(self, m: int, b: int, width: int) -> float:
        return float(2 * m * b * width)


def factor_diagonal(block: Array, top: int) -> Facts:
    """Cholesky factor of the diagonal block that begins at row ``top``, in place.

    Raises
    ------
    NumericalError
        Naming the leading minor that is not positive.
    """
    minor = factor_cholesky(block)
    if minor:
        raise NumericalError(
            f"The matrix is not positive definite: its leading minor of order {top + minor} is not positive "
            "to working precision. Use kind lu, or kind solve with assume: general."
        )
    return {"order": np.array([top + len(block)])}
