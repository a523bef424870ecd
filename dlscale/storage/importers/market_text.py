"""The lines of a Matrix Market file as numbers, and nothing but numbers: what is not one is refused by its line.

Arrow takes whole words only, one blank between them, and rounds as Python does. It is given pieces of text; one that it refuses
is given again with its blanks and exponents as Arrow writes them. What else is there (infinities, comments, whatever is wrong)
is read line by line, and so is what Arrow would take and the format does not know: hexadecimal numbers, carriage returns.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError
from dlscale.storage.importers.records import without_runs

DTYPES = {"real": "f8", "double": "f8", "integer": "i8", "unsigned-integer": "u8", "complex": "c16", "pattern": "u1"}
_NUMBER = re.compile(rb"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eEdD][+-]?\d+)?|nan|inf(?:inity)?)", re.IGNORECASE)
_INTEGER = re.compile(rb"[+-]?\d+")
_MAX_DIGITS = 19  # of an index
_SHOWN = 40
_ORDER_OF_BYTES = b"\xef"  # how a mark begins that Arrow skips
_SHORT_INDICES = 1 << 31
_FEW_BYTES = 1 << 14


class Line(NamedTuple):
    """What a line of the body holds: positions or none, numbers of a field, within a matrix of m x n."""

    positions: bool
    field: str
    m: int
    n: int

    @property
    def n_values(self) -> int:
        return {"complex": 2, "pattern": 0}.get(self.field, 1)

    @property
    def n_words(self) -> int:
        return 2 * self.positions + self.n_values


class Entries(NamedTuple):
    """Rows and columns, both from 0 (None where the lines hold no positions), values, and the number of lines."""

    i: Array | None
    j: Array | None
    values: Array
    n_lines: int


def plain_entries(piece: bytes, kind: Line) -> Entries | None:
    """The entries of whole lines where each is of the kind and of finite numbers; None where one may not be."""
    if b"x" in piece or b"X" in piece:  # Arrow takes hexadecimal integers
        return None
    text = piece
    if b"\r" in piece:
        text = piece.replace(b"\r\n", b"\n")
        if b"\r" in text:  # to Arrow the end of a line
            return None
    if (found := _by_arrow(text, kind)) is not None:
        return found
    text = without_runs(text)
    while b"\n\n" in text:
        text = text.replace(b"\n\n", b"\n")
    text = text.removeprefix(b"\n")
    if kind.field in ("real", "double", "complex"):
        text = text.replace(b"D", b"E").replace(b"d", b"e")
    found = _by_arrow(text, kind)
    return found and found._replace(n_lines=piece.count(b"\n"))


def _by_arrow(text: bytes, kind: Line) -> Entries | None:
    import pyarrow
    from pyarrow import csv

    if text.startswith(_ORDER_OF_BYTES):
        return None
    number = pyarrow.from_numpy_dtype("f8" if kind.field == "complex" else DTYPES[kind.field])
    place = pyarrow.int32() if max(kind.m, kind.n) < _SHORT_INDICES else pyarrow.int64()
    types = [*[place] * (2 * kind.positions), *[number] * kind.n_values]
    names = [str(k) for k in range(len(types))]
    try:
        table = csv.read_csv(
            pyarrow.BufferReader(text),
            read_options=csv.ReadOptions(block_size=len(text) + 1, column_names=names, use_threads=False),
            parse_options=csv.ParseOptions(delimiter=" ", quote_char=False, ignore_empty_lines=False),
            convert_options=csv.ConvertOptions(
                column_types=dict(zip(names, types, strict=True)), null_values=[], strings_can_be_null=False
            ),
        )
    except pyarrow.ArrowInvalid:
        return None
    columns = [column.to_numpy() for column in table.columns]
    values = _values(columns[2 * kind.positions :], table.num_rows, kind)
    # An infinity that is written in digits is out of range.
    if values.dtype.kind in "fc" and not np.isfinite(values).all():
        return None
    if not kind.positions:
        return Entries(None, None, values, len(values))
    i, j = (column - 1 for column in columns[:2])
    # As numbers without a sign, those below 0 are the largest.
    unsigned = f"u{i.itemsize}"
    if len(i) and (i.view(unsigned).max() >= kind.m or j.view(unsigned).max() >= kind.n):
        return None
    return Entries(i, j, values, len(values))


def _values(columns: list[Array], n: int, kind: Line) -> Array:
    if kind.field == "pattern":
        return np.ones(n, DTYPES["pattern"])
    if kind.field != "complex":
        return columns[0]
    values = np.empty(n, DTYPES["complex"])
    values.real, values.imag = columns
    return values


def mixed_entries(piece: bytes, kind: Line, *, line: int, source: str) -> Entries:
    """As `entries_by_lines`, which is asked for the few lines around those that are not plain."""
    found, start = list[Entries](), 0
    while start < len(piece):
        stop = piece.find(b"\n", start + _FEW_BYTES) + 1 or len(piece)
        few = piece[start:stop]
        found.append(plain_entries(few, kind) or entries_by_lines(few, kind, line=line, source=source))
        line, start = line + found[-1].n_lines, stop
    i, j = (np.concatenate([part[k] for part in found]) if kind.positions else None for k in range(2))
    return Entries(i, j, np.concatenate([part.values for part in found]), piece.count(b"\n"))


def entries_by_lines(piece: bytes, kind: Line, *, line: int, source: str) -> Entries:
    """The same of any lines, the first of which has that number in the file (InputError if one is not as it must be)."""
    positions: list[tuple[int, int]] = []
    values: list[Any] = []
    for number, raw in enumerate(piece.split(b"\n"), line):
        words = raw.split()
        if not words or raw.startswith(b"%"):
            continue
        where = f"{source}, line {number}"
        if len(words) != kind.n_words:
            raise InputError(f"{where}: a line must have {kind.n_words} numbers; this one has {len(words)}: {_shown(raw)}.")
        if kind.positions:
            positions.append((_position(words[0], kind.m, where=where), _position(words[1], kind.n, where=where)))
        numbers = [_number(word, kind.field, where=where) for word in words[2 * kind.positions :]]
        values.append(complex(*numbers) if kind.field == "complex" else numbers[0] if numbers else 1)
    array = np.array(values, DTYPES[kind.field])
    if not kind.positions:
        return Entries(None, None, array, piece.count(b"\n"))
    rows_columns = np.array(positions, np.int64).reshape(-1, 2)
    return Entries(rows_columns[:, 0], rows_columns[:, 1], array, piece.count(b"\n"))


def _position(word: bytes, size: int, *, where: str) -> int:
    if not word.isdigit():
        raise InputError(f"{where}: {_shown(word)} is not a row or column number.")
    if len(word.lstrip(b"0")) > _MAX_DIGITS or not 1 <= int(word) <= size:
        raise InputError(f"{where}: {_shown(word)} is out of bounds: rows and columns count from 1, here to {size}.")
    return int(word) - 1


def _number(word: bytes, field: str, *, where: str) -> float | int:
    whole = field in ("integer", "unsigned-integer")
    if not (_INTEGER if whole else _NUMBER).fullmatch(word):
        raise InputError(f"{where}: {_shown(word)} is not {'an integer' if whole else 'a number'}.")
    if whole:
        limits = np.iinfo(DTYPES[field])
        if len(word) > _MAX_DIGITS + 2 or not limits.min <= int(word) <= limits.max:
            raise InputError(f"{where}: {_shown(word)} is not between {limits.min} and {limits.max}.")
        return int(word)
    number = float(re.sub(rb"[dD]", b"e", word))
    if np.isinf(number) and b"n" not in word.lower():
        raise InputError(f"{where}: {_shown(word)} is infinite in double precision; scale the numbers.")
    return number


def _shown(text: bytes) -> str:
    return repr(text[:_SHOWN].decode("ascii", "backslashreplace")) + ("..." if len(text) > _SHOWN else "")
