"""CSV and TSV, plain or gzipped: parsed by Arrow piece by piece; what it does not know is read again cell by cell."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError, SpecError
from dlscale.showing import without_secrets
from dlscale.storage.exactness import inexact_words, whole_and_large
from dlscale.storage.importers.cells import Columns, has_inexact_cells, read_cells
from dlscale.storage.importers.columns.filling import filled_dtype
from dlscale.storage.importers.columns.numeric import numbers_among, shortened, told_apart
from dlscale.storage.importers.dialect import INDEX_NAMES, WORDS_OF_ROWS, Head, read_head
from dlscale.storage.importers.options import setting
from dlscale.storage.importers.records import Piece, record_pieces, without_comments, without_runs
from dlscale.storage.importers.tables import Blocks, Request, Table, need, open_text
from dlscale.storage.labels.names import Labels

PIECE_BYTES = 8 << 20  # of text at a time; it takes about 15 times that while parsed, and less is slow with many columns
LEAST_COUNT = 3  # of rows that a column of numbers counts by no accident
MAX_ARROW_COLUMNS = 8192  # each takes Arrow some 6 KB; the cells of wider tables are parsed as one column


@contextmanager
def read_delimited(request: Request) -> Iterator[Table]:
    """A table of numbers as float64 (or parsed straight into the dtype asked for), with or without a line of names.

    Columns of a file without names are called 0, 1, ... An empty cell is an error unless `fill` says what it is.
    """
    need("pyarrow.csv", request.source)
    dtype = np.dtype(np.float64)
    if request.dtype is not None and request.dtype.kind in "iuf" and request.dtype != np.float16:
        dtype = request.dtype
    filled_dtype(dtype, request)
    with open_text(request.source) as (stream, position):
        delimiter = (request.delimiter or "").encode() if len(request.delimiter or "") == 1 else b""
        pieces = record_pieces(
            stream, PIECE_BYTES, source=request.source, quote=request.quote.encode(), delimiter=delimiter, encoding=request.encoding
        )
        first = _first_records(pieces, request)
        try:
            head = read_head(first, request, source=request.source)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{request.source} begins with text that is not UTF-8. Set encoding, for example to latin-1."
            ) from error
        columns, notes = _columns(request, head)
        reader = _Reader(request, head, columns, dtype, notes)
        rest = itertools.chain([head.rest], map(reader.prepared, pieces))
        blocks = (block for piece in rest for block in reader.blocks(piece))
        open_ = request.columns is None and request.index is None and columns.row_names is None and columns.color != 0
        if open_ and len(columns.chosen) > 1:
            blocks = _noting_counts(blocks, columns.names[columns.chosen[0]], source=request.source, notes=notes)
        named = Labels(column=[columns.names[j] for j in columns.chosen]) if head.named else Labels()
        rows = [] if columns.row_names is None else columns.row_names
        table = Table(None, len(columns.chosen), dtype, blocks, position=position, notes=notes, labels=named, row_names=rows)
        yield replace(table, colors=columns.colors)


def _noting_counts(blocks: Blocks, name: str, *, source: str, notes: list[str]) -> Blocks:
    """The same blocks, and a note if their first column numbers the rows, so that it may be no feature."""
    counts, n_rows, first = True, 0, 0.0
    for block in blocks:
        if n_rows == 0:
            first = float(block[0, 0])
            counts = first in (0, 1)
        counts = counts and np.array_equal(block[:, 0], np.arange(first + n_rows, first + n_rows + len(block)))
        n_rows += len(block)
        yield block
    if counts and n_rows >= LEAST_COUNT:
        leave_out = f"If it is no feature, leave it out with {setting('index', True)}."
        notes.append(f"{source}: the first column ({name!r}) numbers the rows. {leave_out}")


def _first_records(pieces: Iterator[Piece], request: Request) -> Piece:
    """The first piece, with the next ones as long as it holds fewer than two lines with cells."""
    first, mark = next(pieces, Piece(b"", 1)), (request.comment or "#").encode()
    while len(list(itertools.islice(_with_cells(first.text, mark), 2))) < 2 and (more := next(pieces, None)) is not None:
        first = Piece(first.text + more.text, first.line)
    return first if request.comment is None else Piece(without_comments(first.text, mark, request.quote.encode()), first.line)


def _with_cells(text: bytes, mark: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(text):
        end = text.find(b"\n", start) + 1 or len(text)
        line, start = text[start:end].strip(), end
        if line and not line.startswith(mark):
            yield line


def _chosen(request: Request, names: tuple[str, ...]) -> Columns:
    """The columns that are asked for, before what they hold is looked at."""
    dropped, color = set(request.drop or ()), request.color
    for name in (*(request.columns or ()), *dropped, *([] if color is None else [color])):
        if names.count(name) != 1 and (name not in names or name not in dropped or name == color):
            fault = "no column" if name not in names else "more than one column"
            raise SpecError(f"{request.source} has {fault} {name!r}; its columns are: {shortened(told_apart(names))}.")
    if request.columns is not None:
        chosen = [names.index(name) for name in request.columns if name not in dropped]
    else:
        chosen = [j for j, name in enumerate(names) if name not in dropped and (name != color or (j == 0 and request.index))]
    return Columns(names, chosen, color=None if color is None else names.index(color))


def _columns(request: Request, head: Head) -> tuple[Columns, list[str]]:
    """Which columns are read, and what is to be said of it."""
    names, columns, notes = head.names, _chosen(request, head.names), list[str]()
    chosen = columns.chosen
    if (
        head.named
        and not any(names[:2])
        and (request.columns, request.drop, request.index) == (None, None, None)
        and len(names) > 2
    ):
        raise SpecError(
            f"{request.source}: its first columns have no names, as numbers of rows have none. Leave them out with "
            f"{setting('drop', [''])}."
        )
    counts = request.index is None and _begins_with_number(head)
    # Of columns that were named, none is left out.
    is_free = 0 in chosen if request.columns is None else 0 not in chosen and not counts and columns.color != 0
    if is_free and len(names) > 1 and (_names_rows(head) if request.index is None else request.index):
        columns.chosen = [j for j in chosen if j != 0]
        columns.count, columns.row_names = (-1, None) if counts else (None, [])
        what = f"the first column ({names[0]!r}) holds the rows' {'numbers' if counts else 'names'}"
        notes = [f"{request.source}: {what} and is left out; {setting('index', False)} keeps it."]
    notes = notes[: request.index is None]
    if request.numeric:
        kept = numbers_among(columns.chosen, head)
        left_out = [repr(names[j]) for j in columns.chosen if j not in kept]
        columns.chosen = [j for j in columns.chosen if j in kept]
        if left_out:
            notes.append(f"{request.source}: left out, as they hold no numbers: {shortened(left_out)}.")
    if columns.color is not None and columns.color not in columns.chosen:
        notes.append(f"{request.source}: {request.color!r} colours the rows, and is no column of the matrix.")
    if not columns.chosen:
        raise SpecError(f"{request.source}: no column is left; its columns are: {shortened(told_apart(names))}.")
    return columns, notes


def _names_rows(head: Head) -> bool:
    """Whether the first column is called as an index is; words there are names of rows under other names, too."""
    if not head.named:
        return False
    return head.names[0] in INDEX_NAMES or (head.names[0].lower() in WORDS_OF_ROWS and not _begins_with_number(head))


def _begins_with_number(head: Head) -> bool:
    records = head.dialect.reader(line.decode("utf-8", "replace") for line in _with_cells(head.rest.text, b"\n"))
    return head.dialect.number(next(records, [""])[0], np.dtype(np.float64)) is not None


def _with_number(line: bytes, delimiter: bytes, j: int) -> bytes:
    """The same line with a number in this cell."""
    cells = line.split(delimiter, j + 1)
    cells[j] = b"0"
    return delimiter.join(cells)


class _Reader:
    """Pieces of text as blocks of rows."""

    def __init__(self, request: Request, head: Head, columns: Columns, dtype: np.dtype[Any], notes: list[str]) -> None:
        self._notes, self._is_inexact = notes, False
        self._source, self._comment, self._quote = request.source, (request.comment or "").encode(), request.quote.encode()
        self._blanks, self._dialect, self._columns, self._dtype = head.blanks, head.dialect, columns, dtype
        self._arrow, self._csv = need("pyarrow", request.source), need("pyarrow.csv", request.source)
        self._options: tuple[frozenset[int], Any] | None = None

    def prepared(self, piece: Piece) -> Piece:
        text = piece.text
        if self._comment:
            text = without_comments(text, self._comment, self._quote)
        return Piece(without_runs(text) if self._blanks else text, piece.line)

    def blocks(self, piece: Piece) -> Iterator[Array]:
        if not piece.text.strip():
            return
        wide = len(self._columns.names) > MAX_ARROW_COLUMNS
        try:
            block = self._parsed_wide(piece.text) if wide else self._parsed(piece.text)
        except self._arrow.ArrowException:
            block = None
        # An infinity may be a number out of range, which only the reading of cells tells apart.
        if block is None or (block.dtype.kind == "f" and np.isinf(block).any()):
            for block in read_cells(piece, self._dialect, self._columns, dtype=self._dtype, source=self._source):
                self._note_rounded(block, piece)
                yield block
        else:
            self._columns.settled = True
            self._note_rounded(block, piece)
            yield block

    def _note_rounded(self, block: Array, piece: Piece) -> None:
        """Once, where whole numbers of the text are rounded; their cells are looked at again where there may be such."""
        if self._is_inexact or self._dtype != np.float64:
            return
        suspects = [self._columns.chosen[j] for j in whole_and_large(block, self._dialect.fill)]
        if suspects and has_inexact_cells(piece, self._dialect, suspects):
            self._is_inexact = True
            self._notes.append(inexact_words(without_secrets(self._source)))

    def _parsed(self, text: bytes) -> Array | None:
        """By Arrow, column by column."""
        columns = self._columns
        keys = [str(j) for j in range(len(columns.names))]  # names in the file may be empty or repeated
        # Arrow's own streaming reader would read up to 32 blocks ahead of a slow disk; a piece at a time keeps the bound.
        read = self._csv.ReadOptions(block_size=len(text) + 1, column_names=keys, use_threads=False)
        parse = self._csv.ParseOptions(delimiter=self._dialect.delimiter, quote_char=self._dialect.quote)
        colors = [] if columns.color is None else self._texts(text, keys[columns.color], read, parse)
        table = self._csv.read_csv(
            self._arrow.BufferReader(text), read_options=read, parse_options=parse, convert_options=self._convert()
        )
        if columns.count is not None and not columns.continued_by(table.columns[-1].to_numpy()):
            return None
        block = np.stack([self._filled(column) for column in table.columns[: len(columns.chosen)]], axis=1)
        if columns.row_names is not None:
            columns.row_names += map(str.strip, table.columns[-1].to_pylist())
        columns.colors += colors
        return block.astype(self._dtype, copy=False)

    def _texts(self, text: bytes, key: str, read: Any, parse: Any) -> list[str]:
        """What colours rows, parsed by itself: as text, which it need not be in the matrix."""
        wanted = self._csv.ConvertOptions(include_columns=[key], column_types={key: self._arrow.string()})
        told = self._csv.read_csv(self._arrow.BufferReader(text), read_options=read, parse_options=parse, convert_options=wanted)
        return list(map(self._dialect.label, told.columns[0].to_pylist()))

    def _parsed_wide(self, text: bytes) -> Array | None:
        """By Arrow, all cells as one column; None if some line has another number of them, or a cell may hold several words."""
        columns, delimiter = self._columns, self._dialect.delimiter.encode()
        if self._quote in text:
            return None
        lines, n_columns = [line for line in text.split(b"\n") if line.strip()], len(columns.names)
        if any(line.count(delimiter) != n_columns - 1 for line in lines):
            return None
        words = {j for j in (columns.color, None if columns.row_names is None else 0) if j is not None}
        texts = {j: [line.split(delimiter, j + 1)[j].decode().strip() for line in lines] for j in words}
        for j in words - set(columns.chosen):
            lines = [_with_number(line, delimiter, j) for line in lines]
        cells = b"\n".join(lines).replace(delimiter, b"\n")
        read = self._csv.ReadOptions(block_size=len(cells) + 2, column_names=["0"], use_threads=False)
        parse = self._csv.ParseOptions(delimiter="\x1f", quote_char=False, ignore_empty_lines=False)
        buffer = self._arrow.BufferReader(cells + b"\n")
        table = self._csv.read_csv(buffer, read_options=read, parse_options=parse, convert_options=self._convert_options([], ["0"]))
        block = self._filled(table.columns[0]).reshape(len(lines), n_columns)
        if columns.count is not None and not columns.continued_by(block[:, 0]):
            return None
        if columns.row_names is not None:
            columns.row_names += texts[0]
        if columns.color is not None:
            columns.colors += map(self._dialect.label, texts[columns.color])
        return block if columns.chosen == list(range(n_columns)) else block[:, columns.chosen]

    def _filled(self, column: Any) -> Array:
        if column.null_count:
            column = column.fill_null(self._arrow.scalar(self._dialect.fill, self._arrow.float64()).cast(column.type))
        return self._dialect.filled(np.asarray(column.to_numpy()))

    def _convert(self) -> Any:
        """Arrow's options for the chosen columns; remade when columns of booleans have been found."""
        booleans = frozenset(self._columns.booleans)
        if self._options is None or self._options[0] != booleans:
            chosen = [str(j) for j in self._columns.chosen]
            made = self._convert_options([str(j) for j in booleans], chosen)
            self._options = booleans, made
        return self._options[1]

    def _convert_options(self, booleans: list[str], chosen: list[str]) -> Any:
        types = dict.fromkeys(chosen, self._arrow.from_numpy_dtype(self._dtype)) | dict.fromkeys(booleans, self._arrow.bool_())
        columns, beside = self._columns, {}
        if chosen != ["0"] and columns.count is not None:
            beside = {"0": self._arrow.float64()}
        elif chosen != ["0"] and columns.row_names is not None:
            beside = {"0": self._arrow.string()}
        return self._csv.ConvertOptions(
            column_types=types | beside,
            include_columns=[*chosen, *beside],
            null_values=sorted(self._dialect.missing),
            strings_can_be_null=False,
            true_values=[*self._dialect.words[1], "1"],
            false_values=[*self._dialect.words[0], "0"],
            decimal_point=self._dialect.decimal,
        )
