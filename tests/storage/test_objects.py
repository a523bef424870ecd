"""Matrices in an object store: every layout reads back as from a disk, faults leave no trace, and what is missing is said."""

from __future__ import annotations

import errno
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import M, N, gaussian, store
from object_server import SECRET, Faults, upload
from zarr.codecs import Crc32cCodec, ZstdCodec

from dlscale.errors import CorruptionError, InputError, MissingChunkError, SpecError, StoreError
from dlscale.storage.buckets.checkpoints import ObjectCheckpoint
from dlscale.storage.buckets.results import ObjectResultGroup
from dlscale.storage.files.kept import Keeping, KeptBlocks, drop_kept
from dlscale.storage.groups import open_arrays, result_attributes
from dlscale.storage.matrices import open_matrix
from dlscale.storage.objects import address, requests
from dlscale.storage.objects.address import Address, forget_clients
from dlscale.storage.verifying import verify

RANGES = [((0, M), (0, N)), ((13, 501), (0, N)), ((0, 1), (0, 1)), ((M - 1, M), (N - 1, N)), ((99, 101), (3, 38))]


LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {"chunks": (300, 32), "compressors": None},
    "crc32c": {"chunks": (300, 32), "compressors": Crc32cCodec()},
    "zstd": {"chunks": (300, 32), "compressors": ZstdCodec(level=1)},
    "sharded": {"chunks": (50, 8), "shards": (400, 40)},
    "format 2 by columns": {"chunks": (300, 32), "zarr_format": 2, "order": "F"},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_rectangle_of_any_layout(bucket: Address, tmp_path: Path, name: str) -> None:
    """A plan follows from how a matrix can be read, and the bits of an answer from the plan: both are those of the disk."""
    local = open_matrix(store(tmp_path / "A.zarr", gaussian(M, N), **LAYOUTS[name]))
    A = open_matrix(upload(tmp_path / "A.zarr", bucket / "in/A.zarr"))
    assert A.check().n_bytes == local.check().n_bytes  # type: ignore[union-attr]
    same = ("shape", "dtype", "stored_dtype", "row_unit", "column_unit", "any_range", "by_columns", "is_vector", "attributes")
    assert [getattr(A, key) for key in same] == [getattr(local, key) for key in same]
    for rows, columns in RANGES:
        np.testing.assert_array_equal(A.region(rows, columns), local.region(rows, columns))
        np.testing.assert_array_equal(A.T.region(columns, rows), local.T.region(columns, rows))
    again = pickle.loads(pickle.dumps(A))
    np.testing.assert_array_equal(again.read(95, 104), local.read(95, 104))
    assert SECRET not in str(pickle.dumps(A))


def test_pieces_of_a_wide_row_are_ranges(bucket: Address, faults: Faults, tmp_path: Path) -> None:
    """A few columns of rows of 3 MB are not read with all the others; a chunk of many megabytes comes by several requests."""
    wide = np.random.default_rng(0).standard_normal((8, 400_000)).astype("f8")
    A = open_matrix(upload(store(tmp_path / "A.zarr", wide, chunks=wide.shape, compressors=None), bucket / "A.zarr"))
    faults.log.clear()
    np.testing.assert_array_equal(A.region((2, 5), (1000, 1100)), wide[2:5, 1000:1100])
    assert len(faults.log) == 3
    faults.log.clear()
    np.testing.assert_array_equal(A.read(0, 8), wide)
    assert 1 <= len(faults.log) <= 4


@pytest.mark.parametrize("name", ["plain", "zstd"])
def test_what_is_read_again_is_asked_for_once(bucket: Address, faults: Faults, tmp_path: Path, name: str) -> None:
    """Another process needs no look at the metadata, and no block twice; of another job's blocks, and too many, nothing is kept."""
    expected = gaussian(M, N)
    A = open_matrix(upload(store(tmp_path / "A.zarr", expected, **LAYOUTS[name]), bucket / "A.zarr"))
    spans = [(0, 300), (300, 600)]
    A.T.keep(Keeping("job", 300 * N * 8))
    A = pickle.loads(pickle.dumps(A))
    counts = []
    for job in (None, None, "other"):
        if job is not None:
            A.keep(Keeping(job, 2**30))
        faults.log.clear()
        for start, stop in spans:
            np.testing.assert_array_equal(A.read(start, stop), expected[start:stop])
        assert not any("zarr.json" in request for request in faults.log)
        counts.append(len(faults.log))
    per_span = counts[0] // 2
    assert counts == [2 * per_span, per_span, 2 * per_span]
    drop_kept("other")
    A.read(*spans[0])
    assert len(faults.log) == 3 * per_span


