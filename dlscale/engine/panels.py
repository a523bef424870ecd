"""The panels: one driver for all one-sided factorizations.

    for each column panel j:
        for each finished panel k < j:  panel_j = apply(transform_k, panel_j)
        transform_j, panel_j = factor(panel_j)

A factorization supplies a `Method` (factor, apply) and gets from here: right-looking updates inside a group of panels
that fits in memory, with the next panel updated and factored first, so that no thread waits for a panel; left-looking
updates across groups, the finished panels streamed from the store; a finished group as a checkpoint that costs one write;
graphs of bounded size; progress, retry and every kind of cluster.

Panels are updated in place. That is safe because each state of a panel has one consumer, which runs where the state is:
when a worker is lost its panels go with it, and are made again from the matrix and the finished groups.
"""

from __future__ import annotations

import pickle
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from dask._task_spec import DataNode, Task, TaskRef

from dlscale.engine.clusters import watchdog
from dlscale.engine.panel_grids import PanelGrid
from dlscale.engine.passes import Passes
from dlscale.engine.progress import Event, resident_bytes, send, worker_name
from dlscale.errors import NonFiniteError, NumericalError
from dlscale.kernels import workspace
from dlscale.storage.matrices import Array, ArrayMatrix, Matrix
from dlscale.storage.results import ArrayWriter

#: Tasks of one graph: enough to hide the start and the end of it, few enough for any scheduler.
MAX_TASKS = 4000
#: Rows that are read at a time when panels are loaded.
STRIP_BYTES = 16 * 2**20

Facts = dict[str, Array]

#: A last change to a finished panel (m, b), from its number; may work in place, and may return fewer rows.
Finish = Callable[[int, Array], Array]
_NO_PROBES = np.empty((0, 0))


@dataclass(frozen=True)
class Transform:
    """What a factored panel does to the others.

    Parameters
    ----------
    index : int
        j, of the panel.
    top : int
        The first row that it touches.
    panel : (m - top, b)
        The factored panel from that row on.
    facts : dict of arrays
        Small things beside it, such as pivots.
    """

    index: int
    top: int
    panel: Array
    facts: Facts


class Method(ABC):
    """A factorization: how one panel is factored, and what that does to another. Picklable."""

    def first_row(self, top: int) -> int:
        """The first row that is kept of a panel whose diagonal begins at row ``top``."""
        return 0

    @abstractmethod
    def factor(self, panel: Array, top: int) -> Facts:
        """Factor the rows ``top:`` of a panel (m, b) in place; what else is to be remembered."""

    @abstractmethod
    def apply(self, transform: Transform, panel: Array, top: int) -> None:
        """Apply a factored panel to a panel whose diagonal begins at row ``top``, in place."""

    def unapply(self, transform: Transform, panel: Array) -> None:
        """Apply the inverse of a transform to a panel, in place, where ``form`` is to be used."""
        raise NotImplementedError

    def settle(self, facts: Sequence[Facts], first: int, grid: PanelGrid) -> list[tuple[RowMove | None, Facts]]:
        """For finished panels ``first, first + 1, ...``: how the rows of each moved afterwards, and its facts from now on."""
        return [(None, fact) for fact in facts]

    def probe(self, strip: Array, row: int, column: int, probes: Array, products: Array) -> None:
        """Add what a strip of the matrix, from ``row`` and ``column`` on, contributes to ``products = A probes``."""
        products[row : row + len(strip)] += strip @ probes[column : column + strip.shape[1]]

    @abstractmethod
    def factor_flops(self, m: int, b: int) -> float: ...

    @abstractmethod
    def apply_flops(self, m: int, b: int, width: int) -> float: ...


@dataclass(frozen=True)
class RowMove:
    """``A[targets] = A[sources]``, both of them row numbers."""

    targets: Array
    sources: Array


@dataclass(frozen=True)
class Seen:
    """What was measured of a matrix while it was read.

    Parameters
    ----------
    products : (m, k)
        ``A probes``.
    largest : float
        The largest modulus of its entries.
    """

    products: Array
    largest: float


@dataclass(frozen=True)
class Factored:
    """A finished factorization.

    Parameters
    ----------
    grid : PanelGrid
    matrix : Matrix (m, n)
        The factors, panel by panel, as LAPACK stores them.
    facts : list of dict
        Beside each factored panel.
    """

    grid: PanelGrid
    matrix: Matrix
    facts: list[Facts]

    def transform(self, j: int) -> Transform:
        """Read the transform of panel j."""
        top, columns = self.grid.columns(j)[0], self.grid.columns(j)
        return Transform(j, top, self.matrix.region((top, self.matrix.shape[0]), columns), self.facts[j])


