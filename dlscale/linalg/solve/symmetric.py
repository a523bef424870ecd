"""Symmetric indefinite matrices in the memory of one worker: P A P^T = U^H D U, in one task with all of its threads.

D has blocks of order 1 and 2, chosen by Bunch and Kaufman. The diagonal of D stands on that of U, whose own is all ones; what
stands beside the diagonal of D is apart, and what is below the diagonal of the array is no part of the factors.

References
----------
Bunch and Kaufman (1977); Higham (2002), section 11.1; LAPACK ``sytrf``, ``hetrf`` and ``syconv``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import cython_lapack

from dlscale.arrays import Array
from dlscale.engine.columns import SLAB_COLUMNS, Applied, Columns, Span, Tell, untold
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Plan
from dlscale.engine.run import Cost, State
from dlscale.engine.targets import Target
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.errors import NumericalError
from dlscale.kernels import blas_threads, largest_part, safe_exponent, safe_norm, tiles
from dlscale.lapack import call
from dlscale.linalg.in_memory import n_blas_threads, patiently, read_all
from dlscale.linalg.panels.plan import factor_target
from dlscale.linalg.panels.scaling import require_safe
from dlscale.linalg.solve.block_diagonal import Blocks, Inertia, inertia_of, product
from dlscale.linalg.solve.factors import triangles_of_symmetric, with_imaginary
from dlscale.linalg.solve.substitution import Substitution, loaded
from dlscale.linalg.solve.triangular import How, solve_triangular
from dlscale.linalg.symmetry import require_symmetric
from dlscale.storage.matrix import Matrix

#: 32-bit LAPACK: an index of the matrix goes up to n^2.
LARGEST = 46_340
#: Columns that LAPACK takes at a time.
_BLOCK = 64
#: The part of the rate of a product at which LAPACK factors.
EFFICIENCY = 0.6


@dataclass(frozen=True)
class LDLFactors:
    """``A[order][:, order] = U^H D U``.

    Parameters
    ----------
    u : Matrix (n, n)
        See the module.
    blocks : Blocks
    order : (n,)
    inertia : Inertia
    n_threads : int
        That a solve uses.
    precision : numpy.dtype, optional
        What a solve computes in; that of the factors if absent.
    """

    u: Matrix
    blocks: Blocks
    order: Array
    inertia: Inertia
    n_threads: int = 1
    precision: np.dtype[Any] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.u.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.precision or self.u.dtype

    @property
    def cost(self) -> Cost:
        return triangles_of_symmetric(Substitution.of(self.u))

    @property
    def stored_bytes(self) -> int:
        return self.u.n_bytes

    def inverse_cost(self, column: int) -> Cost:
        """All of it: the order of the rows leaves no zeros at the beginning."""
        return self.cost

    def loaded(self, *, tell: Tell = untold) -> LDLFactors:
        return replace(self, u=loaded(self.u, tell))

    def computing_in(self, dtype: np.dtype[Any]) -> LDLFactors:
        return replace(self, precision=dtype)

    def solve(self, B: Array, *, adjoint: bool = False, width: int = SLAB_COLUMNS, tell: Tell = untold) -> Array:
        """Two triangular solves, and one with D between them; A is its own adjoint."""
        dtype = with_imaginary(self.dtype, B)
        solve = partial(solve_triangular, self.u, lower=False, unit=True, how=How(dtype, self.n_threads, width, tell))
        Y = solve(B[self.order], op="C", overwrite=True)
        Z = solve(self.blocks.solve(Y), overwrite=True)
        X = np.empty_like(Z)
        X[self.order] = Z
        return X


@dataclass(frozen=True)
class FactorSymmetric(Applied):
    """Reads a matrix, requires that it is symmetric, factors it, measures the factors and writes them.

    Parameters
    ----------
    A : Matrix (n, n)
    target : Target (n, n)
    grid : PanelGrid
        The columns that are written at a time.
    probes : (n, k)
    n_threads : int
        Of BLAS, which decide the order of sums.
    """

    A: Matrix
    target: Target
    grid: PanelGrid
    probes: Array
    n_threads: int

    def cost(self, slabs: Sequence[Span]) -> Cost:
        return Cost(flops(self.A.shape[0]), self.A.n_stored_bytes, self.A.n_bytes)

    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        n, X = self.A.shape[0], self.probes
        M = self.target.room((0, n), (0, n), self.A.dtype)
        read_all(self.A, M, tell)
        largest = largest_part(M)
        if safe_exponent(largest, M.dtype):
            # It is to be scaled first.
            return [{"largest": np.array([largest])}]
        require_symmetric(M)
        found = factor_measured(M, X, self.n_threads, tell)
        for k in range(self.grid.n_panels):
            left, right = self.grid.columns(k)
            self.target.write(0, M[:, left:right] if self.target.in_memory else np.ascontiguousarray(M[:, left:right]), left)
        tell(flops(n), 0)
        state = {"d": found.blocks.d, "e": found.blocks.e, "order": found.order, "products": found.products}
        state |= {"factored": found.factored, "inertia": np.array(found.inertia), "singular": np.array([found.singular])}
        return [state | {"largest": np.array([largest])}]


class InPlace(NamedTuple):
    """What factors in the place of their matrix are made of, and what was measured of them.

    Parameters
    ----------
    blocks : Blocks
    order : (n,)
    inertia : Inertia
    singular : int
    products, factored : (n, k)
        See `Factorized`.
    """

    blocks: Blocks
    order: Array
    inertia: Inertia
    singular: int
    products: Array
    factored: Array


def factor_measured(M: Array, X: Array, n_threads: int, tell: Tell) -> InPlace:
    """Factor a Hermitian matrix (n, n) in its place, and measure what its factors make of X (n, k).

    Parameters
    ----------
    M : (n, n), overwritten
    X : (n, k)
    n_threads : int
        Of BLAS, which decide the order of sums.
    tell : callable

    Raises
    ------
    NumericalError
        If the factors overflow.
    """
    with blas_threads(n_threads):
        products = M @ X
        size = stretched(M)
        ipiv, e, info = patiently(tell, lambda: factor_in_place(M))
        d = np.diagonal(M).real.copy()
        if not (np.isfinite(d).all() and np.isfinite(e).all()):
            raise NumericalError(f"The matrix is finite, but its LDL^T factors overflow {M.dtype}; use assume: general.")
        blocks, order = Blocks(d, e), order_of(ipiv)
        Y = product(M, blocks, X[order])
        inertia = inertia_of(M, blocks, size)
    found = np.empty_like(Y)
    found[order] = Y
    return InPlace(blocks, order, inertia, info, products, found)


def stretched(M: Array) -> float:
    """How much longer a Hermitian matrix (n, n) makes a vector: no more than ``||M||_2``, no less than its longest column."""
    sizes = np.concatenate([safe_norm(rows, axis=1) for _, rows in tiles(M)])
    x, size = M[sizes.argmax()].conj(), float(sizes.max())
    # By the Cauchy-Schwarz inequality it is no less from one power to the next.
    for _ in range(2 if size else 0):
        x = M @ (x / M.dtype.type(safe_norm(x)))
        size = max(size, float(safe_norm(x)))
    return size


class Factorized(NamedTuple):
    """A symmetric matrix that was factored, and what was measured.

    Parameters
    ----------
    factors : LDLFactors
    singular : int
        1 + the first place of D that is exactly zero; 0 if there is none.
    products, factored : (n, k)
        A and the product of the factors times the probes.
    """

    factors: LDLFactors
    singular: int
    products: Array
    factored: Array


def factor_symmetric(passes: Passes, A: Matrix, plan: Plan, *, probes: Array, name: str) -> Factorized:
    """Factor a symmetric matrix, or a Hermitian one, by its plan; the factors are kept in memory or in the job's scratch space.

    Raises
    ------
    InputError
        If it is not symmetric, naming the pair of entries that differ most.
    NonFiniteError
    OutOfRange
        If it is to be scaled first.

    Notes
    -----
    n^3 / 3 flops; one read, and the matrix in the memory of one worker.
    """
    target = factor_target(passes.run, name, A.shape, A.dtype, plan.panels, scratch=True)
    what = FactorSymmetric(A, target, plan.panels, probes, n_blas_threads(A.shape[0], plan.cluster))
    (found,) = Columns(passes.run, plan.cluster).apply(f"{name}-1", what, n_columns=1, width=1, writers=target.writers)
    largest = float(found["largest"][0])
    require_safe(largest, A.dtype)
    blocks = Blocks(found["d"], found["e"])
    inertia = Inertia(*found["inertia"].tolist())
    factors = LDLFactors(target.matrix(), blocks, found["order"], inertia, plan.cluster.threads_per_worker)
    return Factorized(factors, int(found["singular"][0]), found["products"], found["factored"])


def require_nonsingular(found: Factorized) -> None:
    """Raise `NumericalError` if a block of D is zero, naming its place."""
    if found.singular:
        raise NumericalError(
            f"The matrix is singular to working precision: pivot {found.singular} of its LDL^T factorization is zero, so no digit "
            "of a solution is sure. Use lstsq for the solution of minimum norm, or correct the matrix."
        )


def factor_in_place(M: Array) -> tuple[Array, Array, int]:
    """Bunch-Kaufman factors of a Hermitian matrix (n, n) over its upper triangle.

    Returns
    -------
    ipiv : (n,)
        As LAPACK says it.
    e : (n,)
        ``D[i, i + 1]``.
    info : int
        1 + the first place of D that is exactly zero; 0 if there is none.
    """
    n, e = len(M), np.zeros(len(M), M.dtype)
    ipiv, work, leading = np.empty(n, np.intc), np.empty(n * _BLOCK, M.dtype), M.strides[0] // M.itemsize if n > 1 else 1
    # In Fortran's eyes M is its transpose, the conjugate: its lower triangle is the upper one here, its L is U^T, its D conjugated.
    name = "hetrf" if M.dtype.kind == "c" else "sytrf"
    info = call(cython_lapack, name, M.dtype, "L", n, M, leading, ipiv, work, len(work))
    call(cython_lapack, "syconv", M.dtype, "L", "C", n, M, leading, ipiv, e)
    return ipiv, e, info


def order_of(ipiv: Array) -> Array:
    """Which row of the matrix is row i of the factored one."""
    order, i = np.arange(len(ipiv)), 0
    pivots = ipiv.tolist()
    while i < len(pivots):
        two = pivots[i] < 0
        here, there = i + two, abs(pivots[i]) - 1
        order[[here, there]] = order[[there, here]]
        i += 1 + two
    return order


def flops(n: int) -> float:
    return n**3 / 3
