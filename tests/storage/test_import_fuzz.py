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


@pytest.mark.timeout(240 + N_FILES)
@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_files_are_read_right_or_refused(tmp_path, suffix):
    script = Path(__file__).with_name("import_fuzz.py")
    command = [sys.executable, str(script), suffix, "0", str(N_FILES), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240 + N_FILES, env=environment)
    lines = done.stdout.split("\n")
    assert done.returncode == 0, f"ended by {done.returncode} at file {lines[-2]}: {done.stderr[-2000:]}"
    result = json.loads(lines[-2])
    assert not result["faults"], f"{len(result['faults'])} faults:\n" + "\n".join(result["faults"][:20])
    assert result.get("read", 0) > 0
    assert result.get("refused", 0) > 0
