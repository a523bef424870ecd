"""From a right subspace to singular triplets, their errors and their certificate, in one more read of the matrix."""

from __future__ import annotations

import numpy as np

from dlscale.certificates import LAPACK_THRESHOLD, Certificate, Check, orthogonality
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Passes
from dlscale.kernels import one_blas_thread
from dlscale.linalg.estimates import estimate_errors
from dlscale.linalg.left_factor import LeftFactor, Peaks, largest_entries, phases_of
from dlscale.linalg.orthogonal import find_basis
from dlscale.linalg.products import NormalProduct
from dlscale.linalg.projection import Projection, project
from dlscale.linalg.subspace import Subspace, gaussian
from dlscale.linalg.triplets import LeftOutput, Triplets
from dlscale.storage.matrices import Array, Matrix

#: Widths are multiples of this, at which matrix products are fastest: 64 columns cost what 60 do.
WIDTH_MULTIPLE = 8
N_PROBES = 4
_N_CHECKS = 4


def iteration_width(n_columns: int, most: int) -> int:
    """Columns that the iterations carry so that ``n_columns`` and the probes are left for the last read."""
    return min(most, -(-(n_columns + N_PROBES) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)


def make_room(space: Subspace) -> Array:
    """The basis for the last read: where iterations have sorted it, its last columns give way to the probes."""
    n, width = space.W.shape
    return space.W if width == n or space.n_iterations == 0 else space.W[:, : width - N_PROBES]


def finish(
    passes: Passes,
    A: Matrix,
    grid: RowGrid,
    space: Subspace,
    *,
    n_components: int | None,
    tolerance: float | None,
    seed: int,
    left: LeftOutput,
) -> Triplets:
    """Read A once more and turn the subspace into singular triplets.

    Parameters
    ----------
    space : Subspace of width l
    n_components : int, optional
        k; or else the fewest that leave singular values below ``tolerance * sigma_1`` only.

    Returns
    -------
    Triplets

    Notes
    -----
    One read of A with 4 m n l flops; two or three reads of ``[A W, A probes]`` (m, l + p), which is small.
    """
    dtype = A.dtype
    basis_W = make_room(space)
    n, width = basis_W.shape
    probes = gaussian(n, N_PROBES, seed + 1_000_003, dtype).astype(dtype)
    W = np.hstack([basis_W, probes])
    fold = NormalProduct(W, squares=space.squares is None, keep_Y=True)
    Y_output = passes.scratch("range", (A.shape[0], W.shape[1]), dtype, grid)
    state = passes.sweep("range", A, fold, grid, outputs=[Y_output])
    Y, Y_grid = Y_output.matrix(), grid.coarser(W.shape[1] * dtype.itemsize)
    squares = float(state["squares"][0]) if space.squares is None else space.squares
    Z, gram = state["ZH"].conj().T, state["gram"][:width, :width]

    basis, how = find_basis(passes, Y, Y_grid, gram, step="basis")
    with one_blas_thread():
        found = project(basis, basis_W, Z[:, :width], gram, dtype, n_iterations=space.n_iterations)
        k = n_components or max(1, int((found.s > (tolerance or 0.0) * found.s[0]).sum()))
        s, V, X = found.s[:k], found.V[:, :k], found.X[:, :k]
        if not left.decides_sign:
            phases = phases_of(largest_entries(V.T))
    if left.decides_sign:
        peaks = passes.sweep("signs", Y, Peaks(basis.rotated(X), width, k, dtype), Y_grid)
        phases = phases_of(peaks["peak"])
    V, X = V * phases, X * phases

    probe_map, expected, n_checks = _checks(found, s, V, phases, probes, width, seed)
    fold_U = LeftFactor(
        basis.rotated(X),
        width,
        probe_map.astype(dtype),
        np.ascontiguousarray(expected, dtype),
        scale=left.scale(s).astype(dtype),
        keep_U=left.name is not None,
    )
    outputs = [passes.output(left.name, (A.shape[0], k), dtype, Y_grid, transposed=left.transposed)] if left.name else []
    measured = passes.sweep("left", Y, fold_U, Y_grid, outputs=outputs)

    with one_blas_thread():
        error = estimate_errors(
            found,
            k,
            squares=squares,
            gram=gram,
            history=space.ritz,
            residual=measured["residual"][-probes.shape[1] :],
            probes=probes,
            Z_probes=Z[:, width:],
            eps=float(np.finfo(dtype).eps),
        )
        certificate = _certify(V, measured, expected, n_checks, s, A, found.resolution)
    return Triplets(s, V, error, certificate, squares, (how, found.note, *([space.note] if space.note else [])))


def _checks(found: Projection, s: Array, V: Array, phases: Array, probes: Array, width: int, seed: int) -> tuple[Array, Array, int]:
    """What the pass over ``[Y, A probes]`` is multiplied by, what ``U^H`` of that must be, and how many columns must agree.

    Behind the projection on the range, ``U^H A = S V^H`` must hold on the probes. Behind the projection on W,
    ``A V = U S`` must hold: it is checked on random combinations of V, which are put in front of the probes.
    """
    p, k = probes.shape[1], len(s)
    expected = (s[:, None] * V.conj().T) @ probes
    select = np.vstack([np.zeros((width, p)), np.eye(p)])
    if found.coordinates is None:
        return select, expected, p
    combination = gaussian(k, _N_CHECKS, seed + 2_000_003, V.dtype)
    inside = np.vstack([found.coordinates[:, :k] * phases @ combination, np.zeros((p, _N_CHECKS))])
    return np.hstack([inside, select]), np.hstack([s[:, None] * combination, expected]), _N_CHECKS


def _certify(
    V: Array, measured: dict[str, Array], expected: Array, n_checks: int, s: Array, A: Matrix, resolution: float
) -> Certificate:
    difference = np.linalg.norm(measured["met"][:, :n_checks] - expected[:, :n_checks])
    # A probe of unit variance has length sqrt(n), and n_checks of them are met by k vectors.
    scale = max(float(s[0]), np.finfo(float).tiny) * np.sqrt(n_checks * A.shape[1]) * max(V.shape) * resolution
    return Certificate(
        (
            orthogonality(
                "U", measured["gram"], A.dtype, "the left singular vectors are orthonormal to working precision", length=A.shape[0]
            ),
            orthogonality(
                "V", V.conj().T @ V, A.dtype, "the right singular vectors are orthonormal to working precision", length=len(V)
            ),
            Check(
                f"||(U'A - S V')x|| / (s_1 ||x|| n {resolution:.1e})",
                float(difference / scale),
                LAPACK_THRESHOLD,
                "on random vectors, the factors act as the matrix does",
            ),
        )
    )
