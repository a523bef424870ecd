"""The run of one job: its cluster, checkpoint, result and events, and its steps.

Passes, factorizations, solves, iterations and trainings stand beside each other on it. A step is told, timed, and kept in the
checkpoint; one that is there is not computed again, so an algorithm resumes by simply being run once more.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.clusters import Cluster
from dlscale.engine.clusters.watching import Watch, watchdog
from dlscale.engine.events import Emit, Event, MemoryTaken, StepFinished, StepStarted, WorkDone, ignore
from dlscale.engine.grids import RowGrid
from dlscale.engine.kept import Keep, KeptSteps, State
from dlscale.engine.outputs import RowOutput
from dlscale.engine.targets import MemoryTarget, StoreTarget, TransposedTarget
from dlscale.errors import SpecError
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.results import ArrayWriter, ResultGroup

__all__ = ["Cost", "Keep", "Run", "State"]


@dataclass(frozen=True)
class Cost:
    """What a step takes.

    Parameters
    ----------
    flops : float
    bytes_read, bytes_written : int
    """

    flops: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes_read + other.bytes_read, self.bytes_written + other.bytes_written)


class Run:
    """What one job has.

    Parameters
    ----------
    cluster : Cluster
    checkpoint : Checkpoint, optional
        Where the results of steps, and scratch arrays, are kept; without one, in memory.
    result : ResultGroup, optional
        Where outputs that belong to the job's result are written; without one, in memory (`Run.outputs`).
    emit : callable
        Receives events.
    stall_seconds : float, optional
        A step that reports nothing for so long fails.
    rows_folder : Path, optional
        Where a training writes down which rows it used, if it is asked to.
    job : (str, str)
        Its kind and its id, which the names of its tasks bear.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        checkpoint: Checkpoint | None = None,
        result: ResultGroup | None = None,
        emit: Emit = ignore,
        stall_seconds: float | None = None,
        rows_folder: Path | None = None,
        job: tuple[str, str] = ("dlscale", ""),
    ) -> None:
        self.cluster, self.checkpoint, self.result, self.emit = cluster, checkpoint, result, emit
        self.stall_seconds, self.rows_folder, self.job = stall_seconds, rows_folder, job
        self._kept = None if checkpoint is None else KeptSteps(checkpoint, emit)
        self.outputs: dict[str, Array] = {}
        self.prefix = ""

    def apart(self, prefix: str) -> Self:
        """The same run, its steps and scratch arrays under other names."""
        other = copy.copy(self)
        other.prefix = self.prefix + prefix
        return other

    def step(
        self,
        name: str,
        cost: Cost,
        compute: Callable[[str], State],
        *,
        writers: Sequence[ArrayWriter] = (),
        flushed: Sequence[ArrayWriter] = (),
        keep: Keep = "all",
    ) -> State:
        """Compute a step, or take its result from the checkpoint.

        Parameters
        ----------
        name : str
            Unique in the job; ``<iteration>-<number>`` where only the last is kept.
        cost : Cost
        compute : callable
            From the name under which the step is told to its result: small arrays by name.
        writers : sequence of ArrayWriter
            What they have written belongs to the step, and is verified where the step is resumed.
        flushed : sequence of ArrayWriter
            What they have written is safe before the step is, and verified where it is read.
        keep : str
            ``last``: once this step is kept, earlier ones of the same iteration are dropped, but for the one before it.
            ``none``: it is computed again where it is asked for again, sooner than it could be kept, or of states that are.
        """
        name = self.prefix + name
        self.emit(StepStarted(name, cost.flops, cost.bytes_read))
        # Workers start with the first step that needs them, whose work that is not.
        started = time.perf_counter() - self.cluster.start_seconds
        state = self.checkpoint.load(name) if self.checkpoint and keep != "none" else None
        resumed = state is not None
        if state is None:
            state = compute(name)
            if self._kept and keep != "none":
                self._kept.save(name, state, writers=writers, flushed=flushed, keep=keep)
        seconds = time.perf_counter() - self.cluster.start_seconds - started
        self.emit(StepFinished(name, seconds, cost.bytes_read, cost.bytes_written, cost.flops, resumed))
        return state

    def token(self, step: str) -> str:
        """A name for tasks that no others have: kind and step, by which Dask's pages group them, and the job."""
        kind, job = self.job
        return "-".join(filter(None, (kind, step, job, uuid.uuid4().hex[:12])))

    def watch(self, token: str) -> Watch:
        """How tasks that send under a token are followed: what they did is told, and once a second the memory of each worker."""
        touch, stalled = watchdog(self.stall_seconds)
        told: dict[str, float] = {}

        def listener(event: Event) -> None:
            touch(event)
            if not isinstance(event, WorkDone) or event.rss_bytes is None:
                self.emit(event)
                return
            self.emit(replace(event, rss_bytes=None))
            # Once a second is enough: a large factorization has millions of tasks.
            if time.monotonic() - told.get(event.worker, -math.inf) > 1.0:
                told[event.worker] = time.monotonic()
                self.emit(MemoryTaken(event.worker, event.rss_bytes))

        return Watch(token, listener, stalled)

    def newest(self, iteration: str) -> tuple[int, State] | None:
        """The number and the result of the last whole step ``<iteration>-<number>`` that was kept."""
        return self._kept.newest(self.prefix + iteration) if self._kept else None

    def forget(self, name: str) -> None:
        """Remove a scratch array that is read no more, and the steps that wrote it: of its name, or ``<name>-<number>``."""
        if self.checkpoint is not None:
            self.checkpoint.forget(self.prefix + name)

    def scratch(self, name: str, shape: tuple[int, int], dtype: np.dtype[Any], grid: RowGrid) -> RowOutput:
        """An array for the outputs of a pass that later passes read."""
        if self.checkpoint is None:
            return MemoryTarget(np.empty(shape, dtype))
        chunks = (grid.output_chunk_rows(shape[1] * dtype.itemsize), shape[1])
        return StoreTarget(self.checkpoint.scratch(self.prefix + name, shape, dtype, chunks=chunks))

    def output(
        self, name: str, shape: tuple[int, int], dtype: np.dtype[Any], grid: RowGrid, *, transposed: bool = False
    ) -> RowOutput:
        """An array of the job's result, written by row blocks; stored as its transpose on request."""
        chunk_rows = grid.output_chunk_rows(shape[1] * dtype.itemsize)
        stored_shape = shape[::-1] if transposed else shape
        if self.result is None:
            array = self.outputs[name] = np.empty(stored_shape, dtype)
            return MemoryTarget(array.T if transposed else array)
        chunks = (shape[1], chunk_rows) if transposed else (chunk_rows, shape[1])
        writer = self.result.create(name, stored_shape, dtype, chunks=chunks)
        return TransposedTarget(writer) if transposed else StoreTarget(writer)

    @contextmanager
    def parcels(self) -> Iterator[Path | None]:
        """A folder for large arrays that other processes read; None where there are none, or no place for it."""
        if self.cluster.shares_memory or self.checkpoint is None or not self.checkpoint.is_local:
            yield None
            return
        # One for each who asks: what is done within a step may ask again.
        self.checkpoint.require_place()
        folder = self.checkpoint.directory / "parcels" / uuid.uuid4().hex[:12]
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                folder.parent.rmdir()

    def require_shared(self, *targets: RowOutput) -> None:
        """Refuse arrays of this process as targets of tasks that run in others.

        Raises
        ------
        SpecError
        """
        if not self.cluster.shares_memory and any(target.in_memory for target in targets):
            raise SpecError(
                "Outputs in memory need cluster: threads; on other clusters give a checkpoint and a result to write to."
            )
