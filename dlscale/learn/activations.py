"""Elementwise activations, in place, with their derivatives.

The derivative is taken from the output where the function allows it; only GELU keeps one more array.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import erf, expit

from dlscale.kernels import Array, workspace


@dataclass(frozen=True)
class Activation:
    """An elementwise function f."""

    keeps_slope: ClassVar[bool] = False

    def apply(self, Z: Array, slope: Array | None) -> None:
        """``Z <- f(Z)``; an activation that ``keeps_slope`` also writes ``f'(Z)`` to ``slope`` unless that is None."""
        raise NotImplementedError

    def backpropagate(self, G: Array, H: Array, slope: Array | None) -> None:
        """``G <- G * f'(Z)`` where ``H = f(Z)``."""
        raise NotImplementedError


@dataclass(frozen=True)
class ReLU(Activation):
    """``max(z, 0)``, with derivative 0 at 0."""

    def apply(self, Z: Array, slope: Array | None) -> None:
        np.maximum(Z, 0, out=Z)

    def backpropagate(self, G: Array, H: Array, slope: Array | None) -> None:
        active = np.greater(H, 0, out=workspace("learn/active", H.shape, np.dtype(bool)))
        np.multiply(G, active, out=G)


@dataclass(frozen=True)
class Tanh(Activation):
    """Hyperbolic tangent."""

    def apply(self, Z: Array, slope: Array | None) -> None:
        np.tanh(Z, out=Z)

    def backpropagate(self, G: Array, H: Array, slope: Array | None) -> None:
        work = np.multiply(H, H, out=workspace("learn/slope", H.shape, H.dtype))
        np.subtract(1, work, out=work)
        G *= work


@dataclass(frozen=True)
class Sigmoid(Activation):
    """``1 / (1 + exp(-z))``, without overflow."""

    def apply(self, Z: Array, slope: Array | None) -> None:
        expit(Z, out=Z)

    def backpropagate(self, G: Array, H: Array, slope: Array | None) -> None:
        work = np.subtract(1, H, out=workspace("learn/slope", H.shape, H.dtype))
        work *= H
        G *= work


@dataclass(frozen=True)
class GELU(Activation):
    """``z Phi(z)`` with the normal distribution function itself, not its tanh approximation (Hendrycks and Gimpel 2016)."""

    keeps_slope: ClassVar[bool] = True

    def apply(self, Z: Array, slope: Array | None) -> None:
        Phi = np.multiply(Z, math.sqrt(0.5), out=workspace("learn/phi", Z.shape, Z.dtype))
        erf(Phi, out=Phi)
        Phi += 1
        Phi *= 0.5
        if slope is not None:
            np.multiply(Z, Z, out=slope)
            slope *= -0.5
            np.exp(slope, out=slope)
            slope *= 1 / math.sqrt(2 * math.pi)
            slope *= Z
            slope += Phi
        Z *= Phi

    def backpropagate(self, G: Array, H: Array, slope: Array | None) -> None:
        assert slope is not None
        G *= slope


ACTIVATIONS: dict[str, Activation] = {"relu": ReLU(), "tanh": Tanh(), "sigmoid": Sigmoid(), "gelu": GELU()}
