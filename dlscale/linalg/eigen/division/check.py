"""What is measured of a matrix before it is divided, and of all its eigenpairs afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Fold, Passes, State
from dlscale.kernels import accumulator_dtype
from dlscale.linalg.eigen import direct
from dlscale.linalg.eigen.pairs import Pairs
from dlscale.linalg.folds.operators import Product
from dlscale.linalg.svd.subspace import gaussian
from dlscale.storage.matrix import Matrix


@dataclass(frozen=True)
class Met(Fold):
    """``V^H [A X, X]`` and ``V^H V C``, in one read of V (n, n)."""

    AX: Array
    X: Array
    C: Array

    @property
    def flops_per_row(self) -> float:
        return 8.0 * self.X.size

    def start(self) -> State:
        wide = accumulator_dtype(self.C.dtype)
        return {name: np.zeros(self.C.shape, wide) for name in ("images", "vectors", "back")}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        rows, adjoint = slice(first_row, first_row + len(A)), A.conj().T
        state["images"] += adjoint @ self.AX[rows]
        state["vectors"] += adjoint @ self.X[rows]
        state["back"] += adjoint @ (A @ self.C)
        return ()


def measure(passes: Passes, A: Matrix, values: Array, V: Matrix, *, grid: RowGrid, exponent: int, seed: int) -> Pairs:
    """What all pairs of A leave of random vectors, as `direct` measures it; one read of A and one of V."""
    n, p, dtype = A.shape[0], direct.N_PROBES, A.dtype
    X, C = (np.ascontiguousarray(gaussian(n, p, seed + i, dtype), dtype) for i in range(2))
    AX = passes.sweep("images", A, Product(np.ascontiguousarray(X.T)), grid)["product"]
    found = passes.sweep("residuals", V, Met(AX, X, C), grid)
    left, lost = found["images"] - values[:, None] * found["vectors"], found["back"] - C
    mean = p * (2 if dtype.kind == "c" else 1)
    residuals = direct.SAFETY * np.sqrt((np.abs(left) ** 2).sum(axis=1) / mean)
    departure = direct.SAFETY * float(np.sqrt((np.abs(lost) ** 2).sum() / mean))
    norm = float(np.abs(values).max())
    return Pairs(values, residuals, float(np.finfo(dtype).eps) * norm, norm, departure, None, exponent)
