"""Systems with one kernel matrix, several penalties and sets of rows left out, by conjugate gradients on all of them at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.kept import State
from dlscale.engine.passes import Passes
from dlscale.engine.run import Cost
from dlscale.errors import NumericalError
from dlscale.linalg.iterative.cg import CG
from dlscale.linalg.iterative.nystrom import Nystrom
from dlscale.linalg.iterative.recurrence import Iterate, Limits, Problem, iterate

#: States that are kept: one of so many products.
_KEPT = 8


@dataclass(frozen=True)
class Systems:
    """``(M K M + a I) x = M b`` of each column.

    Parameters
    ----------
    B : (n, c)
        ``M b``.
    penalties : (c,)
    folds : (c,)
        The fold that is left out; -1 for none.
    bounds : tuple of int
        First row of each fold, and n.
    """

    B: Array
    penalties: Array
    folds: Array
    bounds: tuple[int, ...]

    def leave_out(self, Y: Array, columns: Array) -> Array:
        """M Y, in place, of some columns."""
        for j, fold in enumerate(self.folds[columns]):
            if fold >= 0:
                Y[self.bounds[fold] : self.bounds[fold + 1], j] = 0
        return Y


class PathCG(CG):
    """Conjugate gradients whose columns know which they are: their penalties differ, and their preconditioners."""

    def __init__(self, systems: Systems, nystrom: Nystrom) -> None:
        super().__init__(self._inverse)
        self.systems, self.nystrom = systems, nystrom
        self._at = np.zeros(0, np.int64)

    def begin(self, R: Array) -> State:
        self._at = self.columns
        return super().begin(R) | {"columns": self.columns}

    def operand(self, state: State) -> Array:
        return np.vstack([state["P"], state["columns"]])

    def advance(self, state: State, product: Array) -> State:
        self._at = state["columns"]
        return super().advance(state, product) | {"columns": state["columns"]}

    def _inverse(self, R: Array) -> Array:
        Z, penalties, folds = np.empty_like(R), self.systems.penalties[self._at], self.systems.folds[self._at]
        for fold in np.unique(folds):
            which = folds == fold
            Z[:, which] = self.nystrom.apply(R[:, which], penalties[which], int(fold))
        return self.systems.leave_out(Z, self._at)


class PathProblem(Problem):
    """The systems, with products by passes, and the state kept once in a while."""

    def __init__(self, passes: Passes, name: str, systems: Systems, multiply: Callable[[str, Array], Array]) -> None:
        super().__init__(self._product, systems.B)
        self.passes, self.name, self.systems, self.multiply = passes, name, systems, multiply
        self._n_products = 0

    def _product(self, X: Array) -> Array:
        # With a row more, the columns say which they are; measured are all.
        own = len(X) > len(self.B)
        columns = X[-1].astype(np.int64) if own else np.arange(X.shape[1])
        P = X[:-1] if own else X
        self._n_products += 1
        Y = self.multiply(f"{self.name}-product-{self._n_products}", P)
        Y += self.systems.penalties[columns] * P
        return self.systems.leave_out(Y, columns)

    def newest(self) -> tuple[int, State] | None:
        found = self.passes.run.newest(self.name)
        self._n_products = found[0] if found else 0
        return found

    def keep(self, number: int, compute: Callable[[], State]) -> State:
        if number % _KEPT:
            return compute()
        return self.passes.run.step(f"{self.name}-{number}", Cost(), lambda _: compute(), keep="last")


def solve_path(problem: PathProblem, nystrom: Nystrom, limits: Limits) -> Iterate:
    """Solve all systems.

    Raises
    ------
    NumericalError
        Saying of which penalty the iterations did not converge, and what they came to.
    """
    it = iterate(PathCG(problem.systems, nystrom), problem, limits)
    if it.end != "converged":
        worst = int(np.argmax(np.where(it.ended == 1, -1.0, it.reached)))
        penalty = problem.systems.penalties[worst]
        raise NumericalError(
            f"The iterations for penalty {penalty:g} ended {_WORDS[it.end]} after {it.iterations} products, with a residual of "
            f"{it.reached[worst]:.1e} of the targets where {limits.tolerance:.1e} was asked for; raise the penalty, "
            "params.n_centers, params.tolerance or params.max_iterations."
        )
    return it


_WORDS = {
    "stagnated": "stagnated",
    "broken down": "broken down",
    "not definite": "with a kernel matrix that is not positive definite",
    "limit": "at their limit",
}
