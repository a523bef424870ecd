"""The tall factor of a decomposition, written block by block: U = Q X with Q an orthonormal basis of the tall matrix.

One pass writes U and measures it: its Gram matrix, how it meets the probes, and the residual on the probes. The sign of
each column is scikit-learn's: its entry of largest modulus is positive.

References
----------
``sklearn.utils.extmath.svd_flip``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import workspace
from dlscale.engine.passes import Fold, State
from dlscale.kernels import accumulator_dtype
from dlscale.linalg.folds.orthogonal import Basis


def phases_of(peaks: Array) -> Array:
    """Unit factors that make the given entries real and positive; 1 where an entry is zero."""
    modulus = np.abs(peaks)
    return np.where(modulus > 0, peaks.conj() / np.where(modulus > 0, modulus, 1), 1).astype(peaks.dtype)


def largest_entries(V: Array) -> Array:
    """The entry of largest modulus of each row of V, the first of equals."""
    return np.asarray(np.take_along_axis(V, np.abs(V).argmax(axis=1)[:, None], axis=1)[:, 0])


@dataclass(frozen=True)
class Peaks(Fold):
    """The entry of largest modulus in each column of the tall factor U (m, k), the first of equals.

    Parameters
    ----------
    basis : Basis
        The recipe of U, from the first ``n_columns`` columns of the matrix that is read.
    """

    basis: Basis
    n_columns: int
    k: int
    dtype: np.dtype[Any]

    @property
    def flops_per_row(self) -> float:
        return 2.0 * self.n_columns * self.k

    def start(self) -> State:
        return {"peak": np.zeros(self.k, self.dtype)}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        peak = state["peak"]
        for i, tile in self.basis.pieces(A[:, : self.n_columns]):
            U = self.basis.apply(tile, first_row + i)
            modulus = np.abs(U)
            largest = modulus.max(axis=0)
            # Only the few columns with a new peak are searched for its place.
            for j in np.flatnonzero(largest > np.abs(peak)):
                peak[j] = U[np.argmax(modulus[:, j]), j]
        return ()

    def merge(self, left: State, right: State) -> State:
        larger = np.abs(right["peak"]) > np.abs(left["peak"])
        return {"peak": np.where(larger, right["peak"], left["peak"])}


@dataclass(frozen=True)
class LeftFactor(Fold):
    """Blocks of the tall factor U (times ``scale``), and what certifies them.

    Parameters
    ----------
    basis : Basis
        The recipe of U, from the first ``n_columns`` columns of the matrix that is read.
    n_columns : int
    probe_map : (n, p), optional
        The probes, where the pass reads A itself; None where it reads ``[Y, A probes]``.
    expected : (k, p)
        ``S V^H probes``: then ``A probes - U expected`` is the residual on the probes.
    scale : (k,), optional
        Written is ``U scale`` (the scores of a PCA); U itself where it is None.
    keep_U : bool
        Whether the pass has an output.
    met : bool
        Whether ``met`` is wanted.

    Notes
    -----
    State: ``gram`` U^H U (k, k); ``met`` U^H (A probes) (k, p); ``residual`` its Gram matrix on the probes (p, p).
    """

    basis: Basis
    n_columns: int
    probe_map: Array | None
    expected: Array
    scale: Array | None = None
    keep_U: bool = True
    met: bool = True

    @property
    def flops_per_row(self) -> float:
        k = self.expected.shape[0]
        return float(2.0 * self.n_columns * k + k * k + 4.0 * self.expected.size)

    def start(self) -> State:
        k, p = self.expected.shape
        wide = accumulator_dtype(self.expected.dtype)
        return {"gram": np.zeros((k, k), wide), "met": np.zeros((k, p), wide), "residual": np.zeros((p, p), wide)}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        dtype = self.expected.dtype
        rows = workspace("left", (len(A), self.expected.shape[0]), dtype)
        for i, tile in self.basis.pieces(A):
            place = rows[i : i + len(tile)] if self.keep_U and self.scale is None else None
            U = self.basis.apply(tile[:, : self.n_columns], first_row + i, out=place)
            probes = tile[:, self.n_columns :] if self.probe_map is None else tile @ self.probe_map
            U_wide = U.astype(state["gram"].dtype, copy=False)
            state["gram"] += U_wide.conj().T @ U_wide
            if self.met:
                state["met"] += U_wide.conj().T @ probes
            rest = (probes - U @ self.expected).astype(state["gram"].dtype, copy=False)
            state["residual"] += rest.conj().T @ rest
            if self.keep_U and U is not place:
                np.multiply(U, 1 if self.scale is None else self.scale, out=rows[i : i + len(tile)])
        return (rows,) if self.keep_U else ()
