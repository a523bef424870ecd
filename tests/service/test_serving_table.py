"""The table of jobs: what it knows without asking, and what of its file may be damaged."""

from __future__ import annotations

import itertools
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from dlscale.batch.workspace import Heartbeat, Job, JobState, Workspace
from dlscale.service import table as table_module
from dlscale.service.rows import RowFile
from dlscale.service.table import Filters, Table

NOW = time.time()
PASSED = {
    "certificate": {"passed": True, "checks": [{"name": "a", "value": 0.1, "threshold": 1.0, "passed": True, "meaning": "b"}]}
}


def put(root: Path, n: int, state: str = "succeeded", **more: Any) -> Job:
    """Job number n, created n seconds after the first."""
    created = NOW - 1000 + n
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(created))
    job = Job(root / "jobs" / f"{'odd' if n % 2 else 'even'}-{stamp}-{n:04x}")
    job.folder.mkdir(parents=True, exist_ok=True)
    job.spec.write_text("kind: svd\n")
    name, kind = job.id[:4].strip("-"), "svd" if n % 3 else "pca"
    job.write_state(JobState(job.id, name, kind, state, created, Heartbeat.now(), **more), fsync=False)
    return job


def table(root: Path) -> Table:
    """A table that has looked once."""
    made = Table(Workspace(root))
    made._refresh()
    return made


def ids(table: Table, *states: str, limit: int = 1000) -> list[str]:
    return [row.job for row in table.page(Filters(states), limit=limit)[0]]


@pytest.mark.parametrize("limit", [1, 2, 7, 40, 41])
def test_pages_are_the_whole_list_the_newest_first(tmp_path: Path, limit: int) -> None:
    made = [put(tmp_path, n).id for n in range(40)]
    jobs, found, after = table(tmp_path), [], None
    for _ in range(50):
        rows, after = jobs.page(Filters(), limit=limit, after=after)
        found += [row.job for row in rows]
        if after is None:
            break
    assert found == made[::-1]
    # A page begins where it would, when the job that it begins behind is gone.
    shutil.rmtree(tmp_path / "jobs" / made[20])
    jobs._refresh()
    assert [row.job for row in jobs.page(Filters(), limit=3, after=made[20])[0]] == made[17:20][::-1]


def test_every_filter_lets_pass_what_it_says(tmp_path: Path) -> None:
    states = itertools.cycle(("succeeded", "failed", "cancelled"))
    for n, state in zip(range(30), states, strict=False):
        put(tmp_path, n, state)
    jobs = table(tmp_path)
    whole = jobs.page(Filters(), limit=100)[0]
    states_, kinds = ((), ("failed",), ("running",), ("failed", "succeeded")), ((), ("pca",), ("lu",), ("pca", "svd"))
    begins = ("", "even", whole[0].job, whole[0].job[:-1], "ven")
    for chosen in map(Filters, *zip(*itertools.product(states_, kinds, ("", "odd", "ev", "zzz"), begins), strict=True)):
        expected = [
            row.job
            for row in whole
            if (not chosen.states or row.state in chosen.states)
            and (not chosen.kinds or row.kind in chosen.kinds)
            and chosen.name in row.name
            and row.job.startswith(chosen.begins)
        ]
        assert [row.job for row in jobs.page(chosen, limit=100)[0]] == expected
    assert jobs.counts() == {"cancelled": 10, "failed": 10, "succeeded": 10}


def test_what_changed_is_seen_when_it_is_asked_for(tmp_path: Path) -> None:
    """Also of jobs that others run, resume and remove."""
    job = put(tmp_path, 1, "running")
    jobs = table(tmp_path)
    jobs._loaded.set()
    assert ids(jobs, "running") == [job.id]
    put(tmp_path, 1, "failed", message="it broke", summary=PASSED)
    assert (ids(jobs, "failed"), ids(jobs, "running")) == ([job.id], [])
    row = jobs.page(Filters(), limit=1)[0][0]
    assert (row.message, row.certificate, row.resumable) == ("it broke", True, True)
    put(tmp_path, 1, "running")
    assert jobs.page(Filters(), limit=1)[0][0].state == "running"
    newer = put(tmp_path, 2)
    assert ids(jobs) == [newer.id, job.id]
    shutil.rmtree(newer.folder)
    assert ids(jobs) == [job.id]
    job.state.write_text("{")
    row = jobs.page(Filters(), limit=1)[0][0]
    assert row.state == "damaged"
    assert "is damaged" in row.message


def test_damaged_lines_of_the_file_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(20):
        put(tmp_path, n, summary=PASSED)
    first = table(tmp_path)
    whole = first.page(Filters(), limit=100)[0]
    first._write()
    path = tmp_path / "index.jsonl"
    lines = path.read_bytes().splitlines()
    of_another = lines[2].replace(b'"succeeded"', b'"running"')
    damaged = [lines[1][:10], b"[]", b"null", b'["a"]', b"\xff\x00", b"9" * 5000, of_another, *lines[4:]]
    path.write_bytes(b"\n".join(damaged))
    read: list[str] = []
    original = table_module.read_row
    monkeypatch.setattr(table_module, "read_row", lambda job: read.append(job.id) or original(job))
    again = table(tmp_path)
    assert again.page(Filters(), limit=100)[0] == whole
    assert 0 < len(read) < 10


def test_a_job_that_went_on_is_not_what_the_file_says(tmp_path: Path) -> None:
    job = put(tmp_path, 1, "cancelled")
    first = table(tmp_path)
    first._write()
    put(tmp_path, 1, "succeeded")
    again = table(tmp_path)
    assert (ids(again, "cancelled"), ids(again, "succeeded")) == ([], [job.id])


def test_the_file_does_not_grow_without_end(tmp_path: Path) -> None:
    put(tmp_path, 1)
    rows = {row.job: row for row in table(tmp_path).page(Filters(), limit=1)[0]}
    file = RowFile(tmp_path / "other.jsonl")
    for _ in range(3000):
        file.add(rows.values(), rows)
    assert len((tmp_path / "other.jsonl").read_bytes().split()) < 20_000
    assert RowFile(tmp_path / "other.jsonl").load() == rows
