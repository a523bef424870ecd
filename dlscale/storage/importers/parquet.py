"""Parquet: a file, or a folder of parts as Spark and Dask write it, read batch by batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError, SpecError
from dlscale.showing import without_secrets
from dlscale.storage.exactness import has_inexact, inexact_words
from dlscale.storage.importers.columns.filling import filled_dtype
from dlscale.storage.importers.columns.numeric import shortened, told_apart
from dlscale.storage.importers.folders import parts_of
from dlscale.storage.importers.options import AS_NUMBERS, setting
from dlscale.storage.importers.tables import Blocks, Request, Table, need, rows_per_block
from dlscale.storage.labels.names import Labels, text_of

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")
READ_BUFFER_BYTES = 1 << 20  # of each column, in place of a whole column of a row group


class Column(NamedTuple):
    """What a column gives to the matrix: its own numbers, or a vector in each row."""

    name: str
    width: int
    dtype: np.dtype[Any]

    @property
    def names(self) -> list[str]:
        """What its columns of the matrix are called."""
        return [self.name] if self.width == 1 else [f"{self.name}[{k}]" for k in range(self.width)]


@contextmanager
def read_parquet(request: Request) -> Iterator[Table]:
    """The chosen (or all) columns, which must be numbers or vectors of one length, in their common dtype.

    Decimals become the nearest float64. The columns that pandas marks as its index are left out unless they are asked for.
    """
    need("pyarrow.parquet", request.source)
    files, paths, folders = parts_of(request.source, PARQUET_SUFFIXES)
    _refuse_partitions(request, folders)
    layouts: dict[str, list[Column]] = {}
    left_out: dict[str, None] = {}
    words: dict[str, None] = {}
    n_rows = 0
    for path in paths:
        with opened(files, path) as part:
            if not part.metadata.num_rows:
                continue
            names, index = _names(request, path, part.schema_arrow)
            left_out |= dict.fromkeys(index)
            if request.numeric:
                words |= dict.fromkeys(name for name in names if not _is_number(part.schema_arrow.field(name).type))
                names = [name for name in names if name not in words]
            others = any(_is_number(part.schema_arrow.field(name).type) for name in names)
            layouts[path] = [_column(part, path, name, others=others) for name in names]
            n_rows += part.metadata.num_rows
        _check_equal(layouts, path)
    if not layouts:
        raise InputError(f"{request.source} holds no rows in files that end in {' or '.join(PARQUET_SUFFIXES)}.")
    if not next(iter(layouts.values())):
        raise InputError(f"{request.source}: no column of numbers is left; it has {shortened([repr(name) for name in words])}.")
    told = {
        f"{', '.join(map(repr, left_out))} is the index that pandas wrote, and names the rows; ask for it to be a column": left_out,
        f"left out, as they hold no numbers: {shortened([repr(name) for name in words])}": words,
    }
    columns = next(iter(layouts.values()))
    if request.color is not None and request.color not in [column.name for column in columns]:
        told[f"{request.color!r} colours the rows, and is no column of the matrix"] = {request.color: None}
    dtype = filled_dtype(np.result_type(*(column.dtype for layout in layouts.values() for column in layout)), request)
    notes = [note for note, about in told.items() if about]
    how = _How(columns, dtype, request.mark, list(left_out), [], request.color, [], notes)
    labels = Labels(column=[name for column in columns for name in column.names])
    yield Table(
        n_rows,
        len(labels.column or ()),
        dtype,
        _blocks(files, list(layouts), how),
        notes=notes,
        labels=labels,
        row_names=how.row_names,
        colors=how.colors,
    )


class _How(NamedTuple):
    """How batches become blocks: what a missing value becomes, what names and colours rows, and the texts of the last block."""

    columns: list[Column]
    dtype: np.dtype[Any]
    fill: float | None
    names_of_rows: list[str]
    row_names: list[str]
    color: str | None
    colors: list[str]
    notes: list[str]


@contextmanager
def opened(files: Any, path: str) -> Iterator[Any]:
    arrow_parquet = need("pyarrow.parquet", path)
    options = {"buffer_size": READ_BUFFER_BYTES, "pre_buffer": False, "page_checksum_verification": True}
    with files.open(path, "rb") as file, arrow_parquet.ParquetFile(file, **options) as part:
        yield part


def _names(request: Request, path: str, schema: Any) -> tuple[list[str], list[str]]:
    """The columns to read, and those that are left out because they are an index of pandas."""
    index = _index_columns(schema) if request.columns is None else []
    color = [] if request.color is None else [request.color]
    names = list(request.columns) if request.columns is not None else [n for n in schema.names if n not in (*index, *color)]
    for name in request.drop or ():
        if name not in schema.names:
            raise SpecError(f"{path} has no column {name!r}; its columns are: {shortened(told_apart(schema.names))}.")
    names = [name for name in names if name not in (request.drop or ())]
    for name in (*names, *color):
        if len(schema.get_all_field_indices(name)) != 1:
            shown = shortened(told_apart(schema.names))
            raise SpecError(f"{path} has not exactly one column {name!r}; its columns are: {shown}.")
    if not names:
        raise InputError(f"{path} has no columns{' but the index of pandas' if index else ''}; a matrix needs at least one.")
    return names, index


def _index_columns(schema: Any) -> list[str]:
    try:
        told = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
        # A range is written as a mapping, and is no column.
        return [name for name in told if isinstance(name, str) and name in schema.names]
    except (KeyError, ValueError, TypeError):
        return []


def _is_number(kind: Any) -> bool:
    """Whether a type of Arrow is one of numbers, or of vectors of such."""
    types = need("pyarrow.types", "a Parquet file")
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    return any(is_kind(kind) for is_kind in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal))


def _column(part: Any, path: str, name: str, *, others: bool) -> Column:
    types = need("pyarrow.types", path)
    kind, width = part.schema_arrow.field(name).type, 1
    if types.is_fixed_size_list(kind):
        kind, width = kind.value_type, kind.list_size
    elif types.is_list(kind) or types.is_large_list(kind):
        kind, width = kind.value_type, _first_length(part, path, name)
    if types.is_decimal(kind):
        return Column(name, width, np.dtype(np.float64))
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        kind = part.schema_arrow.field(name).type
        advice = f"choose other columns; {setting('numeric', True)} leaves out those of words" if others else AS_NUMBERS
        raise InputError(f"{path}: column {name!r} holds {kind}, not numbers; {advice}.")
    return Column(name, width, np.dtype(np.uint8) if types.is_boolean(kind) else np.dtype(kind.to_pandas_dtype()))


def _first_length(part: Any, path: str, name: str) -> int:
    """Length of the vector in the first row; all must have it, which is checked as they are read."""
    first = next(iter(part.iter_batches(batch_size=1, columns=[name], use_threads=False)))
    length = first.column(name).value_lengths()[0].as_py()
    if not length:
        raise InputError(f"{path}: column {name!r} has no vector in row 0. Fill or drop such rows.")
    return int(length)


def _check_equal(layouts: dict[str, list[Column]], path: str) -> None:
    """Refuse other columns than those of the first part; their dtypes and their order may differ."""
    first, widths = next(iter(layouts)), [{column.name: column.width for column in layouts[p]} for p in (next(iter(layouts)), path)]
    if widths[0].keys() != widths[1].keys():
        raise InputError(f"{path} has other columns than {first}; import them one by one.")
    for name, width in widths[1].items():
        if width != widths[0][name]:
            raise InputError(
                f"{path}: column {name!r} holds vectors of length {width}, and of length {widths[0][name]} in {first}; "
                "all must have one length."
            )


def _refuse_partitions(request: Request, folders: list[str]) -> None:
    """Names of folders such as year=2020 are values of a column that no file holds."""
    named = [name for folder in folders for name in folder.split("/") if "=" in name]
    if named and request.columns is None:
        raise InputError(
            f"{request.source} is partitioned: the folder {named[0]} holds a value of a column that is in no file. Name the "
            "columns to read, or write the table again without partitions."
        )


def _blocks(files: Any, paths: list[str], how: _How) -> Blocks:
    columns, dtype, fill, index, row_names, color, colors, notes = how
    is_inexact = dtype.kind not in "fc"
    n = sum(column.width for column in columns)
    step = min(rows_per_block(n, dtype.itemsize), 1 << 16)
    names = dict.fromkeys([*(column.name for column in columns), *index, *([] if color is None else [color])])
    for path in paths:
        start = 0
        with opened(files, path) as part:
            for batch in part.iter_batches(batch_size=step, columns=list(names), use_threads=False):
                block, j = np.empty((batch.num_rows, n), dtype), 0
                for column in columns:
                    part_of_it = _numbers(batch.column(column.name), column, fill=fill, path=path, start=start)
                    if not is_inexact and _is_rounded(batch.column(column.name)):
                        is_inexact = True
                        notes.append(inexact_words(without_secrets(path)))
                    block[:, j : j + column.width] = part_of_it
                    j += column.width
                if index:
                    told = [batch.column(name).to_pylist() for name in index]
                    row_names += map(text_of, told[0] if len(told) == 1 else zip(*told, strict=True))
                if color is not None:
                    colors += map(_text, batch.column(color).to_pylist())
                yield block
                start += batch.num_rows


def _text(value: Any) -> str:
    """What colours a row; nothing where the value is missing."""
    return "" if value is None or (isinstance(value, float) and np.isnan(value)) else text_of(value)


def _numbers(values: Any, column: Column, *, fill: float | None, path: str, start: int) -> Array:
    """A column of a batch as (rows, width), missing values as a number that was asked for, or NaN."""
    types, n_rows = need("pyarrow.types", path), len(values)
    if values.null_count and (fill is None or types.is_nested(values.type)):
        raise _missing(values, column, 1, path=path, start=start)
    if types.is_nested(values.type):
        if not types.is_fixed_size_list(values.type):
            lengths = values.value_lengths().to_numpy(zero_copy_only=False)
            if (lengths != column.width).any():
                row = int(np.argmax(lengths != column.width))
                raise InputError(
                    f"{path}: column {column.name!r} holds a vector of length {lengths[row]} in row {start + row}, and of length "
                    f"{column.width} before; all must have one length."
                )
        values = values.flatten()
        if values.null_count and fill is None:
            raise _missing(values, column, column.width, path=path, start=start)
    if types.is_decimal(values.type):
        # By way of their digits, since only the parser of text rounds each to the nearest float64.
        values = values.cast("string").cast("float64")
    if values.null_count:
        # Whole numbers stay such where what they are filled with is one, too.
        whole = types.is_integer(values.type) and float(fill or 0).is_integer()
        values = values.fill_null(int(fill or 0)) if whole else values.cast("float64", safe=False).fill_null(fill)
    array: Array = values.to_numpy(zero_copy_only=False)
    if fill is not None and array.dtype.kind == "f" and (gaps := np.isnan(array)).any():
        array = np.where(gaps, array.dtype.type(fill), array)
    return array.reshape(n_rows, column.width)


def _is_rounded(values: Any) -> bool:
    """Whether double precision does not hold all integers of a column."""
    types = need("pyarrow.types", "a Parquet file")
    values = values.flatten() if types.is_nested(values.type) else values
    return types.is_integer(values.type) and has_inexact(values.fill_null(0).to_numpy(zero_copy_only=False))


def _missing(values: Any, column: Column, width: int, *, path: str, start: int) -> InputError:
    row = start + int(np.argmax(values.is_null().to_numpy(zero_copy_only=False))) // width
    return InputError(
        f"{path}: column {column.name!r} has missing values, the first in row {row} (counted from 0). Set fill to a number, mean "
        "or median, or drop the column."
    )
