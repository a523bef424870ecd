"""All jobs of a workspace, the newest first, kept up with its files: a page of a hundred thousand takes milliseconds.

A thread looks once or twice a second which folders came and went, reads the jobs again that somebody works on, and goes through all
others that could go on, a part at a time. What a page shows is compared with its file when it is asked for; of a bucket, the
files are those of this machine's mirror, which that thread alone keeps up.
"""

from __future__ import annotations

import bisect
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from dlscale.batch.workspace import Job, Workspace
from dlscale.errors import StoreError
from dlscale.service.rows import Row, RowFile, Stamp, read_row

_STOP_SECONDS = 2.0
#: Of those that somebody works on, so many are compared with their files when a list is asked for.
_N_COMPARED = 300
#: A list of so few jobs is compared with their folder when it is asked for; one of more half a second later.
_N_AT_ONCE = 5000
#: A folder that changed so lately may change again within the resolution of its time.
_SETTLED_SECONDS = 2.0
#: Rows are written down so many at a time, or when some have waited for so long.
_N_UNWRITTEN, _WRITE_SECONDS = 1000, 10.0
_log = logging.getLogger("dlscale.service")


@dataclass(frozen=True)
class Filters:
    """Which jobs: what is empty lets every job pass.

    Parameters
    ----------
    states, kinds : collection of str
    name : str
        The name holds this.
    begins : str
        The id begins so.
    sweep : str
        A job of the sweep with this id.
    """

    states: Collection[str] = ()
    kinds: Collection[str] = ()
    name: str = ""
    begins: str = ""
    sweep: str = ""

    def pass_(self, row: Row) -> bool:
        return (
            (not self.states or row.state in self.states)
            and (not self.kinds or row.kind in self.kinds)
            and self.name in row.name
            and row.job.startswith(self.begins)
            and (not self.sweep or row.sweep == self.sweep)
        )


