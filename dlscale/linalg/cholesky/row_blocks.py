"""Cholesky of panels in row blocks: A = L L^H.

A[j, j] = L[j, j] L[j, j]^H                      the tile on the diagonal alone
L[i, j] = A[i, j] L[j, j]^-H                     every row block below it
A[i, k] = A[i, k] - L[i, j] L[k, j]^H            i >= k > j
"""

from __future__ import annotations

from collections.abc import Sequence

from dlscale.arrays import Array
from dlscale.engine.passes import Passes
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.methods import Facts, Seen
from dlscale.engine.tiles.row_blocks import Election, Place, TiledMethod, Tiles, TileTransform
from dlscale.lapack import multiply_add, solve_right
from dlscale.linalg.cholesky.panels import Cholesky, factor_diagonal
from dlscale.linalg.panels.plan import factor_target
from dlscale.storage.matrix import Matrix


class TiledCholesky(TiledMethod):
    """Right-looking Cholesky of the lower triangle (Golub and Van Loan, section 4.2.6)."""

    whole = Cholesky()

    def propose(self, tile: Array, book: Facts, place: Place) -> Facts:
        return {"block": tile[: tile.shape[1]].copy()} if place.diagonal else {}

    def elect(self, candidates: Sequence[Facts], book: Facts, top: int) -> Election:
        L = candidates[0]["block"]
        choice = factor_diagonal(L, top)
        return Election(choice, [{"l": L}] * len(candidates), {})

    def accept(self, tile: Array, candidate: Facts, share: Facts, place: Place) -> None:
        L = share["l"]
        below = tile
        if place.diagonal:
            tile[: len(L)] = L
            below = tile[len(L) :]
        solve_right(below, L, uplo="L", op="C")

    def offering(self, blocks: Sequence[int]) -> Sequence[int]:
        # L[k, j] lies in the row block where panel k has its diagonal, the first that has rows of it.
        return blocks[:1]

    def offer(self, transform: TileTransform, tile: Array) -> Array:
        return _rows_of(transform, tile)[: tile.shape[1]]

    def meet(self, choice: Facts, offers: Sequence[Array]) -> Array:
        return offers[0]

    def update(self, transform: TileTransform, tile: Array, met: Array) -> None:
        multiply_add(_rows_of(transform, tile), met, tile, op_b="C")


def _rows_of(transform: TileTransform, tile: Array) -> Array:
    """The rows of L that stand left of a tile, which begins further down where it holds a diagonal."""
    return transform.tile[len(transform.tile) - len(tile) :]


def factor_tiles(
    passes: Passes, A: Matrix, grid: PanelGrid, *, probes: Array, step: str = "cholesky", keep: bool = True
) -> tuple[Matrix, Seen]:
    """Factor a matrix whose panels are in row blocks; as `cholesky_panels.factor_panels`."""
    target = factor_target(passes.run, "l" if keep else step, A.shape, A.dtype, grid, scratch=not keep)
    _, seen = Tiles(passes.run).factor(step, A, TiledCholesky(), grid, target, probes=probes)
    return target.matrix(), seen
