"""Random sparse matrices, each entry there with the same probability; written as they are made."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from dlscale.arrays import Array
from dlscale.errors import SpecError
from dlscale.storage.files.durable import PARTIAL
from dlscale.storage.sparse.writing import CompressedWriter

_BLOCK_NONZEROS = 2**21
#: Standard deviations beyond the mean that are drawn at first.
_SPARE = 6


def random_blocks(shape: tuple[int, int], density: float, *, dtype: np.dtype[Any], seed: int) -> Iterator[Any]:
    """Blocks of rows of an (m, n) matrix of standard normal entries, as `scipy.sparse.csr_array`.

    Notes
    -----
    From one entry to the next, row after row, are geometric distances: that is as if each were drawn on its own.
    """
    m, n = shape
    rows = max(1, min(m, int(_BLOCK_NONZEROS / (n * density))))
    for number, start in enumerate(range(0, m, rows)):
        height, rng = min(rows, m - start), np.random.default_rng([seed, number])
        places = _places(height * n, density, rng)
        values: Array = rng.standard_normal(places.size)
        if dtype.kind == "c":
            values = values + 1j * rng.standard_normal(places.size)
        indptr = np.searchsorted(places, np.arange(height + 1, dtype=np.int64) * n)
        yield scipy.sparse.csr_array((values.astype(dtype), places % n, indptr), shape=(height, n))


def _places(n_entries: int, density: float, rng: np.random.Generator) -> Array:
    found = np.zeros(0, np.int64)
    while not found.size or found[-1] < n_entries:
        expected = density * n_entries
        gaps = rng.geometric(density, int(expected + _SPARE * expected**0.5) + _SPARE)
        found = np.concatenate([found, (found[-1] if found.size else -1) + np.cumsum(gaps)])
    return found[found < n_entries]


def write_random(destination: Path, shape: tuple[int, int], density: float, *, dtype: np.dtype[Any], seed: int) -> Path:
    """Write a random sparse matrix as a Zarr group, which appears when it is complete (SpecError if something is there)."""
    destination = destination.absolute()
    if destination.exists():
        raise SpecError(f"{destination} exists already; choose another path or remove it first.")
    partial = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    attributes = {"dlscale": {"source": "generate", "seed": seed, "density": density}}
    try:
        writer = CompressedWriter(partial, shape[1], dtype=dtype, by_rows=True, attributes=attributes)
        for block in random_blocks(shape, density, dtype=dtype, seed=seed):
            writer.append(block)
        writer.finish()
        partial.rename(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return destination
