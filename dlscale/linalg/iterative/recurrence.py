"""What all iterative methods share: products in, corrections out, and an end that is measured.

A method is a recurrence for ``A D = R``, each column by itself, all of them in one product. Columns leave it when it claims that
they have converged, or when it can go no further; when all have left, one more product measures ``B - A X``. What does not hold
then is begun anew from the measured residual, so that no claim of a recurrence is ever handed out.

References
----------
Greenbaum (1997), Estimating the attainable accuracy of recursively computed residual methods; Sleijpen and van der Vorst (1996) for
residuals that are replaced.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.kept import State
from dlscale.errors import CorruptionError
from dlscale.kernels import one_blas_thread, safe_norm

#: What a column came to; it is at none of these while it is iterated.
End = Literal["converged", "stagnated", "broken down", "not definite", "limit", "diverged"]
ENDS: tuple[End, ...] = get_args(End)
#: Codes that a recurrence gives its columns: it goes on, it is to be begun anew, it can go no further (three times), or
#: it has come as far as it is to be believed.
GOES_ON, DUE, BROKEN_DOWN, NOT_DEFINITE, DIVERGED, REACHED = 0, 1, 2, 3, 4, 5
#: A recurrence claims convergence at this part of the tolerance, since rounding takes the truth away from it.
CLAIM = 0.5
#: A residual that was claimed to have converged, and had not, must at least be halved by beginning anew; another one must fall.
HALVED, FALLEN = 0.5, 0.999
#: A residual that has grown by so much tells that there is no solution to converge to.
GROWTH = 1e12

#: What is done to columns.
Map = Callable[[Array], Array]


def unchanged(R: Array) -> Array:
    """What is done to columns without a preconditioner."""
    return R


class Recurrence(ABC):
    """A method, whose state is arrays with the columns last.

    Every state has ``size`` (k,), what it claims of what `Problem.reached` measures times `Problem.sizes`, and ``code`` (k,).
    """

    #: Times n: iterations without a smaller claim, after which the residual is measured; of claims that never grow.
    patience: float = math.inf
    #: Which columns of the problem the recurrence is begun for; set before it is.
    columns: Array

    @abstractmethod
    def begin(self, R: Array) -> State:
        """The state for ``A D = R`` (n, k) with D = 0."""

    @abstractmethod
    def operand(self, state: State) -> Array:
        """What is multiplied next, (n, k)."""

    @abstractmethod
    def advance(self, state: State, product: Array) -> State:
        """The state after a product of the operand."""

    @abstractmethod
    def correction(self, state: State) -> Array:
        """D (n, k)."""


@dataclass(frozen=True)
class Limits:
    """When iterations end.

    Parameters
    ----------
    tolerance : float
        For ``||b - A x|| / ||b||`` of each column.
    max_iterations : int
    """

    tolerance: float
    max_iterations: int


class Problem:
    """A system ``A X = B`` that is iterated on: where products come from, and what is kept of the way.

    Parameters
    ----------
    apply : callable
        ``A X`` (n, k) of X (n, k).
    B : (n, k)

    Attributes
    ----------
    sizes : (k,)
        What claims are relative to; 0 of columns that need no iteration.
    x0 : (n, k), optional
        What X is begun with; zeros if absent.
    least_fall : float
        What a measured residual must have fallen to, of the one before it, where a recurrence claimed more.
    """

    x0: Array | None = None
    least_fall: float = HALVED

    def __init__(self, apply: Map, B: Array) -> None:
        self.apply, self.B = apply, B
        self.sizes: Array = safe_norm(B, axis=0)

    def first(self) -> tuple[Array, Array]:
        """What X is begun with, and its residual."""
        if self.x0 is None:
            return np.zeros_like(self.B), self.B
        X = self.handed_out(np.where(self.sizes > 0, self.x0, 0))
        return X, self.residual(X)

    def residual(self, X: Array) -> Array:
        """``B - A X``, from one more product."""
        return np.asarray(self.B - self.apply(X))

    def reached(self, R: Array, X: Array) -> tuple[Array, Array]:
        """The residual of each column as it is held against the tolerance, and what rounding may hide of it."""
        sizes = np.where(self.sizes > 0, self.sizes, 1)
        return np.where(self.sizes > 0, safe_norm(R, axis=0) / sizes, 0.0), self.rounding(X) / sizes

    def handed_out(self, X: Array) -> Array:
        """Solutions as they will be handed out, which is what is measured."""
        return X

    def rounding(self, X: Array) -> Array:
        """What rounding may hide of the norm of each measured residual."""
        return np.zeros(X.shape[1])

    def newest(self) -> tuple[int, State] | None:
        """The number of the last read whose state was kept, and the state."""
        return None

    def keep(self, number: int, compute: Callable[[], State]) -> State:
        """The state after so many reads, computed or taken from where it was kept."""
        return compute()

    def told(self, it: Iterate) -> None:
        """Hear of each iterate."""


@dataclass(frozen=True)
class Iterate:
    """The state between two products, all of it.

    Parameters
    ----------
    X : (n, k)
        Solutions, as far as they were handed over by the recurrence.
    kept : (n, k)
        Of solutions that were measured, those with the smallest residuals.
    ended : (k,)
        Number in `ENDS` and 1, or 0; less than nothing where what was kept is to be measured again before it is.
    codes : (k,)
        With which columns left the recurrence; one that claimed convergence has `GOES_ON`.
    reached : (k,)
        ``||b - A x|| / ||b||`` as it was measured, the smallest: that of what was kept.
    live : (j,)
        Columns that the recurrence has.
    best, waited : (j,)
        The smallest claim of each, and iterations since.
    iterations : int
    claimed : (i,)
        The largest claim of each iteration, relative to the right-hand side, of the columns that the recurrence had.
    measured : (r, 2)
        After which iteration residuals were measured, and the largest.
    recurrence : State
    """

    X: Array
    kept: Array
    ended: Array
    codes: Array
    reached: Array
    live: Array
    best: Array
    waited: Array
    iterations: int
    claimed: Array
    measured: Array
    recurrence: State

    @property
    def finished(self) -> bool:
        """Whether all columns have converged, or one of them cannot."""
        return bool((self.ended >= 0).all() and ((self.ended > 0).all() or (self.ended > 1).any()))

    @property
    def end(self) -> End:
        """What it came to: converged where every column has."""
        return ENDS[int(self.ended.max(initial=1)) - 1]

    def to_state(self) -> State:
        own = {f.name: np.atleast_1d(getattr(self, f.name)) for f in fields(self) if f.name != "recurrence"}
        return own | {f"{_RECURRENCE}{name}": value for name, value in self.recurrence.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Iterate:
        """As `to_state` gave it (CorruptionError if that was another version's)."""
        if missing := [f.name for f in fields(cls) if f.name != "recurrence" and f.name not in state]:
            raise CorruptionError(
                f"The checkpoint of the iterations is another version's, without {missing[0]}: start the job again."
            )
        own: dict[str, Any] = {f.name: state[f.name] for f in fields(cls) if f.name != "recurrence"}
        inner = {name.removeprefix(_RECURRENCE): value for name, value in state.items() if name.startswith(_RECURRENCE)}
        return cls(**own | {"iterations": int(own["iterations"][0])}, recurrence=inner)


_RECURRENCE = "recurrence-"
#: What is out of range ends a recurrence, or the pass that multiplies it, in words.
_QUIET: Any = {"over": "ignore", "invalid": "ignore", "divide": "ignore"}


def iterate(method: Recurrence, problem: Problem, limits: Limits) -> Iterate:
    """Iterate until the residuals, measured, are small enough, or cannot become so.

    Notes
    -----
    One product an iteration, and one for each time that residuals are measured.
    """
    newest = problem.newest()
    with one_blas_thread(), np.errstate(**_QUIET):
        number, it = (0, _started(method, problem)) if newest is None else (newest[0], Iterate.from_state(newest[1]))
    while not it.finished:
        goes_on = len(it.live) > 0 and it.iterations < limits.max_iterations
        with one_blas_thread(), np.errstate(**_QUIET):
            operand = method.operand(it.recurrence) if goes_on else problem.handed_out(_handed_over(method, it).X)
        product = problem.apply(operand) if goes_on else problem.residual(operand)

        def compute(it: Iterate = it, goes_on: bool = goes_on, operand: Array = operand, product: Array = product) -> State:
            with one_blas_thread(), np.errstate(**_QUIET):
                if goes_on:
                    return _advanced(method, problem, limits, it, product).to_state()
                return _measured(method, problem, limits, _handed_over(method, it), operand, product).to_state()

        number += 1
        it = Iterate.from_state(problem.keep(number, compute))
        problem.told(it)
    return it


def _started(method: Recurrence, problem: Problem) -> Iterate:
    k = problem.B.shape[1]
    ended = (problem.sizes == 0).astype(np.int64)
    X, R = problem.first()
    reached = np.where(ended, 0.0, 1.0) if problem.x0 is None else problem.reached(R, X)[0]
    it = Iterate(
        X, X, ended, np.zeros(k, np.int64), reached, np.zeros(0, np.int64),
        np.zeros(0), np.zeros(0, np.int64), 0, np.zeros(0), np.zeros((0, 2)), {},
    )  # fmt: skip
    return it if it.finished else _begun(method, it, R)


def _begun(method: Recurrence, it: Iterate, R: Array) -> Iterate:
    """With the recurrence begun for the columns that have not ended."""
    live = np.flatnonzero(it.ended == 0)
    method.columns = live
    state = method.begin(np.ascontiguousarray(R[:, live]))
    codes = it.codes.copy()
    codes[live] = GOES_ON
    return replace(
        it, codes=codes, live=live, best=state["size"].copy(), waited=np.zeros(len(live), np.int64), recurrence=state
    )  # fmt: skip


def _advanced(method: Recurrence, problem: Problem, limits: Limits, it: Iterate, product: Array) -> Iterate:
    state = method.advance(it.recurrence, product)
    sizes, code = state["size"], state["code"]
    goals = CLAIM * limits.tolerance * problem.sizes[it.live]
    smaller = sizes < FALLEN * it.best
    waited = np.where(smaller, 0, it.waited + 1)
    code = np.where((code == GOES_ON) & ~np.isfinite(sizes), BROKEN_DOWN, code)
    code = np.where((code == GOES_ON) & (sizes > GROWTH * it.best), BROKEN_DOWN, code)
    code = np.where((code == GOES_ON) & (waited > method.patience * (1 + len(problem.B))), DUE, code)
    claims = np.where(np.isfinite(sizes), sizes, np.inf) / problem.sizes[it.live]
    it = replace(
        it,
        recurrence=state,
        best=np.where(smaller, sizes, it.best),
        waited=waited,
        iterations=it.iterations + 1,
        claimed=np.append(it.claimed, claims.max()),
    )
    code = np.where(sizes <= goals, GOES_ON, code)
    leaves = (code != GOES_ON) | (sizes <= goals)
    return _handed_over(method, it, leaves, code) if leaves.any() else it


def _handed_over(method: Recurrence, it: Iterate, leaves: Array | None = None, code: Array | None = None) -> Iterate:
    """With the corrections of columns that leave the recurrence added to X; all leave by default."""
    if not len(it.live):
        return it
    leaves = np.ones(len(it.live), bool) if leaves is None else leaves
    X, codes, columns = it.X.copy(), it.codes.copy(), it.live[leaves]
    D = method.correction({name: value[..., leaves] for name, value in it.recurrence.items()})
    # What is out of range helps nobody; the solution stays as it was.
    X[:, columns] += np.where(np.isfinite(D).all(axis=0), D, 0)
    codes[columns] = DUE if code is None else code[leaves]
    # In the order in which a kept state is read again: sums of another one have other bits.
    rest = {name: np.ascontiguousarray(value[..., ~leaves]) for name, value in it.recurrence.items()}
    return replace(it, X=X, codes=codes, live=it.live[~leaves], best=it.best[~leaves], waited=it.waited[~leaves], recurrence=rest)


def _measured(method: Recurrence, problem: Problem, limits: Limits, it: Iterate, X: Array, R: Array) -> Iterate:
    """With the residuals measured: what they came to, or the recurrence begun anew from them."""
    reached, hidden = problem.reached(R, X)
    running, again = it.ended == 0, it.ended < 0
    if again.any():
        return _with_residuals(replace(it, X=X, ended=np.abs(it.ended)), np.where(again, reached, it.reached))
    ended = it.ended.copy()
    ended[running & (reached + hidden <= limits.tolerance)] = _code("converged")
    less = np.where(it.codes == DUE, FALLEN, problem.least_fall)
    stuck = running & (ended == 0) & ~(reached < less * it.reached)
    ended[stuck] = _code("stagnated")
    ended[stuck & (it.codes == BROKEN_DOWN)] = _code("broken down")
    ended[running & (ended == 0) & (it.codes == NOT_DEFINITE)] = _code("not definite")
    ended[stuck & (it.codes == NOT_DEFINITE)] = _code("not definite")
    ended[running & (ended != _code("converged")) & (it.codes == DIVERGED)] = _code("diverged")
    if it.iterations >= limits.max_iterations:
        ended[(ended == 0) | (stuck & (it.codes == DUE))] = _code("limit")
    # A column that ends behind a better X goes back to that; of the first one none is known to be better.
    back = (ended > 1) & running & ~(reached <= it.reached) & (len(it.measured) > 0)
    X, kept = np.where(back, it.kept, X), np.where(back | ~running, it.kept, X)
    it = _with_residuals(replace(it, X=X, kept=kept, ended=np.where(back, -ended, ended)), np.where(running, reached, it.reached))
    return it if it.finished or back.any() else _begun(method, it, R)


def _with_residuals(it: Iterate, reached: Array) -> Iterate:
    worst = float(reached.max(initial=0.0))
    return replace(it, reached=reached, measured=np.append(it.measured, [[it.iterations, worst]], axis=0))


def _code(end: End) -> int:
    return ENDS.index(end) + 1


def inner(X: Array, Y: Array) -> Array:
    """``x'y`` of each column, its real part."""
    return np.asarray(np.einsum("ij,ij->j", X.conj(), Y).real)
