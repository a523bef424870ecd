"""Missing values become the mean or the median of their column, for which a table is kept in a scratch file and read again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import DoesNotFitError, InputError, SpecError
from dlscale.storage.importers.tables import Blocks, Request, Table, row_ranges, rows_per_block

#: Bytes of columns whose medians are found at a time, and of one column.
_GROUP_BYTES, _MAX_COLUMN_BYTES = 1 << 28, 1 << 30
_SHOWN = 20


def is_statistic(fill: float | str | None) -> bool:
    """Whether missing values become what their column tells."""
    return isinstance(fill, str)


def filled_dtype(dtype: np.dtype[Any], request: Request) -> np.dtype[Any]:
    """The dtype of a table of this dtype in which values are missing.

    Raises
    ------
    SpecError
        If the table's, or another one that was asked for, does not hold what they become.
    """
    fill = request.fill
    whole = not isinstance(fill, str) and (fill is None or float(fill).is_integer())
    if request.dtype is not None and request.dtype.kind in "iu" and not whole:
        raise SpecError(f"fill: {fill} is not a number of dtype {request.dtype}; ask for a floating one.")
    for kept in (dtype, request.dtype):
        if isinstance(fill, float) and kept is not None and kept.kind in "fc" and abs(fill) > float(np.finfo(kept).max):
            raise SpecError(f"fill: {fill:g} is infinite in {kept}; ask for a wider dtype.")
    if fill is None or dtype.kind in "fc":
        return dtype
    fits = whole and dtype.kind in "iu" and np.iinfo(dtype).min <= float(fill) <= np.iinfo(dtype).max
    return dtype if fits else np.result_type(dtype, np.float32)


def with_statistics(table: Table, request: Request) -> Table:
    """The same table, in which NaN has become the mean or the median of its column."""
    names = table.labels.column
    rows: list[str] = []
    blocks = _filled(table, request, names=names, row_names=rows)
    return replace(table, blocks=blocks, row_names=rows, position=None)


def _filled(table: Table, request: Request, *, names: Any, row_names: list[str]) -> Blocks:
    n, dtype, path = table.n_columns, table.dtype, request.scratch / "unfilled"
    request.scratch.mkdir(parents=True, exist_ok=True)
    n_rows, sums, counts = 0, np.zeros(n), np.zeros(n, np.int64)
    with path.open("wb") as file:
        for block in table.blocks:
            block = np.ascontiguousarray(block, dtype)
            there = ~np.isnan(block)
            with np.errstate(over="ignore", invalid="ignore"):
                sums += np.where(there, block, 0).sum(axis=0, dtype=np.float64)
            counts += there.sum(axis=0)
            n_rows += len(block)
            block.tofile(file)
            row_names += table.row_names
            table.row_names.clear()
    if not n_rows:
        return
    where = np.flatnonzero(counts < n_rows)
    if (empty := np.flatnonzero(counts == 0)).size:
        raise InputError(f"{request.source}: {_named(names, empty)} no value, and so no {request.fill}; drop it.")
    stored: Array = np.memmap(path, dtype, "r", shape=(n_rows, n))
    with np.errstate(over="ignore", invalid="ignore"):
        values = sums[where] / counts[where] if request.fill == "mean" else _medians(stored, where, request)
    if (endless := where[~np.isfinite(values)]).size:
        raise InputError(
            f"{request.source}: {_named(names, endless)} no finite {request.fill}; scale or correct it, or set fill to a number."
        )
    if where.size:
        missing = int(where.size * n_rows - counts[where].sum())
        table.notes.append(
            f"{request.source}: {missing:,} missing value{'s'[: missing > 1]} became the {request.fill} of the column; "
            f"{_named(names, where)} such."
        )
    for start, stop in row_ranges(n_rows, rows_per_block(n, dtype.itemsize)):
        block = np.array(stored[start:stop])
        part = block[:, where]
        block[:, where] = np.where(np.isnan(part), values.astype(dtype), part)
        yield block
    path.unlink()


def _medians(stored: Array, where: Array, request: Request) -> Array:
    column_bytes = len(stored) * 8
    if column_bytes > _MAX_COLUMN_BYTES:
        raise DoesNotFitError(
            f"{request.source}: the median of a column of {len(stored):,} rows takes it as a whole, {column_bytes / 1e9:.1f} GB; "
            "set fill to mean, or to a number."
        )
    step = max(1, _GROUP_BYTES // column_bytes)
    parts = [np.nanmedian(stored[:, where[k : k + step]], axis=0) for k in range(0, len(where), step)]
    return np.concatenate([np.zeros(0), *parts])


def _named(names: Any, where: Array) -> str:
    """The columns at these places, with their verb."""
    called = [repr(names[j : j + 1][0]) if names is not None else str(j) for j in where[:_SHOWN].tolist()]
    more = f" and {where.size - _SHOWN} more" if where.size > _SHOWN else ""
    return f"column{'s'[: where.size > 1]} {', '.join(called)}{more} {'has' if where.size == 1 else 'have'}"
