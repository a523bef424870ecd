"""``A - shift B`` in the memory of a worker, near size 1, and what its LDL^T factors tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.columns import Tell
from dlscale.kernels import accumulator_dtype, times_power_of_two
from dlscale.linalg.eigen import direct
from dlscale.linalg.eigen.direct import N_PROBES, SAFETY
from dlscale.linalg.solve.symmetric import InPlace, factor_measured
from dlscale.linalg.svd.subspace import gaussian
from dlscale.linalg.symmetry import require_symmetric
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import promoted

_STRIP_BYTES = 2**25


@dataclass(frozen=True)
class Pencil:
    """``A - lambda B``, or ``A - lambda I``.

    Parameters
    ----------
    A : Matrix (n, n)
    B : Matrix (n, n), optional
    """

    A: Matrix
    B: Matrix | None

    @property
    def n(self) -> int:
        return self.A.shape[0]

    @property
    def wide(self) -> np.dtype[np.generic]:
        """What is computed in: double precision."""
        return accumulator_dtype(self.A.dtype)

    def read(self, tell: Tell) -> Held:
        """Read it (InputError where a matrix is not symmetric)."""
        M, e = direct.read_near_one(promoted(self.A, self.wide), tell)
        require_symmetric(M, stored=self.A.dtype)
        if self.B is None:
            return Held(M, None, norms(M), Norms(0.0, 0.0), e, 0)
        B, f = direct.read_near_one(promoted(self.B, self.wide), tell, even=True)
        require_symmetric(B, "input.b", stored=self.B.dtype)
        return Held(M, B, norms(M), norms(B), e, f)

    def times(self, X: Array, exponents: tuple[int, int], tell: Tell) -> tuple[Array, Array]:
        """A X and B X at the scale of what was read; one read."""
        AX = direct.times(promoted(self.A, self.wide), X, -exponents[0], tell)
        return AX, X if self.B is None else direct.times(promoted(self.B, self.wide), X, -exponents[1], tell)


class Norms(NamedTuple):
    """What a 2-norm is not below (the longest column) and not above (the 1-norm)."""

    least: float
    most: float


@dataclass(frozen=True)
class Held:
    """``2^-e A`` and ``2^-f B``, whose eigenvalues are ``2^(f - e)`` times those of the pencil.

    Parameters
    ----------
    M : (n, n)
        ``2^-e A``, or what has been made of it.
    B : (n, n), optional
    a_norms, b_norms : Norms
        Those of B are zero where there is none.
    e, f : int
        f is even.
    """

    M: Array
    B: Array | None
    a_norms: Norms
    b_norms: Norms
    e: int
    f: int

    def shift(self, value: float) -> None:
        """M minus so many times B."""
        if self.B is None:
            self.M[np.diag_indices(len(self.M))] -= value
        else:
            for rows in strips(self.M):
                self.M[rows] -= value * self.B[rows]

    def size(self, value: float) -> float:
        """``||A|| + |value| ||B||``, not more than that; of one matrix its norm."""
        return self.a_norms.least + abs(value) * self.b_norms.least

    def bound(self, value: float) -> float:
        """What the norm of A minus so many times B is not above."""
        return self.a_norms.most + abs(value) * (1.0 if self.B is None else self.b_norms.most)


class Factored(NamedTuple):
    """A shifted matrix that was factored in its place.

    Parameters
    ----------
    found : InPlace
    lost : float
        How far the factors are from it in the Frobenius norm, as random vectors measure it.
    """

    found: InPlace
    lost: float


def factored(M: Array, seed: int, n_threads: int, tell: Tell) -> Factored:
    """Factor a matrix in its place."""
    X = np.ascontiguousarray(gaussian(len(M), N_PROBES, seed, M.dtype))
    found = factor_measured(M, X, n_threads, tell)
    # Of a complex normal vector the two parts have unit variance each.
    mean = N_PROBES * (2 if M.dtype.kind == "c" else 1)
    return Factored(found, SAFETY * float(np.linalg.norm(found.products - found.factored)) / mean**0.5)


def norms(M: Array) -> Norms:
    """Of a Hermitian matrix."""
    least = most = 0.0
    for rows in strips(M):
        sizes = np.abs(M[rows])
        least = max(least, float(np.sqrt(np.einsum("ij,ij->i", sizes, sizes).max())))
        most = max(most, float(sizes.sum(axis=1).max()))
    return Norms(least, most)


def strips(M: Array) -> Iterator[slice]:
    """Rows of a matrix, some at a time."""
    rows = max(1, _STRIP_BYTES // (M.shape[1] * M.itemsize))
    return (slice(i, i + rows) for i in range(0, len(M), rows))


def in_lambda(value: float, held: Held) -> float:
    """A value of the pencil at the scale of what is held."""
    return float(times_power_of_two(np.array([value]), held.f - held.e)[0])
