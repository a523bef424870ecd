"""Runs the tests of a peer's package in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Sessions of pytest one after the other, each of which leaves a record; imports take as long as the tests.
PROGRAM = """
import json, os, sys, pytest
options = ["-q", "-p", "linalg_adapters", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestWarning"]
for name, (module, names) in json.loads(sys.argv[1]).items():
    os.environ["PEERS_RECORD"] = name + ".json"
    pytest.main([*options, "-m", "not slow", "-c", "pytest.ini", "--pyargs", module, "-k", names])
"""


def run_peers(chosen: Mapping[str, tuple[str, str]], folder: Path) -> dict[str, dict[str, Any]]:
    """What became of the tests of installed modules that ``-k`` expressions choose: failed, passed, and how often dlscale
    answered.

    Parameters
    ----------
    chosen : mapping
        Names with a module and an expression.
    folder : Path
        Outside of the project, whose options are not meant for others.
    """
    (folder / "pytest.ini").write_text("[pytest]\n")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", PROGRAM, json.dumps(chosen)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    for name in chosen:
        assert (folder / f"{name}.json").exists(), done.stdout + done.stderr
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in chosen}
