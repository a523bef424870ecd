"""A plan: what a job will do and what it will take. Made before anything runs, kept in its folder, read when it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from dlscale.engine import PLAN_VERSION
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.grids import RowGrid
from dlscale.engine.machine import write_rate
from dlscale.engine.tiles.grid import PanelGrid

#: A skinny or symmetric product, or a factorization, runs at about this part of a square one's rate; and a large product.
PRODUCT_EFFICIENCY, LARGE_PRODUCT_EFFICIENCY = 0.8, 0.95
#: A core, and a disk.
NOMINAL_FLOPS_PER_SECOND = 4e10
NOMINAL_BYTES_PER_SECOND = 2e9
#: That a step takes beside its work, to send tasks to worker processes and to keep what they return; and to threads of this one.
STEP_SECONDS, STEP_SECONDS_OF_THREADS = 0.035, 0.005
#: What is written below this is not worth a measurement of the disk.
MUCH_BYTES = 2**27


@dataclass(frozen=True)
class Step:
    """What one step takes.

    Parameters
    ----------
    id : str
        The name under which it is told and kept.
    flops : float
    bytes_read, bytes_written : int
    where : {"workers", "driver"}
        A step in the driver is one thread's, and nothing is told of it.
    n_threads : float
        Of the workers, that work on it at the same time on average; 0: all of them.
    efficiency : float
        The part of the rate of a square product at which it runs.
    """

    id: str
    flops: float
    bytes_read: int = 0
    bytes_written: int = 0
    where: Literal["workers", "driver"] = "workers"
    n_threads: float = 0.0
    efficiency: float = PRODUCT_EFFICIENCY

    def seconds(self, matmul: float, read: float, write: float, n_threads: int) -> float:
        """On the workers, at the rates of so many threads.

        Reading overlaps with computing, so it takes the longer of the two; what is written is flushed when the step ends.
        """
        longer = max(self.flops / (matmul * self.efficiency), self.bytes_read / read)
        return longer * n_threads / (self.n_threads or n_threads) + self.bytes_written / write


@dataclass(frozen=True)
class Need:
    """A part of a worker's memory, and what it is for."""

    what: str
    n_bytes: int


@dataclass(frozen=True)
class Grids:
    """How a matrix is cut, which fixes the bits of what is computed.

    Parameters
    ----------
    rows : RowGrid, optional
        Of the passes over the rows of the matrix, or of its transpose where the plan is transposed.
    columns : RowGrid, optional
        Of the passes over the columns of stored factors.
    panels : PanelGrid, optional
        Of a factorization.
    """

    rows: RowGrid | None = None
    columns: RowGrid | None = None
    panels: PanelGrid | None = None


