"""What solving takes once there are factors: substitutions, residuals, the condition number, and the solution itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.grids import blocks
from dlscale.engine.plan import Step
from dlscale.engine.run import Cost
from dlscale.kernels import accumulator_dtype
from dlscale.linalg.solve.applying import Planned, after, plan_columns, plan_condition, plan_residual
from dlscale.linalg.solve.factoring import After
from dlscale.linalg.solve.options import batch_columns
from dlscale.linalg.solve.slabs import MANY_COLUMNS, plan_refined
from dlscale.storage.matrix import Matrix


@dataclass(frozen=True)
class Solving:
    """A system that is to be solved.

    Parameters
    ----------
    A : Matrix (n, n)
    k : int
        Right-hand sides.
    dtype : numpy.dtype
        Of the solution.
    n_solves : int
        How often systems are solved, and residuals taken.
    """

    A: Matrix
    k: int
    dtype: np.dtype[Any]
    n_solves: int

    @property
    def state_bytes(self) -> int:
        """Of the partial result of a pass."""
        return 0 if self._many else self.A.shape[0] * self._width * self._wide

    @property
    def driver_bytes(self) -> int:
        """Right-hand sides and solutions that the driver holds."""
        return (4 * self.k if self._many else 6 * self._width + 2 * self.k) * self.A.shape[0] * self._wide

    def after(self, one: Cost, stored_bytes: int, facts: ClusterFacts) -> After:
        """What comes after the factorization.

        Parameters
        ----------
        one : Cost
            Of a solve with one column; the bytes of any number of them.
        stored_bytes : int
            Of the factors.
        facts : ClusterFacts
        """
        n, k = self.A.shape[0], self.k
        found = Planned(Step("x", 0.0, 0, n * k * self.dtype.itemsize, where="driver"))
        condition = plan_condition("condition-1", one, stored_bytes, facts)
        if self._many:
            slabs = plan_refined("solve-1", one, self.A, k, facts, dtype=self.dtype, n_solves=self.n_solves)
            return after(slabs, condition, found)
        return after(*self._batches(one, facts), condition, found)

    def _batches(self, one: Cost, facts: ClusterFacts) -> Iterator[Planned]:
        """Solving for a few columns together, and refining them batch by batch with passes over the rows of the matrix."""
        n, n_solves = self.A.shape[0], self.n_solves
        yield plan_columns("triangular-1", one, n, self.k, self._wide, facts)
        for number, (start, stop) in enumerate(blocks(0, self.k, self._width)):
            for i in range(n_solves):
                if i:
                    name = f"triangular-{number * (n_solves - 1) + i + 1}"
                    yield plan_columns(name, one, n, stop - start, self._wide, facts)
                yield plan_residual(f"residual-{number * n_solves + i + 1}", self.A, stop - start)

    @property
    def _many(self) -> bool:
        return self.k >= MANY_COLUMNS

    @property
    def _width(self) -> int:
        """Columns of a batch."""
        return min(self.k, batch_columns(self.A.shape[0], self.A.dtype))

    @property
    def _wide(self) -> int:
        return accumulator_dtype(self.A.dtype).itemsize
