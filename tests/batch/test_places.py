"""Scripts without a guard, folders where nothing can be written, imports that were killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from victims import ENVIRONMENT, ask, leftovers

from dlscale.batch.main_guard import _is_guarded

SCRIPT = """\
import dlscale

spec = {"kind": "svd", "input": {"matrix": "a.zarr"}, "params": {"n_components": 2}, "cluster": CLUSTER}

def main():
    print(dlscale.run(spec).state)

"""


def run_script(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    array = zarr.create_array(folder / "a.zarr", shape=(50, 4), chunks=(25, 4), dtype="f8")
    array[:] = np.arange(200.0).reshape(50, 4) % 7 + 1
    (folder / "script.py").write_text(text)
    command = [sys.executable, "script.py"]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)


def test_a_script_without_a_guard_is_told_what_to_write(tmp_path: Path) -> None:
    ended = run_script(tmp_path, SCRIPT.replace("CLUSTER", '"local"') + "main()\n")
    assert ended.returncode == 1
    told = ended.stderr.splitlines()[-1]
    assert "script.py:8" in told
    assert 'if __name__ == "__main__"' in told
    assert not (tmp_path / "dlscale-workspace").exists()


#: A job on threads loads nothing that only clusters and estimators need.
LIGHT = 'main()\nimport sys\nassert not {"distributed", "sklearn", "scipy.stats"} & sys.modules.keys()\n'


@pytest.mark.parametrize(("cluster", "ending"), [("local", 'if __name__ == "__main__":\n    main()\n'), ("threads", LIGHT)])
def test_a_script_that_may_be_imported_again_runs(cluster: str, ending: str, tmp_path: Path) -> None:
    ended = run_script(tmp_path, SCRIPT.replace("CLUSTER", repr(cluster)) + ending)
    assert (ended.returncode, ended.stdout) == (0, "succeeded\n"), ended.stderr


def test_a_script_on_standard_input_runs(tmp_path: Path) -> None:
    text = SCRIPT.replace("CLUSTER", '"local"') + "main()\n"
    ended = run_script(
        tmp_path, f"import runpy, subprocess, sys\nsubprocess.run([sys.executable, '-'], input={text!r}, text=True)\n"
    )
    assert (ended.returncode, ended.stdout) == (0, "succeeded\n"), ended.stderr


@pytest.mark.parametrize(
    ("source", "line", "guarded"),
    [
        ("run()\n", 1, False),
        ("if __name__ == '__main__':\n    run()\n", 2, True),
        ("if '__main__' == __name__:\n    for i in range(2):\n        run()\n", 3, True),
        ("if True:\n    run()\n", 2, False),
        ("if __name__ == '__main__':\n    a = 1\nrun(\n    1)\n", 4, False),
        ("%magic\n", 1, True),
    ],
)
def test_what_counts_as_a_guard(source: str, line: int, guarded: bool) -> None:
    assert _is_guarded(source, line) is guarded


def test_generating_where_nothing_can_be_written(tmp_path: Path) -> None:
    for place in ("/proc/x.zarr", "/proc/deeper/x.zarr"):
        ended = ask("generate", "--shape", "10x5", "--spectrum", "flat", place, cwd=tmp_path)
        assert ended.code == 2
        assert "nothing can be written" in ended.err
        assert "free" not in ended.err


#: An import that is killed when it has written a strip.
KILLED = """
import os, signal
from dlscale.cli.main import main
from dlscale.storage.importers.strips import StripWriter
append = StripWriter.append
def killed(*given):
    append(*given)
    os.kill(os.getpid(), signal.SIGKILL)
StripWriter.append = killed
main()
"""


def test_the_next_import_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4000, 100)))
    command = [sys.executable, "-c", KILLED, "import", "a.npy", "a.zarr", "--chunks", "100x100"]
    ended = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert any(Path(left).suffix != ".lock" for left in leftovers(tmp_path))
    np.save(tmp_path / "a.npy", np.ones((40, 3)))
    imported = ask("import", "a.npy", "a.zarr", cwd=tmp_path)
    assert imported.code == 0, imported.err
    assert {path.name for path in tmp_path.iterdir()} == {"a.npy", "a.zarr"}
