"""Principal components as eigenvectors of the covariance matrix, which one read sums.

C = A_c^H A_c = V S^2 V^H,   with A_c = A - 1 mean
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import LAPACK_THRESHOLD, Certificate, Check, orthogonality
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Fold, Passes, State
from dlscale.kernels import accumulator_dtype, gram_tile_rows, times_power_of_two
from dlscale.linalg.svd.estimates import ErrorEstimate
from dlscale.linalg.svd.left_factor import largest_entries, phases_of
from dlscale.linalg.svd.triplets import LeftOutput, Triplets
from dlscale.sparse_rows import SparseRows
from dlscale.storage.matrix import Matrix

#: Variances below this part of the largest are noise in a covariance matrix, by the bits of the numbers whose products it sums:
#: those above have about three digits of single precision, and five of double. The full solver resolves all.
COVARIANCE_LIMIT = {32: 1e-4, 64: 1e-11}
#: Rows whose products are added up before they are added to a sum, at least; and how far rounding goes, in units of eps, as none of
#: 15,000 sums and some hundred spectra exceeded it: of such a chain, for each root of the number of chains, of the sizes of all
#: columns, and of LAPACK's drivers for each root of the order. Most are a third as far off.
_CHAIN_ROWS = 256
_OF_A_CHAIN, _OF_SUMS, _OF_ALL, _OF_A_DRIVER = 10, 0.5, 2, 2
UNRESOLVED = "the smallest variances asked for are below the resolution of a covariance matrix"


def resolves(values: Array, k: int, products: np.dtype[Any]) -> bool:
    """Whether the first k eigenvalues, decreasing, of a covariance matrix are above the noise of products in a dtype."""
    return bool(values[k - 1] > COVARIANCE_LIMIT[np.finfo(products).bits] * values[0] or values[0] == 0)


def whitening(s: Array, n_rows: int) -> Array:
    """What gives scores with the singular values s unit variance; what has none beyond rounding cannot be given one."""
    # In double precision, where the inverse of a small number of single precision is finite too.
    noise = max(float(np.finfo(s.dtype).eps) * float(s[0]), 2.0**-990) if s[0] > 0 else 1.0
    return np.asarray(math.sqrt(n_rows - 1) / np.maximum(s.astype(np.float64), noise))


@dataclass(frozen=True)
class Scores(Fold):
    """Blocks of ``2^exponent T diag(scale)`` with ``T = A V``, and ``T^H T``."""

    V: Array
    scale: Array | None = None
    exponent: int = 0

    takes_sparse = True

    @property
    def flops_per_row(self) -> float:
        return float(2 * self.V.size + self.V.shape[1] ** 2)

    def start(self) -> State:
        k = self.V.shape[1]
        return {"gram": np.zeros((k, k), accumulator_dtype(self.V.dtype))}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        T = A.times(self.V).astype(self.V.dtype, copy=False) if isinstance(A, SparseRows) else A @ self.V
        T_wide = T.astype(state["gram"].dtype, copy=False)
        state["gram"] += T_wide.conj().T @ T_wide
        if self.scale is not None:
            T *= self.scale
        return (times_power_of_two(T, self.exponent),)


@dataclass(frozen=True)
class Covariance:
    """What one read found of a centred matrix, and the leading eigenvectors.

    Parameters
    ----------
    gram : (n, n)
        ``A_c^H A_c``.
    probe, probed : (n,)
        A random vector, and ``(A_c^H (A_c probe))^*``.
    eigenvalues, vectors : (k or more,) and (n, k or more)
        Decreasing; noise may make the smallest negative.
    products : numpy.dtype
        In which the products were made that the matrix sums.
    """

    gram: Array
    probe: Array
    probed: Array
    eigenvalues: Array
    vectors: Array
    products: np.dtype[Any]

    @property
    def values(self) -> Array:
        """The eigenvalues, none of them negative."""
        return np.maximum(self.eigenvalues, 0.0)

    def triplets(self, passes: Passes, centered: Matrix, grid: RowGrid, *, n_components: int, left: LeftOutput) -> Triplets:
        """The leading k triplets of the centred matrix, from the eigenvectors; one more read where scores are written."""
        gram, n, k, dtype = self.gram, len(self.gram), n_components, centered.dtype
        eps, total = float(np.finfo(dtype).eps), float(np.trace(gram).real)
        s, V = np.sqrt(self.values[:k]), self.vectors[:, :k]
        V = V * phases_of(largest_entries(V.T))
        size = max(float(self.values[0]), np.finfo(float).tiny)
        checks = self._checks(V, size, eps)
        if left.name:
            scale = None if left.times_s else whitening(s.astype(np.dtype(dtype.char.lower())), centered.shape[0])
            product = Scores(np.ascontiguousarray(V, dtype), scale, left.exponent)
            output = passes.run.output(left.name, (centered.shape[0], k), dtype, grid)
            measured = passes.sweep("left", centered, product, grid, outputs=[output])["gram"]
            checks.append(
                Check(
                    "||T'T - S^2|| / (||S||^2 n eps)",
                    float(np.linalg.norm(measured - np.diag(s**2), 2) / (size * n * eps)),
                    LAPACK_THRESHOLD,
                    "the scores are uncorrelated and have the variances of the components",
                )
            )
        # Of eigenvalues, and so of singular values, which are roots of these, and are rounded to the dtype in the end.
        of_values = self._rounding(grid.leaf_rows)
        rounding = of_values / np.maximum(s, math.sqrt(of_values) + np.finfo(float).tiny) + eps * s
        first = float(self.values[k]) if k < n else 0.0
        error = ErrorEstimate(
            math.sqrt(first) if k < n else float(rounding.max()),
            math.sqrt(max(total - float(self.values[:k].sum()), first)) if k < n else float(rounding.max()),
            rounding,
        )
        notes = () if resolves(self.values, k, self.products) else (UNRESOLVED,)
        return Triplets(s, V, error, Certificate(tuple(checks)), total, notes)

    def _rounding(self, n_rows: int) -> float:
        """How far rounding puts eigenvalues off, as far as it was seen.

        Parameters
        ----------
        n_rows : int
            That are added up one after the other.

        Notes
        -----
        Sums on the diagonal, of one sign, are rounded in chains of products and each time that one of these is added; all n^2
        sums together like a matrix of independent entries, whose norm goes with ``n^1/2``, as do the errors of LAPACK's drivers.
        """
        n, largest, dtype = len(self.gram), float(self.values[0]), self.products
        eps, double = (float(np.finfo(each).eps) for each in (dtype, np.float64))
        in_a_tile, in_double = (math.sqrt(rows / _CHAIN_ROWS) for rows in (min(n_rows, gram_tile_rows(n, dtype)), n_rows))
        sums = eps * (_OF_A_CHAIN + _OF_SUMS * in_a_tile) + double * (_OF_SUMS * in_double + _OF_A_DRIVER * math.sqrt(n))
        return sums * largest + eps * _OF_ALL * float(np.trace(self.gram).real) / math.sqrt(n)

    def _checks(self, V: Array, size: float, eps: float) -> list[Check]:
        gram, n, k = self.gram, len(self.gram), V.shape[1]
        scale = size * float(np.linalg.norm(self.probe)) * n * eps
        return [
            orthogonality(
                "V", V.conj().T @ V, np.dtype(gram.dtype.char.lower()), "the components are orthonormal to working precision"
            ),
            Check(
                "||(A'A) x - A'(A x)|| / (||A'A|| ||x|| n eps)",
                float(np.linalg.norm(self.probed.conj() - gram @ self.probe)) / scale,
                LAPACK_THRESHOLD,
                "on a random vector, the covariance matrix acts as the data do",
            ),
            Check(
                "||C v - lambda v|| / (||C|| n eps)",
                float(np.linalg.norm(gram @ V - V * self.eigenvalues[:k])) / (size * n * float(np.finfo(np.float64).eps)),
                LAPACK_THRESHOLD,
                "each component is an eigenvector of the covariance matrix",
            ),
        ]
