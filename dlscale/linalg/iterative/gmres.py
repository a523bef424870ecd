"""Generalized minimal residuals, begun anew after some iterations: for any operator, with as many vectors as iterations between."""

from __future__ import annotations

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.kept import State
from dlscale.linalg.iterative.recurrence import BROKEN_DOWN, DUE, GOES_ON, Map, Recurrence, unchanged

#: Iterations after which it is begun anew: at least so many, and more up to these where their vectors take no more bytes.
LEAST, MOST, BYTES = 30, 100, 2**26
_EPS = float(np.finfo(float).eps)


def restart_for(n_bytes: int) -> int:
    """m for blocks of vectors of so many bytes."""
    return max(LEAST, min(MOST, BYTES // n_bytes))


class GMRES(Recurrence):
    """GMRES(m), preconditioned from the right, so that what it minimizes is the residual itself.

    Parameters
    ----------
    precondition : callable, optional
        ``M R`` for an approximate inverse M of A.
    restart : int
        m.

    Notes
    -----
    Arrays of the state are updated in place.

    References
    ----------
    Saad and Schultz (1986); Saad (2003), algorithm 9.5.
    """

    def __init__(self, precondition: Map = unchanged, restart: int = LEAST) -> None:
        self.precondition, self.restart = precondition, restart

    def begin(self, R: Array) -> State:
        (n, k), m, size = R.shape, min(self.restart, len(R)), np.linalg.norm(R, axis=0)
        V, g = np.zeros((m + 1, n, k), R.dtype), np.zeros((m + 1, k), R.dtype)
        V[0], g[0] = R / np.where(size > 0, size, 1), size
        return {
            "V": V,
            "H": np.zeros((m, m, k), R.dtype),
            "g": g,
            "cosine": np.zeros((m, k)),
            "sine": np.zeros((m, k), R.dtype),
            "j": np.zeros(k, np.int64),
            "size": size,
            "code": np.full(k, GOES_ON),
        }

    def operand(self, state: State) -> Array:
        return self.precondition(state["V"][state["j"][0]])

    def advance(self, state: State, product: Array) -> State:
        V, H, g, code, j = state["V"], state["H"], state["g"], state["code"].copy(), int(state["j"][0])
        w, h = product, np.zeros((j + 2, product.shape[1]), product.dtype)
        before = np.linalg.norm(w, axis=0)
        # Twice is enough for orthogonality to working precision.
        for _ in range(2):
            parts = np.einsum("ink,nk->ik", V[: j + 1].conj(), w)
            w = w - np.einsum("ink,ik->nk", V[: j + 1], parts)
            h[: j + 1] += parts
        length = np.linalg.norm(w, axis=0)
        closed = length <= 10 * _EPS * before
        length = np.where(closed, 0, length)
        h[j + 1] = length
        V[j + 1] = np.where(closed, 0, w / np.where(closed, 1, length))
        for i in range(j):
            c, s = state["cosine"][i], state["sine"][i]
            h[i], h[i + 1] = c * h[i] + s * h[i + 1], -s.conj() * h[i] + c * h[i + 1]
        size = np.hypot(np.abs(h[j]), length)
        # A unit rotation that takes (h_j, length) to (a multiple of h_j, 0).
        phase = np.where(np.abs(h[j]) > 0, h[j] / np.where(np.abs(h[j]) > 0, np.abs(h[j]), 1), 1)
        divisor = np.where(size > 0, size, 1)
        c, s = np.abs(h[j]) / divisor, phase * length / divisor
        c = np.where(size > 0, c, 1)
        h[j] = phase * size
        g[j], g[j + 1] = c * g[j], -s.conj() * g[j]
        H[: j + 1, j], state["cosine"][j], state["sine"][j] = h[: j + 1], c, s
        code[closed] = BROKEN_DOWN
        code[(code == GOES_ON) & (j + 1 == len(H))] = DUE
        return state | {"j": state["j"] + 1, "size": np.abs(g[j + 1]), "code": code}

    def correction(self, state: State) -> Array:
        V, H, g = state["V"], state["H"], state["g"]
        j, D = int(state["j"].max(initial=0)), np.zeros_like(V[0])
        for column in range(V.shape[2]):
            # The triangle of a singular matrix may be singular in its last column.
            y = np.linalg.lstsq(H[:j, :j, column], g[:j, column], rcond=_EPS)[0]
            D[:, column] = np.einsum("in,i->n", V[:j, :, column], y)
        return self.precondition(D)
