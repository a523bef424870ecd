import json
import os
import sys
import time
from pathlib import Path

import pytest

# Test files are imported by path, which leaves their folder off the module path.
sys.path.insert(0, str(Path(__file__).parent))

from every_kind import Whole, make_inputs, undisturbed
from victims import FAULTS, SEED


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The matrices of a job of every kind."""
    return make_inputs(tmp_path_factory.mktemp("input"))


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What each kind finds where nothing disturbs it."""
    return undisturbed(inputs, tmp_path_factory.mktemp)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """With DLSCALE_CHAOS_LEDGER=FILE, each test adds a line of JSON: what it did to jobs, and how it ended."""
    report = yield
    if call.when == "call":
        ledger = os.environ.get("DLSCALE_CHAOS_LEDGER")
        if ledger and FAULTS:
            line = {"test": item.nodeid, "faults": list(FAULTS), "outcome": report.outcome, "seconds": round(call.duration, 1)}
            if report.failed:
                line["report"] = report.longreprtext[-4000:]
            with open(ledger, "a", encoding="utf-8") as file:
                file.write(json.dumps({"time": int(time.time()), "seed": SEED, **line}) + "\n")
        FAULTS.clear()
    return report
