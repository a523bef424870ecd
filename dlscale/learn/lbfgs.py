"""L-BFGS on all rows at once: limited-memory quasi-Newton steps with a strong Wolfe line search.

One call is one iteration. Loss and gradients come from a callable that the caller makes of passes or of allreduces, so that
the same few lines run in one process, on ranks and on a Dask cluster.

References: Nocedal and Wright, Numerical Optimization (2006): algorithm 7.4 (two loops), (7.20) (first scaling), 3.5 and 3.6
(line search). The slack of the decrease test near the optimum: Hager and Zhang 2005, section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dlscale.errors import SpecError
from dlscale.kernels import Array
from dlscale.learn.optimizers import State
from dlscale.learn.options import require_count, require_number
from dlscale.learn.parameters import Parameters, flatten, unflatten
from dlscale.learn.regularization import Regularization

#: ``evaluate(parameters)``: weighted mean loss of all rows and its gradients, without L1 and L2 penalties, the same on every rank.
#: The gradients may be overwritten by who called, and by the next evaluation.
Evaluate = Callable[[Parameters], tuple[float, Parameters]]

_DECREASE, _CURVATURE = 1e-4, 0.9


@dataclass(frozen=True)
class Iteration:
    """What an iteration on all rows came to.

    Parameters
    ----------
    loss : float
        Objective with its penalties, after the step.
    optimality : float
        Largest absolute entry of the (proximal) gradient after the step: 0 at the optimum.
    n_evaluations : int
        Passes over all rows that it took.
    converged : bool
        Optimality is within the tolerance; further iterations change nothing.
    stalled : bool
        No step improves the objective in this precision; further iterations change nothing.
    """

    loss: float
    optimality: float
    n_evaluations: int
    converged: bool
    stalled: bool = False


@dataclass(frozen=True)
class LBFGS:
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

    memory: int = 10
    tolerance: float = 1e-8
    max_evaluations: int = 25

    def __post_init__(self) -> None:
        require_count("optimizer.memory", self.memory)
        require_number("optimizer.tolerance", self.tolerance, at_least=0)
        require_count("optimizer.max_evaluations", self.max_evaluations)

    def start(self, parameters: Parameters) -> State:
        """The state before the first iteration, double precision for parameters of either dtype."""
        n = sum(array.size for array in parameters.values())
        return {
            "n_iterations": np.zeros(1, np.int64),
            "n_pairs": np.zeros(1, np.int64),
            "steps": np.zeros((self.memory, n)),
            "changes": np.zeros((self.memory, n)),
            "loss": np.zeros(1),
            "gradient": np.zeros(n),
        }

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
        """
        if regularization is not None and regularization.l1:
            raise SpecError("L-BFGS needs a smooth objective; regularization.l1 is not. Choose the optimizer proximal, or l1: 0.")
        objective = Objective(evaluate, parameters, regularization)
        x = flatten(parameters)
        if state["n_iterations"][0] == 0:
            state["loss"][0], state["gradient"][:] = objective(x)
        loss, gradient = float(state["loss"][0]), state["gradient"].copy()
        if np.abs(gradient).max() <= self.tolerance:
            return Iteration(loss, float(np.abs(gradient).max()), objective.n_evaluations, converged=True)
        direction = -self._inverse_hessian_times(gradient, state)
        slope = float(direction @ gradient)
        if not slope < 0:
            state["n_pairs"][0] = 0
            direction, slope = -gradient, -float(gradient @ gradient)
        first = 1.0 if state["n_pairs"][0] else 1.0 / max(1.0, float(np.abs(gradient).sum()))
        found = _line_search(objective, x, direction, (loss, slope), first=first, limit=self.max_evaluations)
        if found is None:
            unflatten(x, parameters)
            state["n_iterations"] += 1
            stalled = state["n_pairs"][0] == 0
            state["n_pairs"][0] = 0
            return Iteration(loss, float(np.abs(gradient).max()), objective.n_evaluations, converged=False, stalled=bool(stalled))
        loss, new_gradient = found
        self._remember(flatten(parameters) - x, new_gradient - gradient, state)
        state["n_iterations"] += 1
        state["loss"][0], state["gradient"][:] = loss, new_gradient
        optimality = float(np.abs(new_gradient).max())
        return Iteration(loss, optimality, objective.n_evaluations, converged=optimality <= self.tolerance)

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


class Objective:
    """The smooth objective of a flat vector; leaves the point it was asked about in the parameters."""

    def __init__(self, evaluate: Evaluate, parameters: Parameters, regularization: Regularization | None) -> None:
        self.evaluate, self.parameters = evaluate, parameters
        self.smooth = Regularization(l2=regularization.l2) if regularization else Regularization()
        self.n_evaluations = 0

    def __call__(self, x: Array) -> tuple[float, Array]:
        unflatten(x, self.parameters)
        loss, gradients = self.evaluate(self.parameters)
        self.n_evaluations += 1
        loss += self.smooth.add(self.parameters, gradients)
        return loss, flatten({name: gradients[name] for name in self.parameters})


def _line_search(
    objective: Objective, x: Array, direction: Array, start: tuple[float, float], *, first: float, limit: int
) -> tuple[float, Array] | None:
    """Loss and gradient at a point of the ray that meets the strong Wolfe conditions; None when rounding hides every decrease.

    ``low`` and ``high`` are steps with their loss and slope that bracket such a point; ``high`` is open at first.
    """
    loss0, slope0 = start
    # Differences of the loss below its rounding say nothing; there the slope alone decides.
    slack = 10 * np.finfo(np.float64).eps * abs(loss0)
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
            t *= 4
            continue
        t = _cubic_minimum(low, high)
        if abs(high[0] - low[0]) * np.abs(direction).max() <= np.finfo(np.float64).eps * np.abs(x).max(initial=1e-300):
            break
    return None


def _cubic_minimum(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    """Minimiser of the cubic through two points with slopes (N&W eq. 3.59), kept off the ends of the interval."""
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