def test_a_full_disk_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "no space")

    kept, block = KeptBlocks(100), np.ones(4)
    monkeypatch.setattr("os.pwrite", full)
    kept.write("a", block)
    assert not kept.read("a", block)


def test_bytes_in_flight_are_bounded(bucket: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "IN_FLIGHT_BYTES", 1000)
    monkeypatch.setattr(requests, "_room", [1000])
    most: list[int] = []
    two = threading.Barrier(2, timeout=300)  # neither ends before the other has begun

    def work() -> None:
        with requests.in_flight(400):
            two.wait()
            most.append(1000 - requests._room[0])
            two.wait()

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {800}
    assert requests._room == [1000]


def test_faults_change_nothing(bucket: Address, faults: Faults, tmp_path: Path) -> None:
    """One request in five fails, one answer in five breaks off."""
    expected = gaussian(M, N)
    url = upload(store(tmp_path / "A.zarr", expected, chunks=(100, N)), bucket / "A.zarr")
    faults.failing = faults.torn = 0.2
    A = open_matrix(url)
    A.check()
    np.testing.assert_array_equal(A.read(0, M), expected)
    assert faults.counts["failing"] > 0
    assert faults.counts["torn"] > 0


def test_a_missing_chunk_is_found_by_one_listing(bucket: Address, faults: Faults, tmp_path: Path) -> None:
    url = upload(store(tmp_path / "A.zarr", gaussian(M, N), **LAYOUTS["plain"]), bucket / "A.zarr")
    A = open_matrix(url)
    faults.log.clear()
    before = A.check()
    assert len(faults.log) == 1
    assert "list-type=2" in faults.log[0]
    requests.remove_object(bucket / "A.zarr/c/1/0")
    with pytest.raises(MissingChunkError, match=r"chunk c/1/0 is missing"):
        A.check()
    with pytest.raises(MissingChunkError, match=r"A\.zarr/c/1/0 is missing"):
        A.read(0, M)
    requests.put(bucket / "A.zarr/c/1/0", bytes(10))
    with pytest.raises(MissingChunkError, match="truncated"):
        A.check()
    assert before is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, r"cannot be reached: no connection to http://127\.0\.0\.1:1, .*_ENDPOINT_URL"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "needs credentials, and this process has none: set AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_METADATA_ENDPOINT": "http://127.0.0.1:1"},
         "needs credentials, and this process has none: set AWS_ACCESS_KEY_ID"),
    ],
)  # fmt: skip
def test_what_the_environment_lacks_is_one_sentence(
    bucket: Address, monkeypatch: pytest.MonkeyPatch, change: dict[str, str | None], said: str
) -> None:
    for name, value in change.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name)
    forget_clients()
    with pytest.raises(StoreError, match=rf"^{bucket}/A\.zarr {said}") as told:
        open_matrix(f"{bucket}/A.zarr")
    assert SECRET not in str(told.value)
    assert "\n" not in str(told.value)


