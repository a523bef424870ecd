"""Every kind of job with its matrices, its result and its checkpoint in an object store that fails now and then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from every_kind import JOBS, arrays_of, check_same
from object_server import faulty_proxy, reached, s3_server, upload
from victims import at_night

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
