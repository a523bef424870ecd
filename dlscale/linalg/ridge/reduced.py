"""How a ridge problem is made small: what is the same of a tall and of a wide matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Plan
from dlscale.errors import OutOfRange
from dlscale.kernels import accumulator_dtype
from dlscale.linalg.conditions import rounding
from dlscale.linalg.ridge.selection import fold_bounds
from dlscale.linalg.ridge.small import Refits
from dlscale.linalg.scaling import exponent_of
from dlscale.storage.matrix import Matrix

#: Binary exponents up to which squares of residuals, and their products with the matrix, keep their digits.
SAFE_EXPONENT = 150


@dataclass(frozen=True)
class RidgeProblem:
    """What is asked of a matrix and its right-hand sides.

    Parameters
    ----------
    passes : Passes
    A : Matrix (m, n)
    B : Matrix (m, k)
    plan : Plan
    penalties : (q,)
    n_folds : int
        0 for none, m for leaving one row out.
    intercept : bool
    cutoff : float
        Up to which part of the largest singular values count as zero where there is no penalty.
    """

    passes: Passes
    A: Matrix
    B: Matrix
    plan: Plan
    penalties: Array
    n_folds: int
    intercept: bool
    cutoff: float

    @property
    def bounds(self) -> tuple[int, ...]:
        """First row of each fold, and m; of no folds, 0 and m."""
        m = self.A.shape[0]
        return fold_bounds(m, self.n_folds if 0 < self.n_folds < m else 1)

    @property
    def precision(self) -> np.dtype[Any]:
        """What singular values are found in; products and contrasts of a wide matrix are rounded to its own."""
        return self.A.dtype if self.plan.transposed else accumulator_dtype(self.A.dtype)

    @property
    def cutoffs(self) -> Array:
        """(q,): beside a penalty only singular values count as zero that rounding may have made of zero."""
        return np.where(self.penalties > 0, min(self.cutoff, rounding(self.A.shape, self.precision)), self.cutoff)

    @property
    def refits(self) -> Refits:
        """Fits to some of the rows."""
        return Refits(self.A.shape[1], self.penalties, self.cutoffs, self.intercept)

    def require_range(self, *sizes: float) -> None:
        """OutOfRange where squares of what has these sizes are not safe, if that is watched."""
        if self.passes.watches_range and any(size and abs(exponent_of(size)) > SAFE_EXPONENT for size in sizes):
            raise OutOfRange("Squares of the entries are not safe.")


class Reduced(ABC):
    """A small problem that has the coefficients of a large one.

    Attributes
    ----------
    problem : RidgeProblem
    s : (p,)
        Singular values of the matrix, centred where there is an intercept.
    freedom : (q,)
        Degrees of freedom for each penalty, without the intercept.
    words : str
        How it was made.
    """

    problem: RidgeProblem
    s: Array
    freedom: Array
    words: str

    @abstractmethod
    def errors(self) -> Array:
        """(q, k): sums over the rows of squares of what is left of them by coefficients from other rows."""

    @abstractmethod
    def coefficients(self, which: Sequence[int]) -> Array:
        """(len(which), n, k), of these penalties."""
