"""Cholesky of panels in row blocks: A = L L^H.

A[j, j] = L[j, j] L[j, j]^H                      the tile on the diagonal alone
L[i, j] = A[i, j] L[j, j]^-H                     every row block below it
A[i, k] = A[i, k] - L[i, j] L[k, j]^H            i >= k > j
"""

from __future__ import annotations

from collections.abc import Sequence

from dlscale.arrays import Array
from dlscale.engine.tiles.methods import Election, Facts, Place, TiledMethod, TileTransform
from dlscale.lapack import multiply_add, solve_right
from dlscale.linalg.cholesky.panels import Cholesky, factor_diagonal


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
