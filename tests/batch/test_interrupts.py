"""A signal between any two steps of an import: the command ends, and nothing is left."""

from __future__ import annotations

import gc
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import dlscale
from dlscale.batch.jobs.places import clean_up, only_importer
from dlscale.interrupts import asking_to_stop, ends, handle_signals, held_back
from dlscale.storage.importers import import_matrix

OURS = str(Path(dlscale.__file__).parent)


class SignalAt:
    """Raises SIGTERM before the k-th line of this package that runs, and counts them."""

    def __init__(self, k: int) -> None:
        self.k, self.n_lines = k, 0

    def __enter__(self) -> SignalAt:
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        if event == "line":
            self.n_lines += 1
            if self.n_lines == self.k:
                signal.raise_signal(signal.SIGTERM)
        return self.trace


@pytest.fixture(autouse=True)
def _as_a_command() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in asking_to_stop()}
    handle_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run_import(source: Path, destination: Path, k: int) -> int:
    """How many lines ran."""
    with SignalAt(k) as counter:
        try:
            with only_importer(destination):
                import_matrix(source, destination)
        except KeyboardInterrupt:
            clean_up()
    return counter.n_lines


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the open file of a call that was left
def test_an_import_that_is_stopped_anywhere_leaves_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(12.0).reshape(3, 4))
    n_lines = run_import(tmp_path / "a.npy", tmp_path / "whole" / "imports" / "a.zarr", 0)
    assert n_lines > 300, n_lines
    for k in range(1, n_lines + 1):
        folder = tmp_path / "stopped"
        run_import(tmp_path / "a.npy", folder / "imports" / "a.zarr", k)
        left = sorted(path.relative_to(folder) for path in folder.rglob("*"))
        assert left in ([], sorted([Path("imports"), *whole(folder)])), f"at line {k} of {n_lines}"
        if left:  # published a moment before
            shutil.rmtree(folder)
        assert not folder.exists()
    gc.collect()  # those files, before other tests may meet them


def whole(folder: Path) -> list[Path]:
    array = folder / "imports" / "a.zarr"
    return [path.relative_to(folder) for path in (array, *array.rglob("*"))] if array.exists() else []


DROPPED = """
import signal, time, weakref
from dlscale.interrupts import handle_signals, hear_what_is_dropped

class Something: ...

handle_signals()
hear_what_is_dropped()
try:
    something = Something()
    reference = weakref.ref(something, lambda _: signal.raise_signal(signal.SIGTERM))
    del something
    time.sleep(60)
    print("lost")
except KeyboardInterrupt:
    print("heard")
"""


def test_a_signal_that_python_drops_comes_again() -> None:
    """What is raised within the callback of a weak reference goes nowhere."""
    done = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("heard\n", "")


def test_a_signal_within_a_step_comes_after_it() -> None:
    steps = []

    def step() -> None:
        with held_back():
            signal.raise_signal(signal.SIGTERM)
            steps.append("inner")
        steps.append("between")

    def whole_step() -> None:
        with held_back():
            step()
            steps.append("outer")
        steps.append("never")

    with pytest.raises(KeyboardInterrupt):
        whole_step()
    assert steps == ["inner", "between", "outer"]
    with pytest.raises(KeyboardInterrupt):
        step()
    assert steps[3:] == ["inner"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    ends()
    signal.raise_signal(signal.SIGTERM)
