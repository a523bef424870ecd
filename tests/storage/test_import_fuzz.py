"""Damaged files of every format: success that another reader confirms, or an error that names the file; never a crash.

A few in every run; ``DLSCALE_FUZZ_FILES=5000 pytest tests/storage/test_import_fuzz.py`` tries so many of each format.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

N_FILES = int(os.environ.get("DLSCALE_FUZZ_FILES", "60"))
FORMATS = ["csv", "tsv", "mtx", "npy", "npz", "parquet", "h5", "png", "jpg", "tif"]
SECONDS = (240 + N_FILES) * len(FORMATS)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, list[str]]]:
    """How the process of each format ended, and the lines that it wrote."""
    folder = tmp_path_factory.mktemp("damaged")
    script = Path(__file__).with_name("import_fuzz.py")
    command = [sys.executable, str(script), ",".join(FORMATS), "0", str(N_FILES), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout)
    return {suffix: (ends[suffix], (folder / f"{suffix}.txt").read_text().splitlines()) for suffix in FORMATS}


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_files_are_read_right_or_refused(told: dict[str, tuple[int, list[str]]], suffix: str) -> None:
    code, lines = told[suffix]
    assert code == 0, f"ended by {code}:\n" + "\n".join(lines[-30:])
    result = json.loads(lines[-1])
    assert not result["faults"], f"{len(result['faults'])} faults:\n" + "\n".join(result["faults"][:20])
    assert result.get("read", 0) > 0
    assert result.get("refused", 0) > 0
