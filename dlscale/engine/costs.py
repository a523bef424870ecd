"""The cost model: from sizes to a plan, before anything runs.

Pure functions of shapes, dtypes and a cluster's facts; only the rates are measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dlscale.engine.clusters import BASELINE_BYTES, ClusterFacts
from dlscale.engine.grids import RowGrid, plan_grid
from dlscale.engine.machine import matmul_rate, read_rate
from dlscale.errors import DoesNotFitError
from dlscale.storage.matrices import Matrix

#: A skinny or symmetric product runs at about this part of a square one's rate.
PRODUCT_EFFICIENCY = 0.8
#: A core, and a disk.
NOMINAL_FLOPS_PER_SECOND = 4e10
NOMINAL_BYTES_PER_SECOND = 2e9
#: Partial results that wait to be merged, beside one for each thread.
N_WAITING_STATES = 6


@dataclass(frozen=True)
class PassCost:
    """What one pass costs.

    Parameters
    ----------
    name : str
    flops : float
    bytes_read, bytes_written : int
    """

    name: str
    flops: float
    bytes_read: int
    bytes_written: int = 0


@dataclass(frozen=True)
class Plan:
    """What a job will do, and what it will take.

    Parameters
    ----------
    kind, algorithm : str
    matrix : dict
        From ``Matrix.describe``.
    grid : RowGrid
    transposed : bool
        Whether the passes go over the columns of the matrix.
    passes : sequence of PassCost
        In order; a method that stops by itself may need fewer.
    peak_bytes_per_worker, memory_limit_bytes : int
    cluster : ClusterFacts
    rates : dict
        ``matmul_flops_per_second`` and ``read_bytes_per_second``, of all threads together.
    notes : sequence of str
        What the user should know: conversions, decisions, fallbacks.
    driver_flops : float
        Of the small dense problem that one thread solves between or after the passes.
    """

    kind: str
    algorithm: str
    matrix: dict[str, Any]
    grid: RowGrid
    transposed: bool
    passes: tuple[PassCost, ...]
    peak_bytes_per_worker: int
    memory_limit_bytes: int
    cluster: ClusterFacts
    rates: dict[str, float]
    notes: tuple[str, ...] = ()
    driver_flops: float = 0.0

    @property
    def flops(self) -> float:
        return sum(p.flops for p in self.passes)

    @property
    def bytes_read(self) -> int:
        return sum(p.bytes_read for p in self.passes)

    @property
    def expected_seconds(self) -> float:
        """Seconds at the measured rates."""
        return self._seconds(self.rates["matmul_flops_per_second"], self.rates["read_bytes_per_second"])

    @property
    def nominal_seconds(self) -> float:
        """Seconds at fixed rates, for choosing between methods: a choice must not depend on how busy the machine was."""
        return self._seconds(NOMINAL_FLOPS_PER_SECOND * self.cluster.n_threads, NOMINAL_BYTES_PER_SECOND)

    def _seconds(self, matmul: float, read: float) -> float:
        """Reading overlaps with computing, so a pass takes the longer of the two."""
        passes = sum(max(p.flops / (matmul * PRODUCT_EFFICIENCY), p.bytes_read / read) for p in self.passes)
        return passes + self.driver_flops / (matmul / self.cluster.n_threads / 2)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "grid": self.grid.to_dict(),
            "flops": self.flops,
            "bytes_read": self.bytes_read,
            "expected_seconds": self.expected_seconds,
            "n_workers": self.cluster.n_workers,
            "threads_per_worker": self.cluster.threads_per_worker,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Plan:
        """The plan of an earlier run, so that a resumed job uses the same grid."""
        grid = record["grid"]
        return cls(
            kind=record["kind"],
            algorithm=record["algorithm"],
            matrix=record["matrix"],
            grid=RowGrid(grid["n_rows"], grid["block_rows"], grid["leaf_rows"]),
            transposed=record["transposed"],
            passes=tuple(PassCost(**p) for p in record["passes"]),
            peak_bytes_per_worker=record["peak_bytes_per_worker"],
            memory_limit_bytes=record["memory_limit_bytes"],
            cluster=ClusterFacts(**record["cluster"]),
            rates=record["rates"],
            notes=tuple(record["notes"]),
            driver_flops=record["driver_flops"],
        )


@dataclass(frozen=True)
class Layout:
    """A grid with the memory it takes on a worker."""

    grid: RowGrid
    peak_bytes: int
    notes: tuple[str, ...]


def lay_out(
    A: Matrix,
    facts: ClusterFacts,
    *,
    state_bytes: int,
    operand_bytes: int = 0,
    block_factor: float = 3.0,
    block_rows: int | None = None,
    min_block_rows: int = 1,
) -> Layout:
    """Choose a grid for the passes over a matrix that fits in a worker's memory.

    Parameters
    ----------
    A : Matrix
        As the passes read it (transposed if they go over columns).
    state_bytes, operand_bytes : int
        Bytes of a fold's partial result, and of what it multiplies by.
    block_factor : float
        Blocks that a thread holds: two being read and used, and temporaries of the same size.
    block_rows : int, optional
        A block height to use as it is.
    min_block_rows : int
        What the algorithm needs of a block (a QR of a block wants it tall).

    Raises
    ------
    DoesNotFitError
        Saying what would fit.
    """
    row_bytes = A.shape[1] * A.dtype.itemsize
    if not A.in_memory and not (A.any_range and A.dtype == A.stored_dtype):
        block_factor += 2.0
    n_states = 2 * facts.threads_per_worker + N_WAITING_STATES
    fixed = n_states * state_bytes + operand_bytes
    if A.in_memory:
        # Blocks are views; only tiles of them are copied.
        block_factor = 0.25
    room = facts.work_bytes - fixed
    max_block_bytes = int(room / (facts.threads_per_worker * block_factor)) if room > 0 else 0
    needed_rows = min(min_block_rows, A.shape[0])
    if max_block_bytes < needed_rows * row_bytes:
        needed = fixed + facts.threads_per_worker * block_factor * needed_rows * row_bytes + BASELINE_BYTES
        raise DoesNotFitError(
            f"One worker needs {needed / 1e9:.2f} GB ({n_states} partial results of {state_bytes / 1e6:.0f} MB, and "
            f"{facts.threads_per_worker} threads with blocks of {needed_rows} rows x {A.shape[1]}), and has "
            f"{facts.memory_bytes / 1e9:.2f} GB; raise cluster.memory, use fewer threads, or ask for fewer components."
        )
    grid = plan_grid(A, max_block_bytes=max_block_bytes, block_rows=block_rows)
    if block_rows is None and grid.block_rows < min_block_rows and grid.n_leaves > 1:
        taller = -(-min_block_rows // grid.block_rows) * grid.block_rows
        grid = plan_grid(A, max_block_bytes=max_block_bytes, block_rows=taller)
    notes = []
    if not A.in_memory and not A.any_range and grid.leaf_rows % A.row_unit and grid.n_leaves > 1:
        times = A.row_unit / grid.leaf_rows + 1
        notes.append(
            f"chunks are {A.row_unit} rows high and do not line up with the blocks: each is read about {times:.1f} times a pass"
        )
    peak = int(fixed + facts.threads_per_worker * block_factor * grid.block_rows * row_bytes)
    if facts.kind != "threads":
        peak += BASELINE_BYTES
    return Layout(grid, peak, tuple(notes))


def measured_rates(A: Matrix, facts: ClusterFacts) -> dict[str, float]:
    """Rates of all threads of the cluster together, from short measurements on this machine."""
    return {
        "matmul_flops_per_second": matmul_rate(str(A.dtype)) * facts.n_threads,
        "read_bytes_per_second": read_rate(A) * facts.n_threads,
    }


def bytes_of(*shape: int, dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape)) * dtype.itemsize
