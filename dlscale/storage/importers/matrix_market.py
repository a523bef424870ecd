"""Matrix Market, plain or gzipped: dense columns or sparse coordinates, made dense or compressed strip by strip.

Entries come in an order of their own. Where it is that of the rows, a strip of rows is done when the next one begins. Else a first
sweep parses the text in pieces and drops every entry into the spill file of its strip; a second one takes strip after strip. Whole
columns of numbers are kept as they come, and read again by rows.

References
----------
R. F. Boisvert, R. Pozo, K. A. Remington, The Matrix Market exchange formats, NISTIR 5935 (1996).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import scipy.sparse

from dlscale.arrays import Array
from dlscale.errors import InputError
from dlscale.host import n_cores
from dlscale.storage.files.ahead import ahead, worked_ahead
from dlscale.storage.files.locations import named
from dlscale.storage.importers.market_text import DTYPES, Entries, Line, mixed_entries, plain_entries
from dlscale.storage.importers.tables import (
    Blocks,
    OutOfOrderError,
    Request,
    Table,
    line_pieces,
    open_text,
    row_ranges,
    rows_per_block,
)
from dlscale.storage.sparse.sums import first_overflow

PIECE_BYTES = 4 << 20  # of text; an entry of the four shortest characters takes some 40 bytes while it is parsed
ARRAY_SHARE = 4  # of a piece where lines have one number, and what is parsed of them takes more memory
MAX_THREADS = 4  # that parse pieces: what is left to do for one is slower than more of them
SPARSE_ENTRIES = 1 << 20  # of a strip of a sparse matrix
N_PARTS = 4  # of such a strip where entries come in order, one after the other: while one is made no piece is asked for
MAX_HEADER_LINE = 1 << 20
MAX_SIZE_DIGITS = 18
GZIP_RATIO = 1032  # of text to packed text, at most
MIRRORED: dict[str, Callable[[Array], Array]] = {"symmetric": np.positive, "skew-symmetric": np.negative, "hermitian": np.conj}
#: Kinds that contradict themselves.
IMPOSSIBLE = {("pattern", "skew-symmetric"), ("unsigned-integer", "skew-symmetric")}


@dataclass(frozen=True)
class Banner:
    """The first lines of the file, and the number of the line after them."""

    layout: str
    field: str
    symmetry: str
    n_rows: int
    n_columns: int
    n_entries: int
    next_line: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(DTYPES[self.field])

    @property
    def line(self) -> Line:
        return Line(self.layout == "coordinate", self.field, self.n_rows, self.n_columns)

    def column_starts(self) -> tuple[Array, Array]:
        """For a dense symmetric matrix: where in the file each column's first stored entry is, and that entry's row."""
        first = np.arange(self.n_columns, dtype=np.int64) + (self.symmetry == "skew-symmetric")
        return np.concatenate([[0], np.cumsum(self.n_rows - first)]), first


class Part(NamedTuple):
    """Some of the entries, with rows and columns from 0."""

    i: Array
    j: Array
    values: Array


@contextmanager
def read_matrix_market(request: Request) -> Iterator[Table]:
    """real is float64, integer int64, complex complex128, pattern uint8 counts; symmetric halves are completed."""
    with open_text(request.source) as (stream, position):
        banner = _banner(stream, request.source)
        n_bytes = position()[1] * (GZIP_RATIO if named(request.source).endswith(".gz") else 1)
        if 2 * banner.n_entries > n_bytes + 1:  # a digit and a line's end
            raise InputError(
                f"{request.source} promises {banner.n_entries} entries and has only {position()[1]} bytes: truncated or damaged."
            )
        dense = banner.layout == "array" and banner.symmetry == "general"
        sparse = _is_sparse(banner, request)
        blocks = _columns(stream, banner, request=request) if dense else ahead(_strips(stream, banner, request=request))
        n_entries = banner.n_entries * (1 if banner.symmetry == "general" else 2) if sparse else None
        yield Table(banner.n_rows, banner.n_columns, banner.dtype, blocks, position=position, sparse=sparse, n_entries=n_entries)


def _banner(stream: BinaryIO, source: str) -> Banner:
    words = stream.readline(MAX_HEADER_LINE).decode("latin-1").lower().split()
    if len(words) != 5 or words[:2] != ["%%matrixmarket", "matrix"]:
        raise InputError(f"{source}, line 1: a Matrix Market file begins with '%%MatrixMarket matrix'; this one does not.")
    layout, field, symmetry = words[2:]
    if (
        layout not in ("array", "coordinate")
        or field not in DTYPES
        or symmetry not in (*MIRRORED, "general")
        or (field, symmetry) in IMPOSSIBLE
        or (field, layout) == ("pattern", "array")
    ):
        raise InputError(f"{source}, line 1: '{layout} {field} {symmetry}' is not a kind of Matrix Market file.")
    number, line = 2, stream.readline(MAX_HEADER_LINE)
    while line.startswith(b"%") or (line and not line.strip()):
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_HEADER_LINE)  # the rest of a long comment
        number, line = number + 1, stream.readline(MAX_HEADER_LINE)
    sizes = line.split()
    wanted = 3 if layout == "coordinate" else 2
    if len(sizes) != wanted or not all(size.isdigit() and len(size) <= MAX_SIZE_DIGITS for size in sizes):
        raise InputError(f"{source}, line {number}: the line of sizes is missing or wrong: {line[:80]!r}.")
    m, n = int(sizes[0]), int(sizes[1])
    if symmetry != "general" and m != n:
        raise InputError(f"{source}, line {number}: a {symmetry} matrix must be square; this one is {m} x {n}.")
    if layout == "coordinate":
        n_entries = int(sizes[2])
    else:
        n_entries = m * n if symmetry == "general" else m * (m - 1) // 2 if symmetry == "skew-symmetric" else m * (m + 1) // 2
    return Banner(layout, field, symmetry, m, n, n_entries, number + 1)


def _columns(stream: BinaryIO, banner: Banner, *, request: Request) -> Blocks:
    """A dense matrix without symmetry: its columns are kept one after the other, and blocks of rows are read from all."""
    m, n, itemsize = banner.n_rows, banner.n_columns, banner.dtype.itemsize
    request.scratch.mkdir(parents=True, exist_ok=True)
    with (request.scratch / "columns").open("w+b") as file:
        for values, _ in _pieces(stream, banner, request=request):
            values.values.tofile(file)
        file.flush()
        for start, stop in row_ranges(m, rows_per_block(n, itemsize)):
            block = np.empty((n, stop - start), banner.dtype)
            for j in range(n):
                file.seek((j * m + start) * itemsize)
                file.readinto(block[j].data)
            yield block.T


def _strips(stream: BinaryIO, banner: Banner, *, request: Request) -> Blocks:
    n, sparse = banner.n_columns, _is_sparse(banner, request)
    # A power of two of rows; an entry of a strip takes up to 6 times its value.
    step = _sparse_rows(banner) if sparse else max(1, rows_per_block(n, banner.dtype.itemsize) // 4)
    entry = np.dtype([("i", "i4"), ("j", "i4" if n <= 1 << 31 else "i8"), ("value", banner.dtype)])
    request.scratch.mkdir(parents=True, exist_ok=True)
    parts, first = _entries(stream, banner, request=request), list[Part]()
    if request.in_order and banner.symmetry == "general":
        height = max(1, step // N_PARTS) if sparse else step
        first = yield from _as_they_come(parts, banner, height, request=request)
        if not first:
            return
    for part in chain(first, parts):
        _spill_part(part, entry, step, folder=request.scratch)
    yield from _spilled(banner, entry, step, request=request)


def _as_they_come(parts: Iterator[Part], banner: Banner, step: int, *, request: Request) -> Generator[Any, None, list[Part]]:
    """Each strip when the next one begins; where the order breaks before the first one has ended, the parts that were taken."""
    held, current, shift = list[Part](), 0, step.bit_length() - 1
    for part in parts:
        strips = part.i >> shift
        if strips[0] < current or (strips[1:] < strips[:-1]).any():
            if current:
                raise OutOfOrderError(f"{request.source} has its rows in order at first, and not to its end.")
            return [*held, part]
        for lo, hi in _runs(strips):
            for k in range(current, int(strips[lo])):
                yield _strip(held, k * step, step, banner, request=request)
                held = []
            current = int(strips[lo])
            held.append(Part(part.i[lo:hi], part.j[lo:hi], part.values[lo:hi]))
    for start in range(current * step, banner.n_rows, step):
        yield _strip(held, start, step, banner, request=request)
        held = []
    return []


def _spill_part(part: Part, entry: np.dtype[Any], step: int, *, folder: Path) -> None:
    strips, entries = part.i >> (step.bit_length() - 1), np.empty(part.i.size, entry)
    entries["i"], entries["j"], entries["value"] = part.i & (step - 1), part.j, part.values
    spill(entries, strips.astype(np.uint16) if strips.max(initial=0) < 1 << 16 else strips, folder=folder)


def _spilled(banner: Banner, entry: np.dtype[Any], step: int, *, request: Request) -> Blocks:
    """Strip after strip of what was spilled."""
    for start, _ in row_ranges(banner.n_rows, step):
        path, found = request.scratch / str(start // step), list[Part]()
        if path.exists():
            entries = np.fromfile(path, entry)
            found = [Part(entries["i"], entries["j"], entries["value"])]
            path.unlink()
        yield _strip(found, start, step, banner, request=request)


def _strip(found: list[Part], start: int, step: int, banner: Banner, *, request: Request) -> Any:
    """The rows of a strip, from its entries."""
    shape, limit = (min(step, banner.n_rows - start), banner.n_columns), request.dtype or banner.dtype
    sparse = _is_sparse(banner, request)
    if not found:
        return scipy.sparse.csr_array(shape, dtype=banner.dtype) if sparse else np.zeros(shape, banner.dtype)
    i, j, values = found[0] if len(found) == 1 else (np.concatenate(parts) for parts in zip(*found, strict=True))
    part = Part(i & (step - 1), j, values)
    if sparse and (rows := _compressed(part, shape)) is not None:
        return rows
    parts = _summed(part, shape, start=start, limit=limit, source=request.source)
    rows = parts.tocsr() if sparse else parts.toarray()
    return rows.astype(np.uint8) if limit == np.uint8 else rows


def _compressed(part: Part, shape: tuple[int, int]) -> Any | None:
    """Compressed rows of entries that come as these need them: in order, each place once; None of others."""
    i, j, values = part
    same = i[1:] == i[:-1]
    if (i[1:] < i[:-1]).any() or (same & (j[1:] <= j[:-1])).any():
        return None
    last, ends = np.flatnonzero(np.append(~same, True)), np.zeros(shape[0] + 1, np.int32)
    ends[i[last] + 1] = np.diff(last, prepend=-1)
    data, indices = np.ascontiguousarray(values), np.ascontiguousarray(j)  # of records they are not
    return scipy.sparse.csr_array((data, indices, np.cumsum(ends, dtype=np.int32)), shape=shape)


def _runs(strips: Array) -> Iterator[tuple[int, int]]:
    """Where equal neighbours begin, and where they end."""
    bounds = [0, *(np.flatnonzero(strips[1:] != strips[:-1]) + 1).tolist(), len(strips)]
    return pairwise(bounds)


def _is_sparse(banner: Banner, request: Request) -> bool:
    return request.sparse is True and banner.layout == "coordinate"


def _sparse_rows(banner: Banner) -> int:
    """A power of two of rows with about so many entries, so that few enough strips are open at the same time."""
    rows = max(1, banner.n_rows * SPARSE_ENTRIES // max(1, banner.n_entries))
    return 1 << min(rows.bit_length() - 1, 30)


def _summed(part: Part, shape: tuple[int, int], *, start: int, limit: np.dtype[Any], source: str) -> Any:
    """Entries given twice are to be added, as the sparse formats define it, in a type that holds the sum."""
    values = part.values.astype(np.int64 if part.values.dtype == np.uint8 else part.values.dtype)
    largest = limit if limit.kind in "iu" else values.dtype
    fit = _sums_fit(values, largest)
    if not fit and values.dtype.kind in "iu" and limit.kind in "fc":
        values, fit = values.astype(np.float64), True
    parts = scipy.sparse.coo_array((values, (part.i, part.j)), shape=shape)
    if not fit and values.dtype.kind in "iu":
        _check_sums(part, limit, start=start, source=source)
    elif not fit and (lost := first_overflow(parts, rows := parts.tocsr())) is not None:
        raise _out_of_range(start + lost[0], lost[1], rows[lost], values.dtype, source)
    return parts


def _sums_fit(values: Array, dtype: np.dtype[Any]) -> bool:
    """Whether no sum of any of these values can pass the range of a dtype."""
    parts = values.view(values.real.dtype) if values.dtype.kind == "c" else values
    most = max(abs(float(parts.max())), abs(float(parts.min()))) * values.size
    return most < float(np.iinfo(dtype).max if dtype.kind in "iu" else np.finfo(dtype).max) / 2


def _check_sums(part: Part, dtype: np.dtype[Any], *, start: int, source: str) -> None:
    """Add up exactly the integers that are given twice; InputError names the first sum out of range."""
    sums: dict[tuple[int, int], Any] = {}
    order = np.lexsort((part.j, part.i))
    i, j = part.i[order], part.j[order]
    same = (i[1:] == i[:-1]) & (j[1:] == j[:-1])
    repeated = np.zeros(i.size, bool)
    repeated[1:] |= same
    repeated[:-1] |= same
    given = np.sort(order[repeated])
    for row, column, value in zip(*(numbers[given].tolist() for numbers in part), strict=True):
        sums[row, column] = sums.get((row, column), 0) + value
    for (row, column), total in sums.items():
        if not np.iinfo(dtype).min <= total <= np.iinfo(dtype).max:
            raise _out_of_range(start + row, column, total, dtype, source)


def _out_of_range(row: int, column: int, total: Any, dtype: np.dtype[Any], source: str) -> InputError:
    advice = "Ask for dtype f8, or correct the file" if dtype.kind in "iu" else "Correct or scale the numbers"
    place = f"row {row + 1}, column {column + 1}"
    return InputError(f"{source}: the entries given for {place} add up to {total}, which {dtype} does not hold. {advice}.")


def spill(entries: Array, strips: Array, *, folder: Path) -> None:
    """Append each entry to the file of its strip."""
    if not strips.size:
        return
    if (strips[1:] < strips[:-1]).any():
        order = np.argsort(strips, kind="stable")
        entries, strips = entries[order], strips[order]
    for lo, hi in _runs(strips):
        with (folder / str(strips[lo])).open("ab") as file:
            file.write(entries[lo:hi].data)


def _pieces(stream: BinaryIO, banner: Banner, *, request: Request) -> Iterator[tuple[Entries, int]]:
    """Entries as they are given, piece by piece, with the number of those before; as many as the banner promises."""
    n_done, line = 0, banner.next_line
    size = PIECE_BYTES if banner.layout == "coordinate" else PIECE_BYTES // ARRAY_SHARE
    pieces = line_pieces(stream, size, source=request.source)
    parsed = worked_ahead(pieces, lambda piece: (piece, plain_entries(piece, banner.line)), n_threads=min(n_cores(), MAX_THREADS))
    with closing(parsed):
        for piece, plain in parsed:
            entries = plain or mixed_entries(piece, banner.line, line=line, source=request.source)
            line += entries.n_lines
            before, n_done = n_done, n_done + entries.values.size
            if n_done > banner.n_entries:
                break
            if entries.values.size:
                yield entries, before
    if n_done != banner.n_entries:
        found = "more" if n_done > banner.n_entries else f"only {n_done}"
        raise InputError(f"{request.source} promises {banner.n_entries} entries and holds {found}: truncated or damaged.")


def _entries(stream: BinaryIO, banner: Banner, *, request: Request) -> Iterator[Part]:
    """Rows, columns and values, piece by piece, with the mirrored half of a symmetric matrix."""
    starts, first = banner.column_starts() if banner.layout == "array" else (np.empty(0), np.empty(0))
    sides: set[bool] = set()
    for (i, j, values, _), before in _pieces(stream, banner, request=request):
        if i is None or j is None:
            flat = np.arange(before, before + values.size)
            j = np.searchsorted(starts, flat, side="right") - 1
            i = flat - starts[j] + first[j]
        yield Part(i, j, values)
        if banner.symmetry in MIRRORED:
            off = i != j
            sides |= set(np.unique(i[off] > j[off]).tolist())
            _check_half(values[~off], i[~off], sides, banner=banner, source=request.source)
            yield Part(j[off], i[off], MIRRORED[banner.symmetry](values[off]))


def _check_half(diagonal: Array, rows: Array, sides: set[bool], *, banner: Banner, source: str) -> None:
    """A symmetric file stores one triangle, with a diagonal that such a matrix can have."""
    if len(sides) == 2:
        raise InputError(
            f"{source} says {banner.symmetry}, which stores one triangle, and has entries on both sides of the diagonal: each "
            "would count twice. Write general in line 1 if all entries are there."
        )
    wrong = {"skew-symmetric": diagonal, "hermitian": diagonal.imag}.get(banner.symmetry, diagonal[:0]) != 0
    if wrong.any():
        k = int(np.flatnonzero(wrong)[0])
        raise InputError(f"{source} says {banner.symmetry}, and entry {rows[k] + 1} of the diagonal is {diagonal[k]}.")
