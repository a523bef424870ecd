"""CSV and TSV, plain or gzipped: parsed by Arrow block by block; what it refuses is found again by line and column."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from dlscale.errors import InputError, SpecError
from dlscale.storage.importers.tables import Blocks, Request, Table, line_pieces, need, open_text

PIECE_BYTES = 8 << 20  # of text at a time; it takes about 15 times that while parsed, and less is slow with many columns


@dataclass(frozen=True)
class Head:
    """How cells are separated, what the columns are called, and the first line of numbers if it is read already."""

    delimiter: str
    names: tuple[str, ...]
    first: bytes
    first_line: int


@contextmanager
def read_delimited(request: Request) -> Iterator[Table]:
    """A table of numbers as float64 (or parsed straight into the dtype asked for), with or without a line of names.

    Columns of a file without names are called 0, 1, ... An empty cell is an error: a matrix has no missing entries.
    """
    need("pyarrow.csv", request.source)
    dtype = np.dtype(np.float64)
    if request.dtype is not None and request.dtype.kind in "iuf" and request.dtype != np.float16:
        dtype = request.dtype
    with open_text(request.source) as (stream, position):
        head = _head(stream, request)
        chosen = _chosen(request, head)
        blocks = _blocks(request, head, stream=stream, chosen=chosen, dtype=dtype)
        yield Table(None, len(chosen), dtype, blocks, position=position)


def _head(stream: BinaryIO, request: Request) -> Head:
    number, text = 0, ""
    while not text and (line := stream.readline()):
        number, text = number + 1, line.decode("utf-8-sig").strip()
    if not text:
        raise InputError(f"{request.source} is empty; a matrix needs at least one row.")
    tabs = request.source.lower().removesuffix(".gz").endswith(".tsv")
    delimiter = "\t" if tabs else ";" if ";" in text and "," not in text else ","
    cells = [cell.strip() for cell in next(csv.reader([text], delimiter=delimiter))]
    if not _names_columns(cells, request, line=number):
        return Head(delimiter, tuple(str(j) for j in range(len(cells))), text.encode() + b"\n", number)
    cells[0] = cells[0].removeprefix("#").strip()  # numpy.savetxt marks its header so
    return Head(delimiter, tuple(cells), b"", number + 1)


def _names_columns(cells: list[str], request: Request, *, line: int) -> bool:
    """Whether the first line names the columns; where that is open, the user must say, for a row would be lost or made up."""
    if request.header is not None:
        return request.header
    say = "Set header to true if the line names the columns, to false if it is the first row."
    numbers = [_is_number(cell, np.dtype(np.float64)) for cell in cells]
    counted = cells[not cells[0] :]  # pandas writes an empty name over its row numbers
    if len(counted) > 2 and counted == [str(j) for j in range(len(counted))]:
        raise SpecError(f"{request.source}, line {line}: 0, 1, ..., {len(counted) - 1} can be names or numbers. {say}")
    named = [j for j, cell in enumerate(cells) if cell and not numbers[j]]
    if any(numbers) and named:
        j = named[0]
        raise InputError(f"{request.source}, line {line}, column {j + 1}: {cells[j]!r} stands in a line with numbers. {say}")
    if not any(numbers) and not named:
        raise InputError(f"{request.source}, line {line}: all cells are empty; the first line must hold names or numbers.")
    return bool(named)


def _chosen(request: Request, head: Head) -> list[int]:
    if request.columns is None:
        return list(range(len(head.names)))
    for name in request.columns:
        if head.names.count(name) != 1:
            fault = "no column" if name not in head.names else "more than one column"
            shown = ", ".join(head.names[:20]) + (", ..." if len(head.names) > 20 else "")
            raise SpecError(f"{request.source} has {fault} {name!r}; its columns are: {shown}.")
    return [head.names.index(name) for name in request.columns]


def _blocks(request: Request, head: Head, *, stream: BinaryIO, chosen: list[int], dtype: np.dtype[Any]) -> Blocks:
    arrow, arrow_csv = need("pyarrow", request.source), need("pyarrow.csv", request.source)
    keys = [str(j) for j in range(len(head.names))]  # names in the file may be empty or repeated
    wanted = [keys[j] for j in chosen]
    parse = arrow_csv.ParseOptions(delimiter=head.delimiter)
    convert = arrow_csv.ConvertOptions(
        column_types=dict.fromkeys(wanted, arrow.from_numpy_dtype(dtype)),
        include_columns=wanted,
        null_values=[],
        strings_can_be_null=False,
    )
    line = head.first_line
    # Arrow's own streaming reader would read up to 32 blocks ahead of a slow disk; a piece at a time keeps the bound.
    for piece in line_pieces(stream, PIECE_BYTES, source=request.source, first=head.first):
        if piece.strip():
            read = arrow_csv.ReadOptions(block_size=len(piece) + 1, column_names=keys, use_threads=False)
            try:
                table = arrow_csv.read_csv(
                    arrow.BufferReader(piece), read_options=read, parse_options=parse, convert_options=convert
                )
            except arrow.ArrowInvalid as error:
                raise _fault(piece, line, request=request, head=head, chosen=chosen, dtype=dtype, error=error) from None
            yield np.stack([column.to_numpy() for column in table.columns], axis=1)
        line += piece.count(b"\n")


def _fault(
    piece: bytes, line: int, *, request: Request, head: Head, chosen: list[int], dtype: np.dtype[Any], error: Exception
) -> InputError:
    """Look for the first line that the parser refused, in a piece that begins at that line number."""
    n_columns = len(head.names)
    for number, raw in enumerate(piece.splitlines(), line):
        if not raw.strip():
            continue
        where = f"{request.source}, line {number}"
        cells = next(csv.reader([raw.decode("utf-8", "replace")], delimiter=head.delimiter))
        if len(cells) != n_columns:
            return InputError(f"{where}: every line must have {n_columns} cells like the first; this one has {len(cells)}.")
        for j in chosen:
            if not _is_number(cells[j], dtype):
                what = f"{cells[j]!r} is not a {dtype} number" if cells[j].strip() else "the cell is empty"
                advice = "Correct or fill it, or choose other columns."
                return InputError(f"{where}, column {j + 1} ({head.names[j]!r}): {what}. {advice}")
    return InputError(f"{request.source} cannot be parsed: {error}")


def _is_number(cell: str, dtype: np.dtype[Any]) -> bool:
    try:
        if dtype.kind == "f":
            float(cell)
            return True
        return bool(np.iinfo(dtype).min <= int(cell) <= np.iinfo(dtype).max)
    except ValueError:
        return False
