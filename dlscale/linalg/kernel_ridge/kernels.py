"""Kernels of rows: the entries of ``K(X, Y)``, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import scipy

from dlscale.arrays import Array
from dlscale.errors import NumericalError

Name = Literal["rbf", "laplacian", "polynomial", "linear"]
#: What an exponential takes, in the flops of a product.
EXP_FLOPS = 40.0
#: From this half of a square on, an exponent that is made of squares is off by more than 1e-10: distances are taken by differences.
FAR = 2.0**18
#: Half of a square, as rows have it that are scaled as usual.
_USUAL_HALF = 3.0
_SINGLE = np.dtype(np.float32)


class Points(NamedTuple):
    """Rows, as a kernel takes them on its left and on its right side, and as they are."""

    left: Array
    right: Array
    rows: Array

    def part(self, start: int, stop: int) -> Points:
        return self.of(slice(start, stop))

    def of(self, chosen: slice | Array) -> Points:
        return Points(self.left[chosen], self.right[chosen], self.rows[chosen])

    def in_single(self) -> Points:
        """As they are multiplied in single precision."""
        return Points(self.left.astype(_SINGLE), self.right.astype(_SINGLE), self.rows)


@dataclass(frozen=True)
class Kernel:
    """A kernel, with scikit-learn's names and parameters.

    Parameters
    ----------
    name : str
        ``rbf``: ``exp(-gamma ||x - y||^2)``; ``laplacian``: ``exp(-gamma ||x - y||_1)``; ``polynomial``:
        ``(gamma x'y + coef0)^degree``; ``linear``: ``x'y``.
    gamma : float
    degree : int
    coef0 : float
    """

    name: Name
    gamma: float
    degree: int
    coef0: float

    def flops(self, d: int) -> float:
        """Of one entry."""
        if self.name == "laplacian":
            return 12.0 * d + EXP_FLOPS
        return 2.0 * (d + 2) + {"rbf": EXP_FLOPS, "polynomial": 4.0 * self.degree}.get(self.name, 0.0)

    def single_suits(self, n: int, penalty: float, X: Points | None = None) -> bool:
        """Whether iterations for n rows, those of X, may multiply in single precision: what that rounds is below the penalty."""
        if self.name != "rbf":
            return False
        half = _USUAL_HALF if X is None else float(X.left[:, -2].max())
        return n * float(np.finfo(_SINGLE).eps) * (1 + half) <= penalty

    def prepared(self, X: Array, center: Array) -> Points:
        """Rows as `block` takes them.

        Parameters
        ----------
        X : (b, d), double precision
        center : (d,)
            What distances are taken about, so that a large offset costs them no digits; the same for all rows.

        Raises
        ------
        NumericalError
            If squares overflow.
        """
        if self.name in ("rbf", "laplacian"):
            # A row that is infinitely far from all others must not pass for one that is only far.
            X = X if np.isfinite(X).all() else np.where(np.isfinite(X), X, np.nan)
        if self.name == "laplacian":
            return Points(X, X, X)
        if self.name != "rbf":
            return Points(X * self.gamma if self.name == "polynomial" else X, X, X)
        with np.errstate(over="ignore", under="ignore"):
            scaled = (X - center) * np.sqrt(2 * self.gamma)
            half = np.einsum("ij,ij->i", scaled, scaled)[:, None] / 2
        if np.isinf(half).any() and np.isfinite(X).all():
            raise NumericalError("Squares of the features overflow; scale them, or lower params.gamma.")
        one = np.ones_like(half)
        # Their product is the exponent itself: -gamma ||x - y||^2 = 2 gamma x'y - gamma ||x||^2 - gamma ||y||^2.
        return Points(np.hstack([scaled, half, one]), np.hstack([scaled, -one, -half]), X)

    def block(self, X: Points, Y: Points, *, same: bool = False, out: Array | None = None) -> Array:
        """``K(X, Y)``; ``same`` says that they are the same rows."""
        if self.name == "laplacian":
            E = scipy.spatial.distance.cdist(X.left, Y.right, "cityblock", out=out)
            E *= -self.gamma
        elif self.name == "rbf" and max(X.left[:, -2].max(), -Y.right[:, -1].min()) > FAR:
            E = scipy.spatial.distance.cdist(X.rows, Y.rows, "sqeuclidean", out=out)
            E *= -self.gamma
        else:
            E = np.matmul(X.left, Y.right.T, out=out)
        if self.name == "polynomial":
            E += self.coef0
            return np.asarray(np.power(E, self.degree, out=E))
        if self.name == "linear":
            return np.asarray(E)
        # No distance is negative, and none of a row to itself is anything but zero. Looking costs less than taking minima.
        if E.max() > 0:
            np.minimum(E, 0, out=E)
        if same:
            np.fill_diagonal(E, 0)
        with np.errstate(under="ignore"):
            return np.asarray(np.exp(E, out=E))

    def columns(self, X: Points, chosen: Array) -> Array:
        """Some columns of ``K(X, X)``."""
        return self.block(X, X.of(chosen))

    def diagonal(self, X: Points) -> Array:
        """``K(x, x)`` of every row."""
        if self.name in ("rbf", "laplacian"):
            return np.ones(len(X.left))
        products = np.einsum("ij,ij->i", X.left, X.right)
        return np.asarray((products + self.coef0) ** self.degree if self.name == "polynomial" else products)
