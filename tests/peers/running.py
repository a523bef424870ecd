"""Runs the tests of a peer's package in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_peer(module: str, names: str, folder: Path) -> dict[str, Any]:
    """What became of the tests of an installed module that a ``-k`` expression chooses: failed, passed, and how often dlscale
    answered."""
    record = folder / "record.json"
    environment = os.environ | {"PEERS_RECORD": str(record), "PYTHONPATH": str(Path(__file__).parent)}
    # Outside of the project, whose options are not meant for others; their own warnings are theirs.
    (folder / "pytest.ini").write_text("[pytest]\n")
    options = ["-q", "-p", "linalg_adapters", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestWarning", "--pyargs", module]
    command = [sys.executable, "-m", "pytest", *options, "-k", names, "-m", "not slow", "-c", str(folder / "pytest.ini")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert record.exists(), done.stdout + done.stderr
    return dict(json.loads(record.read_text(encoding="utf-8")))
