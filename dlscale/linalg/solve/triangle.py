"""Triangular systems: substitution in the matrix itself, nothing factored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.columns import SLAB_COLUMNS, Tell, untold
from dlscale.engine.costs import lay_out, measured_rates
from dlscale.engine.plan import Grids, Need, Plan, Step
from dlscale.engine.run import Cost
from dlscale.errors import InputError, NumericalError
from dlscale.linalg.solve.factors import with_imaginary
from dlscale.linalg.solve.planning import Solving
from dlscale.linalg.solve.substitution import Substitution, loaded
from dlscale.linalg.solve.triangular import How, solve_triangular
from dlscale.storage.matrix import Matrix, View


class Triangle(View):
    """A triangle of a square matrix, with zeros on the other side of the diagonal.

    Parameters
    ----------
    base : Matrix (n, n)
    lower : bool
        Which triangle.
    only : bool
        Whether the other triangle is no part of the matrix; else reading an entry of it that is not zero fails.
    unit : bool
        Whether the diagonal counts as ones; else reading a zero on it fails.
    """

    def __init__(self, base: Matrix, *, lower: bool, only: bool = False, unit: bool = False) -> None:
        super().__init__(base)
        self.lower, self.only, self.unit = lower, only, unit

    @property
    def T(self) -> Matrix:
        return Triangle(self.base.T, lower=not self.lower, only=self.only, unit=self.unit)

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        """Read a rectangle.

        Raises
        ------
        InputError
            Naming the first entry of the other triangle in it that is not zero.
        NumericalError
            Naming the first zero on the diagonal in it.
        """
        block = self.base.region(rows, columns, out)
        # In place only where the block was read into what the caller gave: it may be the user's own array.
        part = block if out is not None and np.may_share_memory(block, out) else block.copy(order="K")
        self._cut(*((part, rows, columns) if self.lower else (part.T, columns, rows)))
        return part

    def _cut(self, part: Array, rows: tuple[int, int], columns: tuple[int, int]) -> None:
        """Leave the lower triangle, of the transpose where the upper one is meant."""
        start, stop = (min(max(i - columns[0], 0), part.shape[1]) for i in rows)
        middle, outside = part[:, start:stop], part[:, stop:]
        shift = rows[0] - columns[0] - start
        above = np.triu(middle, shift + 1)
        if not self.only and (above.any() or outside.any()):
            self._refuse(np.hstack([above, outside]), rows[0], columns[0] + start)
        outside[...] = 0
        middle[...] = np.tril(middle, shift)
        first, last = max(rows[0], columns[0]), min(rows[1], columns[1])
        if first < last:
            diagonal = np.einsum("ii->i", part[first - rows[0] : last - rows[0], first - columns[0] : last - columns[0]])
            if self.unit:
                diagonal[...] = 1
            elif (diagonal == 0).any():
                raise NumericalError(zero_words(first + int((diagonal == 0).argmax())))

    def _refuse(self, other: Array, first_row: int, first_column: int) -> None:
        i, j = (int(index) for index in np.argwhere(other)[0])
        place = (first_row + i, first_column + j)
        row, column = self.place(*(place if self.lower else place[::-1]))
        word, side = ("lower", "above") if row < column else ("upper", "below")
        raise InputError(
            f"input.matrix: must be {word} triangular; {other[i, j].item()} stands {side} the diagonal, at row {row}, column "
            f"{column}. Use params.assume: general, or only_triangle: true if what stands there is not part of the matrix."
        )


def zero_words(step: int) -> str:
    """That a triangular matrix has a zero on its diagonal."""
    return (
        f"The matrix is exactly singular: entry ({step}, {step}) on its diagonal is zero, so no unique solution exists. "
        "Use lstsq for the solution of minimum norm, or correct the matrix."
    )


@dataclass(frozen=True)
class TriangleFactors:
    """A triangular matrix, which needs no factors.

    Parameters
    ----------
    T : Matrix (n, n)
        With zeros on the other side of the diagonal.
    lower : bool
    n_threads : int
        That a solve uses.
    """

    T: Matrix
    lower: bool
    n_threads: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        return self.T.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.T.dtype

    @property
    def cost(self) -> Cost:
        return Substitution.of(self.T).cost(lower=self.lower)

    @property
    def stored_bytes(self) -> int:
        return self.T.n_bytes

    def inverse_cost(self, column: int) -> Cost:
        return Substitution.of(self.T).cost(lower=self.lower, op="C", first=0 if self.lower else column)

    def loaded(self, *, tell: Tell = untold) -> TriangleFactors:
        return replace(self, T=loaded(self.T, tell))

    def solve(self, B: Array, *, adjoint: bool = False, width: int = SLAB_COLUMNS, tell: Tell = untold) -> Array:
        """One substitution."""
        how = How(with_imaginary(self.dtype, B), self.n_threads, width, tell)
        return solve_triangular(self.T, B, lower=self.lower, op="C" if adjoint else "N", how=how)


def plan_triangle(solving: Solving, facts: ClusterFacts, *, lower: bool) -> Plan:
    """Plan substitutions and what measures them.

    Parameters
    ----------
    solving : Solving
        With a matrix whose other triangle is read too where residuals are taken.
    facts : ClusterFacts
    lower : bool

    Raises
    ------
    DoesNotFitError
    """
    A, n = solving.A, solving.A.shape[0]
    layout = lay_out(A, facts, state_bytes=solving.state_bytes, operand_bytes=solving.state_bytes)
    then = solving.after(Substitution.of(A).cost(lower=lower), A.n_bytes, facts)
    needs = (layout.memory, (*then.memory, layout.blocks))
    memory = max(needs, key=lambda needs: sum(need.n_bytes for need in needs))
    return Plan(
        kind="solve",
        method="substitution",
        words="substitution in the triangular matrix, refinement",
        matrix=A.describe(),
        grids=Grids(rows=layout.grid),
        steps=(Step("norms", 2.0 * n * n, A.n_stored_bytes), *then.steps),
        memory=(*memory, Need("right-hand sides and solutions", solving.driver_bytes)),
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts),
        notes=(*layout.notes, *A.notes),
    )
