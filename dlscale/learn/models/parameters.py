"""Named parameters, and gradients laid out for reduction between ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import workspace

#: ``{"layer-0/weight": (n_in, n_out), "layer-0/bias": (n_out,), "layer-1/weight": ...}``, first layer first, all float32 or
#: all float64. Gradients have the same names, order, shapes and dtype.
Parameters = dict[str, Array]

#: Elements of a tile of elementwise work: five of them in float32 stay in a core's second cache.
TILE_ELEMENTS = 32_768


def is_weight(name: str) -> bool:
    """Whether a parameter is a matrix that penalties and weight decay act on; biases are never penalised."""
    return name.endswith("/weight")


def n_layers(parameters: Parameters) -> int:
    """Number of layers, each of a weight and a bias."""
    return len(parameters) // 2


def backward_buffer(parameters: Parameters) -> tuple[Array, Parameters]:
    """One flat array for all gradients, in the order in which backpropagation finishes them.

    Returns
    -------
    buffer : (n_parameters,), zeros
        Last layer first: gradients that are ready stand side by side from the front, so that a bucket is a slice.
    gradients : Parameters
        Views of the buffer, under the names, shapes and order of the parameters.
    """
    dtype = next(iter(parameters.values())).dtype
    buffer = np.zeros(sum(array.size for array in parameters.values()), dtype)
    views, start = {}, 0
    for name, array in reversed(parameters.items()):
        views[name] = buffer[start : start + array.size].reshape(array.shape)
        start += array.size
    return buffer, {name: views[name] for name in parameters}


def tiles(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Arrays of one shape, cut together into flat views of a cache-sized piece, for elementwise work in place."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, arrays[0].size, TILE_ELEMENTS):
        yield tuple(array[start : start + TILE_ELEMENTS] for array in flat)


def tiles_with_work(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """As `tiles`, with an uninitialised piece of the same length and dtype before them, overwritten from tile to tile."""
    work = workspace("learn/step", (TILE_ELEMENTS,), arrays[0].dtype)
    for pieces in tiles(*arrays):
        yield work[: pieces[0].size], *pieces


def norm(x: Array) -> float:
    """Euclidean norm, its squares added up in double precision from tile to tile."""
    return math.sqrt(sum(float(np.dot(tile, tile)) for (tile,) in tiles(x)))


def norms(gradients: Parameters) -> dict[str, float]:
    """Euclidean norm of every array; what the report shows for vanishing and exploding gradients."""
    return {name: norm(array) for name, array in gradients.items()}


def flatten(parameters: Parameters) -> Array:
    """All parameters as one new vector in double precision, first layer first."""
    return np.concatenate([array.reshape(-1) for array in parameters.values()]).astype(np.float64)


def unflatten(vector: Array, parameters: Parameters) -> None:
    """Write a vector as `flatten` makes it into the parameters, in place."""
    start = 0
    for array in parameters.values():
        array[...] = vector[start : start + array.size].reshape(array.shape)
        start += array.size
