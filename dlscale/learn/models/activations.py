"""Elementwise activations, in place, with their derivatives.

The derivative is taken from the output where the function allows it; only GELU keeps one more array.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy

from dlscale.arrays import Array
from dlscale.buffers import workspace
from dlscale.learn.models.parameters import TILE_ELEMENTS, tiles


@dataclass(frozen=True)
class Activation(ABC):
    """An elementwise function f."""

    keeps_slope: ClassVar[bool] = False

    @abstractmethod
    def apply(self, Z: Array, slope: Array | None) -> None:
        """``Z <- f(Z)``; an activation that ``keeps_slope`` also writes ``f'(Z)`` to ``slope`` unless that is None."""

    @abstractmethod
    def backpropagate(self, G: Array, H: Array, slope: Array | None) -> None:
        """``G <- G * f'(Z)`` where ``H = f(Z)``."""


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
        scipy.special.expit(Z, out=Z)

    def backpropagate(self, G: Array, H: Array, slope: Array | None) -> None:
        work = np.subtract(1, H, out=workspace("learn/slope", H.shape, H.dtype))
        work *= H
        G *= work


@dataclass(frozen=True)
class GELU(Activation):
    """``z Phi(z)`` with the normal distribution function itself, not its tanh approximation (Hendrycks and Gimpel 2016)."""

    keeps_slope: ClassVar[bool] = True

    def apply(self, Z: Array, slope: Array | None) -> None:
        density, tail, work = (workspace(f"learn/gelu-{i}", (TILE_ELEMENTS,), Z.dtype) for i in range(3))
        for z, *s in tiles(Z, *([] if slope is None else [slope])):
            e, q, w = density[: z.size], tail[: z.size], work[: z.size]
            np.multiply(z, z, out=e)
            e *= -0.5
            np.exp(e, out=e)
            np.abs(z, out=w)
            _upper_tail(w, e, q)
            if s:
                # Phi(z) = 1/2 + sign(z) (1/2 - q)
                np.subtract(0.5, q, out=s[0])
                np.copysign(s[0], z, out=s[0])
                s[0] += 0.5
                e *= 1 / math.sqrt(2 * math.pi)
                e *= z
                s[0] += e
            # z Phi(z) = max(z, 0) - |z| q keeps the digits of both tails.
            np.abs(z, out=w)
            q *= w
            np.maximum(z, 0, out=z)
            z -= q

    def backpropagate(self, G: Array, H: Array, slope: Array | None) -> None:
        assert slope is not None
        G *= slope


#: Chebyshev fit of ``log(erfc(x) exp(x^2) / t)`` in ``t = 1 / (1 + x / 2)``, relative error of erfc below 1.2e-7 for all x >= 0
#: (Press et al., Numerical Recipes in C, 1992, section 6.2, erfcc); highest power first.
_ERFC_FIT = (
    0.17087277,
    -0.82215223,
    1.48851587,
    -1.13520398,
    0.27886807,
    -0.18628806,
    0.09678418,
    0.37409196,
    1.00002368,
    -1.26551223,
)


def _upper_tail(a: Array, e: Array, q: Array) -> None:
    """``q <- 1 - Phi(a)`` for ``a >= 0`` and ``e = exp(-a^2 / 2)``; a is overwritten.

    In single precision by a fit that has its accuracy and a tenth of the time of the library's function.
    """
    if a.dtype != np.float32:
        np.negative(a, out=a)
        scipy.special.ndtr(a, out=q)
        return
    a *= 0.5 * math.sqrt(0.5)
    a += 1
    np.reciprocal(a, out=a)
    np.multiply(a, _ERFC_FIT[0], out=q)
    for coefficient in _ERFC_FIT[1:-1]:
        q += coefficient
        q *= a
    q += _ERFC_FIT[-1]
    np.exp(q, out=q)
    q *= a
    q *= e
    q *= 0.5


ACTIVATIONS: dict[str, Activation] = {"relu": ReLU(), "tanh": Tanh(), "sigmoid": Sigmoid(), "gelu": GELU()}
