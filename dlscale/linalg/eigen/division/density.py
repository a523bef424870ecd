"""Where to divide a spectrum: the density of eigenvalues as a few Lanczos iterations from random vectors tell it.

Between two Ritz values of a Hermitian matrix there are eigenvalues on both sides, so that a division between them leaves neither
half empty.

References
----------
Golub and Meurant (2010), Matrices, Moments and Quadrature, chapter 6; Lin, Saad and Yang (2016), Approximating spectral densities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Passes
from dlscale.kernels import accumulator_dtype
from dlscale.linalg.folds.operators import Product
from dlscale.linalg.svd.subspace import gaussian
from dlscale.storage.matrix import Matrix

#: Random vectors, and iterations from each: one read of the matrix each.
N_VECTORS, N_READS = 6, 16
#: A gap of fewer eps of the norm is no place to divide.
_WITHIN_ROUNDING = 16.0
#: How much more equal halves count than wide gaps.
_BALANCE = 8


@dataclass(frozen=True)
class Density:
    """Ritz values with their share of all eigenvalues.

    Parameters
    ----------
    nodes : (r,), ascending
    shares : (r,)
        Their sum is 1.
    """

    nodes: Array
    shares: Array

    @property
    def norm(self) -> float:
        """Not more than that of the matrix."""
        return float(np.abs(self.nodes).max())

    def cuts(self, n_cuts: int, eps: float) -> Array:
        """Where to divide, the best place first: in the middle of wide gaps that have much on both sides.

        Gaps within rounding (``eps``) come last: at such a place there is an eigenvalue.
        """
        below = np.cumsum(self.shares)[:-1]
        gaps = np.diff(self.nodes)
        score = gaps * np.minimum(below, 1 - below) ** _BALANCE
        order = np.lexsort((-score, gaps <= _WITHIN_ROUNDING * eps * self.norm))[:n_cuts]
        order = order[gaps[order] > 0]
        return np.asarray(self.nodes[order] + gaps[order] / 2)


def density(passes: Passes, step: str, A: Matrix, grid: RowGrid, *, seed: int) -> Density:
    """The density of the eigenvalues of a Hermitian matrix (n, n), from at most `N_READS` reads of it."""
    n, wide = A.shape[0], accumulator_dtype(A.dtype)
    X = gaussian(n, N_VECTORS, seed, wide).astype(wide)
    basis = [X / np.linalg.norm(X, axis=0)]
    alphas, betas = [], []
    for i in range(min(n, N_READS)):
        Q = basis[-1]
        XT = np.ascontiguousarray(Q.T)
        W = passes.sweep(f"{step}-{i + 1}", A, Product(XT), grid, keep="none")["product"]
        alphas.append((Q.conj() * W).sum(axis=0).real)
        for _ in range(2):
            for before in basis:
                W = W - before * (before.conj() * W).sum(axis=0)
        beta = np.linalg.norm(W, axis=0)
        betas.append(beta)
        basis.append(np.divide(W, beta, out=np.zeros_like(W), where=beta > 0))
    return _quadrature(np.array(alphas), np.array(betas))


def _quadrature(alphas: Array, betas: Array) -> Density:
    """The nodes and weights of all vectors together, each as far as it is not exhausted."""
    nodes, shares = [], []
    size = max(float(np.abs(alphas).max()), float(betas.max()))
    for a, b in zip(alphas.T, betas.T, strict=True):
        ended = np.flatnonzero(b <= 1e-10 * size)
        m = int(ended[0]) + 1 if len(ended) else len(a)
        values, vectors = np.linalg.eigh(np.diag(a[:m]) + np.diag(b[: m - 1], 1) + np.diag(b[: m - 1], -1))
        nodes.append(values)
        shares.append(vectors[0] ** 2 / alphas.shape[1])
    found, weights = np.concatenate(nodes), np.concatenate(shares)
    order = np.argsort(found, kind="stable")
    return Density(found[order], weights[order])
