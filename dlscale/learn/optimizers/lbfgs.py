"""L-BFGS on all rows at once: limited-memory quasi-Newton steps with a strong Wolfe line search.

One call is one iteration. Loss and gradients come from a callable that the caller makes of passes or of allreduces, so that
the same few lines run in one process, on ranks and on a Dask cluster.

References: Nocedal and Wright, Numerical Optimization (2006): algorithm 7.4 (two loops), (7.20) (first scaling), 3.5 and 3.6
(line search). The slack of the decrease test near the optimum: Hager and Zhang 2005, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlscale.arrays import Array
from dlscale.declaration.sections import Count, NotNegative
from dlscale.errors import NumericalError, SpecError
from dlscale.learn.models.parameters import Parameters, flatten, unflatten
from dlscale.learn.optimizers.first_order import NO_L1
from dlscale.learn.optimizers.full_batch import Evaluate, FullBatch, Iteration, Objective
from dlscale.learn.optimizers.regularization import Regularization
from dlscale.learn.optimizers.stepping import State

_DECREASE, _CURVATURE = 1e-4, 0.9


@dataclass(frozen=True)
class LBFGS(FullBatch):
    """Limited-memory BFGS.

    Parameters
    ----------
    memory : int
        Pairs of steps and changes of gradient that are kept: 2 * memory * n_parameters numbers.
    tolerance : float
        Converged when no entry of the gradient is larger.
    max_evaluations : int
        Of one line search.
    """

    memory: Count = 10
    tolerance: NotNegative = 1e-8
    max_evaluations: Count = 25

    def start(self, parameters: Parameters) -> State:
        """The state before the first iteration, double precision for parameters of either dtype."""
        n = sum(array.size for array in parameters.values())
        pairs = {"n_pairs": np.zeros(1, np.int64), "steps": np.zeros((self.memory, n)), "changes": np.zeros((self.memory, n))}
        return super().start(parameters) | pairs

    def iterate(
        self, evaluate: Evaluate, parameters: Parameters, state: State, *, regularization: Regularization | None = None
    ) -> Iteration:
        """One step; parameters and state change in place.

        Parameters
        ----------
        evaluate : Evaluate
        parameters : Parameters
        state : State
        regularization : Regularization, optional
            Its L2 penalty is added to what ``evaluate`` returns.

        Raises
        ------
        SpecError
            An L1 penalty, whose corners this method cannot round.
        NumericalError
            The first line search found nothing better than the first parameters, though they are not the best.
        """
        if regularization is not None and regularization.l1:
            raise SpecError(NO_L1["lbfgs"])
        objective = self.objective(evaluate, parameters, state, regularization)
        x, before = objective.vector(), flatten(parameters)
        loss, gradient = float(state["loss"][0]), state["gradient"].copy()
        if self.reached(state) or not np.isfinite(loss):
            return self.outcome(state, objective)
        direction = -self._inverse_hessian_times(gradient, state)
        slope = float(direction @ gradient)
        if not slope < 0:
            state["n_pairs"][0] = 0
            direction, slope = -gradient, -float(gradient @ gradient)
        # In standard coordinates curvatures are about 1; in others a step of length 1 at most is a careful one.
        careful = not state["n_pairs"][0] and not (objective.standard and len(parameters) == 2)
        first = 1.0 / max(1.0, float(np.abs(gradient).sum())) if careful else 1.0
        slack = objective.slack(loss)
        found = _line_search(objective, x, direction, (loss, slope, slack), first=first, limit=self.max_evaluations)
        state["n_iterations"] += 1
        if found is None:
            unflatten(before, parameters)
            stalled = state["n_pairs"][0] == 0
            state["n_pairs"][0] = 0
            if stalled and state["n_iterations"][0] == 1 and -slope > slack:
                raise NumericalError(
                    f"L-BFGS found no step from the first parameters that lowers the loss ({loss:.3g}) in {self.max_evaluations} "
                    "evaluations; scale the features or the targets, or raise optimizer.max_evaluations."
                )
            return self.outcome(state, objective, stalled=bool(stalled))
        self._remember(objective.vector() - x, found[1] - gradient, state)
        self.keep(state, objective, *found)
        return self.outcome(state, objective)

    def _remember(self, step: Array, change: Array, state: State) -> None:
        # A pair without positive curvature would spoil positive definiteness; the Wolfe conditions leave only rounding here.
        if step @ change > np.finfo(np.float64).eps * np.linalg.norm(step) * np.linalg.norm(change):
            place = int(state["n_pairs"][0]) % self.memory
            state["steps"][place], state["changes"][place] = step, change
            state["n_pairs"] += 1

    def _inverse_hessian_times(self, gradient: Array, state: State) -> Array:
        n_pairs = int(state["n_pairs"][0])
        newest_first = [i % self.memory for i in range(n_pairs - 1, max(-1, n_pairs - 1 - self.memory), -1)]
        S, Y = state["steps"], state["changes"]
        q, kept = gradient.copy(), []
        for i in newest_first:
            rho = 1.0 / (S[i] @ Y[i])
            alpha = rho * (S[i] @ q)
            q -= alpha * Y[i]
            kept.append((i, rho, alpha))
        if newest_first:
            q *= (S[newest_first[0]] @ Y[newest_first[0]]) / (Y[newest_first[0]] @ Y[newest_first[0]])
        for i, rho, alpha in reversed(kept):
            q += (alpha - rho * (Y[i] @ q)) * S[i]
        return q


def _line_search(
    objective: Objective, x: Array, direction: Array, start: tuple[float, float, float], *, first: float, limit: int
) -> tuple[float, Array] | None:
    """Loss and gradient at a point of the ray that meets the strong Wolfe conditions; None when rounding hides every decrease.

    ``start`` is the loss, its slope and what rounding makes of differences of losses; below that the slope alone decides.
    ``low`` and ``high`` are steps with their loss and slope that bracket such a point; ``high`` is open at first.
    """
    loss0, slope0, slack = start
    low, high = (0.0, loss0, slope0), None
    t = first
    for _ in range(limit):
        loss, gradient = objective(x + t * direction)
        slope = float(gradient @ direction)
        if not np.isfinite(loss) or loss > loss0 + _DECREASE * t * slope0 + slack or (low[0] > 0 and loss > low[1] + slack):
            high = (t, loss, slope)
        elif abs(slope) <= -_CURVATURE * slope0:
            return loss, gradient
        else:
            if slope * ((high[0] if high else t + 1) - low[0]) >= 0:
                high = low
            low = (t, loss, slope)
        if high is None:
            # Where the slope would be zero if it went on changing as it did; far steps are tried with care.
            zero = t * slope0 / (slope0 - slope) if slope > slope0 else 10 * t
            t = min(max(zero, 2 * t), 1e4 * t)
            continue
        t = _cubic_minimum(low, high)
        if abs(high[0] - low[0]) * np.abs(direction).max() <= np.finfo(np.float64).eps * np.abs(x).max(initial=1e-300):
            break
    return None


def _cubic_minimum(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    """Minimiser of the cubic through two points with slopes (N&W eq. 3.59), kept off the ends of the interval."""
    # In units of the largest of them, whose squares cannot overflow.
    unit = max(map(abs, (a[1], b[1], a[2], b[2])))
    if 0 < unit < np.inf:
        a, b = ((t, loss / unit, slope / unit) for t, loss, slope in (a, b))
    width = b[0] - a[0]
    middle = a[0] + 0.5 * width
    if not (np.isfinite(b[1]) and np.isfinite(b[2])):
        return a[0] + 0.1 * width
    d1 = a[2] + b[2] - 3 * (a[1] - b[1]) / (a[0] - b[0])
    inside = d1 * d1 - a[2] * b[2]
    if inside < 0:
        return middle
    d2 = np.copysign(np.sqrt(inside), width)
    bottom = b[2] - a[2] + 2 * d2
    if bottom == 0:
        return middle
    t = b[0] - width * (b[2] + d2 - d1) / bottom
    margin = 0.1 * abs(width)
    return float(min(max(t, min(a[0], b[0]) + margin), max(a[0], b[0]) - margin))
