from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from dlscale.bench import machine, network
from dlscale.bench.commands import bench
from dlscale.engine.ranks import Communicator


def test_command_measures_every_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_COPY_BYTES", 2**22)
    monkeypatch.setattr(machine, "_FILE_BYTES", 2**25)
    monkeypatch.setattr(machine, "_N_MATMUL", 128)
    monkeypatch.setattr(network, "_N_TASKS", 50)
    monkeypatch.setattr(network, "_LARGE_BYTES", 2**22)
    monkeypatch.setattr(network, "_REDUCED_BYTES", (8, 2**13))
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(name, "1")
    ended = CliRunner().invoke(bench, ["machine", "--json", "--folder", str(tmp_path)], catch_exceptions=False)
    record = json.loads(ended.output.splitlines()[-1])
    assert record["machine"]["cores"] >= 1
    rates = {rate["what"]: rate["value"] for rate in record["rates"]}
    wanted = ("product f8, 1 thread", "memory, 1 thread", "disk write", "disk read", "store read, 1 thread", "worker to worker")
    assert {*wanted, "task, many at once", "task of a pass", "fetch of 8 bytes"} <= rates.keys()
    assert ("allreduce of 8 bytes" in rates) == (shutil.which("mpirun") is not None)
    assert all(np.isfinite(value) and value > 0 for value in rates.values())
    assert list(tmp_path.iterdir()) == []


def test_one_rank_reduces_with_itself():
    times = network.time_allreduce(Communicator())
    assert [n_bytes for n_bytes, _ in times] == list(network._REDUCED_BYTES)
    assert all(seconds >= 0 for _, seconds in times)


@pytest.mark.parametrize("arguments", [["scaling"], ["scaling", "--simulate", "0"], ["scaling", "--workers", "1", "--kinds", "x"]])
def test_wrong_requests_are_refused(arguments, tmp_path):
    ended = CliRunner().invoke(bench, [*arguments, "--folder", str(tmp_path)])
    assert ended.exit_code != 0
    assert "say --workers" in ended.output or "got" in str(ended.exception)
