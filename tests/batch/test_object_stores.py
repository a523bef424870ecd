"""Jobs whose matrix, checkpoint and result lie in an object store: the bits of the disk, whatever the network does."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from object_server import SECRET, Faults, upload

import dlscale
from dlscale.batch.document import read_document
from dlscale.batch.prepare import prepare
from dlscale.batch.removing import remove
from dlscale.batch.run import reopen, resume
from dlscale.batch.spec import parse_spec
from dlscale.batch.workspace import Workspace
from dlscale.errors import InputError, Interrupted, SpecError, StalledError, StoreError
from dlscale.storage.groups import open_arrays
from dlscale.storage.objects import requests
from dlscale.storage.objects.address import Address

A = np.random.default_rng(0).standard_normal((900, 60))
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "pca": (A, {"n_components": 4, "scores": True, "solver": "randomized"}),
    "lu": (A[:60] + 4 * np.eye(60), {}),
}


def spec(kind: str, matrix: object, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "input": {"matrix": str(matrix)}, "params": KINDS[kind][1], "cluster": "threads", **more}


def stored(kind: str, folder: Path) -> Path:
    zarr.create_array(str(folder / "A.zarr"), data=KINDS[kind][0], chunks=(200, 60), compressors=None)
    return folder / "A.zarr"


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_as_on_a_disk(bucket: Address, faults: Faults, tmp_path: Path, kind: str) -> None:
    """One request in twenty fails, one answer in twenty breaks off; no file and no object holds the key that opened the store."""
    local = stored(kind, tmp_path)
    here = dlscale.run(spec(kind, local), workspace=tmp_path / "here")
    remote = upload(local, bucket / "in/A.zarr")
    faults.failing = faults.torn = 0.05
    job = spec(kind, remote, output=f"{bucket}/out/r.zarr", checkpoint={"at": f"{bucket}/checkpoints"})
    there = dlscale.run(job, workspace=tmp_path / "there")
    assert there.result == f"{bucket}/out/r.zarr"
    assert min(faults.counts["failing"], faults.counts["torn"]) > 0
    same = ("method", "grids", "steps", "seed")
    assert [there.plan.get(key) for key in same] == [here.plan.get(key) for key in same]
    ours, theirs = here.open(), there.open()
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(theirs[name][...], array[...])
        assert theirs[name].metadata.dimension_names == array.metadata.dimension_names
    faults.failing = faults.torn = 0.0
    assert {key.partition("/")[0] for key in requests.listing(bucket)} == {"in", "out"}
    assert {key.partition("/")[0] for key in requests.listing(bucket / "out")} == {"r.zarr"}
    written = [path.read_bytes() for path in (tmp_path / "there").rglob("*") if path.is_file()]
    written += [requests.get(bucket / "out" / key) for key in requests.listing(bucket / "out")]
    assert len(written) > 10
    assert not any(SECRET.encode() in data for data in written)


def test_a_job_asks_for_its_matrix_once(bucket: Address, faults: Faults, tmp_path: Path) -> None:
    """However often its plan reads it: the worker keeps it, and is told of its metadata."""
    remote = upload(stored("pca", tmp_path), bucket / "A.zarr")
    job = spec("pca", remote, cluster="local")
    job["params"] = {**job["params"], "block_rows": 200}

    def begin(event: dict[str, Any]) -> None:
        if event.get("state") == "running":
            faults.log.clear()

    dlscale.run(job, workspace=tmp_path / "ws", listener=begin)
    read = Counter(request.rpartition("A.zarr/")[2] for request in faults.log if "A.zarr/c" in request or "A.zarr/z" in request)
    assert read == {f"c/{i}/0": 1 for i in range(5)}


def test_a_job_goes_on_from_a_checkpoint_in_the_store(bucket: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store fails while the result is published; nothing is there then, and the job goes on without a pass done twice."""
    local = stored("pca", tmp_path)
    here = dlscale.run(spec("pca", local), workspace=tmp_path / "here")
    job = spec("pca", upload(local, bucket / "A.zarr"), output=f"{bucket}/r.zarr", checkpoint={"at": f"{bucket}/checkpoints"})

    def broken(*_: Any) -> None:
        raise StoreError("the store went away")

    with monkeypatch.context() as patch:
        patch.setattr("dlscale.storage.buckets.results.copy", broken)
        with pytest.raises(StoreError, match="went away"):
            dlscale.run(job, workspace=tmp_path / "there")
        requests.remove_object(bucket / ".r.zarr.claim")
        with pytest.raises(StoreError, match="went away"):
            dlscale.run({**job, "name": "another"}, workspace=tmp_path / "there")
    requests.remove_object(bucket / ".r.zarr.claim")
    with pytest.raises(InputError):
        open_arrays(f"{bucket}/r.zarr")
    root = Workspace(tmp_path / "there")
    remove(root.find("another"), root)
    assert len(requests.names(bucket / ".r.zarr.partial")) == 1, "a job that is removed leaves nothing beside its result"
    kept = {key.split("/")[1] for key in requests.listing(bucket) if key.startswith("checkpoints")}
    stopped = root.find(kept.pop())
    assert not kept, "a job that is removed takes its checkpoint along"
    events = len(list(stopped.read_events()))
    resumed = resume(stopped, reopen(stopped, root))
    assert resumed.state == "succeeded"
    steps = [event.to_dict() for event in list(stopped.read_events())[events:]]
    assert all(event["resumed"] for event in steps if "resumed" in event)
    for name, array in here.open().items():
        np.testing.assert_array_equal(resumed.open()[name][...], array[...])
    assert not any(key.startswith("checkpoints") for key in requests.listing(bucket))


