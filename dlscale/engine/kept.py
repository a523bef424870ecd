"""Results of steps in a checkpoint: saved and told of, of an iteration only the last ones, and found again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from dlscale.arrays import Array
from dlscale.engine.events import Emit, Saved
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.results import ArrayWriter

State = dict[str, Array]
#: Which results of steps are kept: all, the last two of an iteration, or none, of what is sooner computed again.
Keep = Literal["all", "last", "none"]


class KeptSteps:
    """The results of steps that are kept.

    Parameters
    ----------
    checkpoint : Checkpoint
    emit : callable
        Receives events.
    """

    def __init__(self, checkpoint: Checkpoint, emit: Emit) -> None:
        self.checkpoint, self.emit = checkpoint, emit

    def save(
        self,
        name: str,
        state: State,
        *,
        writers: Sequence[ArrayWriter] = (),
        flushed: Sequence[ArrayWriter] = (),
        keep: Keep = "all",
    ) -> float:
        """Save a step as `dlscale.engine.run.Run.step` keeps it; the seconds that it took."""
        started = time.perf_counter()
        for writer in flushed:
            writer.flush()
        iteration = name.rpartition("-")[0]
        before = self._numbers(iteration) if keep == "last" else []
        n_bytes = self.checkpoint.save(name, state, writers=writers)
        for number in before[:-1]:
            self.checkpoint.drop(f"{iteration}-{number}")
        seconds = time.perf_counter() - started
        self.emit(Saved(name, n_bytes, seconds))
        return seconds

    def newest(self, iteration: str) -> tuple[int, State] | None:
        """The number and the result of the last whole step ``<iteration>-<number>``."""
        for number in reversed(self._numbers(iteration)):
            if (state := self.checkpoint.load(f"{iteration}-{number}")) is not None:
                return number, state
        return None

    def _numbers(self, iteration: str) -> list[int]:
        """Numbers of the kept steps of an iteration, in order."""
        parts = (step.rpartition("-") for step in self.checkpoint.steps())
        return sorted(int(number) for name, _, number in parts if name == iteration and number.isdecimal())
