"""Proximal gradient steps on all rows at once: lasso and elastic net to full accuracy, with exact zeros.

FISTA (Beck and Teboulle 2009, section 4) with backtracking; its momentum is restarted when it points uphill (O'Donoghue and
Candès 2015, section 3.2), which makes convergence linear where the objective is strongly convex. Every array of parameters has a
bound on its own curvature, since that of an intercept and of the weights of small features differ by orders of magnitude; the
L1 penalty is a sum over entries, so its proximal step stays exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlscale.kernels import Array
from dlscale.learn.lbfgs import Evaluate, Iteration, Objective
from dlscale.learn.optimizers import State
from dlscale.learn.options import require_number
from dlscale.learn.parameters import Parameters, flatten, is_weight, unflatten
from dlscale.learn.regularization import Regularization, soft_threshold


@dataclass(frozen=True)
class ProximalGradient:
    """Accelerated proximal gradient.

    Parameters
    ----------
    tolerance : float
        Converged when no entry of the proximal gradient ``L (z - prox(z - grad / L))`` is larger, L being the bounds.
    """

    tolerance: float = 1e-8

    def __post_init__(self) -> None:
        require_number("optimizer.tolerance", self.tolerance, at_least=0)

    def start(self, parameters: Parameters) -> State:
        """The state before the first iteration, double precision for parameters of either dtype."""
        return {
            "n_iterations": np.zeros(1, np.int64),
            "previous": flatten(parameters),
            "momentum": np.ones(1),
            "curvature": np.zeros(len(parameters)),
        }

    def iterate(
        self, evaluate: Evaluate, parameters: Parameters, state: State, *, regularization: Regularization | None = None
    ) -> Iteration:
        """One step on ``evaluate`` and both penalties of ``regularization``; parameters and state change in place.

        A step takes two evaluations, more when the bound on the curvature has to grow.
        """
        regularization = regularization or Regularization()
        objective = Objective(evaluate, parameters, regularization)
        threshold = np.concatenate([np.full(array.size, regularization.l1 * is_weight(name)) for name, array in parameters.items()])
        x, previous = flatten(parameters), state["previous"].copy()
        t = float(state["momentum"][0])
        t_next = 0.5 * (1 + np.sqrt(1 + 4 * t * t))
        z = x + (t - 1) / t_next * (x - previous)
        loss, gradient = objective(z)
        sizes = [array.size for array in parameters.values()]
        if not state["curvature"].any():
            state["curvature"][:] = _first_curvatures(objective, z, gradient, sizes)
        L = np.repeat(state["curvature"], sizes)
        while True:
            new = z - gradient / L
            soft_threshold(new, threshold / L)
            step = new - z
            new_loss, _ = objective(new)
            bound = loss + gradient @ step + 0.5 * (L * step) @ step
            if new_loss <= bound + 10 * np.finfo(np.float64).eps * abs(loss) or not np.isfinite(L).all():
                break
            L *= 2
            state["curvature"] *= 2
        if (L * step) @ (new - x) < 0:
            t_next = 1.0
        state["n_iterations"] += 1
        state["previous"][:], state["momentum"][0] = x, t_next
        unflatten(new, parameters)
        optimality = float((L * np.abs(step)).max())
        penalty = float(threshold @ np.abs(new))
        return Iteration(new_loss + penalty, optimality, objective.n_evaluations, converged=optimality <= self.tolerance)


def _first_curvatures(objective: Objective, z: Array, gradient: Array, sizes: list[int]) -> list[float]:
    """Curvature of each array along its own gradient by a difference: lower bounds, from which backtracking doubles."""
    curvatures, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        start += size
        direction = np.zeros_like(z)
        direction[part] = gradient[part] if gradient[part].any() else 1.0
        length = float(np.linalg.norm(direction))
        h = 1e-4 * max(1.0, float(np.linalg.norm(z[part]))) / length
        _, ahead = objective(z + h * direction)
        curvatures.append(max(float(np.linalg.norm((ahead - gradient)[part])) / (h * length), 1e-12))
    return curvatures
