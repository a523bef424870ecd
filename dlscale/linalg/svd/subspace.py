"""The right subspace: W (n, l), orthonormal, close to the leading right singular vectors of A.

Every iteration is one read of A: it gives Z = A^H (A W), whose columns span the next subspace, and, through the Ritz
values of A^H A on W, estimates of the leading singular values.

References
----------
Halko, Martinsson, Tropp (2011), algorithm 4.4; Musco and Musco (2015), algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.passes import State
from dlscale.engine.passes.rows import Rows
from dlscale.errors import OutOfRange
from dlscale.kernels import half_precision, one_blas_thread
from dlscale.linalg.folds.centering import less_mean
from dlscale.linalg.folds.products import NormalProduct


@dataclass
class Subspace:
    """What the iterations found.

    Parameters
    ----------
    W : (n, l)
        Orthonormal; its columns in the order of decreasing Ritz values once an iteration was made.
    means : mapping of str to arrays
        Of a centred matrix: the column means of A, ``mean`` and ``mean_low`` (n,), and what they were ``met`` as (2,)
        (`dlscale.linalg.folds.products.start_means`).
    squares : float, optional
        ``||A||_F^2`` (centred).
    n_iterations : int
    ritz : list of arrays
        Estimates of the leading singular values, one array an iteration.
    note : str
        In which precision the iterations were made, where that is not the matrix's own.
    """

    W: Array
    means: State = field(default_factory=dict)
    squares: float | None = None
    n_iterations: int = 0
    ritz: list[Array] = field(default_factory=list)
    note: str = ""


#: Ritz values from single precision products are good down to this part of the first.
_HALF_RESOLUTION = 1e-3


def gaussian(n: int, width: int, seed: int, dtype: np.dtype[Any]) -> Array:
    """A Gaussian test matrix; column j depends on (seed, j) only through the seed's stream."""
    generator = np.random.default_rng(seed)
    real = generator.standard_normal((width, n))
    if dtype.kind == "c":
        return np.asarray(real + 1j * generator.standard_normal((width, n))).T
    return real.T


def orthonormal(Z: Array) -> Array:
    """An orthonormal basis of the columns of Z, in their order."""
    return np.asarray(np.linalg.qr(Z).Q)


def start_subspace(n: int, width: int, seed: int, dtype: np.dtype[Any]) -> Array:
    """A random orthonormal W (n, width); the identity where that is all of the space."""
    with one_blas_thread():
        return orthonormal(gaussian(n, min(width, n), seed, dtype)).astype(dtype)


def iterate(
    rows: Rows, space: Subspace, *, n_iterations: int, probe: Array | None = None, krylov: bool = False, halve: bool = False
) -> Subspace:
    """Make power iterations, or grow a block Krylov space, one read of A each.

    Parameters
    ----------
    rows : Rows
        Of A.
    space : Subspace
        Where to start; not changed.
    n_iterations : int
    probe : (n,), optional
        Subtract the column means of A, which are found in the first read and met on the probe.
    krylov : bool
        Keep all iterates: W grows by its first width each time, until it is the whole space.
    halve : bool
        Make double precision products in single precision where that is harmless: see `half_precision_suffices`. A first
        iteration that turns out to need double precision is made again.

    Returns
    -------
    Subspace

    Notes
    -----
    4 m n l flops an iteration.
    """
    basis, dtype = [space.W], rows.A.dtype
    halve = halve and half_precision(dtype) != dtype
    for i in range(space.n_iterations + 1, space.n_iterations + n_iterations + 1):
        state, note, halve = _read(rows, space, i, probe=probe, halve=halve)
        with one_blas_thread():
            Z = state["ZH"].conj().T
            values, rotation = ritz_pairs(space.W, Z)
            Z = Z @ rotation
            W = (_orthonormal_to(basis, Z) if krylov else orthonormal(Z)).astype(dtype)
        means = (
            {name: state[name] for name in ("mean", "mean_low", "met")} if probe is not None and not space.means else space.means
        )
        squares = float(state["squares"][0]) if space.squares is None else space.squares
        ritz = [*space.ritz, values]
        space = Subspace(W, means, squares, len(ritz), ritz, note)
        basis.append(W)
        if W.shape[1] == 0:
            break
    return replace(space, W=np.hstack(basis)) if krylov else space


