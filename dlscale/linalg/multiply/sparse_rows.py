"""Products of a sparse matrix with one that a worker holds: a pass over its rows, of which only what is stored is multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import Layout, bytes_of, lay_out_sparse
from dlscale.engine.passes import Fold, State
from dlscale.errors import DoesNotFitError
from dlscale.kernels import accumulator_dtype, largest_part, times_power_of_two
from dlscale.linalg.multiply.operands import Operand


@dataclass(frozen=True)
class SparseRowsTimes(Fold):
    """``2^exponent A op(B)``, handed to the output of the pass; made and summed in double precision.

    Parameters
    ----------
    b : Operand (k, n)
        Read whole by each process.
    exponent : int
    dtype : numpy.dtype
        Of the product.
    """

    b: Operand
    exponent: int
    dtype: np.dtype[Any]

    takes_sparse = True

    @property
    def flops_per_row(self) -> float:
        return 2.0 * self.b.shape[0] * self.b.shape[1]

    @cached_property
    def _B(self) -> Array:
        M = self.b.matrix
        B = M.read(0, M.shape[0]).astype(accumulator_dtype(M.dtype), copy=False)
        return np.ascontiguousarray(B.conj().T if self.b.adjoint else B)

    def start(self) -> State:
        return {"largest": np.zeros(1)}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        Y = A.times(self._B)
        np.maximum(state["largest"], largest_part(Y), out=state["largest"])
        with np.errstate(over="ignore", under="ignore"):
            return (np.ascontiguousarray(times_power_of_two(Y, self.exponent), self.dtype),)

    def merge(self, left: State, right: State) -> State:
        return {"largest": np.maximum(left["largest"], right["largest"])}


def lay_out_rows(a: Operand, b: Operand, facts: ClusterFacts) -> Layout | None:
    """A grid for the pass; None where A is not sparse by its rows, or a worker does not hold B."""
    if a.adjoint or not a.matrix.is_sparse:
        return None
    held = bytes_of(*b.shape, dtype=accumulator_dtype(b.dtype)) + bytes_of(*b.shape, dtype=b.dtype)
    try:
        return lay_out_sparse(a.matrix, facts, state_bytes=8, operand_bytes=held, width=b.shape[1])
    except DoesNotFitError:
        return None
