"""The exact SVD of a tall matrix: A = Q R, R = U_R S V^H, U = Q U_R."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import LAPACK_THRESHOLD, Certificate, Check, orthogonality
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Passes, State
from dlscale.kernels import one_blas_thread
from dlscale.lapack import svd
from dlscale.linalg.folds.orthogonal import find_basis
from dlscale.linalg.folds.products import sweep_gram
from dlscale.linalg.svd.estimates import ErrorEstimate
from dlscale.linalg.svd.left_factor import LeftFactor, Peaks, largest_entries, phases_of
from dlscale.linalg.svd.subspace import gaussian
from dlscale.linalg.svd.triplets import LeftOutput, Triplets
from dlscale.linalg.svd.truncation import count_within, within_tolerance
from dlscale.storage.matrix import Matrix

_N_PROBES = 4
#: LAPACK's divide and conquer is off by up to ``min(40, 10 n^1/2) eps s_1`` for equal singular values of small matrices, mostly by
#: far less.
_DRIVER_EPS, _DRIVER_EPS_OF_FEW = 40, 10


def exact_svd(
    passes: Passes,
    A: Matrix,
    grid: RowGrid,
    *,
    n_components: int | Callable[[Array], int] | None = None,
    tolerance: float | None = None,
    left: LeftOutput,
    gram: Array | None = None,
) -> Triplets:
    """Exact SVD of a tall matrix, all of it or its leading part.

    Parameters
    ----------
    A : Matrix (m, n)
    n_components, tolerance : int or float, optional
        Keep so many triplets (or as many as a function says of all singular values), or those with singular values above
        ``tolerance * sigma_1``; all where both are None.
    left : LeftOutput
    gram : (n, n), optional
        ``A^H A``, if the caller has it.

    Returns
    -------
    Triplets

    Notes
    -----
    2 to 5 reads of A; 2 m n^2 flops for each round of the basis, 2 m n k for U.
    """
    (m, n), dtype = A.shape, A.dtype
    gram = sweep_gram(passes, A, grid) if gram is None else gram
    basis, how = find_basis(passes, A, grid, gram, step="basis")
    with one_blas_thread():
        X, all_s, VH = svd(basis.R)
    kept = n if tolerance is None else count_within(all_s, 0.0, tolerance, dtype, whole=True)
    k = n_components(all_s) if callable(n_components) else n_components or kept
    X, s, V = X[:, :k], all_s[:k], VH[:k].conj().T
    if left.decides_sign:
        phases = phases_of(passes.sweep("signs", A, Peaks(basis.rotated(X), n, k, dtype), grid)["peak"])
    else:
        phases = phases_of(largest_entries(V.T))
    X, V = X * phases, V * phases
    combination = gaussian(k, _N_PROBES, 0, dtype)  # of the right singular vectors, on which A must act as U S does
    fold = LeftFactor(
        basis.rotated(X),
        n,
        np.ascontiguousarray(V @ combination, dtype),
        np.ascontiguousarray(s[:, None] * combination, dtype),
        scale=left.scale(s).astype(dtype),
        keep_U=left.name is not None,
    )
    outputs = [passes.run.output(left.name, (m, k), dtype, grid, transposed=left.transposed)] if left.name else []
    measured = passes.sweep("left", A, fold, grid, outputs=outputs)
    certificate, error = _certificate(measured, s, V, A), _error(all_s, k, n, dtype)
    if tolerance is not None and n_components is None:
        inside = float(np.sqrt(np.trace(measured["residual"]).real / _N_PROBES))
        behind = float(all_s[k]) if k < len(all_s) else 0.0
        certificate = certificate.also(within_tolerance(s, behind, 0.0, inside, tolerance, dtype))
    return Triplets(s, V, error, certificate, float(np.trace(gram).real), (how,))


def _certificate(measured: State, s: Array, V: Array, A: Matrix) -> Certificate:
    (m, n), k, eps = A.shape, len(s), float(np.finfo(A.dtype).eps)
    scale = max(float(s[0]), np.finfo(float).tiny) * np.sqrt(k * _N_PROBES) * n * eps
    words = "singular vectors are orthonormal to working precision"
    return Certificate(
        (
            orthogonality("U", measured["gram"], A.dtype, f"the left {words}", length=m),
            orthogonality("V", V.conj().T @ V, A.dtype, f"the right {words}", length=n),
            Check(
                "||(A V - U S)x|| / (s_1 ||x|| n eps)",
                float(np.sqrt(np.trace(measured["residual"]).real) / scale),
                LAPACK_THRESHOLD,
                "the matrix maps each right singular vector to its left one",
            ),
        )
    )


def _error(all_s: Array, k: int, n: int, dtype: np.dtype[Any]) -> ErrorEstimate:
    """What k triplets leave, and how far the driver's singular values may be off."""
    tail = all_s[k:]
    root = float(np.sqrt(n))
    noise = float(np.finfo(dtype).eps) * max(4 * root, min(_DRIVER_EPS, _DRIVER_EPS_OF_FEW * root)) * float(all_s[0])
    behind = float(tail[0]) if len(tail) else 0.0
    return ErrorEstimate(max(behind, noise), max(float(np.linalg.norm(tail)), noise), np.full(k, noise))
