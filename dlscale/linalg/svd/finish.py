"""From a right subspace to singular triplets, their errors and their certificate, in one more read of the matrix."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import LAPACK_THRESHOLD, Certificate, Check, orthogonality
from dlscale.engine.passes.rows import Rows
from dlscale.kernels import one_blas_thread
from dlscale.linalg.svd.estimates import estimate_errors, norm_of_rest
from dlscale.linalg.svd.left_factor import LeftFactor, Peaks, largest_entries, phases_of
from dlscale.linalg.svd.projection import Projection
from dlscale.linalg.svd.sketch import N_PROBES, Sketch, gram_of_rest, sketch, widen
from dlscale.linalg.svd.subspace import Subspace, gaussian
from dlscale.linalg.svd.triplets import LeftOutput, Triplets
from dlscale.linalg.svd.truncation import count_within, within_tolerance
from dlscale.storage.matrix import Matrix

#: Widths are multiples of this, at which matrix products are fastest: 64 columns cost what 60 do.
WIDTH_MULTIPLE = 8
_N_CHECKS = 4
#: What is left of the matrix behind all triplets is estimated, perhaps by so much too low.
_REST_SAFETY = 2.0


def iteration_width(n_columns: int, most: int) -> int:
    """Columns that the iterations carry so that ``n_columns`` and the probes are left for the last read."""
    return min(most, -(-(n_columns + N_PROBES) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)


def finish(
    rows: Rows, space: Subspace, *, n_components: int | None, tolerance: float | None, seed: int, left: LeftOutput
) -> Triplets:
    """Read A once more and turn the subspace into singular triplets.

    Parameters
    ----------
    rows : Rows
        Of A.
    space : Subspace of width l
    n_components : int, optional
        k; or else the fewest that leave less than ``tolerance * sigma_1``, the subspace being widened as long as all of it
        leaves more.

    Returns
    -------
    Triplets

    Notes
    -----
    One read of A with 4 m n l flops, and two more each time the subspace is widened; two or three reads of
    ``[A W, A probes]`` (m, l + p), which is small.
    """
    seen = sketch(rows, space, seed=seed, tolerance=tolerance)
    k, rest = n_components or 0, 0.0
    while not k:
        whole = space.W.shape[1] == rows.A.shape[1]
        gram = None if whole else gram_of_rest(rows.passes, seen, step=f"rest-{space.n_iterations}")
        rest = 0.0 if gram is None else _REST_SAFETY * norm_of_rest(seen, gram)
        k = count_within(seen.found.s, rest, tolerance or 0.0, rows.A.dtype, whole=whole)
        if not k:
            space = widen(rows, space, seed=seed)
            seen = sketch(rows, space, seed=seed, step=f"range-{space.n_iterations}", tolerance=tolerance)
    found = _triplets(rows, seen, k, tolerance=tolerance, rest=rest, seed=seed, left=left)
    return replace(found, notes=(*found.notes, space.note)) if space.note else found


def _triplets(rows: Rows, seen: Sketch, k: int, *, tolerance: float | None, rest: float, seed: int, left: LeftOutput) -> Triplets:
    """The leading k triplets of the projection, measured on the rows of ``[A W, A probes]``."""
    A, passes, found = rows.A, rows.passes, seen.found
    dtype, width, p = A.dtype, len(found.s), N_PROBES
    s, V, X = found.s[:k], found.V[:, :k], found.X[:, :k]
    if left.decides_sign:
        peaks = passes.sweep("signs", seen.Y, Peaks(seen.basis.rotated(X), width, k, dtype), seen.grid)
        phases = phases_of(peaks["peak"])
    else:
        phases = phases_of(largest_entries(V.T))
    V, X = V * phases, X * phases

    probe_map, expected, n_checks = _checks(found, s, V, phases, seen, seed)
    fold_U = LeftFactor(
        seen.basis.rotated(X),
        width,
        probe_map.astype(dtype),
        np.ascontiguousarray(expected, dtype),
        scale=left.scale(s).astype(dtype),
        keep_U=left.name is not None,
    )
    outputs = [passes.run.output(left.name, (A.shape[0], k), dtype, seen.grid, transposed=left.transposed)] if left.name else []
    measured = passes.sweep("left", seen.Y, fold_U, seen.grid, outputs=outputs)

    with one_blas_thread():
        residual, inside = measured["residual"], measured["met"][:, -p:]
        behind, both = residual[-2 * p : -p, -2 * p : -p], residual[-p:, -p:]
        missed = measured["met"][:, :n_checks] - expected[:, :n_checks]
        error = estimate_errors(seen, k, behind, both, inside, missed, eps=float(np.finfo(dtype).eps))
        certificate = _certify(V, measured, expected, n_checks, s, A, found.resolution)
        if tolerance is not None:
            next_s = float(found.s[k]) if k < width else 0.0
            certificate = certificate.also(
                within_tolerance(s, next_s, rest, float(np.linalg.norm(missed) / np.sqrt(n_checks)), tolerance, dtype)
            )
    return Triplets(s, V, error, certificate, seen.squares, (seen.how, found.note, *error.words()))


def _checks(found: Projection, s: Array, V: Array, phases: Array, seen: Sketch, seed: int) -> tuple[Array, Array, int]:
    """What the pass over ``[Y, A probes]`` is multiplied by, what ``U^H`` of that must be, and how many columns must agree.

    Behind the projection on the range, ``U^H A = S V^H`` must hold on the probes. Behind the projection on W,
    ``A V = U S`` must hold: it is checked on random combinations of V, which are put in front of the probes. Last comes what
    all triplets leave of the probes.
    """
    probes = seen.probes
    p, k, width = probes.shape[1], len(s), len(found.s)
    select = np.hstack([np.vstack([np.zeros((width, p)), np.eye(p)]), seen.rest_map])
    expected = np.hstack([(s[:, None] * V.conj().T) @ probes, np.zeros((k, p))])
    if found.coordinates is None:
        return select, expected, p
    combination = gaussian(k, _N_CHECKS, seed + 2_000_003, V.dtype)
    inside = np.vstack([found.coordinates[:, :k] * phases @ combination, np.zeros((p, _N_CHECKS))])
    return np.hstack([inside, select]), np.hstack([s[:, None] * combination, expected]), _N_CHECKS


def _certify(
    V: Array,
    measured: dict[str, Array],
    expected: Array,
    n_checks: int,
    s: Array,
    A: Matrix,
    resolution: float,
) -> Certificate:
    difference = np.linalg.norm(measured["met"][:, :n_checks] - expected[:, :n_checks])
    # A probe of unit variance has length sqrt(n), and n_checks of them are met by k vectors.
    scale = max(float(s[0]), np.finfo(float).tiny) * np.sqrt(n_checks * A.shape[1]) * max(V.shape) * resolution
    m, n = A.shape[0], len(V)
    checks = (
        orthogonality("U", measured["gram"], A.dtype, "the left singular vectors are orthonormal to working precision", length=m),
        orthogonality("V", V.conj().T @ V, A.dtype, "the right singular vectors are orthonormal to working precision", length=n),
        Check(
            f"||(U'A - S V')x|| / (s_1 ||x|| n {resolution:.1e})",
            float(difference / scale),
            LAPACK_THRESHOLD,
            "on random vectors, the factors act as the matrix does",
        ),
    )
    return Certificate(checks)