def _read(rows: Rows, space: Subspace, i: int, *, probe: Array | None, halve: bool) -> tuple[State, str, bool]:
    """The pass of iteration i; in which precision it was made; whether the next one may be in half the precision."""
    A, step, note = rows.A, f"iteration-{i}", space.note
    center = probe is not None and not space.means
    source = replace(rows, A=less_mean(A, space.means, space.squares)) if space.means else rows
    W = np.ascontiguousarray(space.W)
    fold = NormalProduct(W, center=center, squares=space.squares is None, probe=probe if center else None)
    if halve and (not space.ritz or half_precision_suffices(space.ritz[-1], n_columns=A.shape[1], iteration=i)):
        state = _halved(source, step, fold)
        if state is not None:
            return state, f"iteration {i} and those before it in {half_precision(A.dtype)}", True
        step = f"{step}-again"
        note = f"the singular values span too much for {half_precision(A.dtype)}: iteration {i} was made again"
    return source.sweep(step, fold), note, False


def half_precision_suffices(ritz: Array, *, n_columns: int, iteration: int) -> bool:
    """Whether rounding the products of an iteration to single precision is harmless beside what the iterations leave.

    Parameters
    ----------
    ritz : (l,)
        Estimates of the singular values, decreasing.
    n_columns : int
        n, of A.
    iteration : int
        i, from 1.

    Notes
    -----
    q iterations and the last read leave of the vectors of sigma_j about ``n^1/2 (sigma_l / sigma_j)^(2q+1)``. Rounding in
    iteration i perturbs them by at most ``eps (sigma_1 / sigma_j)^2``, of which the later reads, in double precision, leave
    ``(sigma_l / sigma_j)^(2(q-i)+1)``. That is the smaller one for all j where ``(sigma_l / sigma_1)^(2i) > eps / n^1/2``.
    """
    limit = (float(np.finfo(np.float32).eps) / n_columns**0.5) ** (0.5 / iteration)
    return bool(ritz[-1] > max(limit, _HALF_RESOLUTION) * ritz[0])


def _halved(rows: Rows, step: str, fold: NormalProduct) -> State | None:
    """The pass of an iteration with its products in half the precision; None where that is not enough."""
    dtype = half_precision(rows.A.dtype)
    try:
        state = rows.sweep(step, replace(fold, W=fold.W.astype(dtype), halved=True))
        with one_blas_thread():
            ritz, _ = ritz_pairs(fold.W, state["ZH"].conj().T)
    except OutOfRange:
        if rows.passes.watches_range:
            raise
        # Beyond the range of the dtype, but perhaps not beyond that of the matrix.
        return None
    return state if ritz[-1] > _HALF_RESOLUTION * ritz[0] else None


def ritz_pairs(W: Array, Z: Array) -> tuple[Array, Array]:
    """Singular value estimates, decreasing, and the rotation of W that belongs to them, from ``W^H (A^H A) W``."""
    T = W.conj().T @ Z
    if not np.isfinite(T).all():
        raise OutOfRange("The products of the matrix overflow; divide it by its largest entry and run again.")
    values, rotation = np.linalg.eigh((T + T.conj().T) / 2)
    return np.sqrt(np.maximum(values[::-1], 0)), rotation[:, ::-1]


def _orthonormal_to(basis: list[Array], Z: Array) -> Array:
    """An orthonormal basis of Z without its components in the blocks found before: fewer columns where the space is full.

    Notes
    -----
    Householder QR, whose Q is orthonormal whatever is left of Z, even nothing.
    """
    found = np.hstack(basis)
    return orthonormal(np.hstack([found, Z]))[:, found.shape[1] :]


def iterate_to_tolerance(
    rows: Rows, *, tolerance: float, oversampling: int, n_iterations: int, seed: int, probe: Array | None
) -> Subspace:
    """Widen W until the singular values behind it are below ``tolerance * sigma_1``, then make the power iterations.

    Notes
    -----
    The width doubles from 32; the last ``oversampling`` columns do not count. Where the matrix has no such gap, W ends
    as the whole space.
    """
    n, dtype = rows.A.shape[1], rows.A.dtype
    width = min(32 + oversampling, n)
    space = Subspace(start_subspace(n, width, seed, dtype))
    settled = 0
    while settled < n_iterations or space.n_iterations == 0:
        space = iterate(rows, space, n_iterations=1, probe=probe)
        s, width = space.ritz[-1], space.W.shape[1]
        enough = width == n or s[max(width - oversampling, 1) - 1] <= tolerance * s[0] / 2
        settled = settled + 1 if enough else 0
        if not enough:
            more = start_subspace(n, min(width, n - width), seed + space.n_iterations, dtype)
            with one_blas_thread():
                space.W = orthonormal(np.hstack([space.W, more])).astype(dtype)
    return space
