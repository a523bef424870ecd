"""How often finished passes are made safe."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from numpy.typing import DTypeLike

from dlscale.arrays import Array
from dlscale.storage.buckets.checkpoints import ObjectCheckpoint
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.objects.address import Address
from dlscale.storage.writers import ArrayWriter, Shape


class Paced(Checkpoint):
    """What saves at most every so many seconds; the passes between are saved together with the next one.

    Parameters
    ----------
    every_seconds : float
        0 saves every pass at its end.
    guard : callable
        Called before anything is saved; raises where this process must not write any more.
    """

    def _pace(self, every_seconds: float, guard: Callable[[], None]) -> None:
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


class PacedCheckpoint(Paced):
    """A paced checkpoint in a folder; see `Checkpoint` for what is not here."""

    def __init__(
        self, directory: Path, *, every_seconds: float = 0.0, fsync: bool = False, guard: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(directory, fsync=fsync)
        self._pace(every_seconds, guard)


class PacedObjectCheckpoint(Paced, ObjectCheckpoint):
    """A paced checkpoint in an object store."""

    def __init__(self, place: Address, *, every_seconds: float = 0.0, guard: Callable[[], None] = lambda: None) -> None:
        ObjectCheckpoint.__init__(self, place)
        self._pace(every_seconds, guard)