class Table:
    """The rows of a workspace.

    Parameters
    ----------
    workspace : Workspace
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._rows: dict[str, Row] = {}
        #: (created, job) of each row, the oldest first.
        self._order: list[tuple[float, str]] = []
        self._counts: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._names: Counter[str] = Counter()
        self._sweeps: Counter[str] = Counter()
        #: Jobs that somebody works on.
        self._active: tuple[str, ...] = ()
        self._lock, self._looking = threading.RLock(), threading.Lock()
        self._file = RowFile(workspace.root / "index.jsonl")
        self._unwritten: dict[str, Row] = {}
        self._wrote = time.monotonic()
        self._listed: tuple[int, float] = (-1, 0.0)
        self._resting: Iterator[str] = iter(())
        self._version = 0
        self._stopped = threading.Event()
        self._loaded = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, name="table", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(_STOP_SECONDS)  # it may wait for a store
        with self._lock:
            self._write()

    @property
    def is_loaded(self) -> bool:
        """Whether all jobs have been read once."""
        return self._loaded.is_set()

    @property
    def version(self) -> int:
        """Another number after each change."""
        return self._version

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        with self._lock:
            return dict(sorted(self._counts.items()))

    def newest_first(self) -> list[tuple[float, str, str]]:
        """All jobs as (created, id, state)."""
        with self._lock:
            return [(created, name, self._rows[name].state) for created, name in reversed(self._order)]

    def page(self, filters: Filters, *, limit: int, after: str | None = None) -> tuple[list[Row], str | None]:
        """So many jobs, the newest first.

        Parameters
        ----------
        filters : Filters
        limit : int
        after : str, optional
            The id of the job behind which the page begins.

        Returns
        -------
        rows
        next : str or None
            Where the next page begins; None where there is none.
        """
        if self.is_loaded and len(self._rows) < _N_AT_ONCE:
            self._look_for_folders()
        self._read_again(list(islice(self._active, _N_COMPARED)))
        with self._lock:
            found = list(islice(self._passing(filters, after), limit + 1))
        return found[:limit], found[limit - 1].job if len(found) > limit else None

    def states_of(self, names: Iterable[str]) -> list[str]:
        """The state of each job, as it was at the last look; removed where there is none."""
        with self._lock:
            known = [(name, self._rows.get(name)) for name in names]
        rows = (row or read_row(self._workspace.job(name)) for name, row in known)
        return ["removed" if row is None else row.state for row in rows]

    def note(self, job: Job) -> Row | None:
        """Read a job again that has changed."""
        row = read_row(job)
        with self._lock:
            self._put(job.id, row)
        return row

    def _passing(self, filters: Filters, after: str | None) -> Iterator[Row]:
        end = len(self._order)
        if after is not None:
            known = self._rows.get(after)
            created = known.created if known else _time_in(after)
            end = bisect.bisect_left(self._order, (created, after))
        rows, kinds, states, begins, sweep = self._rows, filters.kinds, filters.states, filters.begins, filters.sweep
        # An id begins with the job's name.
        chosen = [name for name in self._names if filters.name in name and (name.startswith(begins) or begins.startswith(name))]
        names = set(chosen) if filters.name or begins else None
        none_of = (states and not any(map(self._counts.get, states))) or (kinds and not any(map(self._kinds.get, kinds)))
        if none_of or names == set() or (sweep and not self._sweeps[sweep]):
            return
        for position in range(end - 1, -1, -1):
            row = rows[self._order[position][1]]
            # Written out: a call for each of a hundred thousand rows would take longer than all else.
            if (
                (not kinds or row.kind in kinds)
                and (not states or row.state in states)
                and (names is None or row.name in names)
                and (not begins or row.job.startswith(begins))
                and (not sweep or row.sweep == sweep)
            ):
                current = self._current(row)
                if current is not None and filters.pass_(current):
                    yield current

    def _current(self, row: Row) -> Row | None:
        """A row as its file is by now."""
        if row.is_final:
            return row
        with suppress(OSError):
            if not row.is_active and Stamp.of(f"{self._workspace.jobs_folder}/{row.job}/state.json") == row.stamp:
                return row
        return read_row(self._workspace.job(row.job))

    def _put(self, name: str, row: Row | None) -> None:
        """Let a row stand in the table, in place of the one that was there; None removes it."""
        before = self._rows.get(name)
        if row == before:
            return
        self._count(before, -1)
        self._count(row, 1)
        if before is not None and (row is None or row.created != before.created):
            del self._order[bisect.bisect_left(self._order, (before.created, name))]
            before = None
        if row is None:
            self._rows.pop(name, None)
        else:
            if before is None:
                bisect.insort(self._order, (row.created, name))
            self._rows[name] = row
            if not row.is_active:
                self._unwritten[name] = row
        is_active = row is not None and row.is_active
        if is_active != (name in self._active):
            self._active = (*self._active, name) if is_active else tuple(other for other in self._active if other != name)
        self._version += 1

    def _count(self, row: Row | None, step: int) -> None:
        if row is None:
            return
        counted = ((self._counts, row.state), (self._kinds, row.kind), (self._names, row.name), (self._sweeps, row.sweep))
        for counter, key in counted:
            counter[key] += step
            if not counter[key]:
                del counter[key]

    def _keep_up(self) -> None:
        said = ""
        while not self._stopped.is_set():
            try:
                self._refresh()
                said = ""
            except StoreError as error:  # whoever asks is told
                if str(error) != said:
                    said = str(error)
                    _log.warning("The table of jobs could not be brought up to date: %s", error)
            except Exception as error:  # a disk that fails now and then; the next look may succeed
                _log.error("The table of jobs could not be brought up to date.", exc_info=error)
            self._stopped.wait(self._workspace.look_seconds)

    def _refresh(self) -> None:
        self._look_for_folders()
        resting = self._next_resting()
        # What the last server knew of those that could go on may be old.
        followed = [*self._active, *resting] if self.is_loaded else [name for name, row in self._rows.items() if not row.is_final]
        self._follow(followed)
        self._read_again(self._active)
        self._read_again(resting)
        with self._lock:
            if len(self._unwritten) >= _N_UNWRITTEN or time.monotonic() - self._wrote > _WRITE_SECONDS:
                self._write()
        self._loaded.set()

    def _follow(self, names: Iterable[str]) -> None:
        for name in self._workspace.follow(names):
            self.note(self._workspace.job(name))

    def _look_for_folders(self) -> None:
        with self._looking:
            self._take_up()

    def _take_up(self) -> None:
        """Take up new jobs, and drop those that are gone."""
        try:
            modified = os.stat(self._workspace.jobs_folder).st_mtime_ns
        except FileNotFoundError:
            modified = 0
        if modified == self._listed[0] and self._listed[1] - modified / 1e9 > _SETTLED_SECONDS:
            return
        listed = time.time()
        names = {name for name in os.listdir(self._workspace.jobs_folder) if not name.startswith(".")} if modified else set()
        with self._lock:
            gone, new = self._rows.keys() - names, names - self._rows.keys()
            for name in gone:
                self._put(name, None)
        kept = self._file.load() if new and not self.is_loaded else {}
        for name in sorted(new):
            if self._stopped.is_set():
                return
            row = kept.get(name)
            if row is None:
                self.note(self._workspace.job(name))
            else:
                with self._lock:
                    self._put(name, row)
                    self._unwritten.pop(name, None)
        self._listed = modified, listed

    def _next_resting(self) -> list[str]:
        """The next part of the jobs that rest and could go on."""
        part = list(islice(self._resting, self._workspace.n_resting))
        if not part:
            with self._lock:
                self._resting = iter([name for name, row in self._rows.items() if not row.is_final and not row.is_active])
            part = list(islice(self._resting, self._workspace.n_resting))
        return part

    def _read_again(self, names: Iterable[str]) -> None:
        for name in names:
            with self._lock:
                row = self._rows.get(name)
            if row is None:
                continue
            current = self._current(row)
            if current is not row:
                with self._lock:
                    self._put(name, current)

    def _write(self) -> None:
        self._file.add(self._unwritten.values(), self._rows)
        self._unwritten.clear()
        self._wrote = time.monotonic()


def _time_in(job_id: str) -> float:
    """When a job was created, to the second, by its id alone; the end of time of an id without."""
    stamp = "-".join(job_id.rsplit("-", 3)[1:3])
    try:
        return time.mktime(time.strptime(stamp, "%Y%m%d-%H%M%S")) + 1
    except (ValueError, OverflowError):
        return float("inf")
