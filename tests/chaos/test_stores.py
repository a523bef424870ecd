"""Every kind of job with its matrices, its result and its checkpoint in an object store that fails now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from every_kind import JOBS, arrays_of, check_same
from object_server import SECRET, faulty_proxy, reached, s3_server, upload
from victims import PARAMS, at_night, make_matrix

import dlscale
from dlscale.storage.objects import requests
from dlscale.storage.objects.address import Address, forget_clients


@pytest.fixture(scope="module")
def bucket(inputs: Path) -> Iterator[Address]:
    """All inputs in a store of which one request in twenty fails, and one answer in twenty breaks off."""
    with s3_server() as port, reached(port) as bucket, faulty_proxy(port) as (proxy, faults), pytest.MonkeyPatch.context() as patch:
        for path in inputs.glob("*.zarr"):
            upload(path, bucket / path.name)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy}")
        forget_clients()
        faults.failing = faults.torn = 0.05
        yield bucket


@at_night
@pytest.mark.parametrize("kind", JOBS)
def test_the_same_answer_from_a_store(inputs: Path, bucket: Address, tmp_path: Path, kind: str) -> None:
    job = {"kind": kind, **JOBS[kind], "cluster": "threads"}
    here = dlscale.run(
        {**job, "input": {role: str(inputs / f"{name}.zarr") for role, name in job["input"].items()}}, workspace=tmp_path / "a"
    )
    there = {"input": {role: f"{bucket}/{name}.zarr" for role, name in job["input"].items()}, "output": f"{bucket}/out/{kind}.zarr"}
    there["checkpoint"] = {"at": f"{bucket}/checkpoints"}
    found = dlscale.run({**job, **there}, workspace=tmp_path / "b")
    assert here.result is not None
    check_same(kind, {name: array[...] for name, array in found.open().items()}, arrays_of(Path(here.result)))
    beside = {key.partition("/")[0] for key in requests.listing(bucket / "out")}
    assert not {name for name in beside if name.startswith(".")}
    assert requests.names(bucket / "checkpoints") == []


@at_night
def test_a_workspace_in_a_store_that_freezes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a job in a bucket; a worker is killed, nothing is answered for a minute, and a request in twenty fails."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local = make_matrix(tmp_path / "A.zarr")
    job: dict[str, Any] = {"kind": "pca", "params": dict(PARAMS["pca"]), "stall": 600.0}
    job["cluster"] = {"type": "local", "workers": 2, "threads": 1}
    here = dlscale.run({**job, "input": {"matrix": str(local)}}, workspace=tmp_path / "here")
    killed: list[int] = []

    def harm(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint" and not killed:
            workers = [each for each in psutil.Process().children() if "spawn_main" in " ".join(each.cmdline())]
            killed.append(workers[-1].pid)
            workers[-1].kill()
            faults.frozen_until = time.monotonic() + 60

    with s3_server() as port, reached(port) as bucket, faulty_proxy(port) as (proxy, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy}")
        forget_clients()
        url = upload(local, bucket / "A.zarr")
        faults.failing = faults.torn = 0.05
        there = dlscale.run({**job, "input": {"matrix": url}}, workspace=f"{bucket}/ws", listener=harm)
        assert killed
        assert faults.counts["frozen"]
        ours, theirs = here.open(), there.open()
        assert ours.keys() == theirs.keys()
        assert all((theirs[name][...] == array[...]).all() for name, array in ours.items())
        objects = [requests.get(bucket / key) for key in requests.listing(bucket)]
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in data for data in (*objects, *files))
