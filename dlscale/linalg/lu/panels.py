"""LU with partial pivoting, panel by panel: P A = L U."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.targets import Target
from dlscale.engine.tiles.factorizer import Factorizer
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.methods import Factored, Facts, Method, RowMove, Transform, largest_modulus
from dlscale.lapack import factor_lu, interchanges, multiply_add, solve_lower


class LU(Method):
    """Right-looking blocked LU (Golub and Van Loan, algorithm 3.4.1 by blocks).

    The facts of a panel are ``first`` and ``pivots``: row ``first + i`` was exchanged with row ``pivots[i]``, in this order.
    """

    def factor(self, panel: Array, top: int) -> Facts:
        pivots, singular = factor_lu(panel[top:])
        k = min(panel.shape[1], len(panel) - top)
        return {
            "first": np.array([top]),
            "pivots": top + pivots,
            "singular": np.array([top + singular if singular else 0]),
            "largest": np.array([np.maximum(largest_modulus(panel[:top]), largest_modulus(np.triu(panel[top : top + k])))]),
        }

    def apply(self, transform: Transform, panel: Array, top: int) -> None:
        first, pivots = int(transform.facts["first"][0]), transform.facts["pivots"]
        move = row_move(first, pivots)
        panel[move.targets] = panel[move.sources]
        L, below = transform.panel, panel[transform.top :]
        k = min(L.shape)
        U = solve_lower(L[:k, :k], below[:k], unit=True)
        multiply_add(L[k:, :k], U, below[k:])

    def settle(self, facts: Sequence[Facts], first: int, grid: PanelGrid) -> list[tuple[RowMove | None, Facts]]:
        # The rows of a panel move with the pivots behind it. Afterwards all pivots of the group come with its first panel.
        settled: list[tuple[RowMove | None, Facts]] = []
        for i, fact in enumerate(facts):
            later = [f["pivots"] for f in facts[i + 1 :]]
            move = row_move(int(facts[i + 1]["first"][0]), np.concatenate(later)) if later else None
            pivots = np.concatenate([f["pivots"] for f in facts]) if i == 0 else np.empty(0, np.intp)
            settled.append((move, fact | {"pivots": pivots}))
        return settled

    def factor_flops(self, m: int, b: int) -> float:
        k = min(m, b)
        return float(m * b * k - (m + b) * k**2 / 2 + k**3 / 3) * 2

    def apply_flops(self, m: int, b: int, width: int) -> float:
        k = min(m, b)
        return float(k * k * width + 2 * (m - k) * k * width)


def row_move(first: int, pivots: Array) -> RowMove:
    """The net effect of exchanging row ``first + i`` with row ``pivots[i]``, for all i in order."""
    targets, sources = interchanges(pivots - first)
    return RowMove(targets + first, sources + first)


@dataclass(frozen=True)
class LaterRows:
    """Moves the rows of each panel as the pivots of the groups behind its own did."""

    moves: dict[int, RowMove]

    def __call__(self, i: int, k: int, panel: Array) -> None:
        move = self.moves.get(k)
        if move is not None:
            panel[move.targets] = panel[move.sources]


class RowOrder(ABC):
    """How the rows of a factorization come to their final places."""

    @abstractmethod
    def apart(self, grid: PanelGrid) -> bool:
        """Whether rows still move when all groups are finished, so that these are kept apart until then."""

    @abstractmethod
    def settle(self, factorizer: Factorizer, step: str, factored: Factored, target: Target) -> Array:
        """The pivots (k,); rows that were kept apart are brought to the target."""


class Exchanges(RowOrder):
    """Whole panels: rows were exchanged as LAPACK does, but for those of groups before."""

    def apart(self, grid: PanelGrid) -> bool:
        return len(grid.groups()) > 1

    def settle(self, factorizer: Factorizer, step: str, factored: Factored, target: Target) -> Array:
        if self.apart(factored.grid):
            factorizer.copy(step, factored, target, LaterRows(_later_moves(factored.facts, factored.grid)))
        return np.concatenate([fact["pivots"] for fact in factored.facts])


def _later_moves(facts: Sequence[Facts], grid: PanelGrid) -> dict[int, RowMove]:
    """For each panel, the exchanges of the groups behind its own (whose pivots lie at the first panel of a group)."""
    moves: dict[int, RowMove] = {}
    groups = [group for group in grid.groups() if group.start < len(facts)]
    for group, following in pairwise(groups):
        first = grid.columns(following.start)[0]
        move = row_move(first, np.concatenate([fact["pivots"] for fact in facts[following.start :]]))
        moves |= dict.fromkeys(group, move)
    return moves
