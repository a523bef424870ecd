"""What a reader of a foreign format is asked for, and what it hands over: a request in, a table of row blocks out."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import fsspec
import numpy as np
from pydantic import ConfigDict

from dlscale.arrays import Array
from dlscale.errors import InputError, SpecError
from dlscale.storage.files.locations import named
from dlscale.storage.files.sequential import SequentialFile
from dlscale.storage.importers.options import ReadOptions
from dlscale.storage.labels.names import Labels

Blocks = Generator[Array, None, None]


class Vector(Protocol):
    """Numbers that are read by ranges."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Array: ...


BLOCK_BYTES = 16 << 20  # of a block of rows, and of a chunk in the store: large enough to read at the disk's full speed
TEXT_BUFFER_BYTES = 1 << 20
MAX_LINE_BYTES = 256 << 20  # of a text
KEPT_DTYPES = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"])


class Request(ReadOptions):
    """One import as a reader sees it: the source, a folder for files of its own, the dtype asked for, and the options."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    source: str
    scratch: Path
    dtype: np.dtype[Any] | None = None
    #: Whether a reader may hand over rows in the trust that no later part of the source belongs to them.
    in_order: bool = True


class OutOfOrderError(InputError):
    """A reader trusted in an order that the source has not to its end; it is read again without."""


@dataclass(frozen=True)
class Table:
    """An m x n matrix that is read once, from the top, in blocks of whole rows.

    `n_rows` is None when only reading to the end tells. `position` gives (bytes read, bytes in all) of the source where
    that says more about progress than rows do. Blocks of a `sparse` one are compressed rows, `n_entries` in all as far as is
    known; where not `by_rows`, its rows are the columns of the matrix. `labels` are those of the matrix that are known before it is
    read; of rows that are named in the file, the names since the last block but one are in `row_names`, and the texts of the column
    that was asked for as `color` in `colors`. What is `beside` a sparse one becomes arrays of its group.
    """

    n_rows: int | None
    n_columns: int
    dtype: np.dtype[Any]
    blocks: Blocks
    attributes: dict[str, Any] = field(default_factory=dict)
    position: Callable[[], tuple[int, int]] | None = None
    notes: list[str] = field(default_factory=list)
    sparse: bool = False
    by_rows: bool = True
    n_entries: int | None = None
    labels: Labels = field(default_factory=Labels)
    row_names: list[str] = field(default_factory=list)
    colors: list[str] = field(default_factory=list)
    beside: dict[str, Vector] = field(default_factory=dict)


Reader = Callable[[Request], AbstractContextManager[Table]]


def rows_per_block(n_columns: int, itemsize: int) -> int:
    """The power of two of rows that fills a block (at least one row)."""
    fitting = max(1, BLOCK_BYTES // max(1, n_columns * itemsize))
    return 1 << (fitting.bit_length() - 1)


def row_ranges(n_rows: int, step: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def matrix_layout(shape: tuple[int, ...], dtype: np.dtype[Any], *, what: str) -> tuple[int, int, np.dtype[Any]]:
    """Rows, columns and kept dtype of an n-dimensional array; n numbers in one dimension are an n x 1 column.

    Raises
    ------
    InputError
        If the array has no or more than two dimensions, or holds something other than numbers.
    """
    if len(shape) not in (1, 2):
        raise InputError(
            f"{what} must have two dimensions (or one: n numbers become an n x 1 column); got shape {shape}. "
            "Reshape it first, for example with array.reshape(len(array), -1)."
        )
    if dtype.str[1:] not in KEPT_DTYPES:
        raise InputError(
            f"{what} must hold integers, floats or complex numbers of at most 64 bits a part; got dtype {dtype}. "
            "Convert it first, for example with array.astype('float64')."
        )
    n_columns = shape[1] if len(shape) == 2 else 1
    kept = np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")
    return shape[0], n_columns, kept


def is_url(source: str) -> bool:
    return "://" in source


def open_binary(source: str) -> AbstractContextManager[BinaryIO]:
    """The bytes of a local path (at full speed) or of any URL that fsspec opens."""
    if not is_url(source):
        return cast(AbstractContextManager[BinaryIO], open(source, "rb"))
    return cast(AbstractContextManager[BinaryIO], fsspec.open(source, "rb"))


@contextmanager
def _open_once(source: str) -> Iterator[tuple[BinaryIO, int]]:
    """Bytes that are read in their order, and how many they are."""
    if not is_url(source):
        with SequentialFile(source) as file:
            yield cast(BinaryIO, file), file.n_bytes
        return
    with open_binary(source) as stream:
        n_total = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        yield stream, n_total


class CountedBytes(io.RawIOBase):
    """The bytes of another stream, counted as they are handed out; that stream is closed by whoever opened it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.n_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n_read: int = self._stream.readinto(buffer)  # type: ignore[attr-defined]
        self.n_bytes += n_read
        return n_read


@contextmanager
def open_text(source: str) -> Iterator[tuple[BinaryIO, Callable[[], tuple[int, int]]]]:
    """A text file as bytes, unpacked if it ends in .gz, with the position in the file as stored."""
    with _open_once(source) as (raw, n_total):
        counted = CountedBytes(raw)
        with io.BufferedReader(counted, TEXT_BUFFER_BYTES) as text:

            def position() -> tuple[int, int]:
                return counted.n_bytes, n_total

            if named(source).endswith(".gz"):
                with _gzip().open(text, "rb") as unpacked:
                    yield cast(BinaryIO, unpacked), position
            else:
                yield text, position


def _gzip() -> Any:
    """ISA-L's, some three times as fast as Python's, where it is installed."""
    try:
        return importlib.import_module("isal.igzip")
    except ImportError:
        return importlib.import_module("gzip")


def line_pieces(stream: BinaryIO, size: int, *, source: str, first: bytes = b"") -> Generator[bytes, None, None]:
    """The rest of a text in pieces of whole lines, about `size` bytes each, after the line `first`; none is empty.

    Raises
    ------
    InputError
        If a line is longer than `MAX_LINE_BYTES`.
    """
    rest = first
    while chunk := stream.read(size):
        cut = chunk.rfind(b"\n") + 1
        piece = b"".join([rest, memoryview(chunk)[:cut]]) if cut else b""
        rest = chunk[cut:] if cut else rest + chunk
        del chunk  # one copy of a piece at a time
        if len(rest) > MAX_LINE_BYTES:
            raise InputError(f"{source} has a line of more than {MAX_LINE_BYTES >> 20} MiB: it is not a text of numbers.")
        if piece:
            yield piece
    if rest:
        yield rest + b"\n"


def need(module: str, source: str) -> Any:
    """A package that only this format needs, or an error that says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise SpecError(f"Reading {source} needs the package {package}: pip install {package}") from error
