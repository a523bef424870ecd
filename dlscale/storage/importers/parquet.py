"""Parquet: a file, or a folder of parts as Spark and Dask write it, read batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec.core
import numpy as np

from dlscale.errors import InputError, SpecError
from dlscale.storage.importers.tables import Blocks, Request, Table, need, rows_per_block

READ_BUFFER_BYTES = 1 << 20  # of each column, in place of a whole column of a row group


@contextmanager
def read_parquet(request: Request) -> Iterator[Table]:
    """The chosen (or all) columns, which must be numbers, in their common dtype."""
    need("pyarrow.parquet", request.source)
    files, paths = _files(request.source)
    schemas, n_rows = [], 0
    for path in paths:
        with _opened(files, path) as part:
            schemas.append(part.schema_arrow)
            n_rows += part.metadata.num_rows
        if not schemas[-1].equals(schemas[0]):
            raise InputError(f"{path} has other columns than {paths[0]}; import them one by one.")
    names, dtype = _columns(request, schemas[0])
    yield Table(n_rows, len(names), dtype, _blocks(files, paths, names=names, dtype=dtype))


def _files(source: str) -> tuple[Any, list[str]]:
    files, path = fsspec.core.url_to_fs(source)
    paths = sorted(name for name in files.find(path) if name.endswith(".parquet")) if files.isdir(path) else [path]
    if not paths:
        raise InputError(f"The folder {source} holds no .parquet file.")
    return files, paths


@contextmanager
def _opened(files: Any, path: str) -> Iterator[Any]:
    arrow_parquet = need("pyarrow.parquet", path)
    with files.open(path, "rb") as file, arrow_parquet.ParquetFile(file, buffer_size=READ_BUFFER_BYTES, pre_buffer=False) as part:
        yield part


def _columns(request: Request, schema: Any) -> tuple[list[str], np.dtype[Any]]:
    types = need("pyarrow.types", request.source)
    names = list(request.columns) if request.columns is not None else list(schema.names)
    for name in names:
        if len(schema.get_all_field_indices(name)) != 1:
            shown = ", ".join(schema.names[:20]) + (", ..." if len(schema.names) > 20 else "")
            raise SpecError(f"{request.source} has not exactly one column {name!r}; its columns are: {shown}.")
    dtypes = {}
    for name in names:
        kind = schema.field(name).type
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
            raise InputError(f"{request.source}: column {name!r} holds {kind}, not numbers. Choose other columns.")
        dtypes[name] = np.dtype(np.uint8) if types.is_boolean(kind) else np.dtype(kind.to_pandas_dtype())
    return names, np.result_type(*dtypes.values())


def _blocks(files: Any, paths: list[str], *, names: list[str], dtype: np.dtype[Any]) -> Blocks:
    step = min(rows_per_block(len(names), dtype.itemsize), 1 << 16)
    for path in paths:
        start = 0
        with _opened(files, path) as part:
            for batch in part.iter_batches(batch_size=step, columns=names, use_threads=False):
                block = np.empty((batch.num_rows, len(names)), dtype)
                for j, name in enumerate(names):
                    column = batch.column(name)
                    if column.null_count:
                        rows = f"rows {start} to {start + batch.num_rows - 1}"
                        raise InputError(f"{path}: column {name!r} has missing values among {rows}. Fill or drop them.")
                    block[:, j] = column.to_numpy(zero_copy_only=False)
                yield block
                start += batch.num_rows
