"""Entries in any order become compressed rows, strip by strip, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from dlscale.arrays import Array
from dlscale.storage.importers.entries.spilled import Spill
from dlscale.storage.importers.matrix_market import spill
from dlscale.storage.importers.tables import row_ranges, rows_per_block
from dlscale.storage.sparse.sums import require_finite_sums

#: Entries of a strip, unless a few rows have more; and rows.
STRIP_ENTRIES, STRIP_ROWS = 1 << 20, 1 << 22
_PIECE = 1 << 20
_N_BINS = 1 << 16
ENTRY = np.dtype([("i", "i8"), ("j", "i8"), ("value", "f8")])


class Entries:
    """Entries as they come, in a scratch file, and how many there are among neighbouring rows.

    Parameters
    ----------
    folder : Path
    source : str
        What errors name.
    """

    def __init__(self, folder: Path, source: str) -> None:
        self._folder, self._source = folder, source
        self._spill = Spill(folder / "entries", ENTRY)
        self._counts, self._width = np.zeros(_N_BINS, np.int64), 1
        self.lowest, self.highest = np.full(2, np.iinfo(np.int64).max), np.full(2, -1)

    def __len__(self) -> int:
        return self._spill.length

    def append(self, i: Array, j: Array, values: Array) -> None:
        """Add entries, at places that are not negative."""
        if not len(i):
            return
        entries = np.empty(len(i), ENTRY)
        entries["i"], entries["j"], entries["value"] = i, j, values
        self._spill.append(entries)
        self.lowest = np.minimum(self.lowest, [i.min(), j.min()])
        self.highest = np.maximum(self.highest, [i.max(), j.max()])
        while self.highest[0] >= self._width * _N_BINS:
            self._counts = np.append(self._counts.reshape(-1, 2).sum(axis=1), np.zeros(_N_BINS // 2, np.int64))
            self._width *= 2
        self._counts += np.bincount(i // self._width, minlength=_N_BINS)

    def bounds(self, n_rows: int) -> Array:
        """Where strips of rows begin, and where the last one ends."""
        found, held = [0], 0
        for k, count in enumerate(self._counts[: -(-n_rows // self._width)].tolist()):
            start = k * self._width
            if start > found[-1] and held + count > STRIP_ENTRIES:
                found.append(start)
                held = 0
            held += count
        found.append(n_rows)
        cut = [range(start, stop, STRIP_ROWS) for start, stop in pairwise(found)]
        return np.array([*(start for part in cut for start in part), n_rows])

    def rows(self, shape: tuple[int, int]) -> Iterator[Any]:
        """Compressed rows from the first to the last; what stands at one place is added up."""
        bounds, entries = self.bounds(shape[0]), self._spill.vector()
        folder = self._folder / "strips"
        folder.mkdir()
        for start, stop in row_ranges(len(entries), _PIECE):
            piece = entries[start:stop]
            spill(piece, np.searchsorted(bounds, piece["i"], side="right") - 1, folder=folder)
        self._spill.path.unlink()
        for k, (start, stop) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
            path, n = folder / str(k), (stop - start, shape[1])
            if not path.exists():
                yield scipy.sparse.csr_array(n)
                continue
            strip = np.fromfile(path, ENTRY)
            path.unlink()
            parts = scipy.sparse.coo_array((strip["value"], (strip["i"] - start, strip["j"])), shape=n)
            rows = parts.tocsr()
            require_finite_sums(parts, rows, source=self._source, place=lambda i, j, start=start: (start + i, j))  # type: ignore[misc]
            yield rows

    def dense_rows(self, shape: tuple[int, int]) -> Iterator[Array]:
        """As `rows`, with the zeros."""
        for strip in self.rows(shape):
            for start, stop in row_ranges(strip.shape[0], rows_per_block(shape[1], 8)):
                yield strip[start:stop].toarray()
