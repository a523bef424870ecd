"""Matrix Market, plain or gzipped: dense columns or sparse coordinates, made dense strip by strip in bounded memory.

Entries come in an order of their own. A first sweep parses the text in pieces and drops every entry into the spill file of
its strip of rows; a second one takes strip after strip and makes it dense.

References
----------
R. F. Boisvert, R. Pozo, K. A. Remington, The Matrix Market exchange formats, NISTIR 5935 (1996).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import scipy.io
import scipy.sparse
from numpy.typing import NDArray

from dlscale.errors import InputError
from dlscale.storage.importers.tables import Blocks, Request, Table, line_pieces, open_text, row_ranges, rows_per_block

Array = NDArray[Any]

PIECE_BYTES = 2 << 20  # of text; an entry takes up to 40 times its two shortest characters while it is sorted
DTYPES = {"real": "f8", "double": "f8", "integer": "i8", "complex": "c16", "pattern": "u1"}
MIRRORED: dict[str, Callable[[Array], Array]] = {"symmetric": np.positive, "skew-symmetric": np.negative, "hermitian": np.conj}


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

    def column_starts(self) -> tuple[Array, Array]:
        """For the dense layout: the position in the file of each column's first stored entry, and that entry's row."""
        first = np.arange(self.n_columns, dtype=np.int64) * (self.symmetry != "general") + (self.symmetry == "skew-symmetric")
        return np.concatenate([[0], np.cumsum(np.maximum(self.n_rows - first, 0))]), first


@contextmanager
def read_matrix_market(request: Request) -> Iterator[Table]:
    """real is float64, integer int64, complex complex128, pattern uint8 ones; symmetric halves are completed."""
    with open_text(request.source) as (stream, position):
        banner = _banner(stream, request.source)
        blocks = _blocks(stream, banner, request=request)
        yield Table(banner.n_rows, banner.n_columns, banner.dtype, blocks, position=position)


def _banner(stream: BinaryIO, source: str) -> Banner:
    words = stream.readline().decode("latin-1").lower().split()
    if len(words) != 5 or words[:2] != ["%%matrixmarket", "matrix"]:
        raise InputError(f"{source}, line 1: a Matrix Market file begins with '%%MatrixMarket matrix'; this one does not.")
    layout, field, symmetry = words[2:]
    if layout not in ("array", "coordinate") or field not in DTYPES or symmetry not in (*MIRRORED, "general"):
        raise InputError(f"{source}, line 1: '{layout} {field} {symmetry}' is not a kind of Matrix Market file.")
    number, line = 2, stream.readline()
    while line.startswith(b"%") or (line and not line.strip()):
        number, line = number + 1, stream.readline()
    sizes = line.split()
    if len(sizes) != (3 if layout == "coordinate" else 2) or not all(size.isdigit() for size in sizes):
        raise InputError(f"{source}, line {number}: the line of sizes is missing or wrong: {line[:80]!r}.")
    m, n = int(sizes[0]), int(sizes[1])
    if symmetry != "general" and m != n:
        raise InputError(f"{source}, line {number}: a {symmetry} matrix must be square; this one is {m} x {n}.")
    banner = Banner(layout, field, symmetry, m, n, int(sizes[-1]), number + 1)
    if layout == "array":
        starts, _ = banner.column_starts()
        return Banner(layout, field, symmetry, m, n, int(starts[-1]), number + 1)
    return banner


def _blocks(stream: BinaryIO, banner: Banner, *, request: Request) -> Blocks:
    m, n = banner.n_rows, banner.n_columns
    step = max(1, rows_per_block(n, banner.dtype.itemsize) // 4)  # an entry of a strip takes up to 6 times its value
    entry = np.dtype([("i", "i8"), ("j", "i8"), ("value", banner.dtype)])
    request.scratch.mkdir(parents=True, exist_ok=True)
    for i, j, values in _entries(stream, banner, request=request):
        entries = np.empty(i.size, entry)
        entries["i"], entries["j"], entries["value"] = i, j, values
        _spill(entries, i // step, folder=request.scratch)
    for start, stop in row_ranges(m, step):
        path = request.scratch / str(start // step)
        if not path.exists():
            yield np.zeros((stop - start, n), banner.dtype)
            continue
        entries = np.fromfile(path, entry)
        path.unlink()
        # Entries given twice are added, as the sparse formats define it.
        place = (entries["i"] - start, entries["j"])
        yield scipy.sparse.coo_array((entries["value"], place), shape=(stop - start, n)).toarray()


def _spill(entries: Array, strips: Array, *, folder: Path) -> None:
    order = np.argsort(strips, kind="stable")
    entries, strips = entries[order], strips[order]
    bounds = np.flatnonzero(np.diff(strips, prepend=-1, append=-1))
    for lo, hi in pairwise(bounds):
        with (folder / str(strips[lo])).open("ab") as file:
            entries[lo:hi].tofile(file)


def _entries(stream: BinaryIO, banner: Banner, *, request: Request) -> Iterator[tuple[Array, Array, Array]]:
    """Rows, columns and values, piece by piece, with the mirrored half of a symmetric matrix."""
    starts, first = banner.column_starts() if banner.layout == "array" else (np.empty(0), np.empty(0))
    n_done, line = 0, banner.next_line
    for piece in filter(None, map(_tidy, line_pieces(stream, PIECE_BYTES))):
        n_lines = piece.count(b"\n")
        parsed = _parse(piece, banner, n_lines=n_lines, line=line, source=request.source)
        n_done, line = n_done + n_lines, line + n_lines
        if n_done > banner.n_entries:
            break
        if banner.layout == "coordinate":
            i, j, values = parsed.row.astype(np.int64), parsed.col.astype(np.int64), parsed.data
        else:
            values = parsed.ravel()
            flat = np.arange(n_done - n_lines, n_done)
            j = np.searchsorted(starts, flat, side="right") - 1
            i = flat - starts[j] + first[j]
        yield i, j, values
        if banner.symmetry in MIRRORED:
            off = i != j
            yield j[off], i[off], MIRRORED[banner.symmetry](values[off])
    if n_done != banner.n_entries:
        found = "more" if n_done > banner.n_entries else f"only {n_done}"
        raise InputError(f"{request.source} promises {banner.n_entries} entries and holds {found}: truncated or damaged.")


def _tidy(piece: bytes) -> bytes:
    """The same lines without empty ones, ended by a line feed alone."""
    if b"\r" in piece or b"\n\n" in piece or piece.startswith(b"\n"):
        return b"".join(line.strip() + b"\n" for line in piece.split(b"\n") if line.strip())
    return piece


def _parse(piece: bytes, banner: Banner, *, n_lines: int, line: int, source: str) -> Any:
    """SciPy's parser on a piece, under a header of its own (the mirrored half is ours to add)."""
    sizes = f"{banner.n_rows} {banner.n_columns} {n_lines}" if banner.layout == "coordinate" else f"{n_lines} 1"
    header = f"%%MatrixMarket matrix {banner.layout} {banner.field} general\n{sizes}\n"
    try:
        return scipy.io.mmread(io.BytesIO(header.encode() + piece))
    except (ValueError, OverflowError) as error:
        found = re.match(r"Line (\d+): (.*)", str(error))
        where, why = (f", line {int(found[1]) - 3 + line}", found[2]) if found else ("", str(error))
        raise InputError(f"{source}{where}: {why}") from None
