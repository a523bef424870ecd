"""A result is complete under its final name, or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from dlscale.errors import SpecError
from dlscale.storage.files.durable import PARTIAL
from dlscale.storage.results import ResultGroup, is_being_written


def test_nothing_is_visible_before_publish(tmp_path: Path) -> None:
    final = tmp_path / "new" / "folders" / "pca.zarr"
    group = ResultGroup(str(final))
    u = group.create("u", (10, 2), "f4", chunks=(4, 2))
    for start in (0, 4, 8):
        u.write(start, np.full((min(4, 10 - start), 2), start, "f4"))
    group.put("s", np.array([2.0, 1.0]))
    group.put("parameters/layer/weight", np.eye(3))
    (group.partial / "u" / "c" / "0" / f".1.killed{PARTIAL}").write_bytes(b"half")
    (group.partial / f".s.killed{PARTIAL}").mkdir()
    assert not final.exists()

    attributes = {"kind": "svd", "notes": ["a"], "seconds": np.float64(1.5), "values": np.array([1, 2])}
    assert group.publish(attributes) == final
    assert os.listdir(final.parent) == ["pca.zarr"]
    opened = zarr.open(final, mode="r")
    assert opened.attrs["dlscale"] == attributes | {"seconds": 1.5, "values": [1, 2]}
    assert sorted(name for name, _ in opened.members()) == ["parameters", "s", "u"]  # zarr warns of anything else
    assert opened["u"][:, 0].tolist() == [0.0] * 4 + [4.0] * 4 + [8.0] * 2
    assert opened["parameters/layer/weight"][...].tolist() == np.eye(3).tolist()
    assert not [name for _, folders, names in os.walk(final) for name in folders + names if name.endswith(PARTIAL)]


def test_publish_is_one_rename_after_everything_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = ResultGroup(tmp_path / "r.zarr")
    group.put("s", np.ones(2))
    done: list[str] = []
    real_sync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        done.append(f"fsync {os.path.relpath(os.readlink(f'/proc/self/fd/{descriptor}'), tmp_path)}")
        real_sync(descriptor)

    def rename(source: Path, target: Path) -> None:
        done.append(f"rename {source.name} {target.name}")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    group.publish({})
    assert done[-2:] == ["rename .r.zarr.partial r.zarr", "fsync ."]
    flushed = done[:-2]
    assert {f"fsync .r.zarr.partial/{name}" for name in ("zarr.json", "s/zarr.json", "s/c/0", "s/c", "s")} < set(flushed)
    assert flushed[-1] == "fsync .r.zarr.partial"
    assert len(flushed) == len(set(flushed))


def test_an_existing_result_is_refused_at_once(tmp_path: Path) -> None:
    ResultGroup(tmp_path / "r.zarr").publish({})
    with pytest.raises(SpecError, match=r"r\.zarr must not exist .* choose another or overwrite"):
        ResultGroup(tmp_path / "r.zarr")


def test_a_result_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    first, second = ResultGroup(tmp_path / "r.zarr"), tmp_path / "r.zarr"
    first.put("s", np.ones(2))
    second.mkdir()  # os.rename would replace an empty folder
    with pytest.raises(SpecError, match="must not exist"):
        first.publish({})
    second.rmdir()
    first.publish({})
    assert zarr.open(second, mode="r")["s"][...].tolist() == [1.0, 1.0]


def test_overwrite_keeps_the_old_result_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "r.zarr"
    old = ResultGroup(path)
    old.put("s", np.ones(2))
    old.publish({"version": 1})
    new = ResultGroup(path, overwrite=True)
    new.put("t", np.zeros(2))
    assert zarr.open(path, mode="r").attrs["dlscale"] == {"version": 1}
    new.publish({"version": 2})
    assert zarr.open(path, mode="r").attrs["dlscale"] == {"version": 2}
    assert sorted(os.listdir(path)) == ["t", "zarr.json"]
    assert os.listdir(tmp_path) == ["r.zarr"]

    (tmp_path / "photos").mkdir()
    with pytest.raises(SpecError, match="must be a Zarr group or array to be overwritten"):
        ResultGroup(tmp_path / "photos", overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_crash_at_every_system_call_of_publish(tmp_path: Path, crash_at: Callable[..., bool], overwrite: bool) -> None:
    finished, n = False, 0
    while not finished:
        path = tmp_path / str(n) / "r.zarr"
        if overwrite:
            old = ResultGroup(path)
            old.put("s", np.zeros(2))
            old.publish({"version": 1})
        new = ResultGroup(path, overwrite=overwrite)
        new.create("s", (4,), "f8", chunks=(2,)).write(0, np.ones(4))
        finished = crash_at(n, lambda new=new: new.publish({"version": 2}))
        new.close()
        if path.exists():
            found = zarr.open(path, mode="r")
            version = found.attrs["dlscale"]["version"]
            assert found["s"][...].tolist() == ([0.0, 0.0], [1.0] * 4)[version - 1]
        if not path.exists() or version == 1:  # the next run finds all that was written
            again = ResultGroup(path, overwrite=overwrite)
            again.create("s", (4,), "f8", chunks=(2,))
            again.publish({"version": 2})
            assert zarr.open(path, mode="r")["s"][...].tolist() == [1.0] * 4
        n += 1
    assert n > 8


def test_an_interrupted_group_goes_on(tmp_path: Path) -> None:
    first = ResultGroup(tmp_path / "r.zarr")
    first.create("u", (4, 2), "f8", chunks=(2, 2)).write(0, np.ones((2, 2)))
    first.put("mean", np.ones(2))
    with pytest.raises(SpecError, match="is being written by another job"):
        ResultGroup(tmp_path / "r.zarr")
    assert is_being_written(tmp_path / "r.zarr")
    first.close()
    assert not is_being_written(tmp_path / "r.zarr")

    second = ResultGroup(tmp_path / "r.zarr")
    u = second.create("u", (4, 2), "f8", chunks=(2, 2))
    assert second.create("u", (4, 2), "f8", chunks=(2, 2)) is u
    with pytest.raises(SpecError, match="must be free or hold"):
        second.create("u", (4, 2), "f4", chunks=(2, 2))
    u.write(2, np.ones((2, 2)))
    u.matrix().check()
    assert (u.matrix().read(0, 4) == 1).all()
    second.publish({})
    opened = zarr.open(tmp_path / "r.zarr", mode="r")
    assert (opened["u"][...] == 1).all()
    assert (opened["mean"][...] == 1).all()


def test_discard_leaves_nothing(tmp_path: Path) -> None:
    group = ResultGroup(tmp_path / "r.zarr")
    group.put("s", np.ones(2))
    group.discard()
    assert os.listdir(tmp_path) == []
    group.put("t", np.ones(2))
    group.publish({})
    assert sorted(os.listdir(tmp_path / "r.zarr")) == ["t", "zarr.json"]


def test_what_another_owner_or_a_torn_disk_left_is_not_used(tmp_path: Path) -> None:
    first = ResultGroup(tmp_path / "r.zarr", owner="one")
    u = first.create("u", (4, 2), "f8", chunks=(2, 2))
    u.write(0, np.ones((4, 2)))
    first.close()
    (u.path / "zarr.json").write_text('{"zarr_format": 3, ')
    again = ResultGroup(tmp_path / "r.zarr", owner="one")
    again.create("u", (4, 2), "f8", chunks=(2, 2)).write(0, np.full((4, 2), 2.0))
    again.put("s", np.ones(2))
    again.close()
    other = ResultGroup(tmp_path / "r.zarr", owner="two")
    assert sorted(os.listdir(other.partial)) == ["zarr.json"]
    other.publish({})


def test_put_replaces(tmp_path: Path) -> None:
    group = ResultGroup(tmp_path / "r.zarr")
    group.put("s", np.ones((3, 2)))
    group.put("s", np.float32(3))
    group.put("t/a", np.ones(1))
    with pytest.raises(SpecError, match="must be a Zarr group"):
        group.put("s/a", np.ones(1))
    group.publish({})
    assert zarr.open(tmp_path / "r.zarr", mode="r")["s"][...] == 3


@pytest.mark.parametrize("output", ["/proc/r.zarr", "file/r.zarr", "s3://bucket/r.zarr"])
def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(b"")
    with pytest.raises(SpecError, match=r"r\.zarr"):
        ResultGroup(output)


def test_a_file_uri_is_a_path(tmp_path: Path) -> None:
    assert ResultGroup(f"file://{tmp_path}/r.zarr").path == tmp_path / "r.zarr"
