"""Writing matrices with a known spectrum, in parallel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.grids import N_LEAVES, RowGrid
from dlscale.engine.passes import Fold, Passes, State
from dlscale.engine.targets import StoreTarget
from dlscale.errors import SpecError
from dlscale.gallery import SpectrumMatrix
from dlscale.storage.matrix import Matrix
from dlscale.storage.writers import Layout, create_array, publish_array


class MadeMatrix(Matrix):
    """A matrix of the gallery, whose rows are made as they are read."""

    def __init__(self, made: SpectrumMatrix) -> None:
        self.made = made
        self.shape = made.shape
        self.stored_dtype = np.dtype(made.dtype)
        self.uri = "gallery"

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        return np.ascontiguousarray(self.made.rows(*rows)[:, slice(*columns)])


@dataclass(frozen=True)
class Copy(Fold):
    """Hands every block to the output of the pass."""

    def start(self) -> State:
        return {}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        return (A,)


def generate_matrix(passes: Passes, made: SpectrumMatrix, destination: Path, *, chunks: tuple[int, int]) -> Path:
    """Write a matrix of the gallery as a Zarr array, its exact singular values in its attributes.

    Parameters
    ----------
    passes : Passes
    made : SpectrumMatrix (m, n)
    destination : Path
        Appears when it is complete.
    chunks : (rows, columns)
        Of the stored array.

    Raises
    ------
    SpecError
        If something is at the destination.
    """
    destination = Path(destination).absolute()
    if destination.exists():
        raise SpecError(f"{destination} exists already; choose another path or remove it first.")
    partial = destination.with_name(f".{destination.name}.partial")
    m, _ = made.shape
    writer = create_array(partial, Layout(made.shape, made.dtype, chunks), name=destination.name, checksum=False, overwrite=True)
    rows = writer.chunks[0]
    grid = RowGrid(m, rows, rows * max(1, -(-m // (rows * N_LEAVES))))
    passes.sweep("generate", MadeMatrix(made), Copy(), grid, outputs=[StoreTarget(writer)])
    attributes: dict[str, Any] = {"singular_values": made.singular_values.tolist(), "seed": made.seed, "offset": made.offset}
    return publish_array(writer, destination, attributes)