@dataclass(frozen=True)
class _Work:
    """What the tasks of a factorization share, shipped to each worker once and as one piece (see `passes`)."""

    token: str
    step: str
    A: Matrix
    method: Method
    grid: PanelGrid
    finished: Factored | None
    target: ArrayWriter | Array
    probes: Array
    finish: Finish | None = None

    def __reduce__(self) -> tuple[Callable[..., _Work], tuple[bytes]]:
        fields = (self.token, self.step, self.A, self.method, self.grid, self.finished, self.target, self.probes, self.finish)
        return _unpack, (pickle.dumps(fields, protocol=4),)


def _unpack(fields: bytes) -> _Work:
    return _Work(*pickle.loads(fields))


Key = tuple[Any, ...]


class _Graph:
    """Tasks under construction, with their priorities and the workers that they prefer."""

    def __init__(self, work: _Work) -> None:
        self.work = work
        self.shared = (work.token, "work", uuid.uuid4().hex[:8])
        self.tasks: dict[Key, Any] = {self.shared: DataNode(self.shared, work)}
        self.priority: dict[Key, float] = {}
        self.worker: dict[Key, int] = {}

    def add(self, key: Key, function: Callable[..., Any], *arguments: Any, priority: float, worker: int) -> Key:
        """A task that calls ``function(work, *arguments)``; keys among the arguments stand for their results."""
        key = (self.work.token, *key)
        refs = [TaskRef(a) if isinstance(a, tuple) and a and a[0] == self.work.token else a for a in arguments]
        self.tasks[key] = Task(key, function, TaskRef(self.shared), *refs)
        self.priority[key], self.worker[key] = priority, worker
        return key


class _Copy(Method):
    """No factorization: panels are only moved."""

    def factor(self, panel: Array, top: int) -> Facts:
        raise NotImplementedError

    apply = factor  # type: ignore[assignment]
    factor_flops = apply_flops = factor  # type: ignore[assignment]


def _token() -> str:
    return f"dlscale-{uuid.uuid4().hex[:12]}"


