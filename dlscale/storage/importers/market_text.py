"""The lines of a Matrix Market file as numbers, and nothing but numbers: what is not one is refused by its line.

SciPy's parser is fast and takes the longest prefix of a word that is a number, so that it is given only text whose every word
is one from end to end. A check of the whole piece at once says so: it looks at the bytes that are not digits (about one in
four), each with the one before it. Everything else (infinities, comments, whatever is wrong) is read line by line.
"""

from __future__ import annotations

import io
import re
from typing import Any, NamedTuple

import numpy as np
import scipy

from dlscale.arrays import Array
from dlscale.errors import InputError

DTYPES = {"real": "f8", "double": "f8", "integer": "i8", "unsigned-integer": "u8", "complex": "c16", "pattern": "u1"}
_NUMBER = re.compile(rb"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eEdD][+-]?\d+)?|nan|inf(?:inity)?)", re.IGNORECASE)
_INTEGER = re.compile(rb"[+-]?\d+")
_MAX_DIGITS = 19  # of an index
_SHOWN = 40

# Classes of bytes; a digit is 0. A sign behind an E is a class of its own.
BLANK, NEWLINE, SIGN, POINT, EXPONENT, EXPONENT_SIGN, OTHER = range(1, 8)
_CLASSES = bytearray([OTHER]) * 256
for _byte in b"0123456789":
    _CLASSES[_byte] = 0
for _letters, _class in ((b" \t", BLANK), (b"\n", NEWLINE), (b"+-", SIGN), (b".", POINT), (b"eEdD", EXPONENT)):
    for _byte in _letters:
        _CLASSES[_byte] = _class


def _grammar(*, fractions: bool) -> bytes:
    """Which class may stand behind which, with or without digits between them: codes 16 first + 2 second + digits."""
    ok = np.zeros((8, 8, 2), bool)
    for end in (BLANK, NEWLINE):
        ok[[BLANK, NEWLINE], end] = True
        ok[[BLANK, NEWLINE], SIGN, 0] = True
        ok[SIGN, end, 1] = True
        if fractions:
            ok[POINT, end] = True
            ok[[EXPONENT, EXPONENT_SIGN], end, 1] = True
    if fractions:
        ok[[BLANK, NEWLINE, SIGN], POINT] = True
        ok[[BLANK, NEWLINE, SIGN], EXPONENT, 1] = True
        ok[POINT, EXPONENT] = True
        ok[EXPONENT, EXPONENT_SIGN, 0] = True
    return np.flatnonzero(ok).astype(np.uint8).tobytes()


_GRAMMARS = {fractions: _grammar(fractions=fractions) for fractions in (False, True)}


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


def parse_entries(piece: bytes, kind: Line, *, line: int, source: str) -> Entries:
    """The entries of whole lines, the first of which has that number in the file (InputError if one is not as it must be)."""
    text = piece.replace(b"\r\n", b"\n") if b"\r" in piece else piece
    text = re.sub(rb"\n[ \t\n]*\n", b"\n", text).lstrip(b"\n") if b"\n\n" in text or text.startswith(b"\n") else text
    if text and (plain := _plain(text, kind)) is not None:
        try:
            entries = _by_scipy(*plain, kind=kind)
        except (ValueError, OverflowError):
            entries = None
        # An infinity is written in letters, which are not plain: this one is a number out of range.
        if entries is not None and not np.isinf(entries.values).any():
            return entries if text is piece else entries._replace(n_lines=piece.count(b"\n"))
    return _by_lines(piece, kind, line=line, source=source)


def _plain(text: bytes, kind: Line) -> tuple[bytes, int] | None:
    """The text as SciPy reads it, and its number of lines, if each has its number of words and each word is a number."""
    classes = np.frombuffer(text.translate(bytes(_CLASSES)), np.uint8)
    at = np.flatnonzero(classes.view(bool))
    cur = classes[at]
    if not at.size or cur[-1] != NEWLINE:
        return None
    before = np.empty_like(cur)  # a line begins as if behind a line feed
    before[0], before[1:] = NEWLINE, cur[:-1]
    touching = np.empty(at.size, bool)
    touching[0] = at[0] == 0
    np.equal(at[1:] - at[:-1], 1, out=touching[1:])
    exponent_signs = np.flatnonzero((cur == SIGN) & (before == EXPONENT))
    cur[exponent_signs] = EXPONENT_SIGN
    before[exponent_signs[exponent_signs < at.size - 1] + 1] = EXPONENT_SIGN
    pairs = (before << 4) | (cur << 1) | ~touching
    if pairs.tobytes().translate(None, _GRAMMARS[kind.field in ("real", "double", "complex")]):
        return None
    n_words = np.cumsum((cur <= NEWLINE) & ~(touching & (before <= NEWLINE)), dtype=np.int32)
    newlines = np.flatnonzero(cur == NEWLINE)
    before_lines = np.arange(0, kind.n_words * newlines.size, kind.n_words, dtype=np.int32)
    if (n_words[newlines] != before_lines + kind.n_words).any():
        return None
    if kind.positions:
        begins = np.concatenate([[0], newlines[:-1] + 1])
        # Nothing but the blanks behind them stands in the first two words, or, with more blanks, no sign or fraction does.
        alone = (n_words[begins] == before_lines + 1).all() and (n_words[begins + 1] == before_lines + 2).all()
        if not alone and (n_words[cur > NEWLINE] % kind.n_words < 2).any():
            return None
    if b"D" in text or b"d" in text:
        text = text.replace(b"D", b"E").replace(b"d", b"e")
    signs = at[cur == SIGN]
    plus = signs[np.frombuffer(text, np.uint8)[signs] == ord("+")]
    if plus.size:
        unsigned = np.frombuffer(text, np.uint8).copy()
        unsigned[plus] = ord(" ")
        text = unsigned.tobytes()
    return text, newlines.size


def _by_scipy(text: bytes, n_lines: int, *, kind: Line) -> Entries:
    sizes = f"{kind.m} {kind.n} {n_lines}" if kind.positions else f"{n_lines} 1"
    header = f"%%MatrixMarket matrix {'coordinate' if kind.positions else 'array'} {kind.field} general\n{sizes}\n"
    parsed = scipy.io.mmread(io.BytesIO(header.encode() + text))
    if kind.positions:
        return Entries(parsed.row, parsed.col, parsed.data, n_lines)
    return Entries(None, None, parsed.ravel(), n_lines)


def _by_lines(piece: bytes, kind: Line, *, line: int, source: str) -> Entries:
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
