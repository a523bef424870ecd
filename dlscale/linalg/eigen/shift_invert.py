"""Eigenpairs of largest modulus of an operator ``S = (A - s I)^-1``, which are those of A nearest to s: block Krylov spaces.

An orthonormal Q grows by blocks F, each from S times the one before. With ``T = Q^H S Q``, Ritz pairs are ``(theta, Q z)``; their
residual is ``F C z``, where ``C = F^H S Q`` for the block that follows. Pairs that have converged are locked: what is left of T is
smaller, by any factor where s is near an eigenvalue, and so are the errors of its own pairs. A space grown too wide is cut to
its best Ritz vectors. When all have converged, another space grows from random vectors orthogonal to them, so that no copy of
a multiple eigenvalue, of which a Krylov space has as many as its block has columns, is left unseen.

References
----------
Ericsson and Ruhe (1980) for shift and invert; Grimes, Lewis and Simon (1994), A shifted block Lanczos algorithm for solving sparse
symmetric generalized eigenproblems; Wu and Simon (2000) for restarts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import NumericalError
from dlscale.kernels import one_blas_thread
from dlscale.linalg.eigen.filtered import orthonormal_to
from dlscale.linalg.svd.subspace import gaussian

#: Columns of a block.
WIDTH = 16
#: Blocks that grow from random vectors when all has converged, to see what was not.
LOOKS = 2
#: Products with S, of a block each, at most.
MOST = 400
#: Pairs beyond k, at most, that are wanted because the shift is not where it should be.
_BESIDE = 64
_EPS = float(np.finfo(float).eps)

#: What is done to columns.
Map = Callable[[Array], Array]


@dataclass(frozen=True)
class Space:
    """A basis, and the block that follows it.

    Parameters
    ----------
    V : (n, l)
        Locked vectors.
    theta : (l,)
        Their values.
    Q : (n, m)
        Ritz vectors, of the moduli that follow, the largest first; orthonormal, as all columns of V, Q and ahead are.
    T : (m, m)
        ``Q^H S Q``, near a diagonal matrix.
    C : (b, m)
        ``ahead^H S Q``.
    ahead : (n, b)
    """

    V: Array
    theta: Array
    Q: Array
    T: Array
    C: Array
    ahead: Array

    @property
    def values(self) -> Array:
        """Locked values and Ritz values, the largest moduli first."""
        values = np.concatenate([self.theta, np.diagonal(self.T).real])
        return values[np.argsort(-np.abs(values), kind="stable")]


def rotated(space: Space, goal: float, keep: int) -> Space:
    """Turn Q to Ritz vectors and lock those that have converged; of the others, so many are kept.

    Parameters
    ----------
    space : Space
    goal : float
        Residuals, relative to the values.
    keep : int
        All are, where there are not more.
    """
    Q, T, C, V, theta = space.Q, space.T, space.C, space.V, space.theta
    while len(T):
        values, Z = np.linalg.eigh((T + T.conj().T) / 2)
        order = np.argsort(-np.abs(values), kind="stable")
        values, Z = values[order], Z[:, order]
        good = np.linalg.norm(C @ Z, axis=0) <= goal * np.abs(values)
        m = len(good) if good.all() else int(np.argmin(good))
        Z = Z[:, : m + keep]
        Q, C = Q @ Z, C @ Z
        # Not just the values: those of a matrix with a large one are only as right as that.
        T = Z.conj().T @ (T @ Z)
        V, theta = np.hstack([V, Q[:, :m]]), np.concatenate([theta, values[:m]])
        Q, T, C = Q[:, m:], T[m:, m:], C[:, m:]
        if not m:
            break
    return Space(V, theta, Q, T, C, space.ahead)


class Nearest:
    """A search for the k eigenpairs of largest modulus, and the next one.

    Parameters
    ----------
    apply : callable
        ``S X`` (n, b) of X (n, b), with a Hermitian S.
    n, k : int
    dtype : numpy.dtype
        Double precision.
    reach : float
        Pairs are wanted with ``1 / |theta|`` up to this beyond that of the k-th: the shift is half as far from where it should be.
    seed : int
    """

    def __init__(self, apply: Map, n: int, k: int, dtype: np.dtype[Any], *, reach: float, seed: int) -> None:
        self.apply, self.n, self.k, self.dtype = apply, n, k, dtype
        self.reach, self.seed, self.n_applied = reach, seed, 0

    def search(self, goal: float) -> tuple[Array, Array]:
        """The pairs with residuals of at most goal of theirs, and others that have converged too.

        Returns
        -------
        theta : (j,), the largest moduli first
        X : (n, j), orthonormal

        Raises
        ------
        NumericalError
            If they do not converge.
        """
        # Once multiplied, random vectors have turned to where a nearly singular S is known well.
        none = np.zeros((self.n, 0), self.dtype)
        space = self._begun(orthonormal_to(none, self._multiplied(self._random(none))))
        last, looks = np.inf, -1
        while True:
            space, looks = self._grown(space, goal), looks + (looks >= 0)
            wanted = self._wanted(space.values)
            order = np.argsort(-np.abs(space.theta), kind="stable")
            if len(space.theta) == self.n:
                return space.theta[order], space.V[:, order]
            # Locked values that are larger than all others are what is wanted.
            first = np.abs(space.T[0, 0]) if len(space.T) else 0.0
            if len(order) < wanted or np.abs(space.theta[order[wanted - 1]]) < first:
                continue
            here = float(np.abs(space.theta[order[wanted - 1]]))
            if looks >= LOOKS and here <= last * (1 + _EPS**0.5):
                return space.theta[order], space.V[:, order]
            if looks < 0 or looks >= LOOKS:
                last, looks = here, 0
                space = self._begun(self._random(space.V), space)

    def _wanted(self, values: Array) -> int:
        """How many pairs must have converged."""
        if len(values) < self.k:
            return self.n
        with np.errstate(divide="ignore"):
            distances = 1 / np.abs(values)
        near = int((distances < distances[self.k - 1] + self.reach).sum())
        return min(self.n, max(self.k, min(near, self.k + _BESIDE)) + 1)

    def _begun(self, ahead: Array, space: Space | None = None) -> Space:
        """With nothing but a block, and what is locked."""
        V, theta = (np.zeros((self.n, 0), self.dtype), np.zeros(0)) if space is None else (space.V, space.theta)
        return Space(V, theta, V[:, :0], np.zeros((0, 0), self.dtype), np.zeros((ahead.shape[1], 0), self.dtype), ahead)

    def _grown(self, space: Space, goal: float) -> Space:
        """Multiply the block ahead, and take it into the space."""
        Y, m, b = self._multiplied(space.ahead), len(space.T), space.ahead.shape[1]
        with one_blas_thread():
            Q = np.hstack([space.Q, space.ahead])
            T = np.zeros((m + b, m + b), self.dtype)
            T[:m, :m] = space.T
            T[:, m:] = Q.conj().T @ Y
            T[m:, :m] = T[:m, m:].conj().T
            ahead = self._orthogonal(np.hstack([space.V, Q]), Y)
            C = np.hstack([np.zeros((ahead.shape[1], m), self.dtype), ahead.conj().T @ Y])
            grown = rotated(Space(space.V, space.theta, Q, T, C, ahead), goal, self.n)
            most = max(self._wanted(grown.values) + 8 * WIDTH, 2 * self.k)
            return grown if len(grown.T) <= most else rotated(grown, goal, most // 2)

    def _orthogonal(self, Q: Array, Y: Array) -> Array:
        """An orthonormal block of what Y has outside of Q, random where it has nothing."""
        room = self.n - Q.shape[1]
        outside = Y - Q @ (Q.conj().T @ Y)
        outside -= Q @ (Q.conj().T @ outside)
        lost = np.linalg.norm(outside, axis=0) <= 10 * _EPS * np.linalg.norm(Y, axis=0)
        outside[:, lost] = gaussian(self.n, int(lost.sum()), self.seed + 7919 * (self.n_applied + 1), self.dtype)
        return orthonormal_to(Q, outside[:, :room])

    def _random(self, Q: Array) -> Array:
        """A random block that is orthogonal to Q."""
        width = min(WIDTH, self.n - Q.shape[1])
        with one_blas_thread():
            return orthonormal_to(Q, gaussian(self.n, width, self.seed + 104729 * (self.n_applied + 1), self.dtype))

    def _multiplied(self, X: Array) -> Array:
        if self.n_applied >= MOST:
            raise NumericalError(
                f"The eigenpairs nearest to params.sigma have not converged in {MOST} solves of {WIDTH} columns; ask for fewer."
            )
        self.n_applied += 1
        return self.apply(X)
