"""Outputs and workspaces in difficult places: full, read-only, shared by two jobs, with spaces in their names."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from victims import (
    ask,
    fault,
    fingerprint,
    finish,
    held,
    killed_at_the_end,
    leftovers,
    let_go,
    make_matrix,
    spawn,
    system,
    write_spec,
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    system("mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", place)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_is_too_small_is_refused(small_disk: Path, tmp_path: Path) -> None:
    write_spec(tmp_path / "job.yaml", "qr", make_matrix(tmp_path / "a.zarr", (80_000, 40)), cluster="threads")
    refused = ask("run", "job.yaml", "--workspace", small_disk / "ws", cwd=tmp_path)
    assert refused.code == 2
    assert "free disk" in refused.err
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile(small_disk: Path, tmp_path: Path) -> None:
    """The job stops with a message, and goes on when there is room again."""
    write_spec(tmp_path / "job.yaml", "qr", make_matrix(tmp_path / "a.zarr"), cluster="threads")
    whole = ask("run", "job.yaml", "--json", cwd=tmp_path)
    ballast = small_disk / "ballast"
    with held("pass_started .*", "run", "job.yaml", "--json", "--workspace", small_disk / "ws", cwd=tmp_path) as process:
        (job,) = small_disk.glob("ws/jobs/[!.]*")
        with open(ballast, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                fault("full disk")
        let_go(process)
        ended = finish(process)
    assert ended.code != 0
    assert "Traceback" not in ended.err
    assert "No space left" in ended.err
    ballast.unlink()
    resumed = ask("resume", job.name, "--json", "--workspace", small_disk / "ws", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    assert fingerprint(resumed.record["result"]) == fingerprint(whole.record["result"])


def test_two_jobs_side_by_side(tmp_path: Path) -> None:
    """In one workspace of an unusual name; a third one for the output of the first is refused."""
    folder = tmp_path / "Größe, 100 % [x] 'q'"
    folder.mkdir()
    for kind in ("svd", "pca"):
        write_spec(
            folder / f"{kind}.yaml", kind, make_matrix(folder / f"{kind} a.zarr"), output=f"{kind} r.zarr", cluster="threads"
        )
    before = {path.name for path in folder.iterdir()}
    with (
        held("pass_started .*", "run", "svd.yaml", "--json", cwd=folder) as first,
        killed_at_the_end(spawn("run", "pca.yaml", "--json", cwd=folder)) as second,
    ):
        assert (folder / ".svd r.zarr.partial").exists()
        refused = ask("run", "svd.yaml", "--workspace", "another", cwd=folder)
        let_go(first)
        ends = [finish(first), finish(second)]
    assert [end.code for end in ends] == [0, 0]
    assert refused.code == 2
    assert "being written by another job" in refused.err
    assert {path.name for path in folder.iterdir()} - before == {"dlscale-workspace", "svd r.zarr", "pca r.zarr"}
    assert len(list(folder.glob("dlscale-workspace/jobs/*"))) == 2
    assert leftovers(folder) == set()


def test_an_output_in_the_input_is_refused(tmp_path: Path) -> None:
    write_spec(tmp_path / "job.yaml", "svd", make_matrix(tmp_path / "a.zarr", (400, 20)), cluster="threads")
    before = sorted(path.name for path in (tmp_path / "a.zarr").iterdir())
    refused = ask("run", "job.yaml", "--output", "a.zarr/r.zarr", cwd=tmp_path)
    assert refused.code == 2
    assert "lies in the input matrix" in refused.err
    assert sorted(path.name for path in (tmp_path / "a.zarr").iterdir()) == before
