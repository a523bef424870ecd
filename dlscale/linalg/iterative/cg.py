"""Conjugate gradients, for Hermitian positive definite operators.

alpha = r'z / p'Ap,   x += alpha p,   r -= alpha A p,   z = M r,   p = z + (new r'z / r'z) p
"""

from __future__ import annotations

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.kept import State
from dlscale.linalg.iterative.recurrence import (
    BROKEN_DOWN,
    GOES_ON,
    NOT_DEFINITE,
    Iterate,
    Limits,
    Map,
    Problem,
    Recurrence,
    inner,
    iterate,
    unchanged,
)

#: Times n^1/2 eps ||A|| ||p||^2: what rounding may make of ``p'Ap``.
_ROUNDING = 10.0


class CG(Recurrence):
    """Conjugate gradients.

    Parameters
    ----------
    precondition : callable, optional
        ``M R`` for an approximate inverse M of A, Hermitian and positive definite too.

    References
    ----------
    Hestenes and Stiefel (1952); Saad (2003), algorithm 9.1.
    """

    def __init__(self, precondition: Map = unchanged) -> None:
        self.precondition = precondition

    def begin(self, R: Array) -> State:
        Z, k = self.precondition(R), R.shape[1]
        return {
            "D": np.zeros_like(R),
            "R": R,
            "P": Z,
            "rho": inner(R, Z),
            "norm": np.zeros(k),
            "size": np.linalg.norm(R, axis=0),
            "code": np.full(k, GOES_ON),
        }

    def operand(self, state: State) -> Array:
        return state["P"]

    def advance(self, state: State, product: Array) -> State:
        P, rho, code = state["P"], state["rho"], state["code"].copy()
        curvature, length = inner(P, product), np.linalg.norm(P, axis=0)
        norm = np.maximum(state["norm"], np.linalg.norm(product, axis=0) / length)
        limit = _ROUNDING * len(P) ** 0.5 * float(np.finfo(float).eps) * norm * length**2
        code[~(curvature > 0)] = BROKEN_DOWN
        code[curvature < -limit] = NOT_DEFINITE
        code[~(rho > 0)] = BROKEN_DOWN
        code[rho < 0] = NOT_DEFINITE
        alpha = np.where(code == GOES_ON, rho / curvature, 0.0)
        D, R = state["D"] + alpha * P, state["R"] - alpha * product
        Z = self.precondition(R)
        new = inner(R, Z)
        P = Z + np.where(code == GOES_ON, new / rho, 0.0) * P
        return {"D": D, "R": R, "P": P, "rho": new, "norm": norm, "size": np.linalg.norm(R, axis=0), "code": code}

    def correction(self, state: State) -> Array:
        return state["D"]


def conjugate_gradients(
    apply: Map, B: Array, precondition: Map = unchanged, *, tolerance: float = 1e-10, max_iterations: int = 1000
) -> Iterate:
    """Solve ``A X = B`` with a Hermitian positive definite A that is known by its products, such as a kernel matrix plus mu I.

    Parameters
    ----------
    apply : callable
        ``A X`` (n, k) of X (n, k).
    B : (n, k), double precision
    precondition : callable, optional
        ``M R`` (n, k) of R (n, k), with M Hermitian positive definite and near the inverse of A.
    tolerance : float
        For ``||b - A x|| / ||b||`` of each column, measured.
    max_iterations : int

    Returns
    -------
    Iterate
        With ``X``; ``end`` is ``converged`` only if every residual was measured to be small enough. ``reached`` (k,) has the
        measured ones, ``iterations`` and ``claimed`` the way there.

    Notes
    -----
    One product of all columns an iteration, and one or a few for measuring. Columns that have converged are not multiplied.
    """
    return iterate(CG(precondition), Problem(apply, B), Limits(tolerance, max_iterations))
