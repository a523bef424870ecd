"""Symmetric matrices with known eigenvalues."""

from __future__ import annotations

import numpy as np
from helpers import Array, gaussian, wide_precision


def with_eigenvalues(values: Array, dtype: str = "f8", seed: int = 0) -> Array:
    """A Hermitian matrix with these eigenvalues."""
    n = len(values)
    Q = np.linalg.qr(wide_precision(gaussian(n, n, dtype, seed)))[0]
    A = (Q * values) @ Q.conj().T
    return np.asarray((A + A.conj().T) / 2, dtype)


def with_large_parts(values: Array, dtype: str, least: float) -> Array:
    """Nearly the same, with no part of an entry below `least`: none loses a digit when the matrix is made that much smaller."""
    A = with_eigenvalues(values, dtype)
    parts = A.view(A.real.dtype)
    parts[np.abs(parts) < least] = least
    A = np.asarray(np.tril(A) + np.tril(A, -1).conj().T)
    np.fill_diagonal(A, A.diagonal().real)
    return A


def wilkinson(n: int) -> Array:
    """W+ of order n: pairs of eigenvalues that agree to more and more digits the larger they are."""
    return np.diag(np.abs(np.arange(n) - (n - 1) / 2)) + np.eye(n, k=1) + np.eye(n, k=-1)


def wanted(values: Array, n_components: int | None = None, which: str = "largest") -> Array:
    order = {"largest": -values, "smallest": values, "magnitude": -np.abs(values)}[which]
    return np.sort(values[np.argsort(order, kind="stable")[:n_components]])


#: Of a beam with cubic Hermite elements of length 1, whose unknowns are deflections and slopes: 420 times the integrals of products
#: of the shape functions, 30 times those of their slopes, and those of their curvatures.
_MASS = ((156, 22, 54, -13), (22, 4, 13, -3), (54, 13, 156, -22), (-13, -3, -22, 4))
_SLOPES = ((36, 3, -36, 3), (3, 4, -3, -1), (-36, -3, 36, -3), (3, -1, -3, 4))
_CURVATURES = ((12, 6, -12, 6), (6, 4, -6, 2), (-12, -6, 12, -6), (6, 2, -6, 4))


def plate(n: int) -> tuple[Array, Array]:
    """Stiffness and mass, both times 420^2, of a square plate whose edges do not move, of n x n elements of length 1.

    Their eigenvalues, squared frequencies, are a little above ``(pi / n)^4 (i^2 + j^2)^2``: Bogner, Fox and Schmit's elements,
    products of those of beams.
    """

    def beam(element: tuple[tuple[int, ...], ...]) -> Array:
        whole = np.zeros((2 * n + 2, 2 * n + 2))
        for i in range(0, 2 * n, 2):
            whole[i : i + 4, i : i + 4] += element
        return np.delete(np.delete(whole, (0, 2 * n), 0), (0, 2 * n), 1)

    M, G, B = beam(_MASS), beam(_SLOPES), beam(_CURVATURES)
    return 420 * (np.kron(B, M) + np.kron(M, B)) + 2 * 14**2 * np.kron(G, G), np.kron(M, M)


def frequencies_of_plate(n: int, k: int) -> Array:
    """The k smallest squared frequencies of the plate itself."""
    i = np.arange(1, k + 2)
    return np.sort(((np.pi / n) ** 4 * (i[:, None] ** 2 + i**2) ** 2).ravel())[:k]
