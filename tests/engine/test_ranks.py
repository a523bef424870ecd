"""Ranks: collectives, their tags, and what happens when one rank goes wrong, under real mpirun."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dlscale.engine.guard import Guard
from dlscale.engine.ranks import Communicator
from dlscale.engine.ranks.communicator import import_mpi
from dlscale.errors import SpecError
from tests.engine.launching import end

PROGRAMS = Path(__file__).with_name("collective_programs.py")


def mpirun(n_ranks: int, *arguments: object, noted: Callable[[], object] = lambda: True) -> tuple[int, str]:
    """Exit code and standard error."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    command = [str(Path(sys.executable).with_name("mpirun")), "--oversubscribe", "-n", str(n_ranks), sys.executable]
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    launcher = subprocess.Popen(
        [*command, *map(str, arguments)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    code, _, err = end(launcher, noted)
    return code, err


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_collectives(tmp_path, n_ranks):
    assert mpirun(n_ranks, PROGRAMS, "collectives", tmp_path) == (0, "")


@pytest.mark.parametrize(
    ("kind", "victim", "cause"),
    [
        ("raise", 2, "a fault of this rank"),
        ("raise", 0, "a fault of this rank"),
        ("slow", 2, "a fault of this rank"),
        ("exit", 1, "ended without a word"),
        ("kill", 2, "ended without a word"),
        ("kill", 0, "ended without a word"),
        ("disagree", 1, "rank 1 in"),
        ("early", 1, "the end of the program"),
    ],
)
def test_one_rank_ends_all_and_the_cause_is_kept(tmp_path, kind, victim, cause):
    """The first, the last and the one between them."""
    code, _ = mpirun(3, PROGRAMS, "fault", tmp_path, kind, victim, noted=lambda: list(tmp_path.glob("failure-*.json")))
    assert code != 0
    records = [json.loads(path.read_text()) for path in tmp_path.glob("failure-*.json")]
    assert records
    assert all(cause in record["cause"] for record in records)
    if kind in ("raise", "exit", "kill"):
        assert {record["rank"] for record in records} == {victim}
    if kind == "raise":
        assert all("ValueError" in record["traceback"] for record in records)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path):
    code, err = mpirun(4, PROGRAMS, "fault", tmp_path, "stop", 2)
    assert code == 75, err
    steps = {path.read_text() for path in tmp_path.glob("stopped-*")}
    assert len(list(tmp_path.glob("stopped-*"))) == 4
    assert len(steps) == 1


def test_one_process_is_a_rank_of_one():
    comm = Communicator()
    with Guard(comm):
        array = np.arange(3.0)
        assert comm.allreduce(array, name="a") is array
        comm.start_allreduce(array, name="b").wait()
        assert (comm.allgather(array, name="c") == [[0, 1, 2]]).all()
        comm.barrier("d")
        assert not comm.stopping
        comm.request_stop()
        assert comm.stopping, "it may have no collective to wait for"


def test_without_mpi_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(SpecError, match=r"pip install dlscale\[mpi\]"):
        import_mpi()
