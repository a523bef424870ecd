"""Tables whose lines are entries of a sparse matrix: row, column and value, or row and column alone, with the value 1.

Rows and columns are numbers from 0, or names, which are numbered as they come and become the labels of the matrix.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError, SpecError
from dlscale.storage.importers.cells import Dialect
from dlscale.storage.importers.columns.numeric import shortened, told_apart
from dlscale.storage.importers.dialect import Head, read_head
from dlscale.storage.importers.entries.sorting import Entries
from dlscale.storage.importers.folders import parts_of
from dlscale.storage.importers.parquet import PARQUET_SUFFIXES, opened
from dlscale.storage.importers.records import Piece, record_pieces, without_comments, without_runs
from dlscale.storage.importers.tables import Blocks, Request, Table, need, open_text
from dlscale.storage.labels.names import Labels

PIECE_BYTES = 8 << 20  # of text
_SAMPLE_ROWS = 1000
#: Rows, or columns, for each entry, from which on numbers are taken for names.
_MOST_EMPTY, _ALWAYS = 1000, 1 << 20
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_AXES = ("row", "column")


class _Axis:
    """What rows, or columns, are called: numbers, or names in the order in which they come."""

    def __init__(self, column: str, *, named: bool) -> None:
        self.column, self.named = column, named
        self.names: dict[str, int] = {}

    def places(self, keys: Any) -> Array:
        """Where keys of Arrow are: whole numbers, or text."""
        if not self.named:
            return np.asarray(keys.to_numpy(zero_copy_only=False))
        encoded = keys.dictionary_encode() if not hasattr(keys, "indices") else keys
        known = [self.names.setdefault(name.strip(), len(self.names)) for name in encoded.dictionary.to_pylist()]
        places: Array = np.array(known, np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]
        return places


class _Batch(NamedTuple):
    """Keys and values of some entries, and the words for the place of the first of them, with its number."""

    keys: tuple[Any, Any]
    values: Any
    where: Callable[[int], str]


def _table(batches: Iterator[_Batch], axes: tuple[_Axis, _Axis], request: Request) -> Table:
    """All entries, sorted by rows."""
    entries = Entries(request.scratch, request.source)
    for batch in batches:
        i, j = (axis.places(keys) for axis, keys in zip(axes, batch.keys, strict=True))
        for axis, places in zip(axes, (i, j), strict=True):
            if "" in axis.names:
                first = int(np.flatnonzero(places == axis.names[""])[0])
                raise InputError(f"{batch.where(first)}: {axis.column!r} is empty, and names something. Correct it.")
            if (wrong := np.flatnonzero(places < 0)).size:
                raise InputError(f"{batch.where(int(wrong[0]))}: {axis.column!r} is {places[wrong[0]]}; numbers count from 0.")
        entries.append(i, j, np.ones(len(i)) if batch.values is None else np.asarray(batch.values, np.float64))
    if not len(entries):
        raise InputError(f"{request.source} holds no entries; a matrix needs at least one row and one column.")
    found = [len(axis.names) if axis.named else int(entries.highest[k]) + 1 for k, axis in enumerate(axes)]
    for axis, n in zip(axes, found, strict=True):
        if n > max(_ALWAYS, _MOST_EMPTY * len(entries)):
            most = f"{axis.column!r} goes up to {n - 1:,} in {len(entries):,} entries"
            raise InputError(f"{request.source}: {most}; if these are names, set keys: names.")
    shape = (found[0], found[1])
    dense = request.sparse is False
    notes = [note for k, axis in enumerate(axes) for note in _notes(axis, found[k], k, int(entries.lowest[k]))]
    return Table(
        *shape,
        np.dtype(np.float64),
        cast(Blocks, entries.dense_rows(shape) if dense else entries.rows(shape)),
        notes=notes,
        sparse=not dense,
        n_entries=len(entries),
        labels=Labels.of(list(axis.names) if axis.named else None for axis in axes),
    )


def _notes(axis: _Axis, n: int, k: int, lowest: int) -> Iterator[str]:
    if axis.named:
        yield f"{axis.column!r} holds {n:,} names of {_AXES[k]}s, numbered as they come"
    elif lowest > 0:
        yield f"{axis.column!r} has no {_AXES[k]} 0; if it counts from 1, {_AXES[k]} 0 of the matrix is empty"


def _places_of(request: Request, names: Any) -> list[int]:
    wanted = request.triplets or []
    if len(set(wanted)) < len(wanted):
        raise SpecError(f"triplets: must be different columns; got {', '.join(wanted)}.")
    for name in wanted:
        if list(names).count(name) != 1:
            fault = "no column" if name not in names else "more than one column"
            raise SpecError(f"{request.source} has {fault} {name!r}; its columns are: {shortened(told_apart(names))}.")
    return [list(names).index(name) for name in wanted]


@contextmanager
def text_triplets(request: Request) -> Iterator[Table]:
    """Entries of a CSV or TSV."""
    need("pyarrow.csv", request.source)
    with open_text(request.source) as (stream, _):
        quote, comment = request.quote.encode(), (request.comment or "").encode()
        delimiter = (request.delimiter or "").encode() if len(request.delimiter or "") == 1 else b""
        pieces = record_pieces(
            stream, PIECE_BYTES, source=request.source, quote=quote, delimiter=delimiter, encoding=request.encoding
        )
        first = next(pieces, Piece(b"", 1))
        if comment:
            first = Piece(without_comments(first.text, comment, quote), first.line)
        try:
            head = read_head(first, request, source=request.source)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{request.source} begins with text that is not UTF-8. Set encoding, for example to latin-1."
            ) from error
        reader = _TextReader(request, head)
        pieces = itertools.chain([head.rest], (reader.prepared(piece, comment, quote) for piece in pieces))
        yield _table((batch for piece in pieces for batch in reader.batches(piece)), reader.axes, request)


class _TextReader:
    """Pieces of text as batches of entries: by Arrow, or, where it does not know a cell, one by one."""

    def __init__(self, request: Request, head: Head) -> None:
        self._source, self._head, self._chosen = request.source, head, _places_of(request, head.names)
        self._arrow, self._csv = need("pyarrow", request.source), need("pyarrow.csv", request.source)
        named = [request.keys == "names" or (request.keys is None and not whole) for whole in self._are_whole()]
        row, column = (_Axis(head.names[j], named=is_named) for j, is_named in zip(self._chosen[:2], named, strict=True))
        self.axes = row, column

    def prepared(self, piece: Piece, comment: bytes, quote: bytes) -> Piece:
        text = without_comments(piece.text, comment, quote) if comment else piece.text
        return Piece(without_runs(text) if self._head.blanks else text, piece.line)

    def _are_whole(self) -> list[bool]:
        """Whether the first keys of either axis are whole numbers."""
        dialect = self._head.dialect
        lines = (line.decode("utf-8", "replace") + "\n" for line in self._head.rest.text.split(b"\n") if line.strip())
        records = list(itertools.islice(dialect.reader(lines), _SAMPLE_ROWS))
        return [all(j < len(cells) and _WHOLE.fullmatch(cells[j].strip()) for cells in records) for j in self._chosen[:2]]

    def batches(self, piece: Piece) -> Iterator[_Batch]:
        if not piece.text.strip():
            return
        try:
            table = self._parsed(piece.text)
        except self._arrow.ArrowException:
            yield self._one_by_one(piece)
            return
        keys = [column.combine_chunks() for column in table.columns]
        values = None
        if any(key.null_count for key in keys[:2]):  # no key is a missing value
            yield self._one_by_one(piece)
            return
        if len(keys) == 3:
            filled = keys[2].fill_null(self._head.dialect.fill) if keys[2].null_count else keys[2]
            values = self._head.dialect.filled(np.asarray(filled.to_numpy(zero_copy_only=False)))
            if np.isinf(values).any():  # which may be a number out of range
                yield self._one_by_one(piece)
                return
        yield _Batch((keys[0], keys[1]), values, lambda k: f"{self._source}, entry {k + 1} after line {piece.line - 1}")

    def _parsed(self, text: bytes) -> Any:
        arrow, dialect, names = self._arrow, self._head.dialect, [str(j) for j in range(len(self._head.names))]
        chosen = [names[j] for j in self._chosen]
        kinds = [*(arrow.string() if axis.named else arrow.int64() for axis in self.axes), arrow.float64()]
        return self._csv.read_csv(
            arrow.BufferReader(text),
            read_options=self._csv.ReadOptions(block_size=len(text) + 1, column_names=names, use_threads=False),
            parse_options=self._csv.ParseOptions(delimiter=dialect.delimiter, quote_char=dialect.quote),
            convert_options=self._csv.ConvertOptions(
                column_types=dict(zip(chosen, kinds, strict=False)),
                include_columns=chosen,
                null_values=sorted(dialect.missing),
                strings_can_be_null=False,
                decimal_point=dialect.decimal,
            ),
        )

    def _one_by_one(self, piece: Piece) -> _Batch:
        """What Arrow does not know: numbers as the dialect writes them (InputError names the first line that is wrong)."""
        dialect, rows, lines = self._head.dialect, list[tuple[Any, Any, float]](), list[int]()
        reader, start = dialect.reader(io.StringIO(piece.text.decode("utf-8", "backslashreplace"), newline="\n")), piece.line
        for cells in reader:
            where, begins, start = f"{self._source}, line {start}", start, piece.line + reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(self._head.names):
                raise InputError(f"{where}: every line must have {len(self._head.names)} cells like the first; got {len(cells)}.")
            keys = [self._key(cells[j].strip(), axis, where) for j, axis in zip(self._chosen, self.axes, strict=False)]
            rows.append((keys[0], keys[1], self._value(cells, dialect, where)))
            lines.append(begins)
        kinds = [self._arrow.string() if axis.named else self._arrow.int64() for axis in self.axes]
        first, second = (self._arrow.array([row[k] for row in rows], kinds[k]) for k in range(2))
        return _Batch((first, second), np.array([row[2] for row in rows], float), lambda k: f"{self._source}, line {lines[k]}")

    def _key(self, text: str, axis: _Axis, where: str) -> Any:
        if axis.named:
            return text
        if not _WHOLE.fullmatch(text):
            raise InputError(f"{where}: {text[:60]!r} of {axis.column!r} is no whole number, as others are; set keys: names.")
        return int(text)

    def _value(self, cells: list[str], dialect: Dialect, where: str) -> float:
        if len(self._chosen) < 3:
            return 1.0
        cell = cells[self._chosen[2]].strip()
        number = dialect.number(cell, np.dtype(np.float64))
        if number is None:
            what = f"{cell[:60]!r} is no number" if cell else "the cell is empty"
            raise InputError(
                f"{where}, column {self._chosen[2] + 1} ({self._head.names[self._chosen[2]]!r}): {what}. Correct or fill it."
            )
        return float(number)


@contextmanager
def parquet_triplets(request: Request) -> Iterator[Table]:
    """Entries of Parquet: text in the first two columns is names, whole numbers are numbers."""
    types = need("pyarrow.types", request.source)
    files, paths, _ = parts_of(request.source, PARQUET_SUFFIXES)
    wanted = request.triplets or []
    named: list[bool] = []
    for path in paths:
        with opened(files, path) as part:
            _places_of(request, part.schema_arrow.names)
            kinds = [part.schema_arrow.field(name).type for name in wanted]
            for name, kind in zip(wanted[:2], kinds, strict=False):
                if not (_is_text(types, kind) or types.is_integer(kind)):
                    raise InputError(f"{path}: column {name!r} holds {kind}; rows and columns are called by text or whole numbers.")
            if len(kinds) == 3 and not any(
                is_kind(kinds[2]) for is_kind in (types.is_integer, types.is_floating, types.is_boolean)
            ):
                raise InputError(f"{path}: column {wanted[2]!r} holds {kinds[2]}, not numbers.")
            named = named or [request.keys == "names" or _is_text(types, kind) for kind in kinds[:2]]
            if any(_is_text(types, kind) and not is_named for kind, is_named in zip(kinds[:2], named, strict=True)):
                raise InputError(f"{path} has text where {paths[0]} has numbers; set keys: names.")
            if request.keys == "numbers" and any(named):
                raise InputError(f"{path} calls rows or columns by text, and keys is numbers; leave it out.")
    if not paths:
        raise InputError(f"{request.source} holds no files that end in {' or '.join(PARQUET_SUFFIXES)}.")
    row, column = (_Axis(name, named=is_named) for name, is_named in zip(wanted[:2], named, strict=True))
    yield _table(_parquet_batches(files, paths, request, (row, column)), (row, column), request)


def _is_text(types: Any, kind: Any) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _parquet_batches(files: Any, paths: list[str], request: Request, axes: tuple[_Axis, _Axis]) -> Iterator[_Batch]:
    wanted = request.triplets or []
    for path in paths:
        start = 0
        with opened(files, path) as part:
            for batch in part.iter_batches(batch_size=1 << 18, columns=wanted, use_threads=False):
                keys = []
                for name, axis in zip(wanted[:2], axes, strict=False):
                    column = _without_gaps(batch.column(name), name, None, path, start)
                    keys.append(column.cast("string" if axis.named else "int64"))
                values = _without_gaps(batch.column(wanted[2]), wanted[2], request.mark, path, start) if len(wanted) == 3 else None
                values = None if values is None else values.cast("float64").to_numpy(zero_copy_only=False)
                yield _Batch((keys[0], keys[1]), values, lambda k, path=path, start=start: f"{path}, row {start + k}")  # type: ignore[misc]
                start += batch.num_rows


def _without_gaps(column: Any, name: str, fill: float | None, path: str, start: int) -> Any:
    if not column.null_count:
        return column
    if fill is None:
        row = start + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise InputError(f"{path}: column {name!r} has missing values, the first in row {row} (counted from 0). Fill or drop them.")
    return column.cast("float64").fill_null(fill)