def test_what_is_not_there_is_one_sentence(bucket: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="there is no bucket 'nowhere' there"):
        open_matrix("s3://nowhere/A.zarr")
    with pytest.raises(InputError, match=f"There is no Zarr array at {bucket}/A.zarr"):
        open_matrix(f"{bucket}/A.zarr")
    monkeypatch.setattr(address, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs a package .*dlscale\[cloud\]"):
        open_matrix(f"{bucket}/A.zarr")


@pytest.mark.parametrize(
    "url",
    [
        f"s3://me:{SECRET}@bucket/a",
        f"s3://bucket/a?X-Amz-Signature={SECRET}",
        "s3:///a",
        "gs://b/a#x",
        "az://b/../c",
        "s3://b/a//c",
    ],
)
def test_an_address_is_a_place_and_nothing_else(url: str) -> None:
    with pytest.raises(SpecError) as told:
        Address.of(url)
    assert SECRET not in str(told.value)


def test_addresses() -> None:
    place = Address.of("S3://bucket//a/b/")
    assert (str(place), place.name, str(place.parent), str(place / "c/0")) == (
        "s3://bucket/a/b", "b", "s3://bucket/a", "s3://bucket/a/b/c/0"
    )  # fmt: skip
    assert place.holds(place / "c")
    assert not place.holds(Address.of("s3://bucket/a/bc"))


def test_a_condition_is_one_step(bucket: Address, faults: Faults) -> None:
    place = bucket / "commit"
    assert requests.put_new(place, b"one")
    assert requests.put_new(place, b"one"), "an answer that was lost is no rival"
    assert not requests.put_new(place, b"two")
    assert requests.get(place) == b"one"
    faults.failing = 1.0
    with pytest.raises(StoreError, match="cannot be reached"):
        requests.asked(place, lambda client: __import__("obstore").head(client, place.key), first=True)


def test_many_objects(bucket: Address) -> None:
    for k in range(5):
        requests.put(bucket / f"a/c/{k}", bytes([k]))
    requests.put(bucket / "a/zarr.json", b"{}")
    requests.put(bucket / "ab/c", b"other")
    assert sorted(requests.listing(bucket / "a")) == [*(f"c/{k}" for k in range(5)), "zarr.json"]
    requests.copy((bucket / f"a/c/{k}", bucket / f"b/{k}") for k in range(5))
    assert {key: stamp.size for key, stamp in requests.listing(bucket / "b").items()} == {str(k): 1 for k in range(5)}
    requests.remove(bucket / "a", first=["zarr.json"])
    assert requests.listing(bucket / "a") == {}
    requests.remove_object(bucket / "a/none")
    found: Any = requests.listing(bucket)
    assert "ab/c" in found


ATTRIBUTES = {
    "kind": "pca",
    "job": "me",
    "version": "1",
    "seconds": 1.0,
    "estimates": {},
    "notes": [],
    "spec": {},
    "plan": {},
    "certificate": {"passed": True, "checks": []},
}


def group(place: Address, *, owner: str = "me", overwrite: bool = False, rows: int = 7) -> ObjectResultGroup:
    """One that is written whole, but not published."""
    made = ObjectResultGroup(place, overwrite=overwrite, owner=owner)
    writer = made.create("parameters/w", (rows, 3), "f8", chunks=(2, 3))
    for row in range(0, rows, 2):
        writer.write(row, np.full((min(2, rows - row), 3), row + 0.5))
    made.put("s", np.arange(3.0))
    return made


def test_a_result_is_there_whole_or_not_at_all(bucket: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the last object of a publication is written, and after a stop at any step before it, nobody finds a result."""
    place = bucket / "out/r.zarr"
    made = group(place)
    assert requests.listing(place) == {}
    for stopped in ("copy", "listing", "put_new"):
        with monkeypatch.context() as patch:
            calls = iter([True]) if stopped == "put_new" else iter(())

            def stop(*arguments: Any, name: str = stopped, calls: Any = calls) -> Any:
                if next(calls, False):
                    return getattr(requests, name)(*arguments)
                raise StoreError("stopped here")

            patch.setattr(f"dlscale.storage.buckets.results.{stopped}", stop)
            with pytest.raises(StoreError, match="stopped here"):
                made.publish(ATTRIBUTES)
        assert result_attributes(str(place)) is None
        with pytest.raises(InputError):
            open_arrays(str(place))
    with pytest.raises(SpecError, match=r"is being published by job me; .*remove s3://.*/out/\.r\.zarr\.claim"):
        group(place, owner="another", overwrite=True).publish(ATTRIBUTES)
    group(place, owner="another").discard()
    assert str(group(place).publish(ATTRIBUTES)) == str(place)
    arrays = open_arrays(str(place))
    np.testing.assert_array_equal(arrays["parameters/w"][...][:, 0], [0.5, 0.5, 2.5, 2.5, 4.5, 4.5, 6.5])
    np.testing.assert_array_equal(arrays["s"][...], [0, 1, 2])
    left = {key.partition("/")[0] for key in requests.listing(bucket / "out")}
    assert left == {"r.zarr"}


def test_what_is_overwritten_and_what_is_not(bucket: Address) -> None:
    place = bucket / "r.zarr"
    group(place).publish(ATTRIBUTES)
    with pytest.raises(SpecError, match="must not exist"):
        group(place).publish(ATTRIBUTES)
    group(place, overwrite=True, rows=3).publish(ATTRIBUTES)
    assert open_arrays(str(place))["parameters/w"].shape == (3, 3)
    assert not any(key.startswith("parameters/w/c/3") for key in requests.listing(place))
    requests.put(bucket / "other/data.csv", b"1,2")
    with pytest.raises(SpecError, match="holds something that is no result"):
        group(bucket / "other", overwrite=True).publish(ATTRIBUTES)
    rival = group(bucket / "race")
    group(bucket / "race", owner="quicker").publish(ATTRIBUTES)
    with pytest.raises(SpecError, match="must not exist"):
        rival.publish(ATTRIBUTES)


def test_a_chunk_that_is_gone_is_told_before_a_result_is_published(bucket: Address) -> None:
    made = group(bucket / "r.zarr")
    requests.remove_object(made.staged / "parameters/w/c/1/0")
    with pytest.raises(CorruptionError, match="has 3 of its 4 chunks"):
        made.publish(ATTRIBUTES)
    made.discard()
    assert requests.listing(bucket) == {}


def test_a_checkpoint_counts_whole_or_not(bucket: Address) -> None:
    state = {"Z": np.arange(6.0).reshape(2, 3), "n": np.array(7), "z": np.array([1 + 2j])}
    first = ObjectCheckpoint(bucket / "ck/job")
    scratch = first.scratch("B", (4, 2), "f4", chunks=(2, 2))
    for row in (0, 2):
        scratch.write(row, np.ones((2, 2), "f4"))
    first.save("pass-0", state, writers=[scratch])
    first.save("pass-1", state)
    first.save("pass-1", {"Z": np.zeros(2)})
    again = ObjectCheckpoint(bucket / "ck/job")
    assert (again.steps(), again.n_saved, again.problems) == (["pass-0", "pass-1"], 3, [])
    loaded = again.load("pass-0")
    assert loaded is not None
    for name, array in state.items():
        np.testing.assert_array_equal(loaded[name], array)
    np.testing.assert_array_equal((again.load("pass-1") or {})["Z"], np.zeros(2))
    np.testing.assert_array_equal(again.scratch("B", (4, 2), "f4", chunks=(2, 2)).matrix().read(0, 4), np.ones((4, 2)))
    scratch.write(2, np.zeros((2, 2), "f4"))
    assert again.load("pass-0") is None
    requests.put(bucket / "ck/job/steps/pass-1~/Z/c/0", bytes(20))
    assert again.load("pass-1") is None
    requests.put(bucket / "ck/job/manifests/pass-0.json", b"{")
    damaged = ObjectCheckpoint(bucket / "ck/job")
    assert damaged.steps() == ["pass-1"]
    told = [sentence.partition(":")[0] for sentence in (*again.problems, *damaged.problems)]
    assert told == [f"Checkpoint step 'pass-{k}' does not count" for k in (0, 1, 0)]
    damaged.forget("pass")
    damaged.discard()
    assert requests.listing(bucket) == {}


def test_verify_finds_damage_in_a_store(bucket: Address) -> None:
    """Every chunk is decoded and its checksum compared; a store that cannot be asked is no damage."""
    place = bucket / "r.zarr"
    group(place).publish(ATTRIBUTES)
    assert (verify(str(place)).damage, verify(str(place)).n_chunks) == ([], 5)
    chunk = bytearray(requests.get(place / "parameters/w/c/1/0"))
    chunk[3] ^= 1
    requests.put(place / "parameters/w/c/1/0", chunk)
    (told,) = verify(str(place)).damage
    assert "parameters/w: chunk c/1/0 cannot be decoded" in told
    with pytest.raises(StoreError, match="no bucket"):
        verify("s3://nowhere/r.zarr")
