"""What the tasks of a factorization in row blocks do: read tiles, factor those of a panel together, apply them, write them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.targets import writable
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.methods import Facts, Method, largest_modulus
from dlscale.engine.tiles.whole_tasks import Work, find_non_finite, measured


@dataclass(frozen=True)
class Place:
    """Where a tile lies in its panel.

    Parameters
    ----------
    block : int
        i, of its row block.
    first : int
        Its first row at the panel's diagonal or below; 0 in the blocks below the diagonal.
    diagonal : bool
        Whether the panel's diagonal begins in it.
    """

    block: int
    first: int
    diagonal: bool


@dataclass(frozen=True)
class TileTransform:
    """What a factored tile does to the tiles right of it.

    Parameters
    ----------
    index : int
        j, of the panel.
    place : Place
    tile : (m_i, b)
    facts : dict of arrays
        The choice of the panel.
    """

    index: int
    place: Place
    tile: Array
    facts: Facts


@dataclass(frozen=True)
class Election:
    """What the row blocks of a panel found together.

    Parameters
    ----------
    choice : dict of arrays
        What is remembered of the panel, and what later panels need of it.
    shares : sequence of dict
        What each row block needs to finish its tile, in the order of the candidates.
    book : dict of arrays
        For the next step.
    """

    choice: Facts
    shares: Sequence[Facts]
    book: Facts


class TiledMethod(ABC):
    """A factorization on row blocks. Picklable; only `propose`, `accept` and `update` change their tile."""

    #: The same factorization on whole panels, for its costs.
    whole: Method
    #: Whether a step leaves the rows above its diagonal alone; else every row block takes part in every step.
    downward = True

    def begin(self, grid: PanelGrid) -> Facts:
        """The book that goes from step to step."""
        return {}

    @abstractmethod
    def propose(self, tile: Array, book: Facts, place: Place) -> Facts:
        """What a tile brings to the election, b rows at most; may begin to factor the tile, in place."""

    @abstractmethod
    def elect(self, candidates: Sequence[Facts], book: Facts, top: int) -> Election:
        """Factor what the row blocks propose for the panel whose diagonal begins at row ``top``."""

    @abstractmethod
    def accept(self, tile: Array, candidate: Facts, share: Facts, place: Place) -> None:
        """Finish a tile of the panel, in place."""

    def offering(self, blocks: Sequence[int]) -> Sequence[int]:
        """Which of the row blocks that take part in an update offer something."""
        return blocks

    @abstractmethod
    def offer(self, transform: TileTransform, tile: Array) -> Array:
        """What a row block gives to the update of a panel, from its factored tile and its tile of that panel."""

    @abstractmethod
    def meet(self, choice: Facts, offers: Sequence[Array]) -> Array:
        """What the offers make together."""

    @abstractmethod
    def update(self, transform: TileTransform, tile: Array, met: Array) -> None:
        """Apply a factored tile to a tile of its row block, in place."""

    def order(self, facts: Sequence[Facts], block: int, n_rows: int) -> Array | None:
        """How the rows of a row block moved in these steps: position p holds what was at ``order[p]``."""
        return None

    def settle(self, facts: Sequence[Facts], grid: PanelGrid) -> list[Facts]:
        """The facts of a finished group, whose tiles are stored in the order that the rows had at its end."""
        return list(facts)

    def offer_flops(self, m: int, b: int, width: int) -> float:
        """The part of ``whole.apply_flops`` that is done by `offer`."""
        return 0.0


def first_row(work: Work, i: int, k: int) -> int:
    """The first row of row block i that panel k keeps."""
    start, stop = work.grid.rows(i)
    return min(max(start, int(work.method.whole.first_row(work.grid.columns(k)[0]))), stop)


def place_of(work: Work, i: int, j: int) -> Place:
    """Where tile (i, j) lies."""
    top, (start, stop) = work.grid.columns(j)[0], work.grid.rows(i)
    return Place(i, max(0, top - first_row(work, i, j)), start <= top < stop)


def load_tile(work: Work, i: int, k: int) -> tuple[Array, Array, float]:
    """Read a tile; it, the product of its rows with the probes, and its largest modulus."""
    started = time.perf_counter()
    rows, columns, first = work.grid.rows(i), work.grid.columns(k), first_row(work, i, k)
    # Products are those of the whole matrix, also where the tile begins below the first row.
    top = rows[0] if work.probes.any() else first
    block = work.A.region((top, rows[1]), columns)
    products = np.zeros((rows[1] - rows[0], work.probes.shape[1]), work.probes.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        products[top - rows[0] :] = block @ work.probes[slice(*columns)]
    if not np.isfinite(products).all():
        find_non_finite(work.A, columns)
    largest, kept = largest_modulus(block), block[first - top :]
    tile = work.target.take(first, kept, columns[0], own=not work.A.in_memory and first == top)
    measured(work, "load", k, started, n_bytes=block.nbytes)
    return tile, products, largest


def see_tile(work: Work, i: int, k: int) -> tuple[None, Array, float]:
    """As `load_tile`, of a tile that is not kept."""
    started = time.perf_counter()
    block = work.A.region(work.grid.rows(i), work.grid.columns(k))
    with np.errstate(over="ignore", invalid="ignore"):
        products = block @ work.probes[slice(*work.grid.columns(k))]
    if not np.isfinite(products).all():
        find_non_finite(work.A, work.grid.columns(k))
    measured(work, "load", k, started, n_bytes=block.nbytes)
    return None, products, largest_modulus(block)


def seen_of_block(work: Work, *loaded: tuple[Array | None, Array, float]) -> tuple[Array, float]:
    """What the tiles of a row block say of the matrix: its products, and its largest modulus."""
    products = sum((products for _, products, _ in loaded[1:]), loaded[0][1])
    return products, max(largest for *_, largest in loaded)


def identity_tile(work: Work, i: int, k: int) -> Array:
    """A tile of the identity."""
    rows, columns = work.grid.rows(i), work.grid.columns(k)
    tile = work.target.room(rows, columns, work.A.dtype)
    tile[...] = 0
    ones = range(max(rows[0], columns[0]), min(rows[1], columns[1]))
    tile[[row - rows[0] for row in ones], [row - columns[0] for row in ones]] = 1
    return tile


def vector_tile(work: Work, i: int) -> Array:
    """Rows of the vectors that come with the work."""
    return work.probes[slice(*work.grid.rows(i))].copy()


def propose(work: Work, i: int, j: int, tile: Array, book: Facts) -> tuple[Array, Facts]:
    started = time.perf_counter()
    tile, place = writable(tile), place_of(work, i, j)
    candidate = work.method.propose(tile, book, place)
    measured(work, "factor", j, started, flops=work.method.whole.factor_flops(len(tile) - place.first, tile.shape[1]))
    return tile, candidate


def elect(work: Work, j: int, book: Facts, *candidates: Facts) -> tuple[Facts, ...]:
    """The choice, the book of the next step, and the shares."""
    started = time.perf_counter()
    election: Election = work.method.elect(candidates, book, work.grid.columns(j)[0])
    measured(work, "factor", j, started)
    return (election.choice, election.book, *election.shares)


def accept(work: Work, i: int, j: int, tile: Array, candidate: Facts, share: Facts) -> Array:
    started = time.perf_counter()
    tile, place = writable(tile), place_of(work, i, j)
    work.method.accept(tile, candidate, share, place)
    measured(work, "factor", j, started, flops=float(len(tile) - place.first) * tile.shape[1] ** 2)
    return tile


def transform_of(work: Work, i: int, j: int, tile: Array, choice: Facts) -> TileTransform:
    return TileTransform(j, place_of(work, i, j), tile, choice)


def recall(work: Work, j: int) -> Facts:
    """The choice of a finished panel."""
    assert work.finished is not None
    return work.finished.facts[j]


def fetch(work: Work, i: int, j: int) -> TileTransform:
    """Read a finished tile."""
    started = time.perf_counter()
    assert work.finished is not None
    rows = (first_row(work, i, j), work.grid.rows(i)[1])
    tile = work.finished.matrix.region(rows, work.finished.grid.columns(j))
    measured(work, "fetch", j, started, n_bytes=tile.nbytes)
    return TileTransform(j, place_of(work, i, j), tile, work.finished.facts[j])


def offer(work: Work, k: int, transform: TileTransform, tile: Array) -> Array:
    started = time.perf_counter()
    given: Array = work.method.offer(transform, tile)
    flops = work.method.offer_flops(len(tile) - transform.place.first, transform.tile.shape[1], tile.shape[1])
    if flops:
        measured(work, "apply", k, started, flops=flops, transform=transform.index)
    return given


def meet(work: Work, choice: Facts, *offers: Array) -> Array:
    met: Array = work.method.meet(choice, offers)
    return met


def update(work: Work, k: int, transform: TileTransform, tile: Array, met: Array) -> Array:
    started = time.perf_counter()
    tile = writable(tile)
    work.method.update(transform, tile, met)
    sizes = len(tile) - transform.place.first, transform.tile.shape[1], tile.shape[1]
    flops = work.method.whole.apply_flops(*sizes) - work.method.offer_flops(*sizes)
    measured(work, "apply", k, started, flops=flops, transform=transform.index)
    return tile


def write_tile(work: Work, i: int, k: int, tile: Array | None, later: Sequence[Facts]) -> int:
    """Write a tile to its place, its rows as later steps moved them, and zeros above it where it is short."""
    started = time.perf_counter()
    (start, stop), (left, right) = work.grid.rows(i), work.grid.columns(k)
    tile = np.empty((0, right - left), work.A.dtype) if tile is None else writable(tile)
    order = work.method.order(later, i, len(tile)) if later else None
    if order is not None:
        tile[...] = tile[order]
    if work.finish is not None:
        work.finish(k, tile)
    above = stop - start - len(tile)
    work.target.finish(start, above, tile, left)
    measured(work, "write", k, started, n_bytes=(stop - start) * (right - left) * tile.itemsize)
    return k


def copy_tile(work: Work, i: int, k: int) -> int:
    """Write a tile of a finished factorization, changed, to its place in another array, which may have fewer rows."""
    started = time.perf_counter()
    rows, columns = work.grid.rows(i), work.grid.columns(k)
    tile = work.method(i, k, writable(work.A.region(rows, columns)))
    work.target.write(rows[0], tile, columns[0])
    measured(work, "write", k, started, n_bytes=tile.nbytes)
    return k


def split_rows(work: Work, i: int, k: int) -> list[Array]:
    """The rows of a stored tile, by the row block where they belong."""
    tile = work.A.region(work.grid.rows(i), work.grid.columns(k))
    origins = [_origins(work, k, q) for q in range(work.grid.row_blocks)]
    return [tile[place[block == i]] for block, place in origins]


def merge_rows(work: Work, q: int, k: int, *pieces: Array) -> int:
    """Write a tile from the rows that the row blocks have for it."""
    started = time.perf_counter()
    rows, columns = work.grid.rows(q), work.grid.columns(k)
    block, _ = _origins(work, k, q)
    tile = np.empty((rows[1] - rows[0], columns[1] - columns[0]), work.A.dtype)
    for i, piece in enumerate(pieces):
        tile[block == i] = piece
    work.target.write(rows[0], tile, columns[0])
    measured(work, "write", k, started, n_bytes=tile.nbytes)
    return k


def _origins(work: Work, k: int, q: int) -> tuple[Any, Any]:
    """For the rows of destination block q: the row block that each comes from, and its place there."""
    sources = work.method[k // work.grid.group][slice(*work.grid.rows(q))]
    return sources // work.grid.block_rows, sources % work.grid.block_rows
