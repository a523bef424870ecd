"""Where the output blocks of a pass go, and how they get there in whole chunks."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from dlscale.arrays import Array
from dlscale.storage.matrix import Matrix
from dlscale.storage.results import ArrayWriter


class RowOutput(Protocol):
    """Where the output blocks of a pass go."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def n_bytes(self) -> int: ...

    @property
    def in_memory(self) -> bool:
        """Whether only tasks of this process can write there."""
        ...

    @property
    def writers(self) -> tuple[ArrayWriter, ...]:
        """What stands behind it in a store."""
        ...

    def write(self, start_row: int, block: Array) -> None: ...

    def matrix(self) -> Matrix: ...


class Collector:
    """Gathers the output blocks of a leaf into whole chunks, and writes each once."""

    def __init__(self, output: RowOutput, start: int, stop: int, block_rows: int) -> None:
        self.output, self.stop = output, stop
        chunks = getattr(output, "chunks", None)
        self.chunk_rows = chunks[0] if chunks else block_rows
        self.parts: list[Array] = []
        self.first_row, self.n_rows = start, 0

    def add(self, first_row: int, rows: Array) -> None:
        self.n_rows += len(rows)
        complete = self.n_rows == self.chunk_rows or first_row + len(rows) == self.stop
        if complete and not self.parts:
            self.output.write(first_row, rows)
        else:
            self.parts.append(rows.copy())
            if complete:
                self.output.write(self.first_row, np.concatenate(self.parts))
        if complete:
            self.first_row, self.n_rows, self.parts = first_row + len(rows), 0, []
