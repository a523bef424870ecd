"""How a product is cut: tiles of C, each owned by one task, and the strips of A and B that are streamed past it.

    for each tile of C, in a snake, so that neighbours share the rows of A or the columns of B:
        for each step along the inner dimension:  C_ij += A_is B_sj

Strips of A and of B need not be equally wide: a matrix whose chunks are rows is read in long pieces of these only, one whose rows
go across the tile is read in any.

A tile reads ``k (b_m + b_n)`` words for ``2 k b_m b_n`` flops, so that the larger it is, the less is read.

References
----------
Kwasniewski et al. (2019), COSMA; Hong and Kung (1981) for the lower bound ``2 m n k / sqrt(memory)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from dlscale.engine.grids import OUTPUT_BYTES, blocks
from dlscale.linalg.multiply.operands import Operand, Span

#: Rows, at most, of what one thread multiplies at a time; on the diagonal, where a piece computes half of a square in vain, fewer.
PIECE_ROWS, DIAGONAL_ROWS = 2560, 512
#: Columns of it, at most. Narrower pieces, and flatter ones, are slower.
PIECE_COLUMNS = 10240
#: Entries of it, at most: between these, so many that each thread has a few pieces of a tile.
PIECE_ENTRIES = (1_500_000, 26_000_000)
PIECES_A_THREAD = 2
#: Rows that are written at a time, and entries, at most.
WRITTEN_ROWS, WRITTEN_ENTRIES = 512, 512 * PIECE_COLUMNS
#: Entries of a tile from which on larger ones hardly cost less time: several tiles are then better, for workers and checkpoints.
TILE_ENTRIES = 2**24
MIN_TILES = 16
#: The same for one worker, with whom nobody shares them.
MIN_TILES_ALONE = 4
#: Widths of a strip that are tried, beside all of the inner dimension: products with narrower ones are slower.
STRIPS = (1024, 2048, 4096, 8192, 16384)
#: Up to this one a wider strip is worth its memory.
LONG_STRIP = 2048
#: Strips of each that are in memory, one being read while one is multiplied.
N_SLOTS = 2
_SMALLEST = 64
#: Sizes that are tried beside the first one that fits, and how much smaller each is than the one before.
_SMALLER, _STEP = 64, 1 / 8
#: Tiles are larger than is wanted where else so many times the bytes are read that are needed.
IN_VAIN = 1.2
#: Of the time that the processor has for pieces of rows, what it has for as many bytes of whole ones, which are read past the
#: page cache (0.1 s a gigabyte beside products, and 1.0); and how much more is read at most to have these.
WHOLE_ROWS, FOR_WHOLE_ROWS = 0.5, 1.3


@dataclass(frozen=True)
class Tiling:
    """The grid of a product ``C = A B`` with C (m, n).

    Parameters
    ----------
    m, n, k : int
    rows, columns : int
        Of a tile; the last ones may have fewer. ``columns`` is also the width of a chunk of C.
    strip_a, strip_b : int
        Of the inner dimension, that is read of A and of B at a time; the wider one is a multiple of the other, or all of it.
    chunk_rows : int
        Of a chunk of C; divides ``rows`` where there are several tiles below each other.
    symmetric : bool
        Whether C is Hermitian: tiles below the diagonal are then the adjoints of those above.
    piece_entries : int
        Of what one thread multiplies at a time, at most.
    """

    m: int
    n: int
    k: int
    rows: int
    columns: int
    strip_a: int
    strip_b: int
    chunk_rows: int
    symmetric: bool = False
    piece_entries: int = PIECE_ENTRIES[0]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @cached_property
    def row_spans(self) -> list[Span]:
        return list(blocks(0, self.m, self.rows))

    @cached_property
    def column_spans(self) -> list[Span]:
        return list(blocks(0, self.n, self.columns))

    @cached_property
    def strips_a(self) -> list[Span]:
        return list(blocks(0, self.k, self.strip_a))

    @cached_property
    def strips_b(self) -> list[Span]:
        return list(blocks(0, self.k, self.strip_b))

    @property
    def steps(self) -> Sequence[Span]:
        """The parts of the inner dimension that are multiplied at a time."""
        return min(self.strips_a, self.strips_b, key=lambda strips: strips[0])

    @cached_property
    def tiles(self) -> Sequence[tuple[Span, Span]]:
        """Rows and columns of each tile that is computed, in order."""
        found: list[tuple[Span, Span]] = []
        for i, rows in enumerate(self.row_spans):
            across = self.column_spans[i:] if self.symmetric else self.column_spans
            found += [(rows, columns) for columns in (reversed(across) if i % 2 else across)]
        return found

    @property
    def written_rows(self) -> int:
        """Rows that are written at a time, whole chunks."""
        return self.chunk_rows * max(1, min(WRITTEN_ROWS, WRITTEN_ENTRIES // self.columns) // self.chunk_rows)

    def written(self, span: Span) -> Iterator[Span]:
        """The rows (or columns) of a tile as they are written, counted from its first one."""
        return blocks(0, span[1] - span[0], self.written_rows)

    def pieces(self, rows: Span, columns: Span) -> Iterator[Span]:
        """The rows of a tile as they are multiplied, whole chunks, counted from its first one."""
        height = rows[1] - rows[0]
        n_pieces = -(-height // (DIAGONAL_ROWS if self.is_diagonal(rows, columns) else PIECE_ROWS))
        return blocks(0, height, self.chunk_rows * -(-height // (n_pieces * self.chunk_rows)))

    def is_diagonal(self, rows: Span, columns: Span) -> bool:
        return self.symmetric and rows == columns

    def products(self, rows: Span, columns: Span, piece: Span) -> Iterator[Span]:
        """The columns of a tile that these rows of it are multiplied with, counted from its first ones."""
        width = columns[1] - columns[0]
        # What stands left of a piece of a diagonal tile is below the diagonal.
        first = piece[0] if self.is_diagonal(rows, columns) else 0
        most = min(PIECE_COLUMNS, max(1, self.piece_entries // (piece[1] - piece[0])))
        return blocks(first, width, max(1, -(-(width - first) // -(-(width - first) // most))))

    @cached_property
    def flops(self) -> float:
        entries = 0
        for rows, columns in self.tiles:
            if self.is_diagonal(rows, columns):
                pieces = [(piece, across) for piece in self.pieces(rows, columns) for across in self.products(rows, columns, piece)]
                entries += sum((piece[1] - piece[0]) * (across[1] - across[0]) for piece, across in pieces)
            else:
                entries += (rows[1] - rows[0]) * (columns[1] - columns[0])
        return 2.0 * entries * self.k

    def bytes_read(self, a: Operand, b: Operand) -> int:
        """Of all tiles together."""
        if not self.symmetric:
            return sum(self._bytes_read(a, b))
        # Tile (i, j) reads A_i and B_j, those on the diagonal one of them, which is the other one's adjoint.
        down, inner_a = a.entries_read(self.row_spans, self.strips_a)
        inner_b, across = b.entries_read(self.strips_b, self.column_spans)
        of_a = sum(inner_a) * sum(width * (len(down) - 1 - i) for i, width in enumerate(down))
        of_b = sum(inner_b) * sum(width * (i + 1) for i, width in enumerate(across))
        return (of_a + of_b) * a.matrix.stored_dtype.itemsize

    def reading_cost(self, a: Operand, b: Operand) -> float:
        """As `bytes_read`, of which whole rows cost less."""
        if self.symmetric:
            return self.bytes_read(a, b)
        of_a, of_b = self._bytes_read(a, b)
        whole_a, whole_b = a.reads_whole_rows(self.row_spans, self.strips_a), b.reads_whole_rows(self.strips_b, self.column_spans)
        return of_a * (WHOLE_ROWS if whole_a else 1) + of_b * (WHOLE_ROWS if whole_b else 1)

    def _bytes_read(self, a: Operand, b: Operand) -> tuple[int, int]:
        """Of A and of B, where C is not Hermitian."""
        of_a, of_b = a.bytes_read(self.row_spans, self.strips_a), b.bytes_read(self.strips_b, self.column_spans)
        return of_a * len(self.column_spans), of_b * len(self.row_spans)

    def bytes_needed(self, a: Operand, b: Operand) -> int:
        """As `bytes_read`, were no more read of a chunk than is needed."""
        n_down, n_across = len(self.row_spans), len(self.column_spans)
        if self.symmetric:
            # Row span i is read by all tiles of its row and of its column.
            return self.m * self.k * n_down * a.matrix.stored_dtype.itemsize
        of_a, of_b = (operand.matrix.stored_dtype.itemsize for operand in (a, b))
        return self.k * (self.m * n_across * of_a + self.n * n_down * of_b)

    @property
    def work_entries(self) -> tuple[int, int]:
        """Entries of a tile, and of the strips beside it."""
        of_a = self.rows * self.strip_a * min(N_SLOTS, len(self.strips_a))
        if self.symmetric and len(self.tiles) == 1:
            of_a = 0
        return self.rows * self.columns, of_a + self.columns * self.strip_b * min(N_SLOTS, len(self.strips_b))


def cut(
    shape: tuple[int, int, int], tile: tuple[int, int], strips: tuple[int, int], *, itemsize: int, symmetric: bool = False
) -> Tiling:
    """A tiling with tiles of about this size, of equal height and width, whole chunks of about `OUTPUT_BYTES`."""
    (m, n, k), (rows, columns) = shape, tile
    columns = -(-n // -(-n // min(n, columns)))
    rows = columns if symmetric else -(-m // -(-m // min(m, rows)))
    chunk_rows = min(rows, 2 ** max(0, (min(WRITTEN_ROWS, OUTPUT_BYTES // (columns * itemsize))).bit_length() - 1))
    if rows < m:
        rows = -(-rows // chunk_rows) * chunk_rows
        columns = rows if symmetric else columns
    strip_a, strip_b = (min(k, strip) for strip in strips)
    return Tiling(m, n, k, rows, columns, strip_a, strip_b, chunk_rows, symmetric)


def choose_tiling(
    a: Operand,
    b: Operand,
    *,
    symmetric: bool,
    room_bytes: int,
    n_threads: int,
    tile: int | None = None,
    n_tiles: int = MIN_TILES,
) -> Tiling | None:
    """The tiling that reads least of those whose work fits in ``room_bytes``; None where none does.

    Parameters
    ----------
    a : Operand (m, k)
    b : Operand (k, n)
    symmetric : bool
    room_bytes : int
        For a tile and the strips beside it.
    n_threads : int
        That multiply.
    tile : int, optional
        Rows and columns of a tile, to use as they are.
    n_tiles : int
        At least so many, of large products that are read well in these.
    """
    best: Tiling | None = None
    for larger in (1, 4, 16):
        # Larger than is wanted only where smaller ones read much of the chunks in vain.
        wanted = _sizes(a.shape[0], b.shape[1], symmetric=symmetric, n_tiles=n_tiles, larger=larger)
        sizes = [(tile, tile)] if tile else wanted
        found = _least_read(a, b, sizes, symmetric=symmetric, room_bytes=room_bytes)
        if found is not None and (best is None or found.bytes_read(a, b) < best.bytes_read(a, b)):
            best = found
        if best is None or best.bytes_read(a, b) <= IN_VAIN * best.bytes_needed(a, b):
            break
    if best is None:
        return None
    least, most = PIECE_ENTRIES
    heights = [stop - start for start, stop in replace(best, symmetric=False).pieces((0, best.rows), (0, best.columns))]
    across = -(-PIECES_A_THREAD * n_threads // len(heights))
    return replace(best, piece_entries=min(max(least, max(heights) * -(-best.columns // across)), most))


def _least_read(a: Operand, b: Operand, sizes: Iterable[tuple[int, int]], *, symmetric: bool, room_bytes: int) -> Tiling | None:
    """Of tiles of these sizes, which fall, and strips of all widths, of those that fit and read little more than the least
    of them the one whose reading costs least; of equals the longer strips."""
    (m, k), n, item = a.shape, b.shape[1], a.dtype.itemsize
    widths = _pairs(_widths(a, k, along_columns=True), _widths(b, k, along_columns=False), k, equal=symmetric)
    found: dict[Tiling, int] = {}
    left = _SMALLER
    for tile in sizes:
        for strips in widths:
            tiling = cut((m, n, k), tile, strips, itemsize=item, symmetric=symmetric)
            if tiling not in found and sum(tiling.work_entries) * item <= room_bytes:
                found[tiling] = tiling.bytes_read(a, b)
        left -= bool(found)
        if not left:
            break
    most = FOR_WHOLE_ROWS * min(found.values(), default=0)
    affordable = (tiling for tiling, n_bytes in found.items() if n_bytes <= most)

    def cost(tiling: Tiling) -> tuple[float, int, int]:
        return tiling.reading_cost(a, b), -min(LONG_STRIP, tiling.strip_a, tiling.strip_b), sum(tiling.work_entries)

    return min(affordable, key=cost, default=None)


def _widths(operand: Operand, k: int, *, along_columns: bool) -> list[int]:
    """Widths of strips of an operand, of which each reads less in vain than those before it, or as little up to `LONG_STRIP`."""
    found: dict[int, int] = {}
    for width in sorted({min(k, width) for width in (*STRIPS, k)}):
        strips = list(blocks(0, k, width))
        down, across = operand.entries_read([] if along_columns else strips, strips if along_columns else [])
        n_read = sum(across if along_columns else down)
        least = min(found.values(), default=n_read + 1)
        if n_read < least or (n_read == least and width <= LONG_STRIP):
            found[width] = n_read
    return list(found)


def _pairs(of_a: Sequence[int], of_b: Sequence[int], k: int, *, equal: bool) -> list[tuple[int, int]]:
    """Strips of A and B that begin together where the wider ones begin."""
    pairs = [(width, width) for width in of_a if width in of_b] if equal else [(a, b) for a in of_a for b in of_b]
    return [pair for pair in pairs if max(pair) == k or max(pair) % min(pair) == 0]


def _sizes(m: int, n: int, *, symmetric: bool, n_tiles: int, larger: int) -> Iterator[tuple[int, int]]:
    """Rows and columns of tiles, from the largest that are wanted to the smallest that are worth while, of several shapes."""
    area = max(TILE_ENTRIES, m * n // (2 * n_tiles if symmetric else n_tiles)) * larger
    while True:
        square = max(_SMALLEST, int(area**0.5), area // m)
        for columns in (square,) if symmetric else (square, 2 * square, 4 * square, n):
            columns = -(-n // -(-n // min(n, columns)))  # of equal width
            yield min(m, max(_SMALLEST, area // columns)), columns
        if area <= _SMALLEST**2:
            return
        area -= max(1, int(area * _STEP))
