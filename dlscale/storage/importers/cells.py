"""Cells of a table as numbers, one by one: what Arrow's parser does not know is understood here, or refused by its place."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError, SpecError
from dlscale.storage.importers.options import AS_NUMBERS, setting
from dlscale.storage.importers.records import Piece
from dlscale.storage.importers.tables import MAX_LINE_BYTES

CELLS_PER_BLOCK = 1 << 17
MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")
TRUE, FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eEdD][+-]?\d+)?|nan|inf(?:inity)?)", re.IGNORECASE | re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_DOUBLE = np.dtype(np.float64)
_SHOWN = 60
_MAX_DIGITS = 300


@dataclass(frozen=True)
class Dialect:
    """How cells are separated and how numbers are written in them."""

    delimiter: str
    quote: str = '"'
    decimal: str = "."
    thousands: str | None = None
    words: tuple[tuple[str, ...], tuple[str, ...]] = (FALSE, TRUE)
    missing: frozenset[str] = frozenset()
    fill: float | None = None

    def number(self, cell: str, dtype: np.dtype[Any]) -> float | int | bool | None:
        """The number of a cell (a bool for a word that stands for one); None if it is not one of this dtype."""
        text = cell.strip()
        if self.is_missing(text, dtype):
            return self.fill
        text = self.plain(text)
        if dtype.kind in "iu":
            if _INTEGER.fullmatch(text) and len(text) < 25 and np.iinfo(dtype).min <= int(text) <= np.iinfo(dtype).max:
                return int(text)
        elif _NUMBER.fullmatch(text):
            number = float(text.replace("d", "e").replace("D", "e") if "n" not in text.lower() else text)
            largest = float(np.finfo(dtype).max)
            return number if abs(number) <= largest or "n" in text.lower() else None
        return text in self.words[1] if text in self.words[0] or text in self.words[1] else None

    def is_missing(self, text: str, dtype: np.dtype[Any]) -> bool:
        """Whether a cell is one of the words for missing values, or as large as one of them that is a number."""
        if text in self.missing:
            return True
        if not self.missing_values or (value := self._value(text)) is None:
            return False
        return _held(value, dtype) in self._marks(dtype)

    @cached_property
    def missing_values(self) -> frozenset[float | int]:
        """The numbers among the words for missing values."""
        return frozenset(value for word in self.missing if (value := self._value(word)) is not None)

    def _marks(self, dtype: np.dtype[Any]) -> set[float | int]:
        """The same as a dtype holds them."""
        return {held for value in self.missing_values if (held := _held(value, dtype)) is not None}

    def _value(self, text: str) -> float | int | None:
        """A finite number, whatever dtype holds it."""
        text = self.plain(text.strip())
        if _INTEGER.fullmatch(text) and len(text) < _MAX_DIGITS:
            return int(text)
        number = float(re.sub("[dD]", "e", text)) if _NUMBER.fullmatch(text) and "n" not in text.lower() else np.inf
        return number if np.isfinite(number) else None

    def filled(self, values: Array) -> Array:
        """The numbers of a column; those that stand for missing values became what such become."""
        for mark in self._marks(values.dtype) if values.dtype.kind in "iuf" else ():
            values = np.where(values == mark, values.dtype.type(self.fill), values)
        return values

    def label(self, cell: str) -> str:
        """The text of a cell that colours a row: a number as Python writes it, and nothing where the value is missing."""
        text = cell.strip()
        if self.is_missing(text, _DOUBLE) if self.missing else text in MISSING:
            return ""
        plain = self.plain(text)
        return plain if plain != text and _NUMBER.fullmatch(plain) else text

    def plain(self, text: str) -> str:
        """The same number with a decimal point and no thousands."""
        if self.thousands is not None and self.thousands in text:
            mark = re.escape(self.thousands)
            if re.match(rf"[+-]?\d{{1,3}}({mark}\d{{3}})+(?!\d|{mark})", text):
                text = text.replace(self.thousands, "")
        return text if self.decimal == "." else text.replace(".", "?").replace(self.decimal, ".")

    def reader(self, lines: Iterable[str]) -> Any:
        """Records of lines, as lists of cells."""
        return csv.reader(lines, delimiter=self.delimiter, quotechar=self.quote, strict=False)


def _held(value: float | int, dtype: np.dtype[Any]) -> float | int | None:
    """A number as a dtype holds it; None if it does not."""
    if dtype.kind in "iu":
        return int(value) if value == int(value) and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max else None
    with np.errstate(over="ignore"):
        held = float(dtype.type(value))
    return held if np.isfinite(held) else None


@dataclass
class Columns:
    """Which columns are read, what they are called, and which hold booleans as far as is known."""

    names: tuple[str, ...]
    chosen: list[int]
    booleans: set[int] = field(default_factory=set)
    numbers: set[int] = field(default_factory=set)  # columns with another number than 0 and 1 in the first piece
    settled: bool = False  # by the first piece
    count: float | None = None  # the last number of a row that the first column held, which is left out; -1 before the first
    row_names: list[str] | None = None  # what the first column held, which is left out, of the rows of the last block
    color: int | None = None  # the column that colours rows
    colors: list[str] = field(default_factory=list)  # what it held, of the rows of the last block

    def continued_by(self, numbers: Array) -> bool:
        """Whether these number the rows on, from 0 or 1; if so, they count."""
        last = -1.0 if self.count is None else self.count
        start = 1.0 if last < 0 and numbers[:1] == [1.0] else last + 1
        if not np.array_equal(numbers, np.arange(start, start + numbers.size)):
            return False
        self.count = start + numbers.size - 1
        return True


def read_cells(piece: Piece, dialect: Dialect, columns: Columns, *, dtype: np.dtype[Any], source: str) -> Iterator[Array]:
    """The chosen cells of a piece, in blocks of rows (InputError names line and column of the first that is not a number)."""
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        reader = dialect.reader(io.StringIO(piece.text.decode("utf-8", "backslashreplace"), newline="\n"))
        rows: list[list[Any]] = []
        start = piece.line
        for cells in reader:
            where, start = f"{source}, line {start}", piece.line + reader.line_num
            if not cells or (len(cells) == 1 and not cells[0].strip() and len(columns.names) > 1):
                continue
            rows.append(_row(cells, dialect, columns, dtype=dtype, where=where))
            if columns.row_names is not None:
                columns.row_names.append(cells[0].strip())
            if columns.color is not None:
                columns.colors.append(dialect.label(cells[columns.color]))
            if len(rows) * len(columns.chosen) >= CELLS_PER_BLOCK:
                yield np.array(rows, dtype)
                rows = []
        if rows:
            yield np.array(rows, dtype)
    except csv.Error as error:
        raise InputError(f"{source}, line {piece.line + reader.line_num}: {error}.") from error
    finally:
        csv.field_size_limit(limit)
        columns.settled = True


def has_inexact_cells(piece: Piece, dialect: Dialect, columns: list[int]) -> bool:
    """Whether a cell of these columns is a whole number that double precision rounds; the cells have been read before."""
    reader = dialect.reader(io.StringIO(piece.text.decode("utf-8", "backslashreplace"), newline="\n"))
    cells = (dialect.plain(row[j].strip()) for row in reader for j in columns if j < len(row))
    return any(int(cell) != float(cell) for cell in cells if _INTEGER.fullmatch(cell) and len(cell) < _MAX_DIGITS)


def _row(cells: list[str], dialect: Dialect, columns: Columns, *, dtype: np.dtype[Any], where: str) -> list[Any]:
    n_columns = len(columns.names)
    if len(cells) != n_columns:
        raise InputError(f"{where}: every line must have {n_columns} cells like the first; this one has {len(cells)}.")
    if columns.count is not None:
        index = replace(dialect, missing=frozenset()).number(cells[0], _DOUBLE)
        if not columns.continued_by(np.array([np.nan if index is None else index])):
            raise SpecError(
                f"{where}: the first column is called {columns.names[0]!r}, as row numbers are, and {cells[0]!r} is not the number "
                "of this row. Set index to true to leave it out, to false to keep it."
            )
    row = []
    for j in columns.chosen:
        number = dialect.number(cells[j], dtype)
        place = f"{where}, column {j + 1} ({columns.names[j]!r})"
        if number is None:
            others = any(dialect.number(cells[k], dtype) is not None for k in columns.chosen)
            raise InputError(f"{place}: {_fault(cells[j].strip(), dialect, dtype, others=others)}")
        if isinstance(number, bool) and j not in columns.booleans:
            if columns.settled or j in columns.numbers:
                raise InputError(f"{place}: {cells[j]!r} stands in a column of numbers. Correct it, or choose other columns.")
            columns.booleans.add(j)
        elif number not in (0, 1, dialect.fill):
            if j in columns.booleans:
                raise InputError(f"{place}: {cells[j]!r} stands in a column of booleans. Correct it, or choose other columns.")
            if not columns.settled:
                columns.numbers.add(j)
        row.append(number)
    return row


def _fault(text: str, dialect: Dialect, dtype: np.dtype[Any], *, others: bool) -> str:
    """What is wrong with a cell, which `others` of its row that are numbers can do without."""
    if not text:
        ways = f"{setting('fill', 0)} fills all; mean or median of the column"
        return f"the cell is empty. Correct or fill it ({ways}), or choose other columns."
    shown = repr(text[:_SHOWN])
    if dtype.kind == "f" and _NUMBER.fullmatch(dialect.plain(text)):
        return f"{shown} is infinite in {dtype}. Ask for a wider dtype, or scale the numbers."
    advice = f"Correct or fill it, or choose other columns; {setting('numeric', True)} leaves out those of words."
    if not others:
        advice = f"Correct it, or {AS_NUMBERS}."
    if "," in text and dialect.decimal == ".":
        advice = "If the comma is a decimal point or separates thousands, set decimal or thousands."
    elif "." in text and dialect.decimal == ",":
        advice = "The decimal point is a comma here; if the point separates thousands, set thousands, otherwise set decimal."
    elif text.startswith("#"):
        advice = "If such lines are comments, set comment to '#'."
    return f"{shown} is not a {dtype} number. {advice}"
