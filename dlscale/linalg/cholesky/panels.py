"""Cholesky, panel by panel: A = L L^H."""

from __future__ import annotations

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.passes import Passes
from dlscale.engine.tiles.factorizer import Panels
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.methods import Facts, Method, Seen, Transform
from dlscale.errors import NumericalError
from dlscale.lapack import factor_cholesky, multiply_add, solve_right, subtract_hermitian_product
from dlscale.linalg.panels.plan import factor_target
from dlscale.storage.matrix import Matrix


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
            f"The matrix is not positive definite: its leading minor of order {top + minor} is not positive. "
            "Use kind lu, or kind solve with assume: general."
        )
    return {"order": np.array([top + len(block)])}


def factor_panels(
    passes: Passes, A: Matrix, grid: PanelGrid, *, probes: Array, step: str = "cholesky", keep: bool = True
) -> tuple[Matrix, Seen]:
    """Factor a matrix; ``keep`` says whether the factor belongs to the job's result.

    Returns
    -------
    L : Matrix (n, n)
    Seen
    """
    target = factor_target(passes.run, "l" if keep else step, A.shape, A.dtype, grid, scratch=not keep)
    _, seen = Panels(passes.run).factor(step, A, Cholesky(), grid, target, probes=probes)
    return target.matrix(), seen
