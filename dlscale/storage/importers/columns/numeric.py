"""Which columns of a text are numbers, by its first rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

from dlscale.storage.importers.cells import MISSING
from dlscale.storage.importers.dialect import Head

#: Rows, and cells of all columns, that decide.
_MAX_ROWS, _MAX_CELLS = 1000, 1 << 20
_DOUBLE = np.dtype(np.float64)


def numbers_among(chosen: list[int], head: Head) -> set[int]:
    """The columns whose first cells are numbers, or missing; not those of a short text in which all are missing."""
    dialect = head.dialect
    lines = (line.decode("utf-8", "replace") + "\n" for line in head.rest.text.split(b"\n") if line.strip())
    n_rows = max(1, min(_MAX_ROWS, _MAX_CELLS // len(chosen))) if chosen else 0
    records = list(itertools.islice(dialect.reader(lines), n_rows))
    kept, numbers = set(chosen), set[int]()
    for cells in records:
        for j in list(kept):
            cell = cells[j].strip() if j < len(cells) else ""
            if dialect.is_missing(cell, _DOUBLE) or cell in MISSING:
                continue
            if dialect.number(cell, _DOUBLE) is None:
                kept.discard(j)
            else:
                numbers.add(j)
    return kept if len(records) == n_rows else kept & numbers


def told_apart(names: Iterable[str]) -> list[str]:
    """Names of columns as they are listed: in quotes where they are empty, or hold what stands between names."""
    return [name if name == name.strip() != "" and not {*name} & {*",'\""} else repr(name) for name in names]


def shortened(names: list[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
