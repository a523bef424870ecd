"""A gate on the way of jobs: closed, it holds each behind its first steps, alive, however fast or slow the machine is."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_HOOK, _ROOT = Path(__file__).parent / "gated", Path(__file__).parents[1]
#: For what is there at once on a quick machine; it only ends a test that would wait for ever.
PATIENCE_SECONDS = 300.0


class Gate:
    """Open at first.

    Parameters
    ----------
    folder : Path
        Where it says whether it is closed, and jobs say that they stand before it.

    Attributes
    ----------
    environment : dict
        Of the processes whose jobs meet it, and of those that they start.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._closed = folder, folder / "closed"
        place = os.pathsep.join(filter(None, [str(_HOOK), str(_ROOT), os.environ.get("PYTHONPATH")]))
        self.environment = {"DLSCALE_TEST_GATE": str(folder), "PYTHONPATH": place}

    def open(self) -> None:
        self._closed.unlink(missing_ok=True)

    @contextmanager
    def closed(self, *, steps: int = 3) -> Iterator[None]:
        """Until `open`, or the end of the body, let jobs only begin so many steps, those from their checkpoint included."""
        for said in self._folder.glob("[0-9]*-*"):
            said.unlink()
        written = self._folder / ".closed"
        written.write_text(str(steps))
        written.rename(self._closed)
        self._steps = steps
        try:
            yield
        finally:
            self.open()

    def wait_for_job(self, process: subprocess.Popen[str] | None = None) -> None:
        """Until a job stands before the gate, all that it did before finished and saved; of a process, while it is alive."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not list(self._folder.glob(f"{self._steps}-*")):
            assert process is None or process.poll() is None, process.communicate()
            assert time.monotonic() < end, "no job has come to the gate"
            time.sleep(0.01)


@pytest.fixture
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """For processes that get its environment."""
    return Gate(tmp_path_factory.mktemp("gate"))
