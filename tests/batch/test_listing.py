"""The newest of many jobs: found by names and times, and never others."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from dlscale.batch.jobs.newest import newest
from dlscale.batch.workspace import Heartbeat, JobState, Workspace
from dlscale.cli import choosing
from dlscale.cli.main import commands
from dlscale.errors import SpecError

NOW = time.time()


def put(root: Path, made: float, *, zone: float = 0.0, name: str = "try", number: int = 0, state: str = "succeeded") -> str:
    """A job that was made by a machine whose clock on the wall is so many hours before UTC's."""
    stamp = (datetime.fromtimestamp(made, UTC) + timedelta(hours=zone)).strftime("%Y%m%d-%H%M%S")
    job = Workspace(root).job(f"{name}-{stamp}-{number:04x}")
    job.folder.mkdir(parents=True)
    job.spec.write_text("kind: svd\n")
    job.write_state(JobState(job.id, name, "svd", state, made, Heartbeat.now()), fsync=False)
    os.utime(job.spec, (made, made))
    return job.id


@pytest.mark.parametrize("seed", range(4))
def test_the_newest_are_the_newest_whatever_zone_their_machines_were_in(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    hours = [chance.uniform(0, 60) for _ in range(120)]
    made = {put(tmp_path, NOW - 3600 * h, zone=chance.choice((-12, -9.5, 0, 5.75, 14)), number=n): h for n, h in enumerate(hours)}
    (tmp_path / "jobs" / "no-job-20991231-235959-0000").mkdir()
    root = Workspace(tmp_path)
    by_age = sorted(made, key=made.__getitem__)
    for limit in (1, 5, 50, 119, 120, 121, None):
        assert newest(root.jobs_folder, root.ids(), limit) == by_age[:limit]
        assert [row.job for row in root.list_jobs(limit)[0]] == by_age[:limit]


def test_a_name_that_tells_no_time_is_looked_at(tmp_path: Path) -> None:
    for n in range(5):
        put(tmp_path, NOW - 86400 * n, number=n)
    (tmp_path / "jobs" / "mine").mkdir()
    (tmp_path / "jobs" / "mine" / "state.json").write_text("{}")
    assert newest(tmp_path / "jobs", Workspace(tmp_path).ids(), 1) == ["mine"]


def test_old_jobs_are_told_by_their_names_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, looked_at, stat = Workspace(tmp_path), [], os.stat
    jobs = [put(tmp_path, NOW - 3600 * hours, number=hours) for hours in range(100)]

    def counted(path: str, *, dir_fd: int) -> os.stat_result:
        looked_at.append(path)
        return stat(path, dir_fd=dir_fd)

    with monkeypatch.context() as patched:
        patched.setattr("dlscale.batch.jobs.newest.os.stat", counted)
        assert newest(root.jobs_folder, root.ids(), 3) == jobs[:3]
    assert len(looked_at) < 20


def test_a_limit_counts_those_that_pass_the_filters(tmp_path: Path) -> None:
    jobs = [put(tmp_path, NOW - n, number=n, state="succeeded" if n % 5 else "failed") for n in range(40)]
    found, faults = Workspace(tmp_path).list_jobs(3, states=("failed",))
    assert [row.job for row in found] == jobs[0:15:5]
    assert not faults


def test_of_very_many_jobs_the_newest_are_shown_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [put(tmp_path, NOW - 60 * n, number=n) for n in range(30)]
    monkeypatch.setattr(choosing, "MOST_SHOWN", 29)
    monkeypatch.setattr(choosing, "N_SHOWN_OF_MORE", 10)

    def said(*options: str) -> tuple[list[str], str]:
        ended = CliRunner().invoke(commands, ["jobs", "--workspace", str(tmp_path), *options])
        assert ended.exit_code == 0
        return [job for job in jobs if job in ended.stdout], ended.stderr

    shown, note = said()
    assert shown == jobs[:10]
    assert "the newest 10 of 30 jobs" in note
    assert "--limit N" in note
    for options, n in ((("--json",), 30), (("--limit", "30"), 30), (("--name", "try"), 30), (("--limit", "12"), 12)):
        assert said(*options) == (jobs[:n], "")
    monkeypatch.setattr(choosing, "MOST_SHOWN", 30)
    assert said() == (jobs, "")


def test_a_kind_that_there_is_not_is_refused(tmp_path: Path) -> None:
    put(tmp_path, NOW)
    asked = (["jobs", "--workspace", str(tmp_path), "--kind", kind] for kind in ("pca", "pac"))
    found, refused = (CliRunner().invoke(commands, arguments) for arguments in asked)
    assert (found.exit_code, found.stdout) == (0, "No such jobs.\n")
    assert (refused.exit_code, "'pac' is no kind of job; the kinds are svd, pca, " in refused.stderr) == (2, True)


def test_jobs_are_found_among_others(tmp_path: Path) -> None:
    root = Workspace(tmp_path)
    with pytest.raises(SpecError, match="no job yet"):
        root.find(None)
    jobs = [put(tmp_path, NOW - 60 * n, name=f"n{n}", number=n) for n in range(9)]
    assert root.find(None).id == jobs[0]
    assert root.find("n5").id == jobs[5]
    with pytest.raises(SpecError, match=f"9 jobs: {', '.join(jobs[:4])};"):
        root.find("n")
    with pytest.raises(SpecError, match=f"no job other .* the newest are: {', '.join(jobs[:4])}"):
        root.find("other")


def test_a_list_is_shown_by_few_modules(tmp_path: Path) -> None:
    """Most of what a command takes is the loading of modules; those that compute take most of that."""
    put(tmp_path, NOW)
    code = "import sys\nfrom dlscale.cli.main import main\ntry:\n    main()\nfinally:\n"
    code += "    assert not {'numpy', 'scipy', 'dask', 'zarr', 'rich', 'yaml', 'psutil'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code, "jobs", "--workspace", str(tmp_path)], check=True, capture_output=True)
