"""Files that were damaged: of the input before the job, of the job between a kill and its resumption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from victims import (
    ENVIRONMENT,
    ask,
    at_night,
    events,
    fault,
    fingerprint,
    job_folder,
    make_matrix,
    write_spec,
)
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

LAYOUTS: dict[str, dict[str, Any]] = {
    "uncompressed": {},
    "checksummed": {"compressors": Crc32cCodec()},
    "zstd": {"compressors": ZstdCodec(level=1)},
    "blosc": {"compressors": BloscCodec()},
    "sharded": {"chunks": (500, 20), "shards": (1000, 20)},
}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [Path.unlink, cut], ids=["missing", "truncated"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_damaged_input_is_refused_before_work(layout: str, damage: Callable[[Path], None], tmp_path: Path) -> None:
    matrix = make_matrix(tmp_path / "a.zarr", (4000, 20), **LAYOUTS[layout])
    damage(matrix / "c" / "2" / "0")
    fault("damaged input")
    spec = write_spec(tmp_path / "job.yaml", "svd", matrix, cluster="threads")
    ended = ask("run", spec, "--workspace", tmp_path / "ws", cwd=tmp_path)
    assert ended.code == 2
    assert "input.matrix" in ended.err
    assert "c/2/0" in ended.err
    assert not (tmp_path / "ws").exists()


#: A job in a process that kills itself when a step is in the checkpoint.
KILLED = """
import os, signal, sys, dlscale

def listen(event):
    if event["event"] == "checkpoint" and event["step"] == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)

dlscale.run("job.yaml", listener=listen)
"""


def kill_after(step: str, folder: Path) -> Path:
    """Start the job of a folder, and kill its process when a step is in the checkpoint; the job's folder."""
    ended = subprocess.run([sys.executable, "-c", KILLED, step], cwd=folder, env=ENVIRONMENT, check=False)
    assert ended.returncode == -signal.SIGKILL
    fault("tree of svd")
    return job_folder(folder)


#: What is damaged, in which files of a job, after which step.
VICTIMS: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "small state": ("range", "checkpoint.zarr/steps/range/ZH/c/0/0", flip),
    "manifest": ("range", "checkpoint.zarr/manifests/range.json", cut),
    "scratch chunk": ("range", "checkpoint.zarr/scratch/range/c/0/0", flip),
    "torn scratch chunk": ("range", "checkpoint.zarr/scratch/range/c/0/0", cut),
    "missing scratch chunk": ("range", "checkpoint.zarr/scratch/range/c/0/0", Path.unlink),
    "layout of scratch": ("range", "checkpoint.zarr/scratch/range/zarr.json", cut),
    "chunk of the result": ("left", ".result.zarr.partial/u/c/0/0", flip),
    "layout of the result": ("left", ".result.zarr.partial/u/zarr.json", cut),
}


@pytest.mark.parametrize("victim", ["scratch chunk"])
def test_a_job_goes_on_behind_damage(victim: str, tmp_path: Path) -> None:
    check_damage(victim, tmp_path)


@at_night
@pytest.mark.parametrize("victim", sorted(set(VICTIMS) - {"scratch chunk"}))
def test_a_job_goes_on_behind_all_damage(victim: str, tmp_path: Path) -> None:
    check_damage(victim, tmp_path)


def check_damage(victim: str, folder: Path) -> None:
    step, name, damage = VICTIMS[victim]
    matrix = make_matrix(folder / "a.zarr", (6000, 40))
    write_spec(folder / "job.yaml", "svd", matrix, cluster="threads")
    whole = ask("run", "job.yaml", "--output", "whole.zarr", "--workspace", "other", "--json", cwd=folder)
    assert whole.code == 0, whole.err
    job = kill_after(step, folder)
    assert (job / name).exists(), sorted(str(path.relative_to(job)) for path in job.rglob("*"))
    damage(job / name)
    fault(f"damaged {victim}")
    resumed = ask("resume", job.name, "--json", cwd=folder)
    assert resumed.code == 0, resumed.err
    assert fingerprint(resumed.record["result"]) == fingerprint(folder / "whole.zarr")
    warnings = [event["message"] for event in events(job) if event["event"] == "warning"]
    assert any(step in warning for warning in warnings), warnings
    assert json.loads((job / "state.json").read_text())["state"] == "succeeded"
