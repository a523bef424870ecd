"""Whether a matrix is symmetric, or Hermitian where it is complex: measured on all of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError
from dlscale.kernels import accumulator_dtype

#: ``||A - A^H||_F`` may be so many eps of ``||A||_F``: entries that were computed twice, each with its own rounding.
TOLERANCE = 100.0
#: Both tiles of a pair stay near the core, and BLAS wakes no threads for their squares.
_TILE = 64


def require_symmetric(A: Array, role: str = "input.matrix", *, stored: np.dtype[Any] | None = None) -> None:
    """Require that a matrix in memory (n, n) is Hermitian up to rounding, of the dtype it was stored in; 2 n^2 entries are read.

    Raises
    ------
    InputError
        Naming the pair of entries that differ most.
    """
    n, skew, squares = len(A), 0.0, 0.0
    worst: tuple[float, int, int] = (0.0, 0, 0)
    wide, stored = accumulator_dtype(A.dtype), stored or A.dtype
    for i in range(0, n, _TILE):
        for j in range(0, i + 1, _TILE):
            here = A[i : i + _TILE, j : j + _TILE].astype(wide, copy=False)
            difference = np.abs(here - A[j : j + _TILE, i : i + _TILE].astype(wide, copy=False).conj().T)
            twice = 1 if i == j else 2
            skew += twice * float(np.vdot(difference, difference))
            squares += twice * float(np.vdot(here, here).real)
            if (largest := float(difference.max())) > worst[0]:
                worst = (
                    largest,
                    i + int(difference.argmax()) // len(difference[0]),
                    j + int(difference.argmax()) % len(difference[0]),
                )
    if not skew**0.5 <= limit(stored) * squares**0.5:
        _, row, column = worst
        raise InputError(
            f"{role}: must be {_word(A.dtype)}; its entries ({row}, {column}) and ({column}, {row}) differ most, by "
            f"{worst[0] / max(abs(A[row, column]), abs(A[column, row])):.1e} of the larger one, and A - A' by "
            f"{(skew / squares) ** 0.5:.1e} of A in the Frobenius norm."
        )


def require_symmetric_on(W: Array, AW: Array, dtype: np.dtype[Any]) -> None:
    """Require that a matrix of a dtype is Hermitian up to rounding, from its product with normal vectors W (n, k), k > 1.

    Raises
    ------
    InputError
    """
    k, parts = W.shape[1], 2 if W.dtype.kind == "c" else 1
    G = W.conj().T.astype(AW.dtype) @ AW
    # For different columns u and v the mean of |u^H M v|^2 is ||M||_F^2, and that of ||M v||^2 too: each part has variance 1.
    skew = float(np.linalg.norm((G - G.conj().T)[~np.eye(k, dtype=bool)])) / (k * (k - 1)) ** 0.5 / parts
    size = float(np.linalg.norm(AW)) / (k * parts) ** 0.5
    if not skew <= limit(dtype) * size:
        raise refuse(skew / size, dtype)


def limit(dtype: np.dtype[Any]) -> float:
    """What ``||A - A^H||_F`` may be of ``||A||_F``."""
    return TOLERANCE * float(np.finfo(dtype).eps)


def refuse(skew: float, dtype: np.dtype[Any]) -> InputError:
    """The refusal of a matrix whose skew part is measured as a whole."""
    return InputError(f"input.matrix: must be {_word(dtype)}; A - A' is {skew:.1e} of A in the Frobenius norm.")


def _word(dtype: np.dtype[Any]) -> str:
    return "Hermitian" if dtype.kind == "c" else "symmetric"
