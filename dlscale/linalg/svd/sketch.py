"""The last read of a randomized method: ``[Y, A probes] = A [W, probes]`` and ``Z = A^H [Y, A probes]``, and its projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Fold, Passes, State
from dlscale.engine.passes.rows import Rows
from dlscale.kernels import accumulator_dtype, one_blas_thread, tiles
from dlscale.linalg.folds.orthogonal import Basis, find_basis
from dlscale.linalg.folds.products import NormalProduct
from dlscale.linalg.svd.projection import Projection, project
from dlscale.linalg.svd.subspace import Subspace, gaussian, iterate, orthonormal, start_subspace
from dlscale.storage.matrix import Matrix

N_PROBES = 4
#: Rounding error beside a tolerance.
_FINER = 0.05


@dataclass(frozen=True)
class Sketch:
    """What the last read found.

    Parameters
    ----------
    Y : Matrix (m, l + p)
        ``[A W, A probes]``.
    grid : RowGrid
        Of passes over it.
    basis : Basis
        Of A W.
    how : str
        How it was found.
    found : Projection
        All l triplets.
    W : (n, l)
    probes : (n, p)
    Z_probes : (n, p)
        ``A^H A probes``.
    squares : float
        ``||A||_F^2``.
    rest_map : (l + p, p)
        What turns Y into ``E probes``, where ``E = A - U S V^H`` is what all l triplets leave of A.
    n_iterations : int
        Power iterations that W has seen.
    n_carried : int
        Columns that each of them carried, less those that gave way to the probes; 0 where there was none.
    """

    Y: Matrix
    grid: RowGrid
    basis: Basis
    how: str
    found: Projection
    W: Array
    probes: Array
    Z_probes: Array
    squares: float
    rest_map: Array
    n_iterations: int
    n_carried: int


@dataclass(frozen=True)
class ProbeGram(Fold):
    """``(Y C)^H (Y C)`` for few columns C."""

    C: Array

    def start(self) -> State:
        p = self.C.shape[1]
        return {"gram": np.zeros((p, p), accumulator_dtype(self.C.dtype))}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        for _, tile in tiles(A):
            E = (tile @ self.C).astype(state["gram"].dtype, copy=False)
            state["gram"] += E.conj().T @ E
        return ()


def make_room(space: Subspace) -> Array:
    """The basis for the last read: where iterations have sorted it, its last columns give way to the probes."""
    n, width = space.W.shape
    return space.W if width == n or space.n_iterations == 0 else space.W[:, : width - N_PROBES]


def sketch(rows: Rows, space: Subspace, *, seed: int, step: str = "range", tolerance: float | None = None) -> Sketch:
    """Read A once, by a pass of this name, and project it so that rounding is small beside a tolerance.

    Notes
    -----
    4 m n (l + p) flops.
    """
    passes, dtype, grid = rows.passes, rows.A.dtype, rows.grid
    basis_W = make_room(space)
    n, width = basis_W.shape
    probes = gaussian(n, N_PROBES, seed + 1_000_003, dtype).astype(dtype)
    W = np.hstack([basis_W, probes])
    fold = NormalProduct(W, squares=space.squares is None, keep_Y=True)
    Y_output = passes.run.scratch(step, (rows.A.shape[0], W.shape[1]), dtype, grid)
    state = rows.sweep(step, fold, outputs=[Y_output])
    Y, Y_grid = Y_output.matrix(), grid.coarser(W.shape[1] * dtype.itemsize)
    squares = float(state["squares"][0]) if space.squares is None else space.squares
    Z, gram = state["ZH"].conj().T, state["gram"][:width, :width]
    basis, how = find_basis(passes, Y, Y_grid, gram, step="basis" if step == "range" else f"{step}-basis")
    with one_blas_thread():
        resolution = _FINER * (tolerance or np.inf)
        found = project(basis, basis_W, Z[:, :width], gram, dtype, n_iterations=space.n_iterations, resolution=resolution)
        rest_map = np.vstack([-found.coefficients(basis, basis_W, probes), np.eye(N_PROBES)]).astype(dtype)
    n_carried = len(space.ritz[-1]) - N_PROBES if space.ritz else 0
    return Sketch(Y, Y_grid, basis, how, found, basis_W, probes, Z[:, width:], squares, rest_map, space.n_iterations, n_carried)


def widen(rows: Rows, space: Subspace, *, seed: int) -> Subspace:
    """Twice as many columns, random ones beside those that are there, and one more iteration."""
    A, width = rows.A, space.W.shape[1]
    more = start_subspace(A.shape[1], min(width, A.shape[1] - width), seed + space.n_iterations, A.dtype)
    with one_blas_thread():
        W = orthonormal(np.hstack([space.W, more])).astype(A.dtype)
    # A is centred here already, where it is to be.
    return iterate(rows, replace(space, W=W, means={}), n_iterations=1)


def gram_of_rest(passes: Passes, found: Sketch, *, step: str) -> Array:
    """``(E probes)^H (E probes)`` (p, p), summed row by row: accurate where what is left is near rounding."""
    return passes.sweep(step, found.Y, ProbeGram(found.rest_map), found.grid)["gram"]


def unit_probes(probes: Array) -> float:
    """The mean square of a probe's entries, by which squares on probes are divided to be those of norms."""
    return float(np.vdot(probes, probes).real) / probes.size
