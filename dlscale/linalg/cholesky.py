"""Cholesky factorization, panel by panel: A = L L^H of a Hermitian positive definite matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlscale.certificates import LAPACK_THRESHOLD, Certificate, Check
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import PassCost
from dlscale.engine.outcome import Outcome
from dlscale.engine.panel_grids import PanelGrid
from dlscale.engine.panels import Panels
from dlscale.engine.passes import Passes
from dlscale.engine.transforms import Facts, Method, Seen, Transform
from dlscale.errors import NumericalError, SpecError
from dlscale.lapack import factor_cholesky, multiply_add, solve_right
from dlscale.linalg.factor_plan import FactorOptions, PanelPlan, as_matrix, factor_target, plan_panels
from dlscale.linalg.factor_products import TriangularProduct, probes, scaled, triangular_product
from dlscale.storage.matrices import Array, Matrix


class Cholesky(Method):
    """Blocked Cholesky of the lower triangle (Golub and Van Loan, section 4.2.6); a panel begins at its diagonal."""

    def first_row(self, top: int) -> int:
        return top

    def factor(self, panel: Array, top: int) -> Facts:
        L = panel[: panel.shape[1]]
        minor = factor_cholesky(L)
        if minor:
            raise NumericalError(
                f"The matrix is not positive definite: its leading minor of order {top + minor} is not positive. "
                "Use kind lu, or kind solve with assume: general."
            )
        solve_right(panel[len(L) :], L, uplo="L", op="C")
        return {"order": np.array([top + len(L)])}

    def apply(self, transform: Transform, panel: Array, top: int) -> None:
        L = transform.panel[top - transform.top :]
        multiply_add(L, L[: panel.shape[1]], panel, op_b="C")

    def probe(self, strip: Array, row: int, column: int, probes: Array, products: Array) -> None:
        # Only the lower triangle is read; what stands above is its mirror image.
        stop = column + strip.shape[1]
        below = strip[max(0, stop - row) :]
        products[row + len(strip) - len(below) : row + len(strip)] += below @ probes[column:stop]
        products[column:stop] += below.conj().T @ probes[row + len(strip) - len(below) : row + len(strip)]
        square = strip[max(0, column - row) : max(0, stop - row)]
        if len(square):
            first = max(row, column)
            lower = np.tril(square, first - column)
            products[first : first + len(square)] += lower @ probes[column:stop]
            products[column:stop] += np.tril(square, first - column - 1).conj().T @ probes[first : first + len(square)]

    def factor_flops(self, m: int, b: int) -> float:
        return float(m * b * b - 2 * b**3 / 3)

    def apply_flops(self, m: int, b: int, width: int) -> float:
        return float(2 * m * b * width)


@dataclass(frozen=True)
class CholeskyOptions(FactorOptions):
    """What to compute (`FactorOptions`)."""


def plan_cholesky(A: Matrix, options: CholeskyOptions, facts: ClusterFacts) -> PanelPlan:
    """Plan a Cholesky factorization.

    Raises
    ------
    SpecError
        If the matrix is not square.
    DoesNotFitError
    """
    n = A.shape[0]
    if A.shape[1] != n:
        raise SpecError(f"input.matrix: must be square for a Cholesky factorization; got {n} x {A.shape[1]}.")
    stored = n * n * A.dtype.itemsize
    plan = plan_panels(
        "cholesky",
        "blocked Cholesky of the lower triangle; what stands above the diagonal is not read",
        A,
        Cholesky(),
        options,
        facts,
        more=(PassCost("adjoint", 4.0 * n * n, stored), PassCost("lower", 4.0 * n * n, stored)),
    )
    return plan


def compute_cholesky(passes: Passes, A: Matrix, options: CholeskyOptions, plan: PanelPlan) -> Outcome:
    """Factor by the plan; ``l``, with zeros above its diagonal, goes to the outputs of the passes.

    Returns
    -------
    Outcome

    Raises
    ------
    NumericalError
        Naming the leading minor that is not positive.

    Notes
    -----
    n^3 / 3 flops.

    References
    ----------
    Golub and Van Loan (2013), section 4.2.
    """
    n, dtype = A.shape[0], A.dtype
    X = probes(n, dtype)
    L, seen = factor_panels(passes, A, plan.factored, probes=X)
    LX = triangular_product(passes, "adjoint", L, plan.grid, TriangularProduct(X, n, lower=True, adjoint=True, n_columns=n))
    LLX = triangular_product(passes, "lower", L, plan.grid, TriangularProduct(LX, n, lower=True))
    check = Check(
        "||(A - LL')x|| / (||Ax|| n eps)",
        scaled(seen.products - LLX, seen.products, n, dtype),
        LAPACK_THRESHOLD,
        "on random vectors, L L' acts as the matrix does",
    )
    return Outcome({}, ("l",), Certificate((check,)))


def factor_panels(
    passes: Passes, A: Matrix, grid: PanelGrid, *, probes: Array, step: str = "cholesky", keep: bool = True
) -> tuple[Matrix, Seen]:
    """Factor a matrix; ``keep`` says whether the factor belongs to the job's result.

    Returns
    -------
    L : Matrix (n, n)
    Seen
    """
    target = factor_target(passes, "l" if keep else step, A.shape, A.dtype, grid, scratch=not keep)
    _, seen = Panels(passes).factor(step, A, Cholesky(), grid, target, probes=probes)
    return as_matrix(target), seen
