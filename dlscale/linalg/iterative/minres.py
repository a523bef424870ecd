"""Minimal residuals, for Hermitian operators, definite or not: the x of a Krylov space with the smallest ``||b - A x||``.

Lanczos vectors v give a tridiagonal T, ``A V = V T``, which rotations make triangular as it grows; short recurrences update x and
the residual itself, whose norm is claimed also where a preconditioner makes the method minimize another one.
"""

from __future__ import annotations

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.kept import State
from dlscale.linalg.iterative.recurrence import BROKEN_DOWN, DUE, GOES_ON, NOT_DEFINITE, Map, Recurrence, inner, unchanged

#: Part of ||A|| ||r|| that ``||A r||`` is of a residual that A cannot reduce.
_FLAT = 1e-10
#: Of ``r^H M r`` beside ``||r|| ||M r||``: no rounding of a definite M.
_NEGATIVE = 1e-8


class MINRES(Recurrence):
    """Minimal residuals.

    Parameters
    ----------
    precondition : callable, optional
        ``M R`` for an approximate inverse M of A, Hermitian and positive definite.

    References
    ----------
    Paige and Saunders (1975), Solution of sparse indefinite systems of linear equations.
    """

    patience = 2.0

    def __init__(self, precondition: Map = unchanged) -> None:
        self.precondition = precondition

    def begin(self, R: Array) -> State:
        Y, k = self.precondition(R), R.shape[1]
        squares = inner(R, Y)
        beta, sizes = np.sqrt(np.maximum(squares, 0)), np.linalg.norm(R, axis=0)
        code = np.where(squares > 0, GOES_ON, BROKEN_DOWN)
        code[squares < -_NEGATIVE * sizes * np.linalg.norm(Y, axis=0)] = NOT_DEFINITE
        zeros, zero = np.zeros_like(R), np.zeros(k)
        return {
            "D": zeros, "R": R, "before": zeros, "here": R, "Y": Y, "W": zeros, "W_before": zeros, "last_beta": zero, "beta": beta,
            "diagonal": zero, "epsilon": zero, "phi": beta, "cosine": np.full(k, -1.0), "sine": zero, "norm": zero,
            "size": sizes, "code": code,
        }  # fmt: skip

    def operand(self, state: State) -> Array:
        return np.asarray(state["Y"] / np.where(state["beta"] > 0, state["beta"], 1))

    def advance(self, state: State, product: Array) -> State:
        s, code, last, beta = state, state["code"].copy(), state["last_beta"], state["beta"]
        V = self.operand(s)
        ahead = product - np.where(last > 0, beta / np.where(last > 0, last, 1), 0) * s["before"]
        alpha = inner(V, ahead)
        ahead = ahead - (alpha / np.where(beta > 0, beta, 1)) * s["here"]
        Y = self.precondition(ahead)
        squares = inner(ahead, Y)
        code[(code == GOES_ON) & (squares < 0)] = BROKEN_DOWN
        new_beta = np.sqrt(np.maximum(squares, 0))
        delta = s["cosine"] * s["diagonal"] + s["sine"] * alpha
        across = s["sine"] * s["diagonal"] - s["cosine"] * alpha
        norm = np.maximum(s["norm"], np.sqrt(alpha**2 + last**2 + new_beta**2))
        # ||A r|| / ||r||: where it vanishes before r does, r is orthogonal to all that A can reach.
        slope = np.hypot(across, s["cosine"] * new_beta)
        gamma = np.hypot(across, new_beta)
        # Along such a direction, of a singular matrix, a step would only be long.
        flat = (gamma <= _FLAT * norm) | (slope <= _FLAT * norm) | (code == NOT_DEFINITE)
        code[(code == GOES_ON) & flat] = DUE
        gamma = np.where(flat, 1, gamma)
        cosine, sine = across / gamma, new_beta / gamma
        phi = cosine * s["phi"]
        W = (V - s["epsilon"] * s["W_before"] - delta * s["W"]) / gamma
        rest = sine * s["phi"]
        W, phi = np.where(flat, s["W"], W), np.where(flat, 0, phi)
        R = sine**2 * s["R"] - (rest * cosine / np.where(new_beta > 0, new_beta, 1)) * ahead
        R = np.where(flat, s["R"], R)
        return {
            "D": s["D"] + phi * W, "R": R, "before": s["here"], "here": ahead, "Y": Y, "W": W, "W_before": s["W"],
            "last_beta": beta, "beta": new_beta, "diagonal": -s["cosine"] * new_beta, "epsilon": s["sine"] * new_beta, "phi": rest,
            "cosine": cosine, "sine": sine, "norm": norm, "size": np.linalg.norm(R, axis=0), "code": code,
        }  # fmt: skip

    def correction(self, state: State) -> Array:
        return state["D"]
