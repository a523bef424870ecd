"""First values of a layer's weights; biases start at zero."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import SpecError


def zeros(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """All zeros: right for a convex model, refused for hidden layers."""
    return np.zeros(shape)


def normal(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Normal with standard deviation 0.01."""
    return 0.01 * rng.standard_normal(shape)


def xavier(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Uniform with variance ``2 / (n_in + n_out)`` (Glorot and Bengio 2010, eq. 16): for tanh and sigmoid."""
    limit = math.sqrt(6.0 / sum(shape))
    return rng.uniform(-limit, limit, shape)


def he(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Normal with variance ``2 / n_in`` (He et al. 2015, eq. 10): keeps the signal's variance through ReLU and GELU."""
    return math.sqrt(2.0 / shape[0]) * rng.standard_normal(shape)


def orthogonal(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Orthonormal columns, or rows where the layer widens, uniform over all such matrices (Saxe et al. 2014; Mezzadri 2007)."""
    tall = rng.standard_normal((max(shape), min(shape)))
    Q, R = np.linalg.qr(tall)
    Q *= np.where(np.diag(R) < 0, -1.0, 1.0)
    return Q if shape[0] >= shape[1] else Q.T


INITIALIZERS: dict[str, Callable[[tuple[int, int], np.random.Generator], Array]] = {
    "zeros": zeros,
    "normal": normal,
    "xavier": xavier,
    "glorot": xavier,
    "he": he,
    "orthogonal": orthogonal,
}


def initializer(name: str, *, has_hidden: bool) -> Callable[[tuple[int, int], np.random.Generator], Array]:
    """The initializer of this name.

    Raises
    ------
    SpecError
        An unknown name, or zeros for a model with hidden layers.
    """
    if name not in INITIALIZERS:
        raise SpecError(f"model.init must be one of {', '.join(INITIALIZERS)}; got {name!r}.")
    if name == "zeros" and has_hidden:
        raise SpecError(
            "model.init zeros cannot train hidden layers: units that start equal get equal gradients and never separate, so the "
            "layer acts as one unit, and passes no gradient down while its outgoing weights are zero. Use he, xavier or orthogonal."
        )
    return INITIALIZERS[name]
