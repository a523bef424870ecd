"""Products with a stored factor, tile by tile: what certificates need where no worker can hold a column."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.passes.sweep import ADVICE
from dlscale.engine.run import Cost, Run
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.groups import Group, TaskGraph, memoised
from dlscale.engine.tiles.methods import Facts, largest_modulus
from dlscale.engine.tiles.work import Verb, Work, measured
from dlscale.errors import OutOfRange
from dlscale.storage.matrix import Matrix


@dataclass(frozen=True)
class Part:
    """A part of a stored matrix, or its adjoint.

    Parameters
    ----------
    name : str
        All of it, or its lower or upper triangle with the diagonal.
    unit : bool
        Whether the diagonal of the lower triangle counts as ones.
    adjoint : bool
    """

    name: Literal["all", "lower", "upper"] = "all"
    unit: bool = False
    adjoint: bool = False

    def touches(self, rows: tuple[int, int], columns: tuple[int, int]) -> bool:
        """Whether a tile has entries in the part."""
        if self.name == "lower":
            return rows[1] > columns[0]
        return self.name == "all" or columns[1] > rows[0]

    def cut(self, tile: Array, shift: int) -> Array:
        """The part of a tile whose first row is so much further down than its first column is right."""
        if self.name == "all":
            return tile
        if self.name == "upper":
            return np.triu(tile, shift)
        T = np.tril(tile, shift)
        if self.unit:
            rows = np.arange(max(0, -shift), min(len(T), T.shape[1] - shift))
            T[rows, rows + shift] = 1
        return T


@dataclass(frozen=True)
class Multiplying(Verb):
    """A part of the matrix is multiplied by X."""

    part: Part
    X: Array


class Product(NamedTuple):
    """``T X``, and the largest modulus of the entries of T."""

    product: Array
    largest: float


def tile_product(run: Run, step: str, T: Matrix, grid: PanelGrid, X: Array, *, part: Part) -> Product:
    """``T X``, or ``T^H X``, for a part of a stored factor.

    Parameters
    ----------
    run : Run
    step : str
        Unique in the job.
    T : Matrix (m, n)
    grid : PanelGrid
        Of T.
    X : (n, k), or (m, k) for the adjoint
    part : Part

    Returns
    -------
    Product
        (m, k), or (n, k) for the adjoint.

    Raises
    ------
    OutOfRange
        If it overflows.
    """
    work = Work(step, T, grid, Multiplying(part, X))
    cost = Cost(0.0, grid.shape[0] * grid.shape[1] * T.dtype.itemsize)
    found = memoised(run, work, cost, range(grid.n_panels), _multiply, width=2 * len(grid.blocks()))
    if not np.isfinite(found["product"]).all():
        raise OutOfRange(f"Products with what is stored of the matrix overflow {X.dtype}; {ADVICE}")
    return Product(found["product"], float(found["largest"]))


def _multiply(group: Group[Multiplying]) -> Facts:
    """A chain of tile products for each row block, or for each panel where it is the adjoint's."""
    grid, part, X = group.grid, group.work.verb.part, group.work.verb.X
    sums = group.seen

    def step(graph: TaskGraph[Multiplying], k: int) -> None:
        for i in grid.blocks():
            if part.touches(grid.rows(i), grid.columns(k)):
                to = k if part.adjoint else i
                sums[to] = graph.add(("product", i, k), _add_product, i, k, sums.get(to), priority=k, worker=group.at(i, k))

    group.go_through(group.windows(group.panels, fetched=False), lambda graph: None, step)
    product, largest = np.zeros((grid.shape[1 if part.adjoint else 0], X.shape[1]), X.dtype), 0.0
    parts: list[Product] = group.gather(sums.values())
    for to, here in zip(sums, parts, strict=True):
        product[slice(*(grid.columns(to) if part.adjoint else grid.rows(to)))] = here.product
        largest = max(largest, here.largest)
    return {"product": product, "largest": np.array(largest)}


def _add_product(work: Work[Multiplying], i: int, k: int, total: Product | None) -> Product:
    started = time.perf_counter()
    rows, columns, X, part = work.grid.rows(i), work.grid.columns(k), work.verb.X, work.verb.part
    tile = work.A.region(rows, columns)
    T = part.cut(tile, rows[0] - columns[0])
    product = T.conj().T @ X[slice(*rows)] if part.adjoint else T @ X[slice(*columns)]
    largest = largest_modulus(T)
    if total is not None:
        product, largest = total.product + product, float(np.maximum(total.largest, largest))
    measured(work, "product", k, started, n_bytes=tile.nbytes)
    return Product(product, largest)
