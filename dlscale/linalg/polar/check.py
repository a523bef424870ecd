"""What a certificate of a polar decomposition needs beside residual and orthonormality: that P is Hermitian and semidefinite.

Of all ``A = U P`` with U orthonormal only the one with a semidefinite P is the polar decomposition: ``A = (-U) (-P)`` has the
same residual. A Cholesky factorization of ``P + s I`` in double precision that ends well shows that no eigenvalue of P is below
-s, up to what rounding makes of it.

References
----------
Rump (2006), Verification of positive definiteness, theorem 2.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import LAPACK_THRESHOLD, Check
from dlscale.engine.passes import State
from dlscale.engine.passes.row_results import RowsFold, add_rows
from dlscale.kernels import accumulator_dtype
from dlscale.storage.matrix import Matrix, View

#: Beside a P of zeros any shift is large.
_OF_ZEROS = 1e-100


class Shift(NamedTuple):
    """By how much P is shifted, and what a factorization that ends well shows.

    Parameters
    ----------
    size : float
        s.
    shown : float
        P has no eigenvalue below minus this part of its Frobenius norm.
    """

    size: float
    shown: float

    @classmethod
    def of(cls, n: int, norm: float, trace: float, dtype: np.dtype[Any]) -> Shift:
        """The shift of a P (n, n) of this Frobenius norm and trace: what rounding may have taken from its eigenvalues."""
        unit = float(np.finfo(float).eps) / 2
        size = n * float(np.finfo(dtype).eps) * norm + 2 * (n + 2) * unit * abs(trace) or _OF_ZEROS
        rounding = (n + 2) * unit * (abs(trace) + n * size)
        return cls(size, (size + rounding) / (norm or 1.0))

    def check(self, *, definite: bool, lines: str) -> Check:
        """What was shown; ``lines`` of U are orthonormal."""
        # Rounded up.
        part = f"{1.05 * self.shown:.1e}"
        return Check(
            "1 if the Cholesky factorization of P + s I breaks down",
            0.0 if definite else 1.0,
            0.0,
            f"P has no eigenvalue below -{part} of its norm: up to that, no matrix with orthonormal {lines} is nearer than U",
        )


def hermitian_check(difference: float, size: float, n: int, dtype: np.dtype[Any]) -> Check:
    """That P is its own adjoint, from ``||(P - P^H) x||`` and ``||P x||``."""
    value = difference / (size * n * float(np.finfo(dtype).eps)) if difference else 0.0
    return Check("||(P - P')x|| / (||Px|| n eps)", value, LAPACK_THRESHOLD, "P is Hermitian: it acts as its own adjoint does")


@dataclass(frozen=True)
class HermitianFactor(RowsFold):
    """``P X`` and ``P^H X`` in one read of P (n, n), and the squares of P and of ``P - I``."""

    X: Array

    rows_name = "product"

    @property
    def flops_per_row(self) -> float:
        return 4.0 * self.X.size + 4.0 * len(self.X)

    def start(self) -> State:
        wide = accumulator_dtype(self.X.dtype)
        return {
            "product": np.zeros((0, self.X.shape[1]), wide),
            "adjoint": np.zeros(self.X.shape, wide),
            "squares": np.zeros(1),
            "distance": np.zeros(1),
            "trace": np.zeros(1),
        }

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        P = A.astype(accumulator_dtype(A.dtype), copy=True)
        rows = np.arange(len(P))
        add_rows(state, P @ self.X)
        state["adjoint"] += P.conj().T @ self.X[first_row : first_row + len(P)]
        state["squares"] += np.linalg.norm(P) ** 2
        state["trace"] += P[rows, first_row + rows].sum().real
        P[rows, first_row + rows] -= 1
        state["distance"] += np.linalg.norm(P) ** 2
        return ()


class Shifted(View):
    """``P + s I`` in double precision, made as it is read."""

    def __init__(self, base: Matrix, shift: float) -> None:
        super().__init__(base)
        self.stored_dtype, self.shift = accumulator_dtype(base.dtype), shift

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        block: Array = self.base.region(rows, columns).astype(self.dtype)
        i = np.arange(max(rows[0], columns[0]), min(rows[1], columns[1]))
        block[i - rows[0], i - columns[0]] += self.shift
        return block
