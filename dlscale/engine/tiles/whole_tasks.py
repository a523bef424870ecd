"""What the tasks of a factorization do: read panels, factor one, apply it to another, write them."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.events import WorkDone
from dlscale.engine.grids import blocks
from dlscale.engine.passes.reading import read_strips
from dlscale.engine.progress import resident_bytes, send, worker_name
from dlscale.engine.targets import Target, writable
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.methods import Factored, Facts, Finish, RowMove, Transform, largest_modulus
from dlscale.errors import NonFiniteError, OutOfRange
from dlscale.storage.matrix import Matrix

#: Of a strip of rows that is read at a time when panels are loaded.
STRIP_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Work:
    """What the tasks of a factorization share, shipped to each worker once and as one piece (see `passes`)."""

    token: str
    step: str
    A: Matrix
    method: Any
    grid: PanelGrid
    finished: Factored | None
    target: Target
    probes: Array
    finish: Finish | None = None

    def __reduce__(self) -> tuple[Callable[..., Work], tuple[bytes]]:
        fields = (self.token, self.step, self.A, self.method, self.grid, self.finished, self.target, self.probes, self.finish)
        return _unpack, (pickle.dumps(fields, protocol=4),)


def _unpack(fields: bytes) -> Work:
    return Work(*pickle.loads(fields))


def measured(
    work: Work, task: str, panel: int, started: float, *, flops: float = 0.0, n_bytes: int = 0, transform: int | None = None
) -> None:
    """Report what a task did."""
    seconds = time.perf_counter() - started
    event = WorkDone(
        work.step,
        worker_name(),
        bytes=n_bytes,
        flops=flops,
        read_seconds=seconds if n_bytes else 0.0,
        compute_seconds=0.0 if n_bytes else seconds,
        rss_bytes=resident_bytes(),
        inexact=tuple(sorted(work.A.inexact())),
        thread=threading.get_native_id(),
        task=task,
        panel=panel,
        transform=transform,
        started=time.time() - seconds,
    )
    send(work.token, event)


def take(work: Work, results: Sequence[Any], i: int) -> Any:
    """One of several results."""
    return results[i]


def load_panels(work: Work, first: int, stop: int) -> list[Any]:
    """Read the columns of some panels, strip by strip; the panels, and behind them the products with the probes."""
    started = time.perf_counter()
    A, grid, m = work.A, work.grid, work.grid.shape[0]
    columns = (grid.columns(first)[0], grid.columns(stop - 1)[1])
    tops = [work.method.first_row(grid.columns(k)[0]) for k in range(first, stop)]
    panels = [room(work, k, top) for k, top in zip(range(first, stop), tops, strict=True)]
    products = np.zeros((m, work.probes.shape[1]), work.probes.dtype)
    width, largest = columns[1] - columns[0], 0.0
    step = max(1, STRIP_BYTES // (width * A.dtype.itemsize))
    if step > A.row_unit > 1:
        step = step // A.row_unit * A.row_unit
    with np.errstate(over="ignore", invalid="ignore"):
        # Products are those of the whole matrix, also where its panels begin below the first row.
        first_row = 0 if work.probes.any() else min(tops)
        spans = list(blocks(first_row // step * step, m, step))
        for row, strip in read_strips(A, spans, columns):
            end = row + len(strip)
            largest = max(largest, largest_modulus(strip))
            products[row:end] += strip @ work.probes[slice(*columns)]
            for panel, top, k in zip(panels, tops, range(first, stop), strict=True):
                left = grid.columns(k)[0] - columns[0]
                if end > top:
                    panel[max(0, row - top) : end - top] = strip[max(0, top - row) :, left : left + grid.width(k)]
    if not np.isfinite(products).all():
        find_non_finite(A, columns)
    measured(work, "load", first, started, n_bytes=m * width * A.stored_dtype.itemsize)
    return [*panels, (products, largest)]


def room(work: Work, k: int, top: int) -> Array:
    """Memory for the rows ``top:`` of a panel."""
    return work.target.room((top, work.grid.shape[0]), work.grid.columns(k), work.A.dtype)


def find_non_finite(A: Matrix, columns: tuple[int, int]) -> None:
    """Say which entry spoilt the sums of a panel."""
    step = max(1, STRIP_BYTES // ((columns[1] - columns[0]) * A.dtype.itemsize))
    for row in range(0, A.shape[0], step):
        strip = A.region((row, min(row + step, A.shape[0])), columns)
        bad = np.argwhere(~np.isfinite(strip))
        if len(bad):
            i, j = (int(index) for index in bad[0])
            raise NonFiniteError(*A.place(row + i, columns[0] + j), strip[i, j].item())
    raise OutOfRange(f"The entries are finite, but their sums overflow {A.dtype}; divide the matrix by its largest entry.")


def factor_panel(work: Work, j: int, panel: Array) -> tuple[Array, Facts]:
    """Factor a panel in place; it, and its facts."""
    started = time.perf_counter()
    panel, top = writable(panel), work.grid.columns(j)[0]
    facts = work.method.factor(panel, top)
    measured(work, "factor", j, started, flops=work.method.factor_flops(work.grid.shape[0] - top, panel.shape[1]))
    return panel, facts


def transform_of(work: Work, factored: tuple[Array, Facts], j: int) -> Transform:
    """What a factored panel does to the others."""
    panel, facts = factored
    top = work.grid.columns(j)[0]
    return Transform(j, top, panel[top - work.method.first_row(top) :], facts)


def fetch_panel(work: Work, j: int) -> Transform:
    """Read a finished panel."""
    started = time.perf_counter()
    assert work.finished is not None
    transform = work.finished.transform(j)
    measured(work, "fetch", j, started, n_bytes=transform.panel.nbytes)
    return transform


def apply_panel(work: Work, transform: Transform, k: int, panel: Array) -> Array:
    """Apply a transform to a panel, in place."""
    started = time.perf_counter()
    panel, top = writable(panel), work.grid.columns(k)[0]
    work.method.apply(transform, panel, top)
    rows = work.grid.shape[0] - max(transform.top, work.method.first_row(top))
    flops = work.method.apply_flops(rows, transform.panel.shape[1], panel.shape[1])
    measured(work, "apply", k, started, flops=flops, transform=transform.index)
    return panel


def form_panel(work: Work, transform: Transform, k: int) -> Array:
    """Columns of the identity, to which the transform of their own number is applied."""
    started = time.perf_counter()
    panel = room(work, k, 0)
    panel[: transform.top] = 0
    work.method.form(transform, panel[transform.top :])
    flops = work.method.apply_flops(len(transform.panel), transform.panel.shape[1], panel.shape[1]) / 2
    measured(work, "apply", k, started, flops=flops, transform=transform.index)
    return panel


def unapply_panel(work: Work, transform: Transform, k: int, panel: Array) -> Array:
    """Apply the inverse of a transform to a panel, in place."""
    started = time.perf_counter()
    panel = writable(panel)
    work.method.unapply(transform, panel)
    flops = work.method.apply_flops(len(transform.panel), transform.panel.shape[1], panel.shape[1])
    measured(work, "apply", k, started, flops=flops, transform=transform.index)
    return panel


def place_panel(work: Work, k: int) -> int:
    """Copy the upper rows of a finished panel, as many as are wanted, to their final place, and change them there."""
    started = time.perf_counter()
    columns, n_rows = work.grid.columns(k), work.target.shape[0]
    assert work.finish is not None
    panel = work.A.region((0, n_rows), columns)
    panel = work.target.take(0, panel, columns[0], own=True)
    work.finish(k, panel)
    work.target.write(0, panel, columns[0])
    measured(work, "write", k, started, n_bytes=2 * panel.nbytes)
    return k


def write_panel(work: Work, k: int, panel: Array, move: RowMove | None) -> int:
    """Write a finished panel to its place, its rows where they belong."""
    started = time.perf_counter()
    m, (left, right) = work.grid.shape[0], work.grid.columns(k)
    top = m - len(panel)
    panel = writable(panel)
    if work.finish is not None:
        work.finish(k, panel)
    if move is not None:
        panel[move.targets] = panel[move.sources]
    work.target.finish(0, top, panel, left)
    measured(work, "write", k, started, n_bytes=m * (right - left) * panel.itemsize)
    return k
