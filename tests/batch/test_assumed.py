"""Plans for elsewhere: a cluster that is not reached, a matrix that is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dlscale.cli.main import commands

ELSEWHERE = ("--workers", "256", "--threads", "16", "--worker-memory", "64GB")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan(kind: str, *options: str, matrix: str = "nowhere.zarr", **more: Any) -> Any:
    Path("job.yaml").write_text(json.dumps({"kind": kind, "input": {"matrix": matrix, **more}}))
    return CliRunner().invoke(commands, ["plan", "job.yaml", *options])


@pytest.mark.parametrize("kind", ["lu", "qr", "cholesky"])
def test_a_million_unknowns_on_256_workers(kind: str) -> None:
    n, memory = 1_000_000, 64 * 10**9
    found = json.loads(plan(kind, "--shape", f"{n}x{n}", *ELSEWHERE, "--json").stdout)
    panels = found["grids"]["panels"]
    assert (found["n_workers"], found["memory_limit_bytes"]) == (256, memory)
    assert found["peak_bytes_per_worker"] <= memory
    # No worker holds a column of panels, and none holds what all row blocks say together.
    assert panels["row_blocks"] > 1
    assert n // panels["row_blocks"] * panels["panel"] * 8 < memory / 16
    assert panels["row_blocks"] * panels["panel"] < n / 16
    assert found["n_tasks"] <= 20_000
    assert 8 * n**2 < found["bytes_moved"] < 40 * 8 * n**2
    assert found["expected_seconds"] > found["flops"] / 4096 / 1e12
    assert any("assumed" in note for note in found["notes"])


def test_what_a_person_is_told() -> None:
    said = " ".join(plan("lu", "--shape", "1000000x1000000", *ELSEWHERE).stdout.split())
    for words in (
        "256 workers with 16 threads each",
        "of 64.0 GB per worker",
        "row blocks each",
        "tasks;",
        "between workers",
        "expected",
    ):
        assert words in said, said


def test_other_inputs_are_columns_beside_the_matrix() -> None:
    found = json.loads(plan("solve", "--shape", "5000x5000", "--json", rhs="none.zarr").stdout)
    assert found["inputs"]["rhs"]["shape"] == [5000, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--workers", "4"), "--workers and --worker-memory: give both"),
        (("--threads", "4"), "--workers and --worker-memory: give both"),
        (("--workers", "4", "--worker-memory", "much"), "--worker-memory: got 'much'; allowed: a size such as 64GB"),
        (("--shape", "1000"), "--shape: got '1000'; allowed: ROWSxCOLUMNS"),
        (("--shape", "0x4"), "at least one row"),
        (("--workers", "4", "--worker-memory", "64GB"), "nowhere.zarr"),
        (("--shape", "10x20", *ELSEWHERE), "must be square"),
        (("--shape", "1000000x1000000", "--workers", "2", "--worker-memory", "1GB"), "raise cluster.memory"),
    ],
)
def test_what_has_no_meaning_is_refused(options: tuple[str, ...], words: str) -> None:
    ended = plan("cholesky", *options)
    assert ended.exit_code == 2
    assert words in ended.output


def test_nothing_is_left_behind() -> None:
    assert plan("qr", "--shape", "1000x100").exit_code == 0
    assert [path.name for path in Path().iterdir()] == ["job.yaml"]
