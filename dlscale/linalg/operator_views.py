"""Operators made of others, by algebra on their products, and what methods require of one."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import SpecError
from dlscale.linalg.operators import Operator, Tag
from dlscale.linalg.svd.subspace import gaussian

_N_PROBES = 4
#: Times ``n^1/2 eps``: what rounding may leave of an equation between products.
_TEST_THRESHOLD = 100.0


class Scaled(Operator):
    """``diag(rows) A diag(columns)``.

    Parameters
    ----------
    base : Operator (m, n)
    rows : (m,), optional
    columns : (n,), optional
    """

    def __init__(self, base: Operator, rows: Array | None = None, columns: Array | None = None) -> None:
        self.base, self.shape = base, base.shape
        self.rows = np.ones((self.shape[0], 1)) if rows is None else rows[:, None]
        self.columns = np.ones((self.shape[1], 1)) if columns is None else columns[:, None]
        self.dtype = np.result_type(base.dtype, self.rows.dtype, self.columns.dtype)
        if rows is not None and columns is not None and np.array_equal(rows, columns.conj()) and (rows != 0).all():
            self.tags = base.tags

    def apply(self, X: Array) -> Array:
        return np.asarray(self.rows * self.base.apply(self.columns * X))

    def adjoint(self, Y: Array) -> Array:
        return np.asarray(self.columns.conj() * self.base.adjoint(self.rows.conj() * Y))


class Centered(Operator):
    """``A - 1 mean``, by algebra.

    Notes
    -----
    Digits are lost where means are much larger than what is left. A stored matrix is better centred as it is read: an operator of
    `dlscale.linalg.folds.centering.Centered` loses none.
    """

    def __init__(self, base: Operator, mean: Array) -> None:
        self.base, self.shape, self.mean = base, base.shape, mean[None, :]
        self.dtype = np.result_type(base.dtype, mean.dtype)

    def apply(self, X: Array) -> Array:
        return np.asarray(self.base.apply(X) - self.mean @ X)

    def adjoint(self, Y: Array) -> Array:
        return np.asarray(self.base.adjoint(Y) - self.mean.conj().T * Y.sum(axis=0))


class Shifted(Operator):
    """``A + shift I`` of a square A."""

    def __init__(self, base: Operator, shift: complex) -> None:
        if base.shape[0] != base.shape[1]:
            raise SpecError(f"Only a square operator can be shifted; got shape {base.shape}.")
        self.base, self.shape, self.shift = base, base.shape, shift
        self.dtype = np.result_type(base.dtype, np.float64 if np.imag(shift) == 0 else np.complex128)
        if np.imag(shift) == 0:
            self.tags = base.tags if np.real(shift) >= 0 else base.tags - {"positive definite"}

    def apply(self, X: Array) -> Array:
        return np.asarray(self.base.apply(X) + self.shift * X)

    def adjoint(self, Y: Array) -> Array:
        return np.asarray(self.base.adjoint(Y) + np.conj(self.shift) * Y)


class Gram(Operator):
    """``A^H A``, by the normal products of A; positive semidefinite, which is no tag."""

    def __init__(self, base: Operator) -> None:
        self.base, self.dtype = base, base.dtype
        self.shape = (base.shape[1], base.shape[1])
        self.tags = frozenset[Tag]({"symmetric"})

    def apply(self, X: Array) -> Array:
        return self.base.normal(X)

    def adjoint(self, Y: Array) -> Array:
        return self.base.normal(Y)


class Deflated(Operator):
    """``A - U diag(values) V^H``: what is left of A behind triplets, or eigenpairs, that were found.

    Parameters
    ----------
    base : Operator (m, n)
    U : (m, k)
    values : (k,)
    V : (n, k)
    """

    def __init__(self, base: Operator, U: Array, values: Array, V: Array) -> None:
        self.base, self.shape, self.U, self.values, self.V = base, base.shape, U, values[:, None], V
        self.dtype = np.result_type(base.dtype, U.dtype, values.dtype, V.dtype)
        if "symmetric" in base.tags and U is V and np.isrealobj(values):
            self.tags = frozenset[Tag]({"symmetric"})

    def apply(self, X: Array) -> Array:
        return np.asarray(self.base.apply(X) - self.U @ (self.values * (self.V.conj().T @ X)))

    def adjoint(self, Y: Array) -> Array:
        return np.asarray(self.base.adjoint(Y) - self.V @ (self.values.conj() * (self.U.conj().T @ Y)))


def require(A: Operator, tag: Tag, *, seed: int = 0) -> None:
    """Require that an operator is said to be so, and that its products with random vectors do not contradict.

    Raises
    ------
    SpecError
        Saying what was required and what was got.
    """
    m, n = A.shape
    said = A.tags | ({"symmetric"} if "positive definite" in A.tags else set())
    if m != n or tag not in said:
        raise SpecError(f"The method needs a {tag} operator; this one of shape {A.shape} is not said to be so.")
    X = gaussian(n, _N_PROBES, seed + 5_000_003, A.dtype).astype(A.dtype)
    Y = A.apply(X)
    T: Any = X.conj().T @ Y
    limit = _TEST_THRESHOLD * n**0.5 * float(np.finfo(A.dtype).eps) * float(np.linalg.norm(X) * np.linalg.norm(Y))
    skew = float(np.abs(T - T.conj().T).max())
    if not skew <= limit:
        raise SpecError(f"The operator is said to be symmetric, but x'(A y) and (A x)'y differ by {skew:.1e} on random vectors.")
    smallest = float(np.linalg.eigvalsh((T + T.conj().T) / 2)[0])
    if tag == "positive definite" and not smallest > -limit:
        raise SpecError(f"The operator is said to be positive definite, but x'(A x) is {smallest:.1e} on a random vector.")
