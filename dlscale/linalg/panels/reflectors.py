"""Householder reflectors of a panel in compact WY form: factored, applied, undone."""

from __future__ import annotations

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.tiles.methods import Facts, Reversible, Transform
from dlscale.lapack import Op, apply_reflectors, factor_qr, multiply_add, multiply_triangular


class Householder(Reversible):
    """Blocked Householder QR in compact WY form: the panels behind are multiplied by ``(I - V T V^H)^H``.

    The facts of a panel are ``t`` (k, k).
    """

    all_row_blocks_offer = True

    def factor(self, panel: Array, top: int) -> Facts:
        return {"t": factor_qr(panel[top:])}

    def apply(self, transform: Transform, panel: Array, top: int) -> None:
        reflect(transform, panel[transform.top :], op="C")

    def unapply(self, transform: Transform, panel: Array) -> None:
        reflect(transform, panel[transform.top :], op="N")

    def form(self, transform: Transform, panel: Array) -> None:
        # (I - V T V^H) E = E - V W with W = T V1^H, for the first columns E of the identity: V1 is the top of V.
        T = transform.facts["t"]
        k = len(T)
        V1, V2 = transform.panel[:k, :k], transform.panel[k:, :k]
        W = np.ascontiguousarray(np.tril(V1, -1).conj().T) + np.eye(k, dtype=T.dtype)
        multiply_triangular(T, W, uplo="U")
        multiply_add(V2, W, panel[k:], beta=0.0)
        np.negative(multiply_triangular(V1, W, uplo="L", unit=True), out=panel[:k])
        panel[np.diag_indices(k)] += 1

    def factor_flops(self, m: int, b: int) -> float:
        k = min(m, b)
        return float(3 * m * b * k - k**3)

    def n_facts(self, b: int) -> int:
        return b * b  # T

    def apply_flops(self, m: int, b: int, width: int) -> float:
        k = min(m, b)
        return float(4 * m * k * width + k * k * width)


def reflect(transform: Transform, C: Array, *, op: Op) -> None:
    """``C <- (I - V op(T) V^H) C`` in place, by the V and T of a factored panel."""
    T = transform.facts["t"]
    apply_reflectors(transform.panel[:, : len(T)], T, C, op=op)
