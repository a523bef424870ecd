"""What tasks do with whole panels: read some, factor one, apply it to another, write it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import forget_workspaces
from dlscale.engine.grids import blocks
from dlscale.engine.passes.reading import read_strips
from dlscale.engine.targets import writable
from dlscale.engine.tiles.methods import Facts, Method, Reversible, RowMove, Seen, Transform, largest_modulus
from dlscale.engine.tiles.work import Applying, Factoring, Filling, Verb, Work, measured
from dlscale.errors import NonFiniteError, OutOfRange
from dlscale.storage.matrix import Matrix

#: Of a strip of rows that is read at a time when panels are loaded.
STRIP_BYTES = 8 * 2**20


class Loaded(NamedTuple):
    """Panels that were read together, and what was measured of them."""

    panels: list[Array]
    seen: Seen


def load_panels(work: Work[Factoring[Method]], numbers: Sequence[int]) -> Loaded:
    """Read the columns of some panels, and those between them, strip by strip, and multiply them with the probes."""
    started = time.perf_counter()
    forget_workspaces()
    A, grid, m, probes = work.A, work.grid, work.grid.shape[0], work.verb.probes
    columns = (grid.columns(numbers[0])[0], grid.columns(numbers[-1])[1])
    tops = [work.verb.method.first_row(grid.columns(k)[0]) for k in numbers]
    panels = [_room(work, k, top) for k, top in zip(numbers, tops, strict=True)]
    products = np.zeros((m, probes.shape[1]), probes.dtype)
    width, largest = sum(map(grid.width, numbers)), 0.0
    step = max(1, STRIP_BYTES // ((columns[1] - columns[0]) * A.dtype.itemsize))
    if step > A.row_unit > 1:
        step = step // A.row_unit * A.row_unit
    # Products are those of the whole matrix, also where its panels begin below the first row.
    first_row = 0 if probes.any() else min(tops)
    spans = list(blocks(first_row // step * step, m, step))
    for row, strip in read_strips(A, spans, columns):
        end = row + len(strip)
        for panel, top, k in zip(panels, tops, numbers, strict=True):
            left, right = grid.columns(k)
            part = strip[:, left - columns[0] : right - columns[0]]
            largest = max(largest, largest_modulus(part))
            products[row:end] += part @ probes[left:right]
            if end > top:
                panel[max(0, row - top) : end - top] = part[max(0, top - row) :]
    if not np.isfinite(products).all():
        find_non_finite(A, columns)
    measured(work, "load", numbers[0], started, n_bytes=m * width * A.stored_dtype.itemsize)
    return Loaded(panels, Seen(products, largest))


def _room(work: Work[Filling[Any]], k: int, top: int) -> Array:
    """Memory for the rows ``top:`` of a panel."""
    return work.verb.target.room((top, work.grid.shape[0]), work.grid.columns(k), work.A.dtype)


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


def panel_of(work: Work[Verb], loaded: Loaded, i: int) -> Array:
    """One of several panels."""
    return loaded.panels[i]


def seen_of(work: Work[Verb], loaded: Loaded) -> Seen:
    return loaded.seen


def factor_panel(work: Work[Factoring[Method]], j: int, panel: Array) -> Transform:
    """Factor a panel in place; what it does to the others, which others wait for."""
    started = time.perf_counter()
    own, method, top = writable(panel), work.verb.method, work.grid.columns(j)[0]
    facts = method.factor(own, top)
    measured(work, "factor", j, started, flops=method.factor_flops(work.grid.shape[0] - top, own.shape[1]))
    return Transform(j, top, own[top - method.first_row(top) :], facts, None if own is panel else own)


def update_and_factor(work: Work[Factoring[Method]], j: int, transform: Transform, panel: Array) -> Transform:
    """Apply the last transform to a panel, and factor it."""
    updated = apply_panel(work, transform, j, panel)
    done = factor_panel(work, j, updated)
    return done if updated is panel or done.whole is not None else replace(done, whole=updated)


def factored_panel(work: Work[Verb], transform: Transform, panel: Array) -> Array:
    """A panel after it was factored."""
    return panel if transform.whole is None else transform.whole


def facts_of(work: Work[Verb], transform: Transform) -> Facts:
    return transform.facts


def fetch_panel(work: Work[Applying[Method]], j: int) -> Transform:
    """Read a finished panel."""
    started = time.perf_counter()
    transform = work.verb.finished.transform(j)
    measured(work, "fetch", j, started, n_bytes=transform.panel.nbytes)
    return transform


def apply_panel(work: Work[Applying[Method]], transform: Transform, k: int, panel: Array) -> Array:
    """Apply a transform to a panel, in place."""
    started = time.perf_counter()
    method, panel, top = work.verb.method, writable(panel), work.grid.columns(k)[0]
    method.apply(transform, panel, top)
    rows = work.grid.shape[0] - max(transform.top, method.first_row(top))
    flops = method.apply_flops(rows, transform.panel.shape[1], panel.shape[1])
    measured(work, "apply", k, started, flops=flops, transform=transform.index)
    return panel


def form_panel(work: Work[Filling[Reversible]], transform: Transform, k: int) -> Array:
    """Columns of the identity, to which the transform of their own number is applied."""
    started = time.perf_counter()
    panel = _room(work, k, 0)
    panel[: transform.top] = 0
    work.verb.method.form(transform, panel[transform.top :])
    flops = work.verb.method.apply_flops(len(transform.panel), transform.panel.shape[1], panel.shape[1]) / 2
    measured(work, "apply", k, started, flops=flops, transform=transform.index)
    return panel


def unapply_panel(work: Work[Applying[Reversible]], transform: Transform, k: int, panel: Array) -> Array:
    """Apply the inverse of a transform to a panel, in place."""
    started = time.perf_counter()
    panel = writable(panel)
    work.verb.method.unapply(transform, panel)
    flops = work.verb.method.apply_flops(len(transform.panel), transform.panel.shape[1], panel.shape[1])
    measured(work, "apply", k, started, flops=flops, transform=transform.index)
    return panel


def write_panel(work: Work[Filling[Method]], k: int, panel: Array, move: RowMove | None) -> int:
    """Write a finished panel to its place, its rows where they belong."""
    started = time.perf_counter()
    m, (left, right) = work.grid.shape[0], work.grid.columns(k)
    top = m - len(panel)
    panel = writable(panel)
    if work.verb.change is not None:
        work.verb.change(0, k, panel)
    if move is not None:
        panel[move.targets] = panel[move.sources]
    work.verb.target.finish(0, top, panel, left)
    measured(work, "write", k, started, n_bytes=m * (right - left) * panel.itemsize)
    return k
