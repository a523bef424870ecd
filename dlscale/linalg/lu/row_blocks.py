"""LU of panels in row blocks: P A = L U with tournament pivoting.

Each row block proposes the b rows that partial pivoting would choose in it; the proposals of all blocks meet in one more
factorization, whose pivot rows win. Rows are exchanged inside their tile only: the winners go to its top and rest there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.targets import Target
from dlscale.engine.tiles.factorizer import Factorizer
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.methods import (
    Election,
    Factored,
    Facts,
    Place,
    RowMove,
    TiledMethod,
    TileTransform,
    largest_modulus,
)
from dlscale.lapack import factor_lu, multiply_add, solve_lower, solve_right
from dlscale.linalg.lu.panels import LU, RowOrder, row_move


class TournamentLU(TiledMethod):
    """LU with tournament pivoting (CALU).

    The facts of a panel are ``lu`` (k, b), the winners' rows factored; ``block`` (k,) and ``local`` (k,), where each winner
    was; ``done`` (r,), how many rows of each block rest already; ``order``, how the rows of a finished group moved.

    References
    ----------
    Grigori, Demmel, Xiang (2011), "CALU: a communication optimal LU factorization algorithm".
    """

    whole = LU()
    # A pivot row may lie in any row block, and rests there.
    downward = False

    def begin(self, grid: PanelGrid) -> Facts:
        return {"done": np.zeros(grid.row_blocks, np.intp)}

    def propose(self, tile: Array, book: Facts, place: Place) -> Facts:
        first = int(book["done"][place.block])
        active = tile[first:].copy()
        pivots, _ = factor_lu(active)
        places = _after(pivots, len(active))[: len(pivots)] + first
        return {"rows": tile[places], "local": places}

    def elect(self, candidates: Sequence[Facts], book: Facts, top: int) -> Election:
        stack = np.concatenate([candidate["rows"] for candidate in candidates])
        local = np.concatenate([candidate["local"] for candidate in candidates])
        block = np.repeat(np.arange(len(candidates)), [len(candidate["rows"]) for candidate in candidates])
        pivots, singular = factor_lu(stack)
        winners = _after(pivots, len(stack))[: len(pivots)]
        choice = {
            "lu": stack[: len(pivots)],
            "block": block[winners],
            "local": local[winners],
            "done": book["done"],
            "singular": np.array([top + singular if singular else 0]),
            "largest": np.array([largest_modulus(np.triu(stack[: len(pivots)]))]),
            "order": np.empty(0, np.intp),
        }
        done = book["done"] + np.bincount(choice["block"], minlength=len(book["done"]))
        return Election(choice, [choice] * len(candidates), {"done": done})

    def accept(self, tile: Array, candidate: Facts, share: Facts, place: Place) -> None:
        choice = share
        mine, first, stop = _retired(choice, place.block)
        move = _move(choice, place.block)
        tile[move.targets] = tile[move.sources]
        tile[first:stop] = choice["lu"][mine]
        k = len(choice["lu"])
        U = np.triu(choice["lu"][:, :k])
        diagonal = np.einsum("ii->i", U)
        # A zero pivot means that nothing is left in its column: the multipliers are zero.
        diagonal[diagonal == 0] = np.inf
        solve_right(tile[stop:, :k], U, uplo="U")

    def offer(self, transform: TileTransform, tile: Array) -> Array:
        mine, first, stop = _retired(transform.facts, transform.place.block)
        order = transform.facts["order"]
        if len(order):
            start = transform.place.block * int(transform.facts["block_rows"][0])
            return tile[order[start : start + len(tile)][first:stop]]
        local = transform.facts["local"]
        return tile[local[mine]] if len(local) else tile[first:stop].copy()

    def meet(self, choice: Facts, offers: Sequence[Array]) -> Array:
        rows = np.empty((len(choice["lu"]), offers[0].shape[1]), offers[0].dtype)
        for i, offered in enumerate(offers):
            rows[choice["block"] == i] = offered
        k = len(rows)
        return solve_lower(np.ascontiguousarray(choice["lu"][:, :k]), rows, unit=True)

    def update(self, transform: TileTransform, tile: Array, met: Array) -> None:
        choice, i = transform.facts, transform.place.block
        mine, first, stop = _retired(choice, i)
        if len(choice["order"]):
            start = i * int(choice["block_rows"][0])
            tile[...] = tile[choice["order"][start : start + len(tile)]]
        elif len(choice["local"]):
            move = _move(choice, i)
            tile[move.targets] = tile[move.sources]
        tile[first:stop] = met[mine]
        multiply_add(transform.tile[stop:, : len(met)], met, tile[stop:])

    def order(self, facts: Sequence[Facts], block: int, n_rows: int) -> Array:
        order = np.arange(n_rows)
        for choice in facts:
            move = _move(choice, block)
            order[move.targets] = order[move.sources]
        return order

    def settle(self, facts: Sequence[Facts], grid: PanelGrid) -> list[Facts]:
        settled = []
        for n, choice in enumerate(facts):
            rows = (grid.rows(i) for i in range(grid.row_blocks))
            parts = [self.order(facts, i, stop - start) for i, (start, stop) in enumerate(rows)] if n == 0 else []
            order = np.concatenate(parts) if parts else np.empty(0, np.intp)
            settled.append(choice | {"order": order, "local": np.empty(0, np.intp), "block_rows": np.array([grid.block_rows])})
        return settled


class Places(RowOrder):
    """Row blocks: winners rest in their own row block until all panels are done."""

    def apart(self, grid: PanelGrid) -> bool:
        return True

    def settle(self, factorizer: Factorizer, step: str, factored: Factored, target: Target) -> Array:
        sources, pivots = final_rows(factored.facts, factored.grid)
        factorizer.place(step, factored, target, sources)
        return pivots


def final_rows(facts: Sequence[Facts], grid: PanelGrid) -> tuple[list[Array], Array]:
    """Where rows come from, and the exchanges that bring them there.

    Returns
    -------
    sources : list of (m,)
        For each group: the stored row that goes to row q.
    pivots : (k,)
        As LAPACK gives them: row q was exchanged with row ``pivots[q]``.
    """
    m, r = grid.shape[0], grid.row_blocks
    groups = grid.groups()
    orders = [np.asarray(facts[group.start]["order"]) if group.start < len(facts) else np.arange(m) for group in groups]
    starts = np.concatenate([np.full(grid.rows(i)[1] - grid.rows(i)[0], grid.rows(i)[0]) for i in range(r)])
    # positions[g][p]: the stored row of group g that lies at place p of the tiles in the end.
    positions = [np.arange(m)]
    for group, order in zip(reversed(groups[1:]), reversed(orders[1:]), strict=True):
        moved = starts + (order if group.start < len(facts) else np.arange(m) - starts)
        positions.append(moved[positions[-1]])
    positions.reverse()
    first = starts + (orders[0] if facts else np.arange(m) - starts)
    original = first[positions[0]]
    place_of = np.empty(m, np.intp)
    place_of[original] = np.arange(m)
    chosen = [place for choice in facts for place in _resting_places(choice, grid)]
    pivots = np.array(_exchanges(original[np.array(chosen, np.intp)].tolist(), 0), np.intp)
    rows = np.arange(m)
    move = row_move(0, pivots)
    rows[move.targets] = rows[move.sources]
    final = place_of[rows]
    return [place[final] for place in positions], pivots


def _resting_places(choice: Facts, grid: PanelGrid) -> list[int]:
    """The places of the winners of a step in the tiles, in pivot order."""
    counts = choice["done"].copy()
    places = []
    for i in choice["block"].tolist():
        places.append(grid.rows(i)[0] + int(counts[i]))
        counts[i] += 1
    return places


def _retired(choice: Facts, i: int) -> tuple[Any, int, int]:
    """Which winners are rows of block i, and the places where they rest."""
    mine = choice["block"] == i
    first = int(choice["done"][i])
    return mine, first, first + int(mine.sum())


def _move(choice: Facts, i: int) -> RowMove:
    """The exchanges that bring the winners of block i to their places."""
    mine, first, _ = _retired(choice, i)
    return row_move(first, np.array(_exchanges(choice["local"][mine].tolist(), first), np.intp))


def _exchanges(wanted: Sequence[int], first: int) -> list[int]:
    """Exchange row ``first + s`` with this row, s = 0, 1, ..., and the wanted rows come to lie there in order."""
    where: dict[int, int] = {}
    content: dict[int, int] = {}
    exchanges = []
    for target, row in enumerate(wanted, first):
        place = where.get(row, row)
        exchanges.append(place)
        displaced = content.get(target, target)
        content[target], content[place] = row, displaced
        where[row], where[displaced] = target, place
    return exchanges


def _after(pivots: Array, n: int) -> Array:
    """Which row lies where after the exchanges."""
    rows = np.arange(n)
    move = row_move(0, pivots)
    rows[move.targets] = rows[move.sources]
    return rows
