"""How a table is written, told by its first lines where no option says so; where they leave it open, the user must say."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dlscale.errors import InputError, SpecError
from dlscale.storage.importers.cells import FALSE, MISSING, TRUE, Dialect
from dlscale.storage.importers.options import ReadOptions
from dlscale.storage.importers.records import Piece, without_runs

DELIMITERS = {"tab": "\t", "blank": " "}
INDEX_NAMES = ("", "Unnamed: 0", "__index_level_0__")  # pandas writes these over the names of rows
#: What people write over names of rows.
WORDS_OF_ROWS = ("index", "id", "name", "names", "row", "rows", "rowname", "rownames", "row.names", "sample", "sample_id")
_DOUBLE = np.dtype(np.float64)
_SAMPLE_BYTES = 1 << 20
_PLAIN = re.compile(r"[+-]?(\d+)(?:,(\d+))?(?:[eE][+-]?\d+)?")
_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+(\.\d*)?")
_GERMAN = re.compile(r"[+-]?\d{1,3}(?:\.\d{3})+,\d+")
_SAY_HEADER = "Set header to true if the line names the columns, to false if it is the first row."


@dataclass(frozen=True)
class Head:
    """The dialect, what the columns are called, and the rest of the first piece, which begins with the first row."""

    dialect: Dialect
    blanks: bool
    names: tuple[str, ...]
    named: bool
    rest: Piece


class _Lines:
    """The lines of a text, and where the next one begins."""

    def __init__(self, text: bytes) -> None:
        self._text, self.place = text, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.place >= len(self._text):
            raise StopIteration
        start, self.place = self.place, self._text.find(b"\n", self.place) + 1 or len(self._text)
        return self._text[start : self.place].decode("utf-8")


def read_head(piece: Piece, options: ReadOptions, *, source: str) -> Head:
    """The dialect and the names, from the first lines of a table (SpecError where they leave something open)."""
    piece, comments = _without_top(piece, options.comment or "#", source=source)
    where = f"{source}, line {piece.line}"
    texts = [line for line in itertools.islice(_Lines(piece.text), 50) if line.strip(" \n")][:2]
    tabs = source.lower().partition("?")[0].removesuffix(".gz").endswith(".tsv") and any("\t" in text for text in texts)
    delimiter, blanks = ("\t", False) if tabs and options.delimiter is None else _delimiter(texts, options)
    if delimiter == "," != options.delimiter and "," in (options.decimal, options.thousands):
        _refuse_bare_commas(texts, options, where=where)
    if blanks:
        piece = piece._replace(text=without_runs(piece.text))
    dialect = _dialect(piece.text[:_SAMPLE_BYTES].decode("utf-8", "replace"), delimiter, options, where=where)
    lines = _Lines(piece.text)
    records = dialect.reader(lines)
    cells = [cell.strip() for cell in next(records)]
    rows = Piece(piece.text[lines.place :], piece.line + records.line_num)
    second: list[str] = next((record for record in records if record), [])
    above = _commented_names(comments, dialect, blanks=blanks)
    if len(above) == len(cells) and options.header is not False and _all_numbers(cells, dialect):
        return Head(dialect, blanks, above, True, piece)
    if not _names_columns(cells, options, dialect, where=where):
        return Head(dialect, blanks, tuple(str(j) for j in range(len(cells))), False, piece)
    cells[0] = cells[0].removeprefix("#").strip()
    names_rows = delimiter in " \t" or (second and dialect.number(second[0], _DOUBLE) is None)
    if len(second) == len(cells) + 1 and second[-1].strip() and names_rows:
        cells = ["", *cells]  # R writes no name over the names of rows
    return Head(dialect, blanks, tuple(cells), True, rows)


def _without_top(piece: Piece, mark: str, *, source: str) -> tuple[Piece, list[str]]:
    """The piece from its first line with cells, and the comments above that."""
    lines, comments, line, start = _Lines(piece.text), [], piece.line, 0
    for text in lines:
        if text.lstrip().startswith(mark):
            comments.append(text.strip()[len(mark) :].strip())
        elif text.strip(" \n"):
            return Piece(piece.text[start:], line), comments
        start, line = lines.place, line + 1
    raise InputError(f"{source} {'holds no rows' if comments else 'is empty'}; a matrix needs at least one row.")


def _delimiter(texts: list[str], options: ReadOptions) -> tuple[str, bool]:
    """What separates cells, and whether it is any run of blanks; from the first line and the next."""
    if options.delimiter is not None:
        return DELIMITERS.get(options.delimiter, options.delimiter), options.delimiter == "blank"
    first, last = (re.sub(r'"[^"]*"', "q", text.strip(" \n")) for text in (texts[0], texts[-1]))
    for delimiter in ("\t", ";", "|"):
        cells = last.split(delimiter)
        if delimiter in first and len(cells) > 1 and all(_PLAIN.fullmatch(cell.strip().replace(".", "")) for cell in cells):
            return delimiter, False
    for delimiter in (";", "\t", "|", ",") if options.decimal == "," else (",", ";", "\t", "|"):
        if delimiter in first:
            return delimiter, False
    words = last.split()
    if len(words) > 1 and len(first.split()) in (len(words), len(words) - 1) and "," not in last:
        read = Dialect(" ")
        if all(read.number(word, _DOUBLE) is not None for word in words[1:]):
            return " ", True
    return ",", False


def _refuse_bare_commas(texts: list[str], options: ReadOptions, *, where: str) -> None:
    """Commas that shall be part of numbers separate cells only where such numbers stand in quotation marks."""
    quoted = re.findall(rf"{re.escape(options.quote)}([^{re.escape(options.quote)}]*){re.escape(options.quote)}", " ".join(texts))
    if "," in texts[-1] and not any("," in cell for cell in quoted):
        raise SpecError(
            f"{where}: a comma can be a part of a number, as decimal or thousands says, or separate two. Set delimiter."
        )


def _dialect(sample: str, delimiter: str, options: ReadOptions, *, where: str) -> Dialect:
    decimal: str = options.decimal or ("," if options.thousands == "." else ".")
    thousands = options.thousands
    if options.decimal is None and thousands is None:
        decimal, thousands = (".", ",") if delimiter == "," else _marks(sample, delimiter, where=where)
    zero, one = ([], []) if options.booleans is None else ([options.booleans[0]], [options.booleans[1]])
    missing = () if options.fill is None else MISSING if options.missing is None else options.missing
    words = (*FALSE, *zero), (*TRUE, *one)
    return Dialect(delimiter, options.quote, decimal, thousands, words, frozenset(missing), options.mark)


def _marks(sample: str, delimiter: str, *, where: str) -> tuple[str, str | None]:
    """The decimal point, and what separates thousands, of numbers in cells that commas do not separate."""
    if "," not in sample:
        return ".", None
    cells = [cell.strip(' "') for cell in re.split(rf"[{re.escape(delimiter)}\n]", sample) if "," in cell]
    if any(_GERMAN.fullmatch(cell) for cell in cells):
        return ",", "."
    numbers = [cell for cell in cells if _PLAIN.fullmatch(cell) or _GROUPS.fullmatch(cell)]
    groups = [match for cell in numbers if (match := _GROUPS.fullmatch(cell))]
    if len(groups) < len(numbers):
        return ",", None
    if any(match[1] or match[0].count(",") > 1 for match in groups):
        return ".", ","
    if groups:
        raise SpecError(
            f"{where} and below: {groups[0][0]} can be a fraction or a number of thousands. Set decimal to ',' or thousands to ','."
        )
    return ".", None


def _commented_names(comments: list[str], dialect: Dialect, *, blanks: bool) -> tuple[str, ...]:
    """The names that the last comment above the rows holds, as numpy.savetxt writes them."""
    if not comments:
        return ()
    cells = comments[-1].split() if blanks else next(dialect.reader([comments[-1]]), [])
    return tuple(cell.strip() for cell in cells)


def _all_numbers(cells: list[str], dialect: Dialect) -> bool:
    return all(not cell or dialect.number(cell, _DOUBLE) is not None for cell in cells)


def _names_columns(cells: list[str], options: ReadOptions, dialect: Dialect, *, where: str) -> bool:
    """Whether the first line names the columns; where that is open, the user must say, for a row would be lost or made up."""
    if options.header is not None:
        return options.header
    values = [dialect.number(cell, _DOUBLE) for cell in cells]
    numbers = [value is not None and cell != "" for cell, value in zip(cells, values, strict=True)]
    counted = cells[not cells[0] :]  # pandas writes an empty name over its row numbers
    if len(counted) > 2 and counted == [str(j) for j in range(len(counted))]:
        raise SpecError(f"{where}: 0, 1, ..., {len(counted) - 1} can be names or numbers. {_SAY_HEADER}")
    if all(isinstance(value, bool) for value in values):
        raise SpecError(f"{where}: {cells[0]!r} and the others can be names or values. {_SAY_HEADER}")
    named = [j for j, cell in enumerate(cells) if cell and not numbers[j]]
    if any(numbers) and named:
        j = named[0]
        raise InputError(f"{where}, column {j + 1}: {cells[j]!r} stands in a line with numbers. {_SAY_HEADER}")
    if not any(numbers) and not named:
        raise InputError(f"{where}: all cells are empty; the first line must hold names or numbers.")
    return bool(named)