class Panels:
    """Runs factorizations on a cluster.

    Parameters
    ----------
    passes : Passes
        Whose cluster, checkpoint and events are used.
    """

    def __init__(self, passes: Passes) -> None:
        self.passes = passes

    def factor(
        self, step: str, A: Matrix, method: Method, grid: PanelGrid, target: ArrayWriter | Array, *, probes: Array
    ) -> tuple[Factored, Seen]:
        """Factor a matrix, group by group; a group that is in the checkpoint is not repeated.

        Parameters
        ----------
        step : str
            Unique in the job.
        A : Matrix (m, n)
        method : Method
        grid : PanelGrid
        target : ArrayWriter or ndarray (m, n)
            Where the finished panels go; an array only where tasks share the driver's memory.
        probes : (n, k)
            Random vectors.

        Returns
        -------
        Factored
        Seen
            What was measured of A while it was read.

        Raises
        ------
        NonFiniteError
        StalledError
        """
        passes, m = self.passes, grid.shape[0]
        done = Factored(grid, ArrayMatrix(target) if isinstance(target, np.ndarray) else target.matrix(), [])
        products, largest = np.zeros((m, probes.shape[1]), probes.dtype), 0.0
        for number, group in enumerate(grid.groups()):
            work = _Work(_token(), f"{step}-{number + 1}", A, method, grid, done, target, probes)
            flops, n_bytes = group_flops(method, grid, group), group_bytes(A, grid, group)
            saved = self._memoised(
                work.step, flops, n_bytes, target, lambda work=work, group=group: _Factoring(passes, work, group).run()
            )
            products += saved.pop("products")
            largest = max(largest, float(saved.pop("largest")))
            done = replace(done, facts=done.facts + _unflatten(saved))
        return done, Seen(products, largest)

    def form(
        self, step: str, factored: Factored, method: Method, target: ArrayWriter | Array, *, finish: Finish | None = None
    ) -> None:
        """Apply the transforms, the last one first, to the columns of the identity: the orthogonal factor itself.

        Parameters
        ----------
        step : str
        factored : Factored
        method : Method
            Whose ``unapply`` is used.
        target : ArrayWriter or ndarray (m, k), k = min(m, n)
        finish : callable, optional
            A last change to each panel.
        """
        m, n = factored.grid.shape
        grid = replace(factored.grid, shape=(m, min(m, n)))
        for number, group in enumerate(grid.groups()):
            flops = sum(
                method.apply_flops(m - grid.columns(j)[0], grid.width(j), grid.width(k)) for k in group for j in range(k + 1)
            )
            n_bytes = sum((m - grid.columns(j)[0]) * grid.width(j) for j in range(group.stop)) * factored.matrix.dtype.itemsize
            work = _Work(_token(), f"{step}-{number + 1}", factored.matrix, method, grid, factored, target, _NO_PROBES, finish)
            self._memoised(
                work.step, flops, n_bytes, target, lambda work=work, group=group: _Forming(self.passes, work, group).run()
            )

    def place(self, step: str, factored: Factored, target: ArrayWriter | Array, finish: Finish) -> None:
        """Copy the panels to their final place, each changed by ``finish``."""
        grid = factored.grid
        n_bytes = grid.shape[0] * grid.shape[1] * factored.matrix.dtype.itemsize
        work = _Work(_token(), step, factored.matrix, _Copy(), grid, factored, target, _NO_PROBES, finish)
        self._memoised(step, 0.0, n_bytes, target, lambda: _Placing(self.passes, work, range(grid.n_panels)).run())

    def _memoised(self, name: str, flops: float, n_bytes: int, target: ArrayWriter | Array, compute: Callable[[], Facts]) -> Facts:
        """Compute a step, or take its small results from the checkpoint; then what it wrote is there too."""
        passes = self.passes
        passes.emit({"event": "pass_started", "step": name, "flops": flops, "bytes": n_bytes})
        started = time.perf_counter()
        facts = passes.checkpoint.load(name) if passes.checkpoint else None
        resumed = facts is not None
        if facts is None:
            facts = compute()
            if passes.checkpoint is not None:
                saving = time.perf_counter()
                written = target.flush() if isinstance(target, ArrayWriter) else {}
                saved = passes.checkpoint.save(name, facts)
                seconds = time.perf_counter() - saving
                passes.emit({"event": "checkpoint", "step": name, "bytes": saved, "files": len(written), "seconds": seconds})
        seconds = time.perf_counter() - started
        passes.emit(
            {"event": "pass_finished", "step": name, "seconds": seconds, "bytes_read": n_bytes, "flops": flops, "resumed": resumed}
        )
        return facts


