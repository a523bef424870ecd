"""Estimate of a condition number from a few solves: block Hager-Higham.

||A^-1||_1 = max ||A^-1 x||_1 over unit vectors x is climbed from column to column of A^-1, t of them at a time; what it finds
is a lower bound, in practice within a factor of 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dlscale.arrays import Array

#: Columns at a time (t in the paper): more are hardly better, and cost more.
N_COLUMNS = 2
MAX_STEPS = 5
#: Products with the matrix or its adjoint that an estimate takes as a rule.
N_PRODUCTS = 5

Operator = Callable[[Array], Array]


def longest_image(
    apply: Operator, adjoint: Operator, n: int, *, complex_valued: bool = False, seed: int = 0
) -> tuple[float, Array]:
    """Estimate ``||C||_1`` of a matrix C (n, n) that is known by its products.

    Parameters
    ----------
    apply, adjoint : callable
        ``C X`` and ``C^H X`` for X (n, t).
    n : int
    complex_valued : bool
    seed : int
        Of the starting vectors.

    Returns
    -------
    estimate : float
        At most ``||C||_1`` up to rounding; infinite if a product is not finite.
    x : (n,)
        The vector with ``||C x||_1 = estimate ||x||_1``.

    Notes
    -----
    About 5 products with C or its adjoint, of 2 columns each (3 the first time).

    References
    ----------
    Higham and Tisseur (2000), algorithm 2.4; LAPACK ``dlacn2`` for the vector of alternating signs.
    """
    t = min(N_COLUMNS, n)
    X = _first_vectors(n, t, seed).astype(complex if complex_valued else float, copy=False)
    estimate, signs, longest = 0.0, np.zeros((n, 0)), X[:, 0]
    seen, places = set[int](), np.zeros(0, np.intp)
    for step in range(MAX_STEPS):
        Y = apply(X)
        norms = np.abs(Y).sum(axis=0)
        if not np.isfinite(norms).all():
            return float("inf"), X[:, int(np.isfinite(norms).argmin())]
        best = int(norms[:t].argmax())
        if step and norms[best] <= estimate:
            break
        if norms.max() > estimate:
            estimate, longest = float(norms.max()), X[:, int(norms.argmax())]
        before, signs = signs, _signs(Y[:, :t])
        if step + 1 == MAX_STEPS or (step and not complex_valued and _all_parallel(signs, before)):
            break
        gains = np.abs(adjoint(signs)).max(axis=1)
        if not np.isfinite(gains).all():
            return float("inf"), longest
        if step and gains.max() == gains[places[best]]:
            break
        order = np.argsort(-gains, kind="stable")
        if seen.issuperset(order[:t].tolist()):
            break
        places = np.array([i for i in order[: t + len(seen)].tolist() if i not in seen][:t], np.intp)
        seen.update(places.tolist())
        t = len(places)
        X = np.zeros((n, t), X.dtype)
        X[places, np.arange(t)] = 1
    return estimate, longest


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
    return longest_image(apply, adjoint, n, complex_valued=complex_valued, seed=seed)[0]


#: Over eps: condition numbers up to this are told by factors with that rounding; beyond, their own errors may be what is seen.
SURE = 1 / 8


def is_sure(number: float, dtype: np.dtype[Any], n: int) -> bool:
    """Whether factors in this precision can tell that a matrix of order n has this condition number."""
    return bool(number * float(np.finfo(dtype).eps) * max(1.0, n / 1000) ** 0.5 <= SURE)


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
