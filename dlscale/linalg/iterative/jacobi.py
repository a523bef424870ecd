"""Jacobi's iteration: every unknown, or every block of them, from its own equation and the last values of the others.

``x += omega D^-1 (b - A x)``, where D is the diagonal of A, or the blocks on it. It converges where A is strictly diagonally
dominant, and where A and ``2 D / omega - A`` are both positive definite.
"""

from __future__ import annotations

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError
from dlscale.linalg.iterative.preconditioners import inverse_of_blocks
from dlscale.linalg.iterative.recurrence import Map
from dlscale.linalg.iterative.stationary import Stationary


class Jacobi(Stationary):
    """Jacobi's iteration.

    Parameters
    ----------
    inverse : callable
        ``D^-1 R``.
    relaxation : float
        omega.

    References
    ----------
    Saad (2003), section 4.1.
    """

    def __init__(self, inverse: Map, relaxation: float = 1.0) -> None:
        super().__init__(lambda R: relaxation * inverse(R))


def inverse_of_diagonal(blocks: Array) -> Map:
    """``D^-1 R`` with blocks (n, w) as for `inverse_of_blocks`.

    Raises
    ------
    InputError
        Naming the first entry on the diagonal that cannot be divided by, or block that is singular.
    """
    require_diagonal(blocks, "jacobi")
    return inverse_of_blocks(blocks, definite=False, symmetric=False, nonsingular=True)


def require_diagonal(blocks: Array, method: str) -> None:
    """Require that one can be divided by each entry of the diagonal, where that is done (InputError)."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        unfit = np.flatnonzero(~np.isfinite(1 / blocks[:, 0]))
    if blocks.shape[1] == 1 and len(unfit):
        i = int(unfit[0])
        raise InputError(
            f"input.matrix: entry ({i}, {i}) is zero, or is so beside the largest entry, and method {method} divides by the "
            "diagonal; exchange rows, or use method gmres or direct."
        )