class _Group:
    """Panels that are in memory together, and the graphs that work on them.

    Parameters
    ----------
    passes : Passes
    work : _Work
    group : range
        The panels.
    """

    def __init__(self, passes: Passes, work: _Work, group: range) -> None:
        self.passes, self.work, self.group, self.grid = passes, work, group, work.grid
        #: The key of each panel's latest state.
        self.panels: dict[int, Key] = {}
        self.held: dict[Key, Any] = {}

    def run(self) -> Facts:
        """Do the work; small results by name."""
        raise NotImplementedError

    def windows(self, steps: range, *, fetched: bool) -> Iterator[range]:
        """Cut steps so that a graph has few tasks, and those that read finished panels have room for them."""
        limit = max(1, MAX_TASKS // len(self.group))
        if fetched:
            limit = min(limit, self.grid.streamed)
        for start in range(0, len(steps), limit):
            yield steps[start : start + limit]

    def compute(self, graph: _Graph, keys: Sequence[Key]) -> None:
        """Run a graph; afterwards what the keys name is held, and nothing else."""
        passes, work = self.passes, self.work
        touch, stalled = watchdog(passes.stall_seconds)

        def listener(event: Event) -> None:
            touch(event)
            rss_bytes = event.pop("rss_bytes")
            passes.emit(event)
            passes.emit({"event": "memory", "process": event["worker"], "rss_bytes": rss_bytes})

        fresh = passes.cluster.hold(
            graph.tasks,
            [key for key in keys if key in graph.tasks],
            self.held,
            priority=graph.priority,
            worker=graph.worker,
            token=work.token,
            listener=listener,
            stalled=stalled,
        )
        self.held = {key: fresh[key] if key in fresh else self.held[key] for key in keys}


class _Factoring(_Group):
    """A group is loaded, updated by the finished panels, factored, and written."""

    def __init__(self, passes: Passes, work: _Work, group: range) -> None:
        super().__init__(passes, work, group)
        self.n_done = len(work.finished.facts) if work.finished else 0
        self.facts: dict[int, Key] = {}
        self.products: list[Key] = []

    def run(self) -> Facts:
        """The facts of the group's factored panels, and the products of its columns with the probes."""
        to_factor = range(min(self.group.start, self.grid.n_steps), min(self.group.stop, self.grid.n_steps))
        graph = self._load(_Graph(self.work))
        for window in (*self.windows(range(self.n_done), fetched=True), *self.windows(to_factor, fetched=False)):
            for j in window:
                self._step(graph, j, finished=j < self.n_done)
            self.compute(graph, [*self.panels.values(), *self.facts.values(), *self.products])
            graph = _Graph(self.work)
        if len(graph.tasks) > 1:
            self.compute(graph, [*self.panels.values(), *self.products])
        facts = self.passes.cluster.gather([self.held[key] for key in self.facts.values()])
        settled = self.work.method.settle(facts, to_factor.start, self.grid)
        graph = _Graph(self.work)
        moves = [move for move, _ in settled] + [None] * (len(self.group) - len(settled))
        written = [
            graph.add(("write", k), _write, k, self.panels[k], move, priority=k, worker=k)
            for k, move in zip(self.group, moves, strict=True)
        ]
        self.compute(graph, [*written, *self.products])
        parts = self.passes.cluster.gather([self.held[key] for key in self.products])
        sums = {"products": sum((part for part, _ in parts[1:]), parts[0][0]), "largest": np.array(max(x for _, x in parts))}
        return sums | {f"{j}.{name}": value for j, (_, fact) in enumerate(settled) for name, value in fact.items()}

    def _load(self, graph: _Graph) -> _Graph:
        for run in load_runs(self.work.A, self.grid, self.group):
            loaded = graph.add(("load", run.start), _load, run.start, run.stop, priority=run.start, worker=run.start)
            self.products.append(graph.add(("products", run.start), _take, loaded, -1, priority=run.start, worker=run.start))
            for i, k in enumerate(run):
                self.panels[k] = graph.add(("panel", k, 0), _take, loaded, i, priority=k, worker=k)
        return graph

    def _step(self, graph: _Graph, j: int, *, finished: bool) -> None:
        """Factor panel j, or read it where it is finished, and apply it to the panels of the group behind it."""
        n = self.grid.n_panels
        if finished:
            transform = graph.add(("fetch", j), _fetch, j, priority=(j - 2) * n, worker=j)
        else:
            urgent = (j - 2) * n
            factored = graph.add(("factor", j), _factor, j, self.panels[j], priority=urgent, worker=j)
            self.panels[j] = graph.add(("panel", j, "factored"), _take, factored, 0, priority=urgent, worker=j)
            self.facts[j] = graph.add(("facts", j), _take, factored, 1, priority=urgent, worker=j)
            transform = graph.add(("transform", j), _transform, factored, j, priority=urgent, worker=j)
        for k in self.group:
            if k > j:
                # The panel that is factored next comes first, before the rest of the step before.
                priority = (j - 1 if k == j + 1 else j) * n + k
                self.panels[k] = graph.add(
                    ("panel", k, j + 1), _apply, transform, k, self.panels[k], priority=priority, worker=k
                )  # fmt: skip


class _Forming(_Group):
    """Columns of the identity, to which the transforms are applied, the last one first."""

    def run(self) -> Facts:
        graph = _Graph(self.work)
        for k in self.group:
            self.panels[k] = graph.add(("panel", k, "identity"), _identity, k, priority=k, worker=k)
        steps = range(self.group.stop - 1, -1, -1)
        for window in self.windows(steps, fetched=True):
            for j in window:
                transform = graph.add(("fetch", j), _fetch, j, priority=-(j + 2) * self.grid.n_panels, worker=j)
                for k in self.group:
                    if k >= j:
                        priority = -j * self.grid.n_panels + k
                        key = ("panel", k, j)
                        self.panels[k] = graph.add(key, _unapply, transform, k, self.panels[k], priority=priority, worker=k)
            self.compute(graph, list(self.panels.values()))
            graph = _Graph(self.work)
        written = [graph.add(("write", k), _write, k, self.panels[k], None, priority=k, worker=k) for k in self.group]
        self.compute(graph, written)
        return {"done": np.array(True)}


class _Placing(_Group):
    """Finished panels are read, changed, and written to another place."""

    def run(self) -> Facts:
        for window in self.windows(self.group, fetched=False):
            graph = _Graph(self.work)
            self.compute(graph, [graph.add(("place", k), _place, k, priority=k, worker=k) for k in window])
        return {"done": np.array(True)}


def load_runs(A: Matrix, grid: PanelGrid, group: range) -> list[range]:
    """Panels that are loaded by one task: those that share stored chunks, as far as two threads still share the work."""
    length = max(1, min(A.column_unit // grid.panel, len(group) // 2))
    return [range(k, min(k + length, group.stop)) for k in range(group.start, group.stop, length)]


def group_flops(method: Method, grid: PanelGrid, group: range) -> float:
    """Flops of bringing a group up to date and factoring it."""
    m = grid.shape[0]
    steps = range(min(group.stop, grid.n_steps))
    factors = sum(method.factor_flops(m - grid.columns(j)[0], grid.width(j)) for j in steps if j in group)
    applies = sum(
        method.apply_flops(m - max(grid.columns(j)[0], method.first_row(grid.columns(k)[0])), grid.width(j), grid.width(k))
        for j in steps
        for k in group
        if k > j
    )
    return factors + applies


def group_bytes(A: Matrix, grid: PanelGrid, group: range) -> int:
    """Bytes read for a group: its columns, and the finished panels."""
    m, item = grid.shape[0], A.dtype.itemsize
    finished = sum((m - grid.columns(j)[0]) * grid.width(j) for j in range(min(group.start, grid.n_steps)))
    return int(m * sum(grid.width(k) for k in group) * A.stored_dtype.itemsize + finished * item)


def _unflatten(saved: Mapping[str, Array]) -> list[Facts]:
    facts: dict[int, Facts] = {}
    for key, value in saved.items():
        j, name = key.split(".")
        facts.setdefault(int(j), {})[name] = value
    return [facts[j] for j in sorted(facts)]


def _measured(work: _Work, task: str, panel: int, started: float, *, flops: float = 0.0, n_bytes: int = 0, **more: int) -> None:
    seconds = time.perf_counter() - started
    event = {
        "event": "blocks",
        "step": work.step,
        "worker": worker_name(),
        "thread": threading.get_native_id(),
        "task": task,
        "panel": panel,
        "rows": 0,
        "bytes": n_bytes,
        "flops": flops,
        "read_seconds": seconds if n_bytes else 0.0,
        "compute_seconds": 0.0 if n_bytes else seconds,
        "started": time.time() - seconds,
        "rss_bytes": resident_bytes(),
    }
    send(work.token, event | more)


def _take(work: _Work, results: Sequence[Any], i: int) -> Any:
    return results[i]


def _load(work: _Work, first: int, stop: int) -> list[Array]:
    """Read the columns of some panels, strip by strip; the panels, and behind them the products with the probes."""
    started = time.perf_counter()
    A, grid, m = work.A, work.grid, work.grid.shape[0]
    columns = (grid.columns(first)[0], grid.columns(stop - 1)[1])
    tops = [work.method.first_row(grid.columns(k)[0]) for k in range(first, stop)]
    panels = [_room(work, k, top) for k, top in zip(range(first, stop), tops, strict=True)]
    products = np.zeros((m, work.probes.shape[1]), work.probes.dtype)
    width, largest = columns[1] - columns[0], 0.0
    step = max(1, STRIP_BYTES // (width * A.dtype.itemsize))
    if step > A.row_unit > 1:
        step = step // A.row_unit * A.row_unit
    with np.errstate(over="ignore", invalid="ignore"):
        for row in range(min(tops) // step * step, m, step):
            rows = (row, min(row + step, m))
            strip = A.region(rows, columns, None if A.in_memory else workspace("strip", (rows[1] - row, width), A.dtype))
            largest = max(largest, largest_modulus(strip))
            work.method.probe(strip, row, columns[0], work.probes, products)
            for panel, top, k in zip(panels, tops, range(first, stop), strict=True):
                left = grid.columns(k)[0] - columns[0]
                part = strip[max(0, top - row) :, left : left + grid.width(k)]
                panel[max(0, row - top) : rows[1] - top] = part
    if not np.isfinite(products).all():
        _find_non_finite(A, columns, tops[0])
    _measured(work, "load", first, started, n_bytes=m * width * A.stored_dtype.itemsize)
    return [*panels, (products, largest)]


def _room(work: _Work, k: int, top: int) -> Array:
    """Memory for the rows ``top:`` of a panel: its final place where that is in memory, which is touched only once so."""
    left, right = work.grid.columns(k)
    if isinstance(work.target, np.ndarray):
        return work.target[top:, left:right]
    return np.empty((work.grid.shape[0] - top, right - left), work.A.dtype)


def largest_modulus(block: Array) -> float:
    """The largest modulus of the entries; 0 where there are none."""
    if block.size == 0:
        return 0.0
    return float(np.abs(block).max() if block.dtype.kind == "c" else max(block.max(), -block.min()))


def _find_non_finite(A: Matrix, columns: tuple[int, int], top: int) -> None:
    step = max(1, STRIP_BYTES // ((columns[1] - columns[0]) * A.dtype.itemsize))
    for row in range(top, A.shape[0], step):
        strip = A.region((row, min(row + step, A.shape[0])), columns)
        bad = np.argwhere(~np.isfinite(strip))
        if len(bad):
            i, j = (int(index) for index in bad[0])
            raise NonFiniteError(*A.place(row + i, columns[0] + j), strip[i, j].item())
    raise NumericalError(f"The entries are finite, but their sums overflow {A.dtype}; divide the matrix by its largest entry.")


def _factor(work: _Work, j: int, panel: Array) -> tuple[Array, Facts]:
    started = time.perf_counter()
    panel, top = _writable(panel), work.grid.columns(j)[0]
    facts = work.method.factor(panel, top)
    _measured(work, "factor", j, started, flops=work.method.factor_flops(work.grid.shape[0] - top, panel.shape[1]))
    return panel, facts


def _transform(work: _Work, factored: tuple[Array, Facts], j: int) -> Transform:
    panel, facts = factored
    top = work.grid.columns(j)[0]
    return Transform(j, top, panel[top - work.method.first_row(top) :], facts)


def _fetch(work: _Work, j: int) -> Transform:
    started = time.perf_counter()
    assert work.finished is not None
    transform = work.finished.transform(j)
    _measured(work, "fetch", j, started, n_bytes=transform.panel.nbytes)
    return transform


def _apply(work: _Work, transform: Transform, k: int, panel: Array) -> Array:
    started = time.perf_counter()
    panel, top = _writable(panel), work.grid.columns(k)[0]
    work.method.apply(transform, panel, top)
    rows = work.grid.shape[0] - max(transform.top, work.method.first_row(top))
    flops = work.method.apply_flops(rows, transform.panel.shape[1], panel.shape[1])
    _measured(work, "apply", k, started, flops=flops, transform=transform.index)
    return panel


def _identity(work: _Work, k: int) -> Array:
    panel = _room(work, k, 0)
    panel[...] = 0
    np.fill_diagonal(panel[work.grid.columns(k)[0] :], 1)
    return panel


def _unapply(work: _Work, transform: Transform, k: int, panel: Array) -> Array:
    started = time.perf_counter()
    panel = _writable(panel)
    work.method.unapply(transform, panel)
    flops = work.method.apply_flops(len(transform.panel), transform.panel.shape[1], panel.shape[1])
    _measured(work, "apply", k, started, flops=flops, transform=transform.index)
    return panel


def _place(work: _Work, k: int) -> int:
    started = time.perf_counter()
    m, columns = work.grid.shape[0], work.grid.columns(k)
    assert work.finish is not None
    panel = work.finish(k, _writable(work.A.region((0, m), columns)))
    if isinstance(work.target, np.ndarray):
        work.target[:, slice(*columns)] = panel
    else:
        work.target.write(0, panel, columns[0])
    _measured(work, "write", k, started, n_bytes=2 * panel.nbytes)
    return k


def _write(work: _Work, k: int, panel: Array, move: RowMove | None) -> int:
    """Write a finished panel to its place, its rows where they belong."""
    started = time.perf_counter()
    m, (left, right) = work.grid.shape[0], work.grid.columns(k)
    top = m - len(panel)
    if work.finish is not None:
        panel = work.finish(k, _writable(panel))
    if isinstance(work.target, np.ndarray):
        work.target[:top, left:right] = 0
        if move is not None:
            panel[move.targets] = panel[move.sources]
    else:
        if top:
            panel = np.concatenate([np.zeros((top, right - left), panel.dtype), panel])
        if move is not None:
            panel = _writable(panel)
            panel[move.targets] = panel[move.sources]
        work.target.write(0, panel, left)
    _measured(work, "write", k, started, n_bytes=m * (right - left) * panel.itemsize)
    return k


def _writable(panel: Array) -> Array:
    """An array that came from another worker may be read-only, or lie at an odd address."""
    return np.require(panel, requirements=["A", "W"])