def test_a_training_goes_on_from_its_steps_in_the_store(bucket: Address, tmp_path: Path) -> None:
    """To the bits of a training that nobody stopped and that saved on a disk."""
    for name, array in (("X", A), ("y", A[:, :1] - 2 * A[:, 1:2])):
        zarr.create_array(str(tmp_path / f"{name}.zarr"), data=array, chunks=(300, array.shape[1]), compressors=None)
    job: dict[str, Any] = {"kind": "train", "model": {"type": "mlp", "hidden": [8]}, "loss": "squared"}
    job["input"] = {"features": str(tmp_path / "X.zarr"), "targets": str(tmp_path / "y.zarr")}
    job |= {"params": {"epochs": 4, "batch_size": 100, "checkpoint_steps": 2}, "cluster": "threads"}
    here = dlscale.run(job, workspace=tmp_path / "here")
    root = Workspace(tmp_path / "there")

    epochs: list[dict[str, Any]] = []

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            epochs.append(event)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        dlscale.run({**job, "checkpoint": {"at": f"{bucket}/steps"}}, workspace=root.root, listener=stop)
    assert len(epochs) == 1, "it stops behind the next step"
    stopped = root.find(None)
    assert not stopped.checkpoint.joinpath("steps").exists()
    assert {key.split("/")[1] for key in requests.listing(bucket / "steps")} == {"manifests", "steps"}
    resumed = resume(stopped, reopen(stopped, root))
    assert resumed.state == "succeeded"
    assert any(event.to_dict()["event"] == "resumed" for event in stopped.read_events())
    for name, array in here.open().items():
        np.testing.assert_array_equal(resumed.open()[name][...], array[...])
    assert not requests.listing(bucket / "steps")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"output": "{bucket}"}, "allowed: a name in the bucket"),
        ({"output": "{bucket}/in/A.zarr/r.zarr"}, "lies in or holds the input matrix"),
        ({"output": "{bucket}/in"}, "lies in or holds the input matrix"),
        ({"output": "{bucket}/taken", "overwrite": True}, "holds something that is no result"),
        ({"output": "{bucket}/other.zarr", "overwrite": True}, "is not a result of dlscale"),
        ({"output": "{bucket}/other.zarr"}, "must not exist"),
        ({"output": "s3://nowhere/r.zarr"}, "there is no bucket 'nowhere'"),
        ({"output": "https://host/r.zarr"}, "allowed: a path on a file system of this machine, or s3://"),
        ({"checkpoint": {"at": "s3://nowhere/c"}}, "checkpoint.at: .*there is no bucket 'nowhere'"),
        ({"checkpoint": {"at": "/a/folder"}}, "checkpoint.at"),
        ({"input": {"matrix": "s3://nowhere/A.zarr"}}, "input.matrix: .*there is no bucket 'nowhere'"),
    ],
)
def test_what_cannot_work_is_refused_before_it_begins(bucket: Address, tmp_path: Path, more: dict[str, Any], said: str) -> None:
    url = upload(stored("pca", tmp_path), bucket / "in/A.zarr")
    requests.put(bucket / "taken/data.csv", b"1")
    requests.put(bucket / "other.zarr/zarr.json", b'{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    given = {key: value.format(bucket=bucket) if isinstance(value, str) else value for key, value in more.items()}
    document = read_document({**spec("pca", url), **given})
    with pytest.raises((SpecError, InputError), match=said):
        prepare(parse_spec(document), document, Workspace(tmp_path / "w"))
    assert not (tmp_path / "w" / "jobs").exists()


def test_a_store_that_hangs_is_a_stall(bucket: Address, faults: Faults, tmp_path: Path) -> None:
    """What a worker waits for is told when the time is over, and not when the store answers."""
    url = upload(stored("pca", tmp_path), bucket / "A.zarr")

    def freeze(event: dict[str, Any]) -> None:
        if event["event"] == "pass_started":
            faults.frozen_until = float("inf")

    job = spec("pca", url, stall=2.0) | {"cluster": {"type": "local", "workers": 1, "threads": 1}}
    with pytest.raises(StalledError, match=r"No progress for 2 s\. Waiting for"):
        dlscale.run(job, workspace=tmp_path / "w", listener=freeze)
    faults.frozen_until = 0.0
