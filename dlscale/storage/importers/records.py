"""The text of a table in pieces of whole records: one encoding, one kind of line end, no cut inside quotation marks."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np

from dlscale.errors import InputError
from dlscale.storage.importers.tables import MAX_LINE_BYTES

_BEFORE_QUOTE = b",;\t|\n"  # what stands before a quotation mark that opens a cell, besides the delimiter of a request


class Piece(NamedTuple):
    """Whole lines, and the number in the file of the first."""

    text: bytes
    line: int


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Recoded:
    """The bytes of a text in another encoding, as UTF-8."""

    def __init__(self, stream: _Stream, encoding: str) -> None:
        self._stream, self._decoder = stream, codecs.getincrementaldecoder(encoding)()

    def read(self, size: int, /) -> bytes:
        while chunk := self._stream.read(size):
            if text := self._decoder.decode(chunk):
                return text.encode()
        return self._decoder.decode(b"", final=True).encode()


class _Begun:
    """A stream whose first bytes have been read already."""

    def __init__(self, first: bytes, stream: BinaryIO) -> None:
        self._first, self._stream = first, stream

    def read(self, size: int, /) -> bytes:
        first, self._first = self._first, b""
        return first + self._stream.read(size)


def record_pieces(
    stream: BinaryIO, size: int, *, source: str, quote: bytes, delimiter: bytes = b"", encoding: str | None = None
) -> Iterator[Piece]:
    """Pieces of about `size` bytes with line feeds alone at the ends of lines; the last one ends with such, too.

    Raises
    ------
    InputError
        If a record is longer than `MAX_LINE_BYTES`, or the text ends within quotation marks.
    """
    begins = stream.read(4)
    if encoding is None and begins.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    text: _Stream = _Begun(begins.removeprefix(codecs.BOM_UTF8), stream)
    if encoding is not None and codecs.lookup(encoding).name != "utf-8":
        text = _Recoded(text, encoding)
    openers = _BEFORE_QUOTE + delimiter
    rest, line = b"", 1
    while chunk := text.read(size):
        chunk = rest + chunk
        held = len(chunk) - len(chunk.rstrip(b"\r"))  # the last may belong to a line feed that comes next
        if b"\r" in chunk:
            chunk = _with_line_feeds(chunk[: len(chunk) - held])
        cut = chunk.rfind(b"\n") + 1
        if (open_ := _opened(chunk[:cut], quote, openers)) is not None:
            cut = open_[1]
        piece, rest = chunk[:cut], chunk[cut:] + b"\r" * held
        if len(rest) > MAX_LINE_BYTES:
            raise InputError(f"{source}, line {line + _n_lines(piece)}: this line, or its quotation, has no end.")
        if piece:
            yield Piece(piece, line)
            line += _n_lines(piece)
    if rest := rest.rstrip(b"\r"):
        if (open_ := _opened(rest, quote, openers)) is not None:
            where = f"{source}, line {line + _n_lines(rest[: open_[0]])}"
            raise InputError(f"{where}: a quotation begins here and is never closed; the file is truncated or damaged.")
        yield Piece(rest + b"\n", line)


def _with_line_feeds(text: bytes) -> bytes:
    """The same lines, ended by line feeds alone; the text ends with no carriage return."""
    codes = np.frombuffer(text, np.uint8)
    returns = np.flatnonzero(codes == ord("\r"))
    if (codes[returns + 1] == ord("\n")).all():
        return text.replace(b"\r", b"")  # a third of the time of the general way
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _n_lines(text: bytes) -> int:
    return text.count(b"\n")


def _opened(text: bytes, quote: bytes, openers: bytes) -> tuple[int, int] | None:
    """Where the quotation begins that is still open at the end of a text, and how much of the text lies in whole records.

    None if no quotation is open. The text itself begins outside of one.
    """
    if not quote or quote not in text:
        return None
    codes = np.frombuffer(text, np.uint8)
    at = np.flatnonzero(codes == quote[0])
    opening, closing = at[::2], at[1::2]
    before, after = codes[opening[opening > 0] - 1], codes[closing[closing < len(text) - 1] + 1]
    around = np.frombuffer(openers + quote, np.uint8)
    if not (np.isin(before, around).all() and np.isin(after, around).all()):
        return _opened_among_letters(text, at.tolist(), quote, openers)
    if at.size % 2 == 0:
        return None
    # A mark behind a mark is the second of two that stand for one in a quotation.
    begins = opening[np.concatenate([[True], opening[1:] != closing + 1])]
    newlines = np.flatnonzero(codes[: begins[-1]] == ord("\n"))
    outside = newlines[np.searchsorted(at, newlines) % 2 == 0]
    return int(begins[-1]), int(outside[-1]) + 1 if outside.size else 0


def _opened_among_letters(text: bytes, at: list[int], quote: bytes, openers: bytes) -> tuple[int, int] | None:
    """As `_opened`, where marks also stand inside of cells that do not begin with one, as letters like others."""
    opened, closed, whole, k = -1, 0, 0, 0
    while k < len(at):
        place = at[k]
        if opened < 0:
            if place == 0 or text[place - 1] in openers:
                opened, whole = place, max(whole, text.rfind(b"\n", closed, place) + 1)
        elif text[place + 1 : place + 2] == quote:
            k += 1
        else:
            opened, closed = -1, place
        k += 1
    return (opened, whole) if opened >= 0 else None


def without_comments(text: bytes, comment: bytes, quote: bytes) -> bytes:
    """The same lines, those that begin with a mark emptied."""
    if comment not in text:
        return text
    if not quote or quote not in text:
        return re.sub(rb"(?m)^[ \t]*" + re.escape(comment) + rb".*$", b"", text)
    lines, inside = text.split(b"\n"), False
    for k, line in enumerate(lines):
        if not inside and line.lstrip().startswith(comment):
            lines[k] = b""
        else:
            inside ^= line.count(quote) % 2 == 1
    return b"\n".join(lines)


def without_runs(text: bytes) -> bytes:
    """One blank between cells, and none at the ends of lines."""
    text = text.replace(b"\t", b" ")
    while b"  " in text:  # halved each time, which is several times as fast as a regular expression
        text = text.replace(b"  ", b" ")
    return text.replace(b" \n", b"\n").replace(b"\n ", b"\n").removeprefix(b" ")