@dataclass(frozen=True)
class Plan:
    """What a job will do, and what it will take.

    Parameters
    ----------
    kind : str
    method : str
        Which way is taken; what is computed is decided by this id.
    words : str
        The method as people are told.
    matrix : dict
        From ``Matrix.describe``.
    grids : Grids
    steps : sequence of Step
        In order; a method that stops by itself may need fewer.
    memory : sequence of Need
        The parts of the peak on each worker.
    memory_limit_bytes : int
    cluster : ClusterFacts
    rates : dict
        ``matmul_flops_per_second`` and ``read_bytes_per_second``, of all threads together, and, where much is written,
        ``write_bytes_per_second``; None of what costs nothing.
    notes : sequence of str
        What the user should know: conversions, decisions, fallbacks.
    transposed : bool
        Whether the passes go over the columns of the matrix.
    choices : dict
        What else was chosen and fixes the bits, such as the order of rows of a training.
    bytes_moved : float
        Between workers, of a factorization.
    n_tasks : int
        Of the largest graph of a factorization.
    disk_bytes : int, optional
        Of files, the result included, that there are at a time; absent where nothing of what is written goes before the end.
    """

    kind: str
    method: str
    words: str
    matrix: dict[str, Any]
    grids: Grids
    steps: tuple[Step, ...]
    memory: tuple[Need, ...]
    memory_limit_bytes: int
    cluster: ClusterFacts
    rates: dict[str, float | None]
    notes: tuple[str, ...] = ()
    transposed: bool = False
    choices: dict[str, Any] = field(default_factory=dict)
    bytes_moved: float = 0.0
    n_tasks: int = 0
    disk_bytes: int | None = None

    @property
    def rows(self) -> RowGrid:
        """The grid of passes over rows."""
        assert self.grids.rows is not None
        return self.grids.rows

    @property
    def columns(self) -> RowGrid:
        """The grid of passes over the columns of factors."""
        assert self.grids.columns is not None
        return self.grids.columns

    @property
    def panels(self) -> PanelGrid:
        """The grid of the factorization."""
        assert self.grids.panels is not None
        return self.grids.panels

    @property
    def worker_steps(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.where == "workers")

    @property
    def flops(self) -> float:
        """Of the steps on the workers."""
        return sum(step.flops for step in self.worker_steps)

    @property
    def bytes_read(self) -> int:
        return sum(step.bytes_read for step in self.steps)

    @property
    def bytes_written(self) -> int:
        return sum(step.bytes_written for step in self.steps)

    @property
    def peak_bytes_per_worker(self) -> int:
        return sum(need.n_bytes for need in self.memory)

    @property
    def expected_seconds(self) -> float:
        """Seconds at the measured rates, and what each step takes beside its work; without the start of workers."""
        matmul, read = self.rates["matmul_flops_per_second"], self.rates["read_bytes_per_second"]
        working = self._seconds(matmul or inf, read or inf, self.rates.get("write_bytes_per_second") or inf)
        return working + len(self.worker_steps) * self.step_seconds

    @property
    def step_seconds(self) -> float:
        """See `STEP_SECONDS`."""
        return STEP_SECONDS_OF_THREADS if self.cluster.kind == "threads" else STEP_SECONDS

    @property
    def nominal_seconds(self) -> float:
        """Seconds at fixed rates, for choosing between methods: a choice must not depend on how busy the machine was."""
        return self._seconds(NOMINAL_FLOPS_PER_SECOND * self.cluster.n_threads, NOMINAL_BYTES_PER_SECOND, inf)

    def writing_in(self, folder: Path) -> Plan:
        """This plan with the rate at which this machine writes in a folder, where so much is written that it counts."""
        if self.bytes_written < MUCH_BYTES:
            return self
        rate = write_rate(folder)
        return replace(self, rates=self.rates | {"write_bytes_per_second": rate if rate < inf else None})

    def _seconds(self, matmul: float, read: float, write: float) -> float:
        on_workers = sum(step.seconds(matmul, read, write, self.cluster.n_threads) for step in self.worker_steps)
        in_driver = [step for step in self.steps if step.where == "driver"]
        computing = sum(step.flops for step in in_driver) / (matmul / self.cluster.n_threads / 2)
        return on_workers + computing + sum(step.bytes_written for step in in_driver) / write

    def to_dict(self) -> dict[str, Any]:
        """As plain data, with what follows from it for those who only show it."""
        record: dict[str, Any] = _PLANS.dump_python(self)
        if panels := self.grids.panels:
            record["grids"]["panels"] |= {"n_panels": panels.n_panels, "n_groups": len(panels.groups())}
        return record | {
            "version": PLAN_VERSION,
            "flops": self.flops,
            "bytes_read": self.bytes_read,
            "peak_bytes_per_worker": self.peak_bytes_per_worker,
            "expected_seconds": self.expected_seconds,
            "step_seconds": self.step_seconds,
            "n_workers": self.cluster.n_workers,
            "threads_per_worker": self.cluster.threads_per_worker,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Plan:
        """The plan of an earlier run, so that a job that goes on uses the same grids (ValueError if it is none)."""
        return _PLANS.validate_python(record)


_PLANS = TypeAdapter(Plan)
