"""Some eigenpairs by a subspace that Chebyshev polynomials filter, with locking; a read of the matrix advances the degree by two.

With ``x = (A - c) / h`` mapping the unwanted part of the spectrum, from its far end a to b, on [-1, 1], the iterates

    W_(j+1) = 2 T_2(x) W_j - W_(j-1),    T_2(x) = 2 x^2 - 1,

are ``T_(2j)(x) W_0``, in which what is wanted has grown as nothing else of its degree makes it grow. For the largest moduli the
polynomials are in A^2, on [0, b^2]. A cycle of a few reads ends with an orthonormal basis; the next read gives ``A W`` of it: Ritz
values, residuals and the first product of the next cycle cost no read of their own. Pairs are locked in the order in which
they are wanted, once their residual is small, and the rest is kept orthogonal to them.

References
----------
Zhou, Saad, Tiago and Chelikowsky (2006), Chebyshev-filtered subspace iteration; Winkelmann, Springer and Di Napoli (2019), ChASE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import scipy.linalg

from dlscale.arrays import Array
from dlscale.engine.passes import State
from dlscale.kernels import accumulator_dtype, one_blas_thread
from dlscale.linalg.eigen.pairs import Which

#: Reads in which the ends of the spectrum are found, and columns for the end that is not wanted.
WARM_UP, FAR_COLUMNS = 4, 4
#: The first cycle after these has so many reads; each next one may have twice as many, up to the most.
FIRST_CYCLE, LONGEST_CYCLE = 3, 24
#: What a filter makes of the first column may be so much larger than what it makes of the last one wanted: rounding of the one
#: is noise in the other.
_GROWTH = 1e4
#: An interval is at least so wide beside the norm: of what is zero nothing can be filtered out.
NARROWEST = 1e-6


@dataclass(frozen=True)
class Aim:
    """What is looked for.

    Parameters
    ----------
    k : int
    which : str
    tolerance : float
        For residuals, relative to ``||A||``.
    """

    k: int
    which: Which
    tolerance: float

    @property
    def sign(self) -> float:
        """The largest values of ``sign A`` are wanted, or those of A^2."""
        return -1.0 if self.which == "smallest" else 1.0

    def order(self, values: Array) -> Array:
        """Indices of values of ``sign A``, the most wanted first."""
        return np.argsort(-np.abs(values) if self.which == "magnitude" else -values, kind="stable")

    def height(self, values: Array) -> Array:
        """How much values of ``sign A`` are wanted."""
        return np.abs(values) if self.which == "magnitude" else values


@dataclass(frozen=True)
class Iterate:
    """The state between two reads, all of it.

    Parameters
    ----------
    W : (n, w)
        What is multiplied next, of A's dtype; orthonormal, and orthogonal to V, at the start of a cycle.
    before : (n, w), or (n, 0) at the start of a cycle
    V : (n, j)
        Locked vectors.
    values : (j,)
        Their values, of ``sign A``.
    active : (w,)
        Ritz values of the others, the most wanted first.
    residual : float
        Of the last wanted pair that is not locked.
    position, length : int
        Reads of this cycle that were made, and that it has.
    cycle : int
    low, high : float
        The interval that is filtered out.
    norm : float
        ``||A||_2``, from below.
    finished : int
        1 when k pairs are locked and no other is wanted more.
    round : int
        How often the search was begun anew since a pair had been missed.
    """

    W: Array
    before: Array
    V: Array
    values: Array
    active: Array
    residual: float = math.inf
    position: int = 0
    length: int = 1
    cycle: int = 0
    low: float = 0.0
    high: float = 0.0
    norm: float = 0.0
    finished: int = 0
    round: int = 0

    def to_state(self) -> State:
        return {f.name: np.atleast_1d(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_state(cls, state: State) -> Iterate:
        values: dict[str, Any] = {f.name: state[f.name] for f in fields(cls)}
        return cls(**{name: value if name in _ARRAYS else value[0].item() for name, value in values.items()})


_ARRAYS = ("W", "before", "V", "values", "active")


def started(W: Array, V: Array, values: Array) -> Iterate:
    """At the start of a cycle, of an orthonormal W."""
    n = len(W)
    return Iterate(W, np.zeros((n, 0), W.dtype), V, values, np.zeros(0))


def advance(it: Iterate, AW: Array, AAW: Array, aim: Aim) -> Iterate:
    """The iterate after a read that gave ``A W`` and ``A^2 W``."""
    dtype, wide = it.W.dtype, accumulator_dtype(it.W.dtype)
    with one_blas_thread():
        W, Y, Z = it.W.astype(wide, copy=False), aim.sign * AW.astype(wide, copy=False), AAW.astype(wide, copy=False)
        if it.position == 0:
            it, W, Y, Z = _ritz(it, W, Y, Z, aim)
            if it.finished:
                return replace(it, W=W.astype(dtype))
        if it.cycle <= WARM_UP:
            X = _warm(it, W, Y, Z, aim)
        else:
            X = _filtered(it, W, Y, Z, aim)
            X = X if it.position == 0 else 2.0 * X - it.before
        if it.position + 1 == it.length:
            X, before, position = orthonormal_to(it.V, X), W[:, :0], 0
        else:
            X, before, position = X - it.V @ (it.V.conj().T @ X), W, it.position + 1
        return replace(it, W=np.ascontiguousarray(X, dtype), before=before, position=position)


def orthonormal_to(V: Array, X: Array) -> Array:
    """An orthonormal basis of X without its components in V (n, j), which is orthonormal; the columns in their order."""
    Q = X / np.maximum(np.linalg.norm(X, axis=0), np.finfo(X.real.dtype).tiny)
    for _ in range(2):
        Q = np.linalg.qr(Q - V @ (V.conj().T @ Q)).Q
    return np.asarray(Q)


def _ritz(it: Iterate, W: Array, Y: Array, Z: Array, aim: Aim) -> tuple[Iterate, Array, Array, Array]:
    """Rotate to Ritz vectors, lock what has converged, and choose the next cycle."""
    G, T = W.conj().T @ W, W.conj().T @ Y
    values, S = scipy.linalg.eigh((T + T.conj().T) / 2, (G + G.conj().T) / 2, driver="gvd")
    order = aim.order(values)
    values, S = values[order], S[:, order]
    W, Y, Z = W @ S, Y @ S, Z @ S
    residuals = np.linalg.norm(Y - W * values, axis=0)
    norm = max(it.norm, float(np.abs(values).max()))
    small = residuals <= aim.tolerance * norm
    m = len(values) if small.all() else int(np.argmin(small))
    if it.cycle < WARM_UP and W.shape[1] + it.V.shape[1] < len(W):
        # The other end of the spectrum is still being looked for.
        m = 0
    V, locked = np.hstack([it.V, W[:, :m]]), np.concatenate([it.values, values[:m]])
    W, Y, Z, active, residuals = W[:, m:], Y[:, m:], Z[:, m:], values[m:], residuals[m:]
    it = replace(it, V=V, values=locked, active=active, norm=norm, cycle=it.cycle + 1, position=0)
    if len(locked) >= aim.k:
        last = np.sort(aim.height(locked))[::-1][aim.k - 1]
        if len(active) == 0 or aim.height(active).max() <= last + aim.tolerance * norm:
            return replace(it, finished=1, residual=0.0), W, Y, Z
    if len(active) == 0:
        return replace(it, finished=1), W, Y, Z
    it = _with_interval(it, residuals, W.conj().T @ Z, aim)
    if it.cycle == WARM_UP + 1 and aim.which != "magnitude" and len(active) > aim.k - len(locked) + FAR_COLUMNS:
        # The far end was looked for beside; it is known well enough.
        W, Y, Z = W[:, :-FAR_COLUMNS], Y[:, :-FAR_COLUMNS], Z[:, :-FAR_COLUMNS]
        it = replace(it, active=active[:-FAR_COLUMNS], high=float(active[-FAR_COLUMNS - 1]))
    it = _below_a_cluster(it, residuals, (W, Y, Z), aim)
    return _with_length(it, residuals, aim), W, Y, Z


def _with_interval(it: Iterate, residuals: Array, T: Array, aim: Aim) -> Iterate:
    """The interval up to the last Ritz value, of A or, T being ``W^H A^2 W``, of A^2: those of A also lie between its ends."""
    active = it.active
    if aim.which == "magnitude":
        high = math.sqrt(max(0.0, float(np.linalg.eigvalsh((T + T.conj().T) / 2)[0])))
        return replace(it, low=0.0, high=max(high, NARROWEST * it.norm))
    # Ritz values lie inside of the spectrum, and this one near its end.
    low = float(active[-1] - residuals[-1]) if it.cycle <= WARM_UP + 1 else min(it.low, float(active[-1]))
    return replace(it, low=low, high=max(float(active[-1]), low + NARROWEST * it.norm))


def _below_a_cluster(it: Iterate, residuals: Array, products: tuple[Array, Array, Array], aim: Aim) -> Iterate:
    """Where all of the block is one eigenvalue to within its residuals, the interval ends at what is still mixed in.

    Up to the last Ritz value the filter would keep that as it keeps what is wanted. Residuals consist of it, and cost no read.
    """
    last = min(max(aim.k - len(it.values), 1), len(it.active)) - 1
    if it.cycle <= WARM_UP or float(aim.height(it.active[last])) - it.high > float(residuals[: len(it.active)].max()):
        return it
    W, Y, Z = products
    R, AR = Y - W * it.active, Z - Y * it.active
    if not (size := float(np.linalg.norm(R))):
        return it
    mixed = float(np.linalg.norm(AR)) / size if aim.which == "magnitude" else float(np.vdot(R / size, AR / size).real)
    return replace(it, high=max(min(it.high, mixed), it.low + NARROWEST * it.norm))


def _with_length(it: Iterate, residuals: Array, aim: Aim) -> Iterate:
    """Reads until the last wanted pair has converged, as far as the growth of the first allows."""
    last = min(max(aim.k - len(it.values), 1), len(it.active)) - 1
    residual = float(residuals[last])
    if it.cycle <= WARM_UP:
        return replace(it, length=1, residual=residual)
    rates = growth_rates(it, it.active, aim)
    most = min(LONGEST_CYCLE, FIRST_CYCLE * 2 ** min(it.cycle - WARM_UP - 1, 10))
    if rates[last] > 0:
        most = min(most, math.ceil(max(1.0, math.log(max(residual / (aim.tolerance * it.norm), 1.0))) / rates[last]))
    if (spread := rates[0] - rates[last]) > 0:
        most = min(most, int(math.log(_GROWTH) / spread))
    return replace(it, length=max(1, most), residual=residual)


def growth_rates(it: Iterate, values: Array, aim: Aim) -> Array:
    """The logarithm of what a read makes components of these values grow by, beside those that are filtered out."""
    if it.high <= it.low:
        return np.zeros(len(values))
    if aim.which == "magnitude":
        u = 2 * (values / it.high) ** 2 - 1
    else:
        u = 2 * np.maximum((2 * values - it.low - it.high) / (it.high - it.low), 1.0) ** 2 - 1
    return np.asarray(np.arccosh(np.maximum(u, 1.0)))


def filtered_alone(it: Iterate, W: Array, before: Array, products: tuple[Array, Array], aim: Aim, *, first: bool) -> State:
    """The next two of a block that is filtered on a fixed interval and kept orthogonal to what is locked."""
    dtype, wide = W.dtype, accumulator_dtype(W.dtype)
    with one_blas_thread():
        AW, AAW = (product.astype(wide, copy=False) for product in products)
        X = _filtered(it, W.astype(wide, copy=False), aim.sign * AW, AAW, aim)
        X = X if first else 2.0 * X - before
        X = X - it.V @ (it.V.conj().T @ X)
        # By powers of two, so that nothing overflows and no digit changes.
        size = np.ldexp(1.0, -np.frexp(np.linalg.norm(X, axis=0))[1])
        return {"W": np.ascontiguousarray(X * size, dtype), "before": W.astype(wide) * size}


def _filtered(it: Iterate, W: Array, Y: Array, Z: Array, aim: Aim) -> Array:
    """``T_2((A - c) / h) W``, or ``T_1`` in A^2."""
    if it.high <= it.low:
        return Y
    if aim.which == "magnitude":
        e = it.high**2 / 2
        return np.asarray((Z - e * W) / e)
    c, h = (it.low + it.high) / 2, (it.high - it.low) / 2
    return np.asarray((2 / h**2) * (Z - 2 * c * Y + c**2 * W) - W)


def _warm(it: Iterate, W: Array, Y: Array, Z: Array, aim: Aim) -> Array:
    """Both ends at once, each by the square of the distance from the other one."""
    if aim.which == "magnitude":
        return Z
    top = float(it.active.max())
    n_far = min(FAR_COLUMNS, W.shape[1] - 1)
    near, far = slice(0, W.shape[1] - n_far), slice(W.shape[1] - n_far, None)
    parts = [Z[:, part] - 2 * c * Y[:, part] + c**2 * W[:, part] for part, c in ((near, it.low), (far, top))]
    return np.hstack(parts)
