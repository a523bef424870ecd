"""How often finished passes are made safe."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from numpy.typing import DTypeLike

from dlscale.arrays import Array
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.writers import ArrayWriter, Shape


class PacedCheckpoint(Checkpoint):
    """A checkpoint that saves at most every so many seconds; the passes between are saved together with the next one.

    Parameters
    ----------
    directory : Path
    every_seconds : float
        0 saves every pass at its end.
    fsync : bool
        See `Checkpoint`.
    guard : callable
        Called before anything is saved; raises where this process must not write any more.
    """

    def __init__(
        self,
        directory: Path,
        *,
        every_seconds: float = 0.0,
        fsync: bool = False,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(directory, fsync=fsync)
        self._guard = guard
        self.every_seconds = every_seconds
        self._last = time.monotonic()
        self._waiting: list[tuple[str, dict[str, Array], Sequence[ArrayWriter]]] = []

    def scratch(self, name: str, shape: Shape, dtype: DTypeLike, *, chunks: Shape) -> ArrayWriter:
        self._guard()
        return super().scratch(name, shape, dtype, chunks=chunks)

    def save(self, step: str, arrays: Mapping[str, Array], *, writers: Sequence[ArrayWriter] = ()) -> int:
        self._guard()
        if not self.every_seconds:
            return super().save(step, arrays, writers=writers)
        self._waiting.append((step, {name: array.copy() for name, array in arrays.items()}, writers))
        return self.flush() if time.monotonic() - self._last >= self.every_seconds else 0

    def flush(self) -> int:
        """Save what waits; its bytes."""
        n_bytes = 0
        while self._waiting:
            self._guard()
            step, arrays, writers = self._waiting[0]
            n_bytes += super().save(step, arrays, writers=writers)
            del self._waiting[0]
        self._last = time.monotonic()
        return n_bytes
