"""Systems with one kernel matrix, several penalties and sets of rows left out, by conjugate gradients on all of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.kept import State
from dlscale.engine.passes import Passes
from dlscale.engine.run import Cost
from dlscale.errors import NumericalError
from dlscale.linalg.iterative.cg import CG
from dlscale.linalg.iterative.nystrom import Nystrom
from dlscale.linalg.iterative.recurrence import CLAIM, GOES_ON, REACHED, Iterate, Limits, Problem, iterate

#: States that are kept: one of so many products.
_KEPT = 8
#: Parts of the residual that products in single precision are sure to see; what is smaller is measured in double, and begun from.
_REACH = 1e-4
#: Where a measured residual falls by less than to this part, products in double precision are sooner there.
_LEAST_FALL = 0.05
_DOUBLE = np.dtype(np.float64)


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
    """Conjugate gradients whose columns know which they are: their penalties differ, and their preconditioners.

    Parameters
    ----------
    systems : Systems
    nystrom : Nystrom
    reach : float
        Part of the residual that they begin with, at which columns are measured and begun anew.
    """

    def __init__(self, systems: Systems, nystrom: Nystrom, reach: float = 0.0) -> None:
        super().__init__(self._inverse)
        self.systems, self.nystrom, self.reach = systems, nystrom, reach
        self._at = np.zeros(0, np.int64)

    def begin(self, R: Array) -> State:
        self._at = self.columns
        state = super().begin(R)
        return state | {"columns": self.columns, "due": self.reach * state["size"]}

    def operand(self, state: State) -> Array:
        return np.vstack([state["P"], state["columns"]])

    def advance(self, state: State, product: Array) -> State:
        self._at = state["columns"]
        new = super().advance(state, product)
        new["code"][(new["code"] == GOES_ON) & (new["size"] <= state["due"])] = REACHED
        return new | {"columns": state["columns"], "due": state["due"]}

    def _inverse(self, R: Array) -> Array:
        Z, penalties, folds = np.empty_like(R), self.systems.penalties[self._at], self.systems.folds[self._at]
        for fold in np.unique(folds):
            which = folds == fold
            Z[:, which] = self.nystrom.apply(R[:, which], penalties[which], int(fold))
        return self.systems.leave_out(Z, self._at)


class PathProblem(Problem):
    """The systems, with products by passes, and the state kept once in a while.

    Parameters
    ----------
    passes : Passes
    name : str
        Of its steps.
    systems : Systems
    multiply : callable
        ``K P`` of the name of a step and P, in the precision of P.
    precision : numpy.dtype
        Of the products of the recurrence; residuals are measured in double.
    """

    def __init__(
        self,
        passes: Passes,
        name: str,
        systems: Systems,
        multiply: Callable[[str, Array], Array],
        precision: np.dtype[Any] = _DOUBLE,
    ) -> None:
        super().__init__(self._product, systems.B)
        self.passes, self.name, self.systems, self.multiply, self.precision = passes, name, systems, multiply, precision
        self._n_products = 0
        if precision != _DOUBLE:
            self.least_fall = _LEAST_FALL

    def goes_on_in_double(self, X: Array) -> PathProblem:
        """The same systems, from where single precision helps no more."""
        other = PathProblem(self.passes, f"{self.name}-double", self.systems, self.multiply)
        other.x0 = X
        return other

    def _product(self, X: Array) -> Array:
        # With a row more, the columns say which they are; measured are all.
        own = len(X) > len(self.B)
        columns = X[-1].astype(np.int64) if own else np.arange(X.shape[1])
        P = X[:-1] if own else X
        self._n_products += 1
        Y = self.multiply(f"{self.name}-product-{self._n_products}", P.astype(self.precision if own else _DOUBLE, copy=False))
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
    goal = CLAIM * limits.tolerance
    # Equal parts of the way.
    reach = 0.0 if problem.precision == _DOUBLE else 0.9 * goal ** (1 / math.ceil(math.log(goal) / math.log(_REACH)))
    it = iterate(PathCG(problem.systems, nystrom, reach), problem, limits)
    if reach and it.end not in ("converged", "limit"):
        before, problem = it, problem.goes_on_in_double(it.X)
        limits = replace(limits, max_iterations=limits.max_iterations - before.iterations)
        it = iterate(PathCG(problem.systems, nystrom), problem, limits)
        it = replace(it, iterations=before.iterations + it.iterations, claimed=np.append(before.claimed, it.claimed))
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
