"""What tasks do with panels in row blocks: read tiles, factor those of a panel together, apply them, write them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.targets import writable
from dlscale.engine.tiles.methods import Election, Facts, Place, Seen, TiledMethod, TileTransform, largest_modulus
from dlscale.engine.tiles.whole_tasks import find_non_finite
from dlscale.engine.tiles.work import Applying, Factoring, Filling, Placing, Unapplying, Verb, Work, measured


class LoadedTile(NamedTuple):
    """A tile, if it is kept, and what was measured of it."""

    tile: Array | None
    seen: Seen


class Proposed(NamedTuple):
    """A tile of the panel that is factored, and what it brings to the election."""

    tile: Array
    candidate: Facts


class Origins(NamedTuple):
    """For rows that go somewhere: the row block that each comes from, and its place there."""

    block: Array
    place: Array


def first_row(work: Work[Applying[TiledMethod]], i: int, k: int) -> int:
    """The first row of row block i that panel k keeps."""
    start, stop = work.grid.rows(i)
    return min(max(start, int(work.verb.method.whole.first_row(work.grid.columns(k)[0]))), stop)


def place_of(work: Work[Applying[TiledMethod]], i: int, j: int) -> Place:
    """Where tile (i, j) lies."""
    top, (start, stop) = work.grid.columns(j)[0], work.grid.rows(i)
    return Place(i, max(0, top - first_row(work, i, j)), start <= top < stop)


def load_tile(work: Work[Factoring[TiledMethod]], i: int, k: int) -> LoadedTile:
    """Read a tile, and multiply its rows with the probes."""
    started = time.perf_counter()
    rows, columns, first = work.grid.rows(i), work.grid.columns(k), first_row(work, i, k)
    probes = work.verb.probes
    # Products are those of the whole matrix, also where the tile begins below the first row.
    top = rows[0] if probes.any() else first
    block = work.A.region((top, rows[1]), columns)
    products = np.zeros((rows[1] - rows[0], probes.shape[1]), probes.dtype)
    products[top - rows[0] :] = block @ probes[slice(*columns)]
    if not np.isfinite(products).all():
        find_non_finite(work.A, columns)
    largest, kept = largest_modulus(block), block[first - top :]
    tile = work.verb.target.take(first, kept, columns[0], own=not work.A.in_memory and first == top)
    measured(work, "load", k, started, n_bytes=block.nbytes)
    return LoadedTile(tile, Seen(products, largest))


def see_tile(work: Work[Factoring[TiledMethod]], i: int, k: int) -> LoadedTile:
    """As `load_tile`, of a tile that is not kept."""
    started = time.perf_counter()
    block = work.A.region(work.grid.rows(i), work.grid.columns(k))
    products = block @ work.verb.probes[slice(*work.grid.columns(k))]
    if not np.isfinite(products).all():
        find_non_finite(work.A, work.grid.columns(k))
    measured(work, "load", k, started, n_bytes=block.nbytes)
    return LoadedTile(None, Seen(products, largest_modulus(block)))


def tile_of(work: Work[Verb], loaded: LoadedTile) -> Array:
    assert loaded.tile is not None
    return loaded.tile


def seen_of_block(work: Work[Verb], *loaded: LoadedTile) -> Seen:
    """What the tiles of a row block say of the matrix."""
    return Seen.of([each.seen for each in loaded])


def identity_tile(work: Work[Filling[TiledMethod]], i: int, k: int) -> Array:
    """A tile of the identity."""
    rows, columns = work.grid.rows(i), work.grid.columns(k)
    tile = work.verb.target.room(rows, columns, work.A.dtype)
    tile[...] = 0
    ones = range(max(rows[0], columns[0]), min(rows[1], columns[1]))
    tile[[row - rows[0] for row in ones], [row - columns[0] for row in ones]] = 1
    return tile


def vector_tile(work: Work[Unapplying], i: int) -> Array:
    """Rows of the vectors that come with the work."""
    return work.verb.vectors[slice(*work.grid.rows(i))].copy()


def propose(work: Work[Factoring[TiledMethod]], i: int, j: int, tile: Array, book: Facts) -> Proposed:
    started = time.perf_counter()
    method, tile, place = work.verb.method, writable(tile), place_of(work, i, j)
    candidate = method.propose(tile, book, place)
    measured(work, "factor", j, started, flops=method.whole.factor_flops(len(tile) - place.first, tile.shape[1]))
    return Proposed(tile, candidate)


def candidate_of(work: Work[Verb], proposed: Proposed) -> Facts:
    return proposed.candidate


def elect(work: Work[Factoring[TiledMethod]], j: int, book: Facts, *candidates: Facts) -> Election:
    started = time.perf_counter()
    election = work.verb.method.elect(candidates, book, work.grid.columns(j)[0])
    measured(work, "factor", j, started)
    return election


def choice_of(work: Work[Verb], election: Election) -> Facts:
    return election.choice


def book_of(work: Work[Verb], election: Election) -> Facts:
    """The book of the next step."""
    return election.book


def share_of(work: Work[Verb], election: Election, p: int) -> Facts:
    """What the row block gets that takes part as number p."""
    return election.shares[p]


def accept(work: Work[Factoring[TiledMethod]], i: int, j: int, proposed: Proposed, share: Facts) -> Array:
    started = time.perf_counter()
    tile, place = writable(proposed.tile), place_of(work, i, j)
    work.verb.method.accept(tile, proposed.candidate, share, place)
    measured(work, "factor", j, started, flops=float(len(tile) - place.first) * tile.shape[1] ** 2)
    return tile


def transform_of(work: Work[Applying[TiledMethod]], i: int, j: int, tile: Array, choice: Facts) -> TileTransform:
    return TileTransform(j, place_of(work, i, j), tile, choice)


def recall(work: Work[Applying[TiledMethod]], j: int) -> Facts:
    """The choice of a finished panel."""
    return work.verb.finished.facts[j]


def fetch(work: Work[Applying[TiledMethod]], i: int, j: int) -> TileTransform:
    """Read a finished tile."""
    started, finished = time.perf_counter(), work.verb.finished
    tile = finished.matrix.region((first_row(work, i, j), work.grid.rows(i)[1]), finished.grid.columns(j))
    measured(work, "fetch", j, started, n_bytes=tile.nbytes)
    return TileTransform(j, place_of(work, i, j), tile, finished.facts[j])


def offer(work: Work[Applying[TiledMethod]], k: int, transform: TileTransform, tile: Array) -> Array:
    started, method = time.perf_counter(), work.verb.method
    given = method.offer(transform, tile)
    flops = method.offer_flops(len(tile) - transform.place.first, transform.tile.shape[1], tile.shape[1])
    if flops:
        measured(work, "apply", k, started, flops=flops, transform=transform.index)
    return given


def meet(work: Work[Applying[TiledMethod]], choice: Facts, *offers: Array) -> Array:
    return work.verb.method.meet(choice, offers)


def update(work: Work[Applying[TiledMethod]], k: int, transform: TileTransform, tile: Array, met: Array) -> Array:
    started, method = time.perf_counter(), work.verb.method
    tile = writable(tile)
    method.update(transform, tile, met)
    sizes = len(tile) - transform.place.first, transform.tile.shape[1], tile.shape[1]
    flops = method.whole.apply_flops(*sizes) - method.offer_flops(*sizes)
    measured(work, "apply", k, started, flops=flops, transform=transform.index)
    return tile


def write_tile(work: Work[Filling[TiledMethod]], i: int, k: int, tile: Array | None, later: Sequence[Facts]) -> int:
    """Write a tile to its place, its rows as later steps moved them, and zeros above it where it is short."""
    started = time.perf_counter()
    (start, stop), (left, right) = work.grid.rows(i), work.grid.columns(k)
    tile = np.empty((0, right - left), work.A.dtype) if tile is None else writable(tile)
    order = work.verb.method.order(later, i, len(tile)) if later else None
    if order is not None:
        tile[...] = tile[order]
    if work.verb.change is not None:
        work.verb.change(i, k, tile)
    work.verb.target.finish(start, stop - start - len(tile), tile, left)
    measured(work, "write", k, started, n_bytes=(stop - start) * (right - left) * tile.itemsize)
    return k


def split_rows(work: Work[Placing], i: int, k: int) -> list[Array]:
    """The rows of a stored tile, by the row block where they belong."""
    tile = work.A.region(work.grid.rows(i), work.grid.columns(k))
    origins = [_origins(work, k, q) for q in range(work.grid.row_blocks)]
    return [tile[place[block == i]] for block, place in origins]


def rows_for(work: Work[Placing], pieces: Sequence[Array], q: int) -> Array:
    """The rows that belong in row block q."""
    return pieces[q]


def merge_rows(work: Work[Placing], q: int, k: int, *pieces: Array) -> int:
    """Write a tile from the rows that the row blocks have for it."""
    started = time.perf_counter()
    rows, columns = work.grid.rows(q), work.grid.columns(k)
    block, _ = _origins(work, k, q)
    tile = np.empty((rows[1] - rows[0], columns[1] - columns[0]), work.A.dtype)
    for i, piece in enumerate(pieces):
        tile[block == i] = piece
    work.verb.target.write(rows[0], tile, columns[0])
    measured(work, "write", k, started, n_bytes=tile.nbytes)
    return k


def _origins(work: Work[Placing], k: int, q: int) -> Origins:
    """Where the rows of row block q of panel k come from."""
    sources = work.verb.sources[k // work.grid.group][slice(*work.grid.rows(q))]
    return Origins(sources // work.grid.block_rows, sources % work.grid.block_rows)
