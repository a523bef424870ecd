"""The limits of control groups, as both versions of Linux's file system state them."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from dlscale import host as memory


def group(path: Path, name: str, text: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_text(text)


@pytest.mark.parametrize(
    ("line", "root", "name"),
    [("0::/slurm/job", ".", "memory.max"), ("4:cpu,memory:/slurm/job", "memory", "memory.limit_in_bytes")],
    ids=["version 2", "version 1"],
)
def test_the_smallest_limit_on_the_way_counts(tmp_path: Path, line: str, root: str, name: str) -> None:
    groups = tmp_path / "groups"
    group(groups / root / "slurm" / "job", name, "8000\n")
    group(groups / root / "slurm", name, "5000\n")
    group(groups / root, name, "max\n")
    group(groups / root / "elsewhere", name, "10\n")
    (tmp_path / "membership").write_text(f"7:pids:/slurm\n{line}\n")
    assert sorted(memory._limits(tmp_path / "membership", groups)) == [5000, 8000]


def test_without_groups_it_is_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory._limits(tmp_path / "membership", tmp_path) == []
    monkeypatch.setattr(memory, "_limits", lambda *_: [])
    assert memory.total_bytes() == psutil.virtual_memory().total
    monkeypatch.setattr(memory, "_limits", lambda *_: [12345, 2**62])
    assert memory.total_bytes() == 12345
