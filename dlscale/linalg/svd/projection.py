"""Singular triplets from Y = A W = Q R and Z = A^H Y: projection on the range of Y, or on W.

The projection on the range, ``Q^H A = R^-H Z^H``, takes the half step that a textbook makes in a read of its own.
Dividing by R costs the digits of R's condition (columns scaled to unit length); where that is too much, the projection on
W is used, ``A W = Q R``, which divides by nothing.

References
----------
Halko, Martinsson, Tropp (2011), algorithm 5.1; Yu et al. (2017), single-pass PCA, for the division by R.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.lapack import solve_right, svd
from dlscale.linalg.folds.orthogonal import Basis, TriangularBasis, scaled_condition


@dataclass(frozen=True)
class Projection:
    """``A ~ (Q X) diag(s) V^H``.

    Parameters
    ----------
    s : (l,)
    V : (n, l)
    X : (l, l)
    normal : (n, l)
        ``A^H A V`` where V is in the span of W, ``V s^2`` where U is in the span of Y.
    coordinates : (l, l), optional
        ``V = W coordinates``, for the projection on W.
    note : str
        Which projection it is, in words.
    resolution : float
        Relative to s_1, what is below it is rounding error.
    before : (l,)
        Singular values of A W: lower bounds of those of A, from half a step earlier.
    cut : float
        Relative to the largest, the singular values of R that were taken for zero.
    """

    s: Array
    V: Array
    X: Array
    normal: Array
    coordinates: Array | None
    note: str
    resolution: float
    before: Array
    cut: float = 0.0

    def coefficients(self, basis: Basis, W: Array, probes: Array) -> Array:
        """C (l, p) with ``A W C = U S V^H probes``."""
        if self.coordinates is not None:
            return np.asarray(W.conj().T @ probes)
        inside = self.X @ (self.s[:, None] * (self.V.conj().T @ probes))
        return np.asarray(np.linalg.pinv(basis.R, rcond=self.cut) @ inside if self.cut else np.linalg.solve(basis.R, inside))

    def residual_on(self, probes: Array, Z_probes: Array, k: int) -> Array:
        """``E^H E probes`` for ``E = A - U_k S_k V_k^H``, from ``Z_probes = A^H A probes``."""
        V = self.V[:, :k]
        H = Z_probes - self.normal[:, :k] @ (V.conj().T @ probes)
        return np.asarray(H if self.coordinates is None else H - V @ (V.conj().T @ H))


def project(
    basis: Basis, W: Array, Z: Array, gram: Array, dtype: np.dtype[Any], *, n_iterations: int, resolution: float = np.inf
) -> Projection:
    """Choose the projection by R's condition, and make it.

    Parameters
    ----------
    basis : Basis
        Of Y (m, l): holds R.
    W, Z : (n, l)
    gram : (l, l)
        ``Y^H Y``.
    dtype : numpy.dtype
        Of A.
    n_iterations : int
        Power iterations that W has seen; a W that has seen none is random, and not to be projected on.
    resolution : float
        Relative to s_1, rounding error that may remain where there is a choice.
    """
    eps = float(np.finfo(dtype).eps)
    condition = scaled_condition(gram, eps)
    if isinstance(basis, TriangularBasis) and condition < min(eps**-0.3, resolution / eps):
        BH = Z.copy()
        for factor in basis.factors:
            solve_right(BH, np.ascontiguousarray(factor.R, BH.dtype), uplo="U")
        return _on_range(BH, f"projected on the range of A W (condition {condition:.2g})", eps * condition, basis)
    if n_iterations == 0:
        # Rounding in Z is amplified by at most 1 / cut, and what is cut off is at most this: they balance.
        cut = float(np.sqrt(eps))
        BH = Z @ np.linalg.pinv(basis.R, rcond=cut)
        note = "the sketch is numerically rank deficient: projected on its well-conditioned part, accurate to half the digits"
        return _on_range(BH, note, cut, basis, cut)
    U, s, VH = svd(basis.R)
    coordinates = VH.conj().T
    note = f"the range of A W is ill-conditioned ({condition:.2g}): projected on W instead"
    return Projection(s, W @ coordinates, U, Z @ coordinates, coordinates, note, eps, s)


def _on_range(BH: Array, note: str, resolution: float, basis: Basis, cut: float = 0.0) -> Projection:
    V, s, XH = svd(BH, full_matrices=False)
    before = np.linalg.svd(basis.R, compute_uv=False)
    return Projection(s, V, XH.conj().T, V * s**2, None, note, resolution, before, cut)
