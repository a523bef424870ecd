"""QR of panels in row blocks: A = Q R by a tree, in the compact WY form of one Householder factorization.

For the panel j, whose tiles are A_i (TSQR):

    A_i = Q_i [R_i; 0]                       in every row block i
    [R_0; R_1; ...] = [G_0; G_1; ...] R      at the root
    A = [Q_0 G_0; Q_1 G_1; ...] R            = Q R, Q with orthonormal columns

The tree has one level, its root over all r triangles of b rows, whatever the number of workers.
Householder vectors that make the same R, up to signs S, come from an LU factorization without pivoting of Q - S, whose pivots
are at least 1. So the panels behind are updated, and the result is stored, as if one worker had held the whole panel:

    Q - [S; 0] = Y U,   T = -U S Y_0^-H,   C <- (I - Y T Y^H)^H C = C - Y T^H sum_i Y_i^H C_i

References
----------
Demmel, Grigori, Hoemmen, Langou (2012), "Communication-optimal parallel and sequential QR and LU factorizations"; Ballard,
Demmel, Grigori, Jacquelin, Nguyen, Solomonik (2014), "Reconstructing Householder vectors from tall-skinny QR", algorithm 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Plan
from dlscale.engine.tiles.factorizer import Factorizer
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.methods import Change, Election, Factored, Facts, Place, TiledMethod, TileTransform
from dlscale.engine.tiles.products import Part, tile_product
from dlscale.engine.tiles.row_blocks import RowBlocks
from dlscale.lapack import apply_reflectors, factor_qr, multiply_add, multiply_triangular, solve_lower, solve_right
from dlscale.linalg.panels.reflectors import Householder
from dlscale.linalg.panels.scaling import times_back
from dlscale.linalg.qr.panels import Checked, QRSteps
from dlscale.storage.matrix import Matrix

#: Rows that are worked on at a time where a tile is overwritten by its product with a small matrix.
STRIP_ROWS = 1024


@dataclass(frozen=True)
class TiledHouseholder(TiledMethod):
    """Householder QR of row blocks. The facts of a panel are ``t`` (k, k), and its tiles are Y and R, as LAPACK stores them.

    Parameters
    ----------
    inverse : bool
        Whether panels are multiplied by ``I - Y T Y^H`` itself.
    """

    inverse: bool = False

    whole = Householder()

    def propose(self, tile: Array, book: Facts, place: Place) -> Facts:
        A = tile[place.first :]
        T = factor_qr(A)
        return {"top": A[: len(T)].copy(), "t": T}

    def elect(self, candidates: Sequence[Facts], book: Facts, top: int) -> Election:
        stack = np.concatenate([np.triu(candidate["top"]) for candidate in candidates])
        T = factor_qr(stack)
        k = len(T)
        R = np.triu(stack[:k])
        G = np.eye(len(stack), k, dtype=stack.dtype)
        apply_reflectors(stack[:, :k], T, G, op="N")
        parts = np.split(G, np.cumsum([len(candidate["t"]) for candidate in candidates])[:-1])
        # Q_0: what the reflectors of the first row block make of its part of G, in the rows of the diagonal.
        LU = parts[0].copy()
        apply_reflectors(candidates[0]["top"][:, :k], candidates[0]["t"], LU, op="N")
        S = signed_lu(LU)
        U = np.triu(LU)
        T = np.triu(solve_right(-U * S, LU, uplo="L", op="C", unit=True))
        R *= S[:, None]
        R[:, :k] += np.tril(LU, -1)
        shares = [{"g": part, "u": U} for part in parts]
        shares[0]["top"] = R
        return Election({"t": T}, shares, {})

    def accept(self, tile: Array, candidate: Facts, share: Facts, place: Place) -> None:
        # Y_i = (I - V T V^H) [G_i; 0] U^-1, V from the tile that it overwrites.
        A, T, G, U = tile[place.first :], candidate["t"], share["g"], share["u"]
        n, k = G.shape
        W = multiply_triangular(A[:n, :n], G.copy(), uplo="L", op="C", unit=True)
        multiply_triangular(T, W, uplo="U")
        for first in range(n, len(A), STRIP_ROWS):
            rows = A[first : first + STRIP_ROWS]
            rows[:, :k] = solve_right(-(rows[:, :n] @ W), U, uplo="U")
        if place.diagonal:
            A[:n] = share["top"]
        else:
            A[:n, :k] = solve_right(G - multiply_triangular(A[:n, :n], W, uplo="L", unit=True), U, uplo="U")

    def offer(self, transform: TileTransform, tile: Array) -> Array:
        Y, C, n = _meeting(transform, tile)
        W = np.zeros((Y.shape[1], C.shape[1]), C.dtype)
        if n:
            W[...] = C[:n]
            multiply_triangular(Y[:n], W, uplo="L", op="C", unit=True)
        return multiply_add(Y[n:], C[n:], W, alpha=1.0, op_a="C")

    def meet(self, choice: Facts, offers: Sequence[Array]) -> Array:
        return multiply_triangular(choice["t"], sum(offers[1:], offers[0].copy()), uplo="U", op="N" if self.inverse else "C")

    def update(self, transform: TileTransform, tile: Array, met: Array) -> None:
        Y, C, n = _meeting(transform, tile)
        multiply_add(Y[n:], met, C[n:])
        if n:
            C[:n] -= multiply_triangular(Y[:n], met.copy(), uplo="L", unit=True)

    def offer_flops(self, m: int, b: int, width: int) -> float:
        return self.whole.apply_flops(m, b, width) / 2


def signed_lu(A: Array) -> Array:
    """Signs S such that ``A - diag(S) = L U`` without pivoting, every pivot at least 1 in modulus, for the top of a matrix with
    orthonormal columns; in place.

    References
    ----------
    Ballard and others (2014), algorithm 5; by halves, as LAPACK's ``laorhr_col_getrfnp2``.
    """
    n = len(A)
    if n == 1:
        sign = -1.0 if A[0, 0].real >= 0 else 1.0
        A[0, 0] -= sign
        return np.array([sign], A.real.dtype)
    h = n // 2
    first = signed_lu(A[:h, :h])
    solve_right(A[h:, :h], A[:h, :h], uplo="U")
    solve_lower(A[:h, :h], A[:h, h:], unit=True)
    multiply_add(A[h:, :h], A[:h, h:], A[h:, h:])
    return np.concatenate([first, signed_lu(A[h:, h:])])


def _meeting(transform: TileTransform, tile: Array) -> tuple[Array, Array, int]:
    """The reflectors of a tile, the rows of another that they work on, and how many of these stand at the unit triangle."""
    k, first = len(transform.facts["t"]), transform.place.first
    return transform.tile[first:, :k], tile[first:], k if transform.place.diagonal else 0


@dataclass(frozen=True)
class UpperTile:
    """Leaves ``2^exponent R`` (k, n) of the tiles that begin in its rows, its rows scaled by ``phases`` (k,)."""

    grid: PanelGrid
    phases: Array
    exponent: int = 0

    def __call__(self, i: int, j: int, tile: Array) -> None:
        first, column = self.grid.rows(i)[0], self.grid.columns(j)[0]
        phases = self.phases[first : first + len(tile)].conj()[:, None]
        tile[...] = times_back(np.triu(tile, first - column) * phases, self.exponent)


class TiledQR(QRSteps):
    """Householder QR of row blocks; Q is checked tile by tile."""

    steps = RowBlocks(TiledHouseholder())
    undoing = RowBlocks(TiledHouseholder(inverse=True))

    def upper(self, grid: PanelGrid, phases: Array, exponent: int) -> Change:
        return UpperTile(grid, phases, exponent)

    def check(self, passes: Passes, Q: Matrix, grid: PanelGrid, AX: Array, RX: Array, Y: Array) -> Checked:
        both = tile_product(passes.run, "check", Q, grid, np.hstack([RX, Y]), part=Part()).product
        QRX, QY = np.hsplit(both, 2)
        return Checked(AX - QRX, tile_product(passes.run, "orthonormal", Q, grid, QY, part=Part(adjoint=True)).product)

    def unrotated(self, passes: Passes, factored: Factored, plan: Plan, X: Array) -> Array:
        return Factorizer(passes.run).unapply("check", factored, self.undoing, X)
