"""Estimate of a condition number from a few solves, and a bound of it: block Hager-Higham, and a Cauchy sketch.

||A^-1||_1 = max ||A^-1 x||_1 over unit vectors x is climbed from column to column of A^-1, t of them at a time; what it finds
is a lower bound, in practice within a factor of 3. Of some matrices the first vectors miss all that is large. Random ones do not:
the product of a column c of A^-1 and a vector of independent Cauchy numbers is distributed as ||c||_1 times one such number, so
that a few of them bound the longest column from above and tell where to climb. A small matrix is rather inverted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dlscale.arrays import Array

#: Columns at a time (t in the paper): more are hardly better, and cost more.
N_COLUMNS = 2
MAX_STEPS = 5
#: Products with the matrix or its adjoint that an estimate takes as a rule.
N_PRODUCTS = 5
#: Random vectors of the bound.
N_RANDOM = 32
#: Columns of all those products.
N_VECTORS = N_PRODUCTS * N_COLUMNS + N_RANDOM
#: So many of the random products are larger than a third of a column's norm, but for once in 10^9 times.
N_LARGER = 10
#: Matrices up to this order are inverted.
EXACT_ORDER = 128

Operator = Callable[[Array], Array]


class Stretch(NamedTuple):
    """How far a matrix C (n, n) stretches vectors, in the 1-norm.

    Parameters
    ----------
    estimate : float
        At most ``||C||_1`` up to rounding; infinite if a product is not finite.
    x : (n,)
        The vector with ``||C x||_1 = estimate ||x||_1``.
    bound : float
        At least ``||C||_1`` up to rounding, but for once in 10^9 times; up to order `EXACT_ORDER` ``||C||_1`` itself.
    """

    estimate: float
    x: Array
    bound: float


def longest_image(apply: Operator, adjoint: Operator, n: int, *, complex_valued: bool = False, seed: int = 0) -> Stretch:
    """Estimate ``||C||_1`` of a matrix C (n, n) that is known by its products.

    Parameters
    ----------
    apply, adjoint : callable
        ``C X`` and ``C^H X`` for X (n, t).
    n : int
    complex_valued : bool
    seed : int
        Of the random vectors.

    Notes
    -----
    About 5 products with C or its adjoint, of 2 columns each (3 the first time, and 32 more the second).

    References
    ----------
    Higham and Tisseur (2000), algorithm 2.4; LAPACK ``dlacn2`` for the vector of alternating signs; Indyk (2006) for norms by
    Cauchy numbers.
    """
    dtype = np.dtype(complex if complex_valued else float)
    if n <= EXACT_ORDER:
        return _by_columns(apply, np.eye(n, dtype=dtype))
    t, random = N_COLUMNS, _cauchy(n, N_RANDOM, seed, dtype)
    X = _first_vectors(n, t, seed).astype(dtype, copy=False)
    estimate, bound, signs, longest = 0.0, np.inf, np.zeros((n, 0)), X[:, 0]
    seen, places = set[int](), np.zeros(0, np.intp)
    for step in range(MAX_STEPS):
        Y = apply(X)
        norms = np.abs(Y).sum(axis=0)
        if not np.isfinite(norms).all():
            return Stretch(np.inf, X[:, int(np.isfinite(norms).argmin())], np.inf)
        best = int(norms[:t].argmax())
        if step and norms[best] <= estimate:
            break
        if norms.max() > estimate:
            estimate, longest = float(norms.max()), X[:, int(norms.argmax())]
        before, signs = signs, _signs(Y[:, :t])
        if step + 1 == MAX_STEPS or (step and not complex_valued and _all_parallel(signs, before)):
            break
        Z = np.abs(adjoint(signs if step else np.hstack([signs, random])))
        gains = Z[:, :t].max(axis=1)
        if not np.isfinite(gains).all():
            return Stretch(np.inf, longest, np.inf)
        if step and gains.max() == gains[places[best]]:
            break
        order = np.argsort(-gains, kind="stable").tolist()
        if not step:
            larger = np.partition(Z[:, t:], -N_LARGER, axis=1)[:, -N_LARGER]
            bound = 3 * float(larger.max()) if np.isfinite(larger).all() else np.inf
            order.insert(1, int(larger.argmax()))
        if seen.issuperset(order[:t]):
            break
        places = np.array(list(dict.fromkeys(i for i in order[: t + len(seen) + 1] if i not in seen))[:t], np.intp)
        seen.update(places.tolist())
        t = len(places)
        X = np.zeros((n, t), dtype)
        X[places, np.arange(t)] = 1
    return Stretch(estimate, longest, max(bound, estimate))


def _by_columns(apply: Operator, identity: Array) -> Stretch:
    """What the longest column of the matrix says."""
    norms = np.abs(apply(identity)).sum(axis=0)
    found = float(norms.max()) if np.isfinite(norms).all() else np.inf
    return Stretch(found, identity[:, int(np.nan_to_num(norms, nan=np.inf).argmax())], found)


def _cauchy(n: int, k: int, seed: int, dtype: np.dtype[Any]) -> Array:
    """k vectors (n, k) whose product with c (n,) is distributed as ``||c||_1`` times one of their entries."""
    parts = np.random.default_rng((seed, 1)).standard_normal((2 if dtype.kind == "f" else 3, n, k))
    return np.asarray(parts[0] / np.abs(parts[1]) if dtype.kind == "f" else (parts[0] + 1j * parts[1]) / np.abs(parts[2]))


def random_signs(n: int, k: int, *, seed: int = 0) -> Array:
    """k vectors (n, k) of 1 and -1."""
    return np.random.default_rng(seed).integers(0, 2, (n, k)) * 2.0 - 1


def _first_vectors(n: int, t: int, seed: int) -> Array:
    """A constant one, t - 1 of random signs, and one that finds what these may miss by cancellation."""
    X = np.ones((n, t + 1))
    X[:, 1:t] = random_signs(n, t - 1, seed=seed)
    X[:, :t] /= n
    X[:, t] = np.where(np.arange(n) % 2, -1, 1) * (1 + np.arange(n) / max(n - 1, 1)) / (1.5 * n)
    return X


def one_norm(apply: Operator, adjoint: Operator, n: int, *, complex_valued: bool = False, seed: int = 0) -> float:
    """The estimate of `longest_image` alone."""
    return longest_image(apply, adjoint, n, complex_valued=complex_valued, seed=seed).estimate


#: Over eps: condition numbers up to this are told by factors with that rounding; beyond, their own errors may be what is seen.
SURE = 1 / 8


def is_sure(number: float, dtype: np.dtype[Any], n: int) -> bool:
    """Whether factors in this precision can tell that a matrix of order n has this condition number."""
    return bool(number * float(np.finfo(dtype).eps) * max(1.0, n / 1000) ** 0.5 <= SURE)


class Condition(NamedTuple):
    """``||A||_1 ||A^-1||_1``: an estimate, a bound but for once in 10^9 times (infinite: none), whether factors can tell it."""

    number: float
    bound: float
    sure: bool


def condition(norm: float, solve: Operator, adjoint: Operator, n: int, *, complex_valued: bool = False) -> float:
    """Estimate ``||A||_1 ||A^-1||_1`` from ``||A||_1`` and solves with A and its adjoint."""
    inverse = one_norm(solve, adjoint, n, complex_valued=complex_valued)
    return norm * inverse if norm and inverse else float("inf")


def _signs(Y: Array) -> Array:
    """``Y / |Y|`` entry by entry, 1 where Y is zero."""
    size = np.abs(Y)
    return np.asarray(np.where(size > 0, Y / np.where(size > 0, size, 1), 1))


def _all_parallel(signs: Array, before: Array) -> bool:
    """Whether each column of signs is, up to its own sign, among those of the step before: no product could say more."""
    return bool((np.abs(before.T @ signs).max(axis=0) == len(signs)).all())
