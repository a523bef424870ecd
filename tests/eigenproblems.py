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


def wilkinson(n: int) -> Array:
    """W+ of order n: pairs of eigenvalues that agree to more and more digits the larger they are."""
    return np.diag(np.abs(np.arange(n) - (n - 1) / 2)) + np.eye(n, k=1) + np.eye(n, k=-1)


def wanted(values: Array, n_components: int | None = None, which: str = "largest") -> Array:
    order = {"largest": -values, "smallest": values, "magnitude": -np.abs(values)}[which]
    return np.sort(values[np.argsort(order, kind="stable")[:n_components]])
