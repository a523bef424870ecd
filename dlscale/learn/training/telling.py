"""What rank 0 tells of a training while it goes on, for progress and for the report."""

from __future__ import annotations

import time

from dlscale.engine.events import StepFinished, StepStarted, TrainingResumed, WorkDone
from dlscale.engine.progress import send
from dlscale.engine.ranks import Communicator
from dlscale.learn.models.parameters import Parameters
from dlscale.learn.training.data import is_compressed
from dlscale.learn.training.gradients import Seconds
from dlscale.learn.training.task import Task
from dlscale.storage.matrix import Matrix

_EVENT_SECONDS = 0.25


class Teller:
    """Sends the events of the steps of a job; those of rank 0 stand for all ranks, which do alike.

    Parameters
    ----------
    communicator : Communicator
    task : Task
    seconds : Seconds
        Kept by the training.
    flops_per_row : float
    kept : bool
        Whether the rows are read once, and kept in memory.
    """

    def __init__(self, communicator: Communicator, task: Task, seconds: Seconds, flops_per_row: float, *, kept: bool) -> None:
        self.communicator, self.task, self.seconds, self.flops_per_row = communicator, task, seconds, flops_per_row
        features = task.features
        self._row_bytes, self._kept = features.shape[1] * features.stored_dtype.itemsize, kept
        if is_compressed(features):
            self._row_bytes = features.n_stored_bytes // features.shape[0]
        self._step, self._sent_at, self._sent = "training", time.perf_counter(), Seconds()

    def tell(self, *, last: bool = False) -> None:
        """What was done since the last message."""
        now = time.perf_counter()
        if self.communicator.rank != 0 or (not last and now - self._sent_at < _EVENT_SECONDS):
            return
        before, now_read = self._sent.rows * self.communicator.size, self.seconds.rows * self.communicator.size
        rows = now_read - before
        read = self.seconds.read - self._sent.read
        event = WorkDone(
            self._step,
            "rank 0",
            rows=int(rows),
            bytes=self._bytes(now_read) - self._bytes(before),
            flops=float(rows * self.flops_per_row),
            read_seconds=read,
            compute_seconds=now - self._sent_at - read,
        )
        send(self.task.token, event)
        self._sent = Seconds(**vars(self.seconds))
        self._sent_at = now

    def _bytes(self, rows: float) -> int:
        """What was read for so many rows of the step; rows that are kept in memory are read by the training, once."""
        if self._kept:
            rows = min(rows, self.task.order.n_rows) if self._step == "training" else 0
        return int(rows * self._row_bytes)

    def goes_on(self, steps: int, epoch: int, rows: float) -> None:
        """The training goes on behind so many steps and epochs, for which at least so many rows were read."""
        if self.communicator.rank == 0:
            send(self.task.token, TrainingResumed(steps, epoch, rows * self.flops_per_row, self._bytes(rows)))

    def start(self, step: str, flops_per_row: float) -> None:
        """Another step of the job begins: one read of all rows."""
        self._step, self._sent_at, self.flops_per_row = step, time.perf_counter(), flops_per_row
        if self.communicator.rank == 0:
            n_rows = self.task.order.n_rows
            send(self.task.token, StepStarted(step, n_rows * self.flops_per_row, self._bytes(n_rows)))

    def finish(self, seconds: float, rows: float, *, resumed: bool = False) -> None:
        """The step has ended, which read so many rows on all ranks together."""
        if self.communicator.rank == 0:
            flops, n_bytes = float(rows * self.flops_per_row), self._bytes(rows)
            send(self.task.token, StepFinished(self._step, seconds, bytes_read=n_bytes, flops=flops, resumed=resumed))


def used_density(features: Matrix) -> float:
    """The part of the entries that is multiplied by the first layer."""
    return features.n_entries / (features.shape[0] * features.shape[1]) if is_compressed(features) else 1.0


def flops_per_row(parameters: Parameters, density: float = 1.0) -> float:
    """Of a forward and a backward sweep: 6 for each weight, 2 less in the first layer, which meets this part of the entries."""
    first = parameters["layer-0/weight"].size
    return 3 * forward_flops_per_row(parameters) - (2.0 + 4.0 * (1 - density)) * first


def forward_flops_per_row(parameters: Parameters) -> float:
    """Of a forward sweep: 2 for each weight."""
    return 2.0 * sum(array.size for name, array in parameters.items() if name.endswith("/weight"))
