"""Products with a stored factor, tile by tile: what certificates need where no worker can hold a column."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.run import Cost
from dlscale.engine.tiles.factorizer import NO_TARGET
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.groups import Key, fresh_token
from dlscale.engine.tiles.methods import Facts, largest_modulus
from dlscale.engine.tiles.row_blocks import Tiles, TilesGroup
from dlscale.engine.tiles.whole_tasks import Work, measured
from dlscale.storage.matrix import Matrix

Part = Literal["all", "lower", "upper"]


@dataclass(frozen=True)
class _Operator:
    """A part of a stored matrix, or its adjoint."""

    part: Part
    unit: bool
    adjoint: bool

    def touches(self, rows: tuple[int, int], columns: tuple[int, int]) -> bool:
        """Whether a tile has entries in the part."""
        if self.part == "lower":
            return rows[1] > columns[0]
        return self.part == "all" or columns[1] > rows[0]

    def cut(self, tile: Array, shift: int) -> Array:
        """The part of a tile whose first row is so much further down than its first column is right."""
        if self.part == "all":
            return tile
        if self.part == "upper":
            return np.triu(tile, shift)
        T = np.tril(tile, shift)
        if self.unit:
            rows = np.arange(max(0, -shift), min(len(T), T.shape[1] - shift))
            T[rows, rows + shift] = 1
        return T


def tile_product(
    tiles: Tiles, step: str, T: Matrix, grid: PanelGrid, X: Array, *, part: Part = "all", unit: bool = False, adjoint: bool = False
) -> tuple[Array, float]:
    """``T X``, or ``T^H X``, for a part of a stored factor.

    Parameters
    ----------
    tiles : Tiles
    step : str
        Unique in the job.
    T : Matrix (m, n)
    grid : PanelGrid
        Of T.
    X : (n, k), or (m, k) for the adjoint
    part : str
        All of T, or its lower or upper triangle with the diagonal.
    unit : bool
        Whether the diagonal of the lower triangle counts as ones.
    adjoint : bool

    Returns
    -------
    product : (m, k), or (n, k) for the adjoint
    largest : float
        The largest modulus of the entries of the part.
    """
    work = Work(fresh_token(), step, T, _Operator(part, unit, adjoint), grid, None, NO_TARGET, X)
    n_bytes = grid.shape[0] * grid.shape[1] * T.dtype.itemsize
    found = tiles.panels.memoised(work, Cost(0.0, n_bytes), partial(_Product, tiles.panels.run, group=range(grid.n_panels)))
    return found["product"], float(found["largest"])


class _Product(TilesGroup):
    """A chain of tile products for each row block, or for each panel where it is the adjoint's."""

    def compute(self) -> Facts:
        operator, grid, X = self.work.method, self.grid, self.work.probes
        sums: dict[int, Key] = {}
        for window in self.windows(self.group, fetched=False):
            graph = self.graph()
            for k in window:
                for i in self.blocks:
                    if operator.touches(grid.rows(i), grid.columns(k)):
                        to = k if operator.adjoint else i
                        key = ("product", i, k)
                        sums[to] = graph.add(key, _add_product, i, k, sums.get(to), priority=k, worker=self.at(i, k))
            self.hold(graph, list(sums.values()))
        product, largest = np.zeros((grid.shape[1 if operator.adjoint else 0], X.shape[1]), X.dtype), 0.0
        for to, (part, size) in zip(sums, self.run.cluster.gather([self.held[key] for key in sums.values()]), strict=True):
            product[slice(*(grid.columns(to) if operator.adjoint else grid.rows(to)))] = part
            largest = max(largest, size)
        return {"product": product, "largest": np.array(largest)}


def _add_product(work: Work, i: int, k: int, total: tuple[Array, float] | None) -> tuple[Array, float]:
    started = time.perf_counter()
    rows, columns, X = work.grid.rows(i), work.grid.columns(k), work.probes
    tile = work.A.region(rows, columns)
    T: Any = work.method.cut(tile, rows[0] - columns[0])
    product = T.conj().T @ X[slice(*rows)] if work.method.adjoint else T @ X[slice(*columns)]
    largest = largest_modulus(T)
    if total is not None:
        product, largest = total[0] + product, float(np.maximum(total[1], largest))
    measured(work, "product", k, started, n_bytes=tile.nbytes)
    return product, largest
