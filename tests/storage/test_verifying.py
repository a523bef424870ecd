"""A flipped bit anywhere in what is stored is found, and its place is named."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec, ZstdCodec

from dlscale.batch.run import run
from dlscale.batch.verifying import verify_job
from dlscale.batch.workspace import Job
from dlscale.errors import InputError
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.results import ResultGroup
from dlscale.storage.seals import displaced, fold_crcs
from dlscale.storage.verifying import verify


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job that succeeded."""
    folder = tmp_path_factory.mktemp("verify")
    array = zarr.create_array(folder / "a.zarr", shape=(300, 12), chunks=(100, 12), dtype="f8")
    array[:] = np.random.default_rng(0).standard_normal((300, 12))
    spec = {"kind": "svd", "input": {"matrix": str(folder / "a.zarr")}, "params": {"n_components": 4, "block_rows": 50}}
    return Job(run(spec | {"cluster": "threads"}, workspace=folder / "ws").folder)


def flip(path: Path, bit: int) -> bytes:
    before = path.read_bytes()
    data = bytearray(before)
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)
    return before


def test_what_nobody_touched_is_as_it_was_written(job: Job) -> None:
    found = verify_job(job)
    assert found.damage == []
    assert (found.n_arrays, found.n_chunks >= 3) == (3, True)
    assert any("u as stored" in note for note in found.notes)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_of_a_result_is_found(job: Job, data: st.DataObject) -> None:
    files = sorted(path for path in job.result.rglob("*") if path.is_file() and path.parent != job.result)
    path = data.draw(st.sampled_from(files))
    before = flip(path, data.draw(st.integers(0, 8 * path.stat().st_size - 1)))
    try:
        found = verify(str(job.result))
        assert any(str(path) in fault or str(path.parent) in fault for fault in found.damage), (path, found.damage)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("key", ["kind", "certificate", "estimates", "seconds"])
def test_a_changed_description_is_found(job: Job, key: str) -> None:
    path = job.result / "zarr.json"
    before = path.read_bytes()
    record = json.loads(before)
    record["attributes"]["dlscale"][key] = {"kind": "pca", "certificate": None, "estimates": {}, "seconds": 0.0}[key]
    path.write_text(json.dumps(record))
    try:
        assert any("dlscale" in fault for fault in verify(str(job.result)).damage)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", ["spec.yaml", "plan.json", "state.json", "events.jsonl"])
@pytest.mark.parametrize("damage", [lambda b: b"\0" * len(b), lambda b: b[: len(b) // 2] + b"\1" + b[len(b) // 2 :]])
def test_a_damaged_file_of_a_job_is_named(job: Job, name: str, damage: Any) -> None:
    path = job.folder / name
    before = path.read_bytes()
    path.write_bytes(damage(before) + (b"\n\n" if name == "events.jsonl" else b""))
    try:
        assert any(str(path) in fault for fault in verify_job(job).damage)
    finally:
        path.write_bytes(before)


def test_factors_that_are_not_what_was_certified(tmp_path: Path) -> None:
    """With good checksums, such as those of a result that another program wrote over."""
    group = ResultGroup(tmp_path / "r.zarr", owner="j")
    group.put("u", np.full((5, 2), 0.5))
    check = {"name": "||I - U'U|| / (k eps)", "value": 0.5, "threshold": 30.0, "passed": True, "meaning": "orthonormal"}
    certificate = {"passed": True, "checks": [check]}
    about = {"kind": "svd", "job": "j", "spec": {}, "seconds": 1.0, "estimates": {}, "notes": [], "certificate": certificate}
    group.publish(about)
    assert any("r.zarr/u: ||I - U'U||" in fault for fault in verify(str(tmp_path / "r.zarr")).damage)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"compressors": Crc32cCodec(), "chunks": (2, 3)}, False),
        ({"compressors": ZstdCodec(checksum=True), "chunks": (2, 3)}, True),
        ({"chunks": (1, 3), "shards": (2, 3), "compressors": Crc32cCodec()}, False),
        ({"chunks": (2, 3), "compressors": None}, True),
    ],
)
def test_matrices_of_others(layout: dict[str, Any], said: bool, tmp_path: Path) -> None:
    """What carries checksums is checked by them; of the rest it is said that it carries none."""
    zarr.create_array(tmp_path / "a.zarr", shape=(4, 3), dtype="f8", **layout)[:] = np.arange(1.0, 13).reshape(4, 3)
    found = verify(str(tmp_path / "a.zarr"))
    assert (found.damage, found.n_arrays, found.n_chunks) == ([], 1, 2)
    assert bool(found.notes) is said
    if not said or layout["compressors"]:
        flip(tmp_path / "a.zarr/c/1/0", 77)
        assert "c/1/0" in verify(str(tmp_path / "a.zarr")).damage[0]


