"""What a server removes by itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from test_serving_table import put
from web_server import WebServer, wait_until

from dlscale.batch.removing import DONE
from dlscale.batch.workspace import ENDED
from dlscale.cli.main import commands
from dlscale.service.retention import Retention

DAY = 86400.0
ages = st.lists(st.tuples(st.floats(0, 100), st.sampled_from([*ENDED, "running", "queued", "lost", "damaged"])), max_size=30)


@given(ages, st.none() | st.floats(0.01, 100), st.none() | st.integers(0, 20))
def test_only_what_is_done_and_too_old_or_too_many_goes(found: list[tuple[float, str]], days: float | None, n: int | None) -> None:
    rows = [(-DAY * age, str(i), state) for i, (age, state) in enumerate(sorted(found))]
    gone = set(Retention(days, n).expired(rows, 0.0))
    done = [(job, created) for created, job, state in rows if state in DONE]
    for place, (job, created) in enumerate(done):
        assert (job in gone) == ((days is not None and -created > days * DAY) or (n is not None and place >= n))
    assert gone <= {job for job, _ in done}


def test_a_server_removes_what_is_not_to_be_kept(tmp_path: Path) -> None:
    root = tmp_path / "ws"
    old = [put(root, n, "succeeded") for n in range(-200_000, -200_000 + 3)]
    resumable = put(root, -200_010, "interrupted")
    new = [put(root, n, "failed") for n in range(4)]
    with WebServer(tmp_path, "--keep-days", "1", "--keep-jobs", "2") as server:
        wait_until(lambda: len(list((root / "jobs").iterdir())) == 3)
        time.sleep(0.6)  # in which it might remove more
        kept = [new[3].id, new[2].id, resumable.id]
        wait_until(lambda: [row["job"] for row in server.http.get("/v1/jobs").json()["jobs"]] == kept)
    assert {path.name for path in (root / "jobs").iterdir()} == set(kept)
    assert not any(job.folder.exists() for job in old)


@pytest.mark.parametrize("options", [("--keep-days", "0"), ("--keep-days", "nan"), ("--keep-jobs", "-1")])
def test_what_is_no_retention_is_told(options: tuple[str, ...], tmp_path: Path) -> None:
    refused = CliRunner().invoke(commands, ["serve", *options, "--workspace", str(tmp_path)])
    assert (refused.exit_code, "keep" in refused.stderr) == (2, True)
