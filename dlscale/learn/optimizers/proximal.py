"""Proximal gradient steps on all rows at once: lasso and elastic net to full accuracy, with exact zeros.

FISTA (Beck and Teboulle 2009, section 4) with backtracking; its momentum is restarted when it points uphill (O'Donoghue and
Candès 2015, section 3.2), which makes convergence linear where the objective is strongly convex. Every array of parameters has a
bound on its own curvature, and features have mean 0 and scale 1, since curvatures differ by orders of magnitude otherwise; the
L1 penalty is a sum over entries, so its proximal step stays exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlscale.arrays import Array
from dlscale.declaration.sections import NotNegative
from dlscale.learn.models.parameters import Parameters
from dlscale.learn.optimizers.full_batch import Evaluate, FullBatch, Iteration, Objective
from dlscale.learn.optimizers.regularization import Regularization, soft_threshold
from dlscale.learn.optimizers.stepping import State

_EPS = float(np.finfo(np.float64).eps)
#: Of the bounds on curvatures in one step: from 1e-12 beyond what any loss can have.
_MOST_DOUBLINGS = 200
#: Steps in a row that bring nothing; the momentum swings, with a period of the root of the condition.
_MOST_WORSE = 100


@dataclass(frozen=True)
class ProximalGradient(FullBatch):
    """Accelerated proximal gradient.

    Parameters
    ----------
    tolerance : float
        Converged when no entry of the least subgradient is larger.
    """

    tolerance: NotNegative = 1e-8

    def start(self, parameters: Parameters) -> State:
        """The state before the first iteration, double precision for parameters of either dtype."""
        n = sum(array.size for array in parameters.values())
        own = {"previous": np.zeros(n), "momentum": np.ones(1), "curvature": np.zeros(len(parameters)), "best": np.full(2, np.inf)}
        own["n_worse"] = np.zeros(1, np.int64)
        return super().start(parameters) | own

    def iterate(
        self, evaluate: Evaluate, parameters: Parameters, state: State, *, regularization: Regularization | None = None
    ) -> Iteration:
        """One step on ``evaluate`` and both penalties of ``regularization``; parameters and state change in place.

        A step takes two evaluations, more when the bound on the curvature has to grow.
        """
        objective = self.objective(evaluate, parameters, state, regularization)
        if self.reached(state) or not np.isfinite(state["loss"][0]):
            return self.outcome(state, objective)
        sizes = [array.size for array in parameters.values()]
        threshold = objective.coordinates.thresholds(objective.regularization.l1, parameters)
        x, t, t_next = objective.vector(), float(state["momentum"][0]), 1.0
        if state["n_iterations"][0] == 0:
            z, loss, gradient = x, float(state["loss"][0]), state["gradient"].copy()
            state["curvature"][:] = _first_curvatures(objective, z, gradient, sizes)
        else:
            t_next = 0.5 * (1 + np.sqrt(1 + 4 * t * t))
            z = x + (t - 1) / t_next * (x - state["previous"])
            loss, gradient = objective(z)
        L, slack = np.repeat(state["curvature"], sizes), objective.slack(loss)
        for _ in range(_MOST_DOUBLINGS):
            new = z - gradient / L
            soft_threshold(new, threshold / L)
            step = new - z
            new_loss, new_gradient = objective(new)
            bound = loss + gradient @ step + 0.5 * (L * step) @ step
            if new_loss <= bound + slack:
                break
            # Where the losses differ by what cancels in them, the gradients tell the curvature.
            if abs(new_loss - loss) <= np.sqrt(_EPS) * abs(loss) and (new_gradient - gradient) @ step <= (L * step) @ step:
                break
            L *= 2
            state["curvature"] *= 2
        if (L * step) @ (new - x) < 0:
            t_next = 1.0
        state["n_iterations"] += 1
        state["previous"][:], state["momentum"][0] = x, t_next
        before = float(state["measured"][1][0])
        self.keep(state, objective, new_loss, new_gradient)
        return self.outcome(state, objective, stalled=self._rests(state, before - objective.slack(new_loss)))

    def _rests(self, state: State, below: float) -> bool:
        """Whether for long neither the subgradient nor the objective has become smaller, nor the objective fallen below the last.

        After a swing over the minimum, many steps fall before they are below where it began.
        """
        best, now = state["best"], np.array([state["relative"][0], state["measured"][1][0]])
        better = now[0] < best[0] or now[1] < best[1] - 10 * _EPS * abs(now[1]) or now[1] < below
        state["n_worse"][0] = 0 if better else state["n_worse"][0] + 1
        np.minimum(best, now, out=best)
        return bool(state["n_worse"][0] >= _MOST_WORSE)


def _first_curvatures(objective: Objective, z: Array, gradient: Array, sizes: list[int]) -> list[float]:
    """Curvature of each array along its own gradient by a difference: lower bounds, from which backtracking doubles."""
    curvatures, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        start += size
        direction = np.zeros_like(z)
        direction[part] = gradient[part] if gradient[part].any() else 1.0
        length = float(np.linalg.norm(direction))
        h = 1e-4 * max(1.0, float(np.linalg.norm(z[part])), length) / length
        _, ahead = objective(z + h * direction)
        curvatures.append(max(float(np.linalg.norm((ahead - gradient)[part])) / (h * length), 1e-12))
    return curvatures
