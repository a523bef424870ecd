"""The checkpoints of a training: when, what, and how a run goes on from one.

What decides the next step (parameters, state of the optimizer, history, position) is the same on every rank, so rank 0 saves
it alone, and a run goes on from there on any number of ranks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import partial

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.events import Warned
from dlscale.engine.kept import Keep, KeptSteps
from dlscale.engine.progress import send
from dlscale.engine.ranks import Communicator
from dlscale.learn.models.packing import pack, unpack
from dlscale.learn.training.history import History
from dlscale.learn.training.task import Task
from dlscale.storage.buckets.checkpoints import open_checkpoint

#: Without a wish of the user, checkpoints come so seldom that they take 2% of the time, and at least so many seconds apart.
_LEAST_SECONDS, _SAVE_SHARE = 20.0, 50.0
#: Name of the last checkpoint, and of the iteration of those before it.
FINISHED, _STEPS = "trained", "step"
#: What ends a training; the first is nothing yet.
ENDINGS = ("", "all epochs", "converged", "converged to rounding", "stalled", "early stopping")


@dataclass
class Position:
    """Where a training stands.

    Parameters
    ----------
    step, epoch : int
        That are done.
    loss_sum, weight_sum : float
        Over the batches of an epoch that has begun.
    ended : int
        What ended the training, as an index of `ENDINGS`.
    """

    step: int = 0
    epoch: int = 0
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    ended: int = 0

    def to_array(self) -> Array:
        return np.array(astuple(self), np.float64)

    def set(self, array: Array) -> None:
        """Take over what `to_array` gave."""
        self.step, self.epoch, self.ended = int(array[0]), int(array[1]), int(array[4])
        self.loss_sum, self.weight_sum = float(array[2]), float(array[3])


class Saver:
    """Saves a training, and brings it back.

    Parameters
    ----------
    communicator : Communicator
    task : Task
    arrays : mapping of str to ndarray
        All that a later run needs but for position and history; changed in place, by the training and by `restore`.
    at : Position
    history : History
    """

    def __init__(self, communicator: Communicator, task: Task, arrays: Mapping[str, Array], at: Position, history: History) -> None:
        self.communicator, self.task, self.arrays, self.at, self.history = communicator, task, arrays, at, history
        self.checkpoint = open_checkpoint(task.directory)
        self._kept = KeptSteps(self.checkpoint, partial(send, task.token))
        self._saved_at, self._saved_step, self._save_seconds = time.monotonic(), 0, 0.0

    def restore(self) -> bool:
        """Go on from the last checkpoint that counts, if there is one; rank 0 reads it, and all get the same (collective)."""
        found: Mapping[str, Array] | None = None
        if self.communicator.rank == 0:
            packed = self.checkpoint.load(FINISHED)
            if packed is None and (newest := self._kept.newest(_STEPS)) is not None:
                packed = newest[1]
            found = None if packed is None else unpack(packed)
            for problem in self.checkpoint.problems:
                send(self.task.token, Warned(problem))
        position = np.append(self.at.to_array() if found is None else found["position"], found is not None)
        self.communicator.bcast(position, name="position")
        if not position[-1]:
            return False
        self.at.set(position)
        for name, array in self.arrays.items():
            if found is not None:
                array[...] = found[name]
            self.communicator.bcast(array, name=f"checkpoint {name}")
        self.history.restore(self.communicator, found)
        self._saved_step = self.at.step
        return True

    def save_step(self) -> None:
        """Save under the number of the step that was done last."""
        self._save(f"{_STEPS}-{self.at.step}", keep="last")

    def save_end(self) -> None:
        """Save what was learned, as `FINISHED`."""
        self._save(FINISHED, keep="all")

    def save_when_due(self) -> None:
        """Save if enough steps or minutes have passed; the clock of rank 0 alone decides, and rank 0 alone writes."""
        every, steps = self.task.every_seconds, self.task.options.checkpoint_steps
        due = steps is not None and self.at.step - self._saved_step >= steps
        if not every and steps is None:
            every = max(_LEAST_SECONDS, _SAVE_SHARE * self._save_seconds)
        due = due or (every > 0 and time.monotonic() - self._saved_at >= every)
        if due and self.at.step > self._saved_step:
            self.save_step()

    def _save(self, name: str, *, keep: Keep) -> None:
        self._saved_at, self._saved_step = time.monotonic(), self.at.step
        if self.communicator.rank == 0:
            packed = pack({**self.arrays, **self.history.to_arrays(), "position": self.at.to_array()})
            self._save_seconds = self._kept.save(name, packed, keep=keep)
