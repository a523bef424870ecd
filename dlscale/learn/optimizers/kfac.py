"""K-FAC: natural gradient with one Kronecker product for each layer.

The curvature of layer l is taken as ``A (x) G`` with ``A`` the mean of ``x x^T`` over its inputs (with a 1 for the bias) and ``G``
the mean of second derivatives in its outputs. A and G are sums over rows, added up over ranks like gradients.

References: Martens and Grosse 2015, sections 3 (factors), 6.3 (damping split between them); the clipping of the step by its
predicted change: Ba, Grosse and Martens 2017, section 5. G is exact for the model's own distribution (Botev et al. 2017, KFLR),
by one backward sweep for each output, instead of by sampled labels: no random numbers, so nothing depends on ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from scipy.linalg import cho_solve

from dlscale.arrays import Array
from dlscale.buffers import workspace
from dlscale.declaration.sections import AboveZero, Fraction
from dlscale.errors import NumericalError
from dlscale.learn.models.model import Model
from dlscale.learn.models.parameters import Parameters, n_layers
from dlscale.learn.optimizers.stepping import Optimizer, State, Stepping, Taken, whole_gradient
from dlscale.sparse_rows import SparseRows


def factor_buffer(parameters: Parameters) -> tuple[Array, Parameters]:
    """One flat array of zeros for all factors, to be added up over ranks, and named views of it.

    Returns
    -------
    buffer : (n,)
    factors : dict
        ``inputs/layer-l`` (n_in + 1, n_in + 1), the bias last, and ``outputs/layer-l`` (n_out, n_out).
    """
    shapes = {}
    for layer in range(n_layers(parameters)):
        n_in, n_out = parameters[f"layer-{layer}/weight"].shape
        shapes[f"inputs/layer-{layer}"], shapes[f"outputs/layer-{layer}"] = n_in + 1, n_out
    buffer = np.zeros(sum(n * n for n in shapes.values()), parameters["layer-0/weight"].dtype)
    factors, start = {}, 0
    for name, n in shapes.items():
        factors[name] = buffer[start : start + n * n].reshape(n, n)
        start += n * n
    return buffer, factors


def factor_sums(
    model: Model,
    parameters: Parameters,
    X: Any,
    y: Array,
    *,
    weights: Array | None = None,
    normalizer: float,
    factors: Parameters,
) -> None:
    """This rank's share of all factors, added to ``factors`` in place.

    Parameters
    ----------
    model : Model
    parameters : Parameters
    X, y, weights, normalizer
        As for `Model.loss_and_gradients`; y matters to the Huber loss only.
    factors : Parameters
        Views of `factor_buffer`, zeros before the first block of rows.

    Raises
    ------
    SpecError
        The hinge loss, which has no curvature.

    Notes
    -----
    As long as about n_outputs backward sweeps; that is why factors are taken every so many steps only.
    """
    dtype = parameters["layer-0/weight"].dtype
    # Beside a factor of so many columns, a batch with its zeros is small.
    forward = model.forward(parameters, np.asarray(X.toarray() if isinstance(X, SparseRows) else X, dtype))
    share = np.full(len(X), 1.0 / normalizer) if weights is None else np.divide(weights, normalizer, dtype=np.float64)
    column = share.astype(dtype)
    for layer, H in enumerate(forward.inputs):
        A = factors[f"inputs/layer-{layer}"]
        weighted = np.multiply(H, column[:, None], out=workspace("learn/weighted", H.shape, dtype))
        A[:-1, :-1] += H.T @ weighted
        sums = weighted.sum(axis=0)
        A[-1, :-1] += sums
        A[:-1, -1] += sums
        A[-1, -1] += dtype.type(share.sum())
    root_share = np.sqrt(share).astype(dtype)[:, None]
    for root in model.loss.curvature_roots(forward.scores, y):
        delta = root * root_share
        for layer in reversed(range(n_layers(parameters))):
            factors[f"outputs/layer-{layer}"] += delta.T @ delta
            if layer > 0:
                delta = model.backward(parameters, forward, layer, delta)


@dataclass(frozen=True)
class KFAC(Optimizer):
    """Natural gradient steps with Kronecker-factored curvature.

    Parameters
    ----------
    damping : float
        Added to the curvature, half of it in each factor.
    decay : float in [0, 1)
        Of the running mean of the factors.
    every : int
        Steps between renewals of the factors.
    momentum : float in [0, 1)
        Of the preconditioned steps.
    kl_clip : float
        Steps are shortened so that the loss is predicted to change by no more than this to second order; infinity never shortens.
    """

    damping: AboveZero = 1e-3
    decay: Fraction = 0.95
    every: Annotated[int, Field(ge=1, description="an integer of at least 1: steps between renewals")] = 10
    momentum: Fraction = 0.9
    kl_clip: Annotated[float, Field(gt=0, allow_inf_nan=True, description="a number above 0")] = 1e-2

    def start(self, parameters: Parameters) -> State:
        """The state before the first step: running means, their Cholesky factors and velocities, in the parameters' dtype."""
        state: State = {"step": np.zeros(1, np.int64), "n_renewals": np.zeros(1, np.int64)}
        for name, factor in factor_buffer(parameters)[1].items():
            state[name] = factor.copy()
            state[f"cholesky-{name}"] = factor.copy()
        for name, array in parameters.items():
            state[f"velocity/{name}"] = np.zeros_like(array)
        return state

    def advance(self, training: Stepping) -> Taken:
        """From the whole gradient, clipped; every so many steps the factors of the batch are taken in first."""
        gradients, taken = whole_gradient(training)
        if self.needs_factors(training.state):
            self.absorb(training.factors(), training.state)
        self.update(training.parameters, gradients, training.state, learning_rate=training.learning_rate)
        return taken

    def needs_factors(self, state: State) -> bool:
        """Whether `absorb` must be called with new factors before the next `update`."""
        return int(state["step"][0]) % self.every == 0

    def absorb(self, factors: Parameters, state: State) -> None:
        """Take factors, added up over ranks, into the running means, and factor the damped means.

        Raises
        ------
        NumericalError
            A damped factor is not positive definite in this precision.
        """
        # The mean of what has come so far at first, an exponential mean later.
        seen = int(state["n_renewals"][0])
        decay = min(self.decay, 1 - 1 / (seen + 1))
        for name, factor in factors.items():
            state[name] *= decay
            state[name] += (1 - decay) * factor
        state["n_renewals"] += 1
        for layer in range(sum(name.startswith("inputs/") for name in factors)):
            A, G = state[f"inputs/layer-{layer}"], state[f"outputs/layer-{layer}"]
            # Splits the damping so that neither factor is drowned in it.
            size_A, size_G = np.trace(A) / len(A), np.trace(G) / len(G)
            pi = math.sqrt(size_A / size_G) if size_A > 0 and size_G > 0 else 1.0
            gamma = math.sqrt(self.damping)
            self._factor(f"inputs/layer-{layer}", A, pi * gamma, state)
            self._factor(f"outputs/layer-{layer}", G, gamma / pi, state)

    def _factor(self, name: str, mean: Array, damping: float, state: State) -> None:
        damped = mean.copy()
        damped.flat[:: len(damped) + 1] += damping
        try:
            state[f"cholesky-{name}"][:] = np.linalg.cholesky(damped)
        except np.linalg.LinAlgError:
            raise NumericalError(
                f"The K-FAC factor {name} is not positive definite with damping {damping:.1e}. "
                "Raise optimizer.damping, train in float64, or look for NaN in the features."
            ) from None

    def update(self, parameters: Parameters, gradients: Parameters, state: State, *, learning_rate: float) -> None:
        """Take one step ``p -= rate * v`` with ``v = momentum * v + (A + .)^-1 g (G + .)^-1``; gradients do not change."""
        state["step"] += 1
        natural: Parameters = {}
        predicted = 0.0
        for layer in range(n_layers(parameters)):
            weight, bias = f"layer-{layer}/weight", f"layer-{layer}/bias"
            stacked = np.vstack([gradients[weight], gradients[bias]])
            V = cho_solve((state[f"cholesky-inputs/layer-{layer}"], True), stacked, check_finite=False)
            V = cho_solve((state[f"cholesky-outputs/layer-{layer}"], True), V.T, check_finite=False).T
            predicted += float(np.vdot(V, stacked))
            natural[weight], natural[bias] = V[:-1], V[-1]
        change = learning_rate**2 * predicted
        shorten = math.sqrt(self.kl_clip / change) if change > self.kl_clip else 1.0
        for name, parameter in parameters.items():
            velocity = state[f"velocity/{name}"]
            velocity *= self.momentum
            velocity += shorten * natural[name]
            parameter -= learning_rate * velocity
