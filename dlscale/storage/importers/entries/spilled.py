"""Vectors that grow in a scratch file, and are read by any range."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlscale.arrays import Array


@dataclass(frozen=True)
class FileRange:
    """Numbers in a file of nothing else, less a constant; ``vector[start:stop]`` reads a range."""

    path: Path
    dtype: np.dtype[Any]
    length: int
    less: int = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> Array:
        found = np.fromfile(self.path, self.dtype, part.stop - part.start, offset=part.start * self.dtype.itemsize)
        return found - self.dtype.type(self.less) if self.less else found


class Spill:
    """Writes numbers one after the other into a scratch file."""

    def __init__(self, path: Path, dtype: Any) -> None:
        self.path, self.dtype, self.length = path, np.dtype(dtype), 0
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")

    def append(self, values: Array) -> None:
        with self.path.open("ab") as file:
            np.ascontiguousarray(values, self.dtype).tofile(file)
        self.length += len(values)

    def vector(self, less: int = 0) -> FileRange:
        """What was written."""
        return FileRange(self.path, self.dtype, self.length, less)
