"""Conjugate gradients for least squares: on ``A^H A x = A^H b`` by products with ``A^H A``, which one read of A gives.

    alpha = s'z / p'A'Ap,   x += alpha p,   s -= alpha A'A p,   z = M s,   p = z + (new s'z / s'z) p

The residual ``b - A x`` itself is as long as A is tall; of it, only its norm is followed: ``||r||^2 -= alpha s'z``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.kept import State
from dlscale.linalg.iterative.recurrence import BROKEN_DOWN, DUE, GOES_ON, Map, Recurrence, inner, unchanged

#: What is left of ``||A^H r||``, or of ||r||, when it is measured anew: below, rounding errors turn directions out of the range
#: of A^H, in which x would grow.
_DIGITS = 1e-7


class CGLS(Recurrence):
    """Conjugate gradients for least squares.

    Parameters
    ----------
    relative : callable
        From ``A^H r``, the norms of r, and the numbers of their columns, to what is held against the tolerance.
    residuals : callable
        ``||b - A x||`` of all columns, as measured last.
    precondition : callable, optional
        ``M S`` for an approximate inverse M of ``A^H A``, Hermitian and positive definite.

    References
    ----------
    Hestenes and Stiefel (1952); Bjorck (1996), algorithm 7.4.1.
    """

    def __init__(
        self, relative: Callable[[Array, Array, Array], Array], residuals: Callable[[], Array], precondition: Map = unchanged
    ) -> None:
        self.relative, self.residuals, self.precondition = relative, residuals, precondition

    def begin(self, R: Array) -> State:
        Z, columns, norms = self.precondition(R), self.columns, self.residuals()[self.columns]
        return {
            "D": np.zeros_like(R),
            "S": R,
            "P": Z,
            "rho": inner(R, Z),
            "squares": norms**2,
            "column": columns,
            "first_squares": norms**2,
            "first_rho": inner(R, Z),
            "size": self.relative(R, norms, columns),
            "code": np.full(R.shape[1], GOES_ON),
        }

    def operand(self, state: State) -> Array:
        return state["P"]

    def advance(self, state: State, product: Array) -> State:
        P, rho, code = state["P"], state["rho"], state["code"].copy()
        curvature = inner(P, product)
        code[~((curvature > 0) & (rho > 0))] = BROKEN_DOWN
        alpha = np.where(code == GOES_ON, rho / np.where(curvature > 0, curvature, 1), 0.0)
        S = state["S"] - alpha * product
        Z = self.precondition(S)
        new, squares = inner(S, Z), np.maximum(state["squares"] - alpha * rho, 0)
        P = Z + np.where(code == GOES_ON, new / np.where(rho > 0, rho, 1), 0.0) * P
        lost = (new <= _DIGITS**2 * state["first_rho"]) | (squares <= _DIGITS**2 * state["first_squares"])
        code[(code == GOES_ON) & lost] = DUE
        size, D = self.relative(S, np.sqrt(squares), state["column"]), state["D"] + alpha * state["P"]
        return state | {"D": D, "S": S, "P": P, "rho": new, "squares": squares, "size": size, "code": code}

    def correction(self, state: State) -> Array:
        return state["D"]
