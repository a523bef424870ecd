"""Whatever happens while a checkpoint is saved, the newest complete one is loaded, and damage is told."""

from __future__ import annotations

import inspect
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import dlscale
from dlscale.errors import SpecError
from dlscale.storage.checkpoints import Checkpoint

#: 200 by hand: DLSCALE_TEST_KILLS=200 pytest tests/storage/test_checkpoints.py -k sigkill
N_KILLS = int(os.environ.get("DLSCALE_TEST_KILLS", "20"))


#: Runs an action until its n-th change of the disk; says whether it finished before.
CrashAt = Callable[[int, Callable[[], Any]], bool]


def state(i: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(i)
    return {"i": np.array(i), "Z": rng.standard_normal((300 + i % 3, 40)), "history/errors": rng.standard_normal(i % 5)}


def same(loaded: dict[str, np.ndarray] | None, expected: dict[str, np.ndarray]) -> bool:
    return (
        loaded is not None
        and list(loaded) == list(expected)
        and all(loaded[k].dtype == v.dtype and np.array_equal(loaded[k], v, equal_nan=True) for k, v in expected.items())
    )


def test_every_kind_of_array_comes_back(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "job" / "checkpoint.zarr")
    assert checkpoint.steps() == []
    assert checkpoint.load("power-1") is None
    arrays: dict[str, Any] = {
        "c16": np.asfortranarray(np.arange(12.0).reshape(3, 4) * 1j),
        "f4": np.arange(3, dtype=">f4"),
        "flag": np.array(True),
        "empty": np.empty((0, 3), "i4"),
        "cube": np.arange(24, dtype="u1").reshape(2, 3, 4),
        "nested/nan": np.array([np.nan, -np.inf]),
        "scalar": np.float64(0.5),
    }
    n_bytes = checkpoint.save("power-1", arrays)
    assert n_bytes >= sum(np.asarray(a).nbytes for a in arrays.values())
    loaded = Checkpoint(checkpoint.directory).load("power-1")
    assert same(loaded, {name: np.asarray(a) for name, a in arrays.items()} | {"f4": np.arange(3, dtype="f4")})
    assert all(a.flags.writeable and a.flags.c_contiguous and a.dtype.isnative for a in (loaded or {}).values())
    opened = zarr.open(checkpoint.directory / "steps" / "power-1", mode="r")
    assert np.array_equal(opened["c16"][...], arrays["c16"])
    assert checkpoint.problems == []


def test_large_arrays_are_cut_and_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlscale.storage.writers._CHUNK_BYTES", 1000)
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save("a", state(4))
    assert len(list((tmp_path / "steps" / "a" / "Z" / "c").iterdir())) > 50
    assert same(checkpoint.load("a"), state(4))


def test_steps_are_in_the_order_of_saving_and_can_be_dropped(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c")
    for step in ("z", "a", "power-1.5", "z"):
        checkpoint.save(step, state(1))
    assert Checkpoint(tmp_path / "c").steps() == ["a", "power-1.5", "z"]
    checkpoint.drop("a")
    checkpoint.drop("never")
    assert checkpoint.steps() == ["power-1.5", "z"]
    assert checkpoint.load("a") is None
    assert sorted(path.name for path in (tmp_path / "c" / "steps").iterdir()) == ["power-1.5", "zarr.json", "z~"]
    checkpoint.discard()
    assert not (tmp_path / "c").exists()
    assert checkpoint.problems == []


def test_an_array_that_is_read_no_more_is_forgotten_with_the_steps_that_wrote_it(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c")
    for name in ("x", "x-10", "y"):
        checkpoint.scratch(name, (4, 4), "f8", chunks=(4, 4))
    for step in ("x", "x-1", "x-10", "x-1-rows", "xy", "y"):
        checkpoint.save(step, state(1))
    checkpoint.forget("x")
    checkpoint.forget("never")
    assert checkpoint.steps() == ["x-1-rows", "xy", "y"]
    assert sorted(path.name for path in (tmp_path / "c" / "scratch").iterdir()) == ["x-10", "y", "zarr.json"]


@pytest.mark.parametrize("name", ["a/b", "../a", "", "a~", ".a"])
def test_unsafe_names_are_refused(tmp_path: Path, name: str) -> None:
    checkpoint = Checkpoint(tmp_path / "c")
    with pytest.raises(SpecError):
        checkpoint.save(name, {})
    if name != "a/b":
        with pytest.raises(SpecError):
            checkpoint.save("a", {name: np.ones(1)})
    assert checkpoint.steps() == []


def test_writers_belong_to_a_step(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c")
    Y = checkpoint.scratch("Y", (6, 2), "f8", chunks=(2, 2))
    Y.write(0, np.ones((2, 2)))
    checkpoint.save("one", state(1), writers=[Y])
    Y.write(2, np.ones((2, 2)))
    checkpoint.save("two", state(2), writers=[Y])

    again = Checkpoint(tmp_path / "c")
    assert again.scratch("Y", (6, 2), "f8", chunks=(2, 2)) == Y
    assert same(again.load("two"), state(2))
    with open(Y.path / "c" / "1" / "0", "r+b") as file:
        file.truncate(7)
    assert again.load("two") is None
    assert "scratch/Y/c/1/0 is torn: it must have 36 bytes, got 7" in again.problems[0]
    chunk = Y.path / "c" / "0" / "0"
    whole = chunk.read_bytes()
    chunk.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert Checkpoint(tmp_path / "c").load("one") is None
    chunk.write_bytes(whole)
    assert same(again.load("one"), state(1))
    chunk.unlink()
    assert again.load("one") is None
    assert "scratch/Y/c/0/0 is missing" in again.problems[1]


def every_file(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [flip, cut, zero, Path.unlink])
def test_damage_to_any_file_is_found(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    saved = Checkpoint(tmp_path)
    saved.save("one", state(1))
    saved.save("two", state(4))
    files = [*every_file(tmp_path / "steps" / "two"), tmp_path / "manifests" / "two.json"]
    assert len(files) == 9
    for path in files:
        whole = path.read_bytes()
        damage(path)
        checkpoint = Checkpoint(tmp_path)
        assert checkpoint.load("two") is None
        assert checkpoint.load("two") is None
        if path.exists() or path.parent.name != "manifests":  # a step without a manifest was never completed
            assert len(checkpoint.problems) == 1
            assert checkpoint.problems[0].startswith("Checkpoint step 'two' does not count: ")
            assert str(path) in checkpoint.problems[0]
        assert same(checkpoint.load("one"), state(1))
        path.write_bytes(whole)
    assert same(Checkpoint(tmp_path).load("two"), state(4))


def test_groups_around_steps_are_made_again(tmp_path: Path) -> None:
    """The zarr.json of a group in a checkpoint says nothing that is needed: whichever bit is wrong, it goes on."""
    places = [tmp_path / "checkpoint.zarr" / name / "zarr.json" for name in ("steps", "scratch")]
    saved = Checkpoint(tmp_path / "checkpoint.zarr")
    saved.save("one", {"a": np.arange(3.0)})
    saved.scratch("S", (4, 4), float, chunks=(2, 4)).write(0, np.ones((4, 4)))
    whole = [place.read_bytes() for place in places]
    for bit in range(0, 8 * len(whole[0]), 5):
        for place, data in zip(places, whole, strict=True):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            place.write_bytes(flipped)
        checkpoint = Checkpoint(tmp_path / "checkpoint.zarr")
        assert np.array_equal(checkpoint.load("one")["a"], np.arange(3.0))  # type: ignore[index]
        checkpoint.save("two", {"b": np.ones(2)})
        checkpoint.scratch("S", (4, 4), float, chunks=(2, 4))
    assert zarr.open_array(tmp_path / "checkpoint.zarr" / "scratch" / "S", mode="r")[...].sum() == 16


def test_files_of_another_step_are_found(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save("one", state(3))
    checkpoint.save("two", state(6))
    for name in ("Z/c/0/0", "i/c"):
        chunk = tmp_path / "steps" / "two" / name
        whole = chunk.read_bytes()
        chunk.write_bytes((tmp_path / "steps" / "one" / name).read_bytes())  # same size, and a good crc32c inside
        assert checkpoint.load("two") is None
        assert "corrupted" in checkpoint.problems.pop()
        chunk.write_bytes(whole)
    (tmp_path / "manifests" / "two.json").write_bytes((tmp_path / "manifests" / "one.json").read_bytes())
    assert checkpoint.load("two") is None
    assert "got 2, one" in checkpoint.problems.pop()
    assert checkpoint.steps() == ["one"]


@pytest.mark.parametrize("step", ["one", "two"])
def test_a_crash_at_every_system_call_keeps_the_last_state(tmp_path: Path, crash_at: CrashAt, step: str) -> None:
    """`step` is saved over itself, or as a new one, while the n-th call that changes the disk is the last."""
    outcomes = []
    finished = False
    while not finished:
        n = len(outcomes)
        directory = tmp_path / str(n)
        Checkpoint(directory).save("one", state(1))
        Checkpoint(directory).save("one", state(2))
        finished = crash_at(n, lambda directory=directory: Checkpoint(directory).save(step, state(3)))
        found = Checkpoint(directory)
        new = same(found.load(step), state(3))
        assert new or same(found.load("one"), state(2))
        assert found.problems == []
        Checkpoint(directory).save(step, state(4))  # goes on over the debris
        assert same(found.load(step), state(4))
        outcomes.append(new)
    assert outcomes == sorted(outcomes)  # once it counts, it counts
    assert len(outcomes) > 20
    assert outcomes[-1]


SAVER = f"""
import os, sys
import numpy as np
from dlscale.storage.checkpoints import Checkpoint

{inspect.getsource(state)}
def save_forever(directory, i):
    checkpoint = Checkpoint(directory)
    acknowledged = os.open(directory + ".saved", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    Y = checkpoint.scratch("Y", (64, 8), "f8", chunks=(8, 8))
    while True:
        i += 1
        Y.write(i % 8 * 8, np.full((8, 8), float(i % 8)))  # written again, in the same bits
        checkpoint.save("pass-%d" % (i % 2), state(i), writers=[Y])
        os.write(acknowledged, b"%d\\n" % i)

for line in sys.stdin:  # one saver for each line, forked, so that a kill costs no new interpreter
    directory, i = line.split()
    child = os.fork()
    if child == 0:
        save_forever(directory, int(i))
    print(child, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


@pytest.fixture
def savers() -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"PYTHONPATH": str(Path(dlscale.__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", SAVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True) as process:
        yield process


def test_sigkill_at_random_moments(tmp_path: Path, savers: subprocess.Popen[str]) -> None:
    assert savers.stdin
    assert savers.stdout
    directory = tmp_path / "checkpoint.zarr"
    acknowledged = Path(f"{directory}.saved")
    moments = random.Random(0)
    newest, mid_save = 0, 0
    for _ in range(N_KILLS):
        savers.stdin.write(f"{directory} {newest}\n")
        savers.stdin.flush()
        child = int(savers.stdout.readline())
        before = acknowledged.stat().st_size if acknowledged.exists() else 0
        deadline = time.monotonic() + 60
        # Two saves first, so that there is a state to lose; then any moment of the next few saves.
        while not acknowledged.exists() or acknowledged.read_bytes()[before:].count(b"\n") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert savers.stdout.readline() == "gone\n"

        saved = int(acknowledged.read_text().split()[-1])
        checkpoint = Checkpoint(directory)
        last = checkpoint.steps()[-1]
        loaded = checkpoint.load(last)
        assert loaded is not None, checkpoint.problems
        newest = int(loaded["i"])
        assert newest in (saved, saved + 1)  # killed between the commit and its acknowledgement
        assert last == f"pass-{newest % 2}"
        assert same(loaded, state(newest))
        previous = checkpoint.load(f"pass-{1 - newest % 2}")
        assert same(previous, state(newest - 1))
        assert checkpoint.problems == []
        mid_save += (
            any(path.name.endswith(".partial") for path in directory.rglob("*")) or len(list((directory / "steps").iterdir())) > 3
        )
    assert mid_save > 0  # the moments were chosen well


def test_the_folder_of_a_job_that_was_moved_does_not_come_back(tmp_path: Path) -> None:
    job, moved = tmp_path / "job", tmp_path / "moved"
    job.mkdir()
    checkpoint = Checkpoint(job / "checkpoint.zarr")
    checkpoint.save("first", {"x": np.arange(3.0)})
    job.rename(moved)
    with pytest.raises(FileNotFoundError):
        checkpoint.save("second", {"x": np.arange(3.0)})
    with pytest.raises(FileNotFoundError):
        checkpoint.scratch("large", (4, 4), "f8", chunks=(2, 2))
    assert not job.exists()
    assert Checkpoint(moved / "checkpoint.zarr").steps() == ["first"]
