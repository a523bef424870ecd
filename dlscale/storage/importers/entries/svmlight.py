"""SVMlight's text, which libsvm and XGBoost write, too: on each line a label and the entries of a row, ``1 3:0.5 7:2``.

References
----------
T. Joachims, SVMlight; scikit-learn's ``load_svmlight_file``, which tells in the same way whether columns count from 0 or from 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError, SpecError
from dlscale.storage.importers.compressed import compressed_table
from dlscale.storage.importers.entries.spilled import Spill
from dlscale.storage.importers.tables import Request, Table, line_pieces, open_text, row_ranges
from dlscale.storage.sparse.groups import Compressed

PIECE_BYTES = 2 << 20  # of text; parsed, it takes some 20 times that
TARGETS = "targets"  # what the labels are called beside the matrix
_MAX_TOKEN = 400  # bytes; no number is longer
_MAX_COLUMN = 2**62
_NUMBER = re.compile(rb"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|nan|inf(?:inity)?)", re.IGNORECASE)
_ENTRY = re.compile(rb"(\d{1,19}):([^:]+)")


class _Piece(NamedTuple):
    """Labels of rows, how many entries each has, and these."""

    labels: Array
    counts: Array
    columns: Array
    values: Array
    has_queries: bool


@contextmanager
def read_svmlight(request: Request) -> Iterator[Table]:
    """The matrix in compressed rows, with the labels as ``targets`` beside it; or, as ``dataset: targets``, the labels alone.

    What follows a # is a comment, and ``qid:`` is left out. Columns count from 0 where there is an entry in column 0, else from 1.
    """
    if request.dataset not in (None, TARGETS):
        raise SpecError(f"{request.source} has the matrix and {TARGETS}; dataset: got {request.dataset!r}.")
    labels, values, columns, starts = (
        Spill(request.scratch / name, dtype)
        for name, dtype in (("labels", "f8"), ("data", "f8"), ("indices", "i8"), ("indptr", "i8"))
    )
    starts.append(np.zeros(1, np.int64))
    lowest, highest, has_queries, line = _MAX_COLUMN, -1, False, 1
    with open_text(request.source) as (stream, _):
        for text in line_pieces(stream, PIECE_BYTES, source=request.source):
            piece = _parsed(text, request.source, line)
            starts.append(columns.length + np.cumsum(piece.counts))
            labels.append(piece.labels)
            columns.append(piece.columns)
            values.append(piece.values)
            if piece.columns.size:
                lowest, highest = min(lowest, int(piece.columns.min())), max(highest, int(piece.columns.max()))
            has_queries, line = has_queries or piece.has_queries, line + text.count(b"\n")
    if not labels.length:
        raise InputError(f"{request.source} holds no rows; a matrix needs at least one.")
    if request.dataset == TARGETS:
        yield Table(labels.length, 1, labels.dtype, (labels.vector()[a:b][:, None] for a, b in row_ranges(labels.length, 1 << 20)))
        return
    first = 0 if lowest == 0 or highest < 0 else 1
    n = _n_columns(highest - first + 1, request)
    parts = Compressed(request.source, (labels.length, n), True, *_vectors(values, columns, starts, first))
    table = compressed_table(parts, request, notes=_notes(first, has_queries))
    table.beside[TARGETS] = labels.vector()
    yield table


def _vectors(values: Spill, columns: Spill, starts: Spill, first: int) -> tuple[Any, Any, Any]:
    return values.vector(), columns.vector(first), starts.vector()


def _n_columns(found: int, request: Request) -> int:
    if request.n_columns is not None and request.n_columns < found:
        most = f"an entry in column {found - 1} (counted from 0)"
        raise InputError(f"{request.source} has {most}, and n_columns is {request.n_columns}; raise it, or leave it out.")
    return request.n_columns or max(found, 1)


def _notes(first: int, has_queries: bool) -> tuple[str, ...]:
    counted = (f"columns count from {first} in the file: the first is column 0 here",) if first else ()
    return (*counted, *(("qid of the rows is left out",) if has_queries else ()))


def _parsed(text: bytes, source: str, line: int) -> _Piece:
    """Whole lines (InputError names the first that is wrong)."""
    labels: list[bytes] = []
    counts: list[int] = []
    entries: list[bytes] = []
    has_queries = False
    for row in text.split(b"\n"):
        parts = row.partition(b"#")[0].split()
        if not parts:
            continue
        if len(parts) > 1 and parts[1].startswith(b"qid:"):
            has_queries = True
            del parts[1]
        labels.append(parts[0])
        counts.append(len(parts) - 1)
        entries += parts[1:]
    joined = b":".join(entries)
    pairs = joined.split(b":") if entries else []
    tokens = labels + pairs
    # Python takes 1_0 for a number.
    plain = b"_" not in joined and not any(b"_" in label for label in labels)
    if plain and all(entry.count(b":") == 1 for entry in entries) and max(map(len, tokens), default=0) <= _MAX_TOKEN:
        try:
            columns = np.array(pairs[::2], "S").astype(np.int64) if pairs else np.zeros(0, np.int64)
            values = np.array(pairs[1::2], "S").astype(np.float64) if pairs else np.zeros(0)
            numbers = np.array(labels, "S").astype(np.float64) if labels else np.zeros(0)
        except (ValueError, OverflowError):
            columns = np.array([-1])
        else:
            if np.isinf(values).any() or np.isinf(numbers).any():
                _require_in_range(text, source, line)
        if not columns.size or 0 <= columns.min() <= columns.max() < _MAX_COLUMN:
            return _Piece(numbers, np.array(counts, np.int64), columns, values, has_queries)
    raise _fault(text, source, line)


def _require_in_range(text: bytes, source: str, line: int) -> None:
    """Refuse the first number that is infinite only in double precision (InputError)."""
    for number, row in enumerate(text.split(b"\n"), line):
        for token in row.partition(b"#")[0].split():
            value = token.rpartition(b":")[2]
            if not token.startswith(b"qid:") and b"n" not in value.lower() and np.isinf(float(value)):
                raise InputError(f"{source}, line {number}: {_shown(token)} is infinite in double precision; scale the numbers.")


def _fault(text: bytes, source: str, line: int) -> InputError:
    """What is wrong with the first line that is."""
    for number, row in enumerate(text.split(b"\n"), line):
        label, *entries = row.partition(b"#")[0].split() or [b"0"]
        where = f"{source}, line {number}"
        if not _NUMBER.fullmatch(label):
            several = " Rows with several labels are not read." if b"," in label else ""
            return InputError(f"{where}: begins with {_shown(label)}, and a label is one number.{several}")
        for k, entry in enumerate(entries):
            found = _ENTRY.fullmatch(entry)
            if k == 0 and entry.startswith(b"qid:"):
                continue
            if found is None or not _NUMBER.fullmatch(found[2]) or int(found[1]) >= _MAX_COLUMN or len(entry) > _MAX_TOKEN:
                return InputError(f"{where}: {_shown(entry)} is no entry; one is the number of its column, a colon and a number.")
    return InputError(f"{source}, line {line} and below: holds what is no number.")


def _shown(token: bytes) -> str:
    return repr(token[:60].decode("utf-8", "replace"))