def test_groups_within_a_result(tmp_path: Path) -> None:
    group = ResultGroup(tmp_path / "r.zarr", owner="j")
    group.put("parameters/layer-0/weight", np.eye(3))
    group.publish({})
    assert verify(str(tmp_path / "r.zarr")).damage == []
    (tmp_path / "r.zarr/parameters/zarr.json").unlink()
    assert any("parameters/zarr.json is missing" in fault for fault in verify(str(tmp_path / "r.zarr")).damage)
    shutil.rmtree(tmp_path / "r.zarr/parameters/layer-0")
    assert any("layer-0/weight/zarr.json is missing" in fault for fault in verify(str(tmp_path / "r.zarr")).damage)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_chunks_that_change_places_are_found(data: st.DataObject) -> None:
    """And the last state of one that was written twice; each is whole by its own checksum."""
    shape, chunks = data.draw(st.sampled_from([((7,), (2,)), ((6, 5), (2, 2)), ((3, 8, 2), (1, 4, 2))]))
    with tempfile.TemporaryDirectory() as folder:
        group = ResultGroup(Path(folder) / "r.zarr", owner="j")
        writer = group.create("parts/a", shape, "f8", chunks=chunks)
        writer.write(0, np.arange(float(np.prod(shape))).reshape(shape))
        group.put("s", np.arange(3.0))
        group.publish({})
        root = group.path / "parts/a"
        assert verify(str(group.path)).damage == []
        files = sorted(path for path in (root / "c").rglob("*") if path.is_file())
        one, other = data.draw(st.lists(st.sampled_from(files), min_size=2, max_size=2, unique=True))
        if data.draw(st.booleans()):
            other.write_bytes(one.read_bytes())
        else:
            one.rename(root / "aside")
            other.rename(one)
            (root / "aside").rename(other)
        damage = verify(str(group.path)).damage
        assert any(f"{group.path}/parts/a: chunk {other.relative_to(root).as_posix()} is not" in fault for fault in damage)


@given(n=st.integers(1, 5000), data=st.data())
def test_checksums_of_many_chunks_stay_short_and_tell_where_one_differs(n: int, data: st.DataObject) -> None:
    crcs = np.random.default_rng(n).integers(0, 2**32, n).tolist()
    sealed = fold_crcs(crcs)
    assert len(sealed) <= 8 * 1024
    assert displaced(crcs, sealed) == []
    i = data.draw(st.integers(0, n - 1))
    crcs[i] ^= 1 << data.draw(st.integers(0, 31))
    (run,) = displaced(crcs, sealed)
    assert i in run
    assert len(run) <= -(-n // 1024)


def test_chunks_of_a_checkpoint_that_change_places_are_found(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c.zarr")
    Y = checkpoint.scratch("Y", (6, 2), "f8", chunks=(2, 2))
    Y.write(0, np.arange(12.0).reshape(6, 2))
    checkpoint.save("one", {"Z": np.arange(3.0)}, writers=[Y])
    checkpoint.save("two", {"Z": np.arange(3.0)}, writers=[Y])
    assert verify(str(tmp_path / "c.zarr")).damage == []
    c = Y.path / "c"
    for before, after in (("0", "aside"), ("2", "0"), ("aside", "2")):
        (c / before).rename(c / after)
    damage = verify(str(tmp_path / "c.zarr")).damage
    assert len(damage) == 2
    assert all(re.search("scratch/Y/c/[02]/0 is another one", fault) for fault in damage)


def test_a_checkpoint_names_its_damaged_step(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c.zarr")
    checkpoint.save("one", {"Z": np.arange(6.0)})
    checkpoint.save("two", {"Z": np.arange(7.0)})
    assert verify(str(tmp_path / "c.zarr")).damage == []
    flip(tmp_path / "c.zarr/steps/two/Z/c/0", 100)
    (fault,) = verify(str(tmp_path / "c.zarr")).damage
    assert "steps/two/Z/c/0" in fault


def test_nothing_to_verify_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        verify(str(tmp_path / "absent"))
    (tmp_path / "text").mkdir()
    with pytest.raises(InputError, match="text"):
        verify(str(tmp_path / "text"))
