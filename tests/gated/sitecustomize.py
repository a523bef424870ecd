"""Loaded by each Python process that finds this folder on its module path: its jobs stop at a closed gate (see tests/gate.py)."""

import importlib.util
import os
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path

GATE, HERE = Path(os.environ["DLSCALE_TEST_GATE"]), str(Path(__file__).parent)


class Gated:
    """Finds the module with the steps of jobs, and puts the gate before them when it is loaded."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "dlscale.engine.run":
            return None
        spec = PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            module.Run.step = gated(module.Run.step)

        spec.loader.exec_module = exec_module
        return spec


def gated(step):
    n_begun = 0

    def wait_and_step(*arguments, **options):
        nonlocal n_begun
        n_begun += 1
        while n_begun > (steps := passed()):
            (GATE / f"{steps}-{os.getpid()}").touch()
            time.sleep(0.01)
        return step(*arguments, **options)

    return wait_and_step


def passed():
    """How many steps of a job pass the gate."""
    try:
        return int((GATE / "closed").read_text())
    except FileNotFoundError:
        return float("inf")


sys.meta_path.insert(0, Gated())

# The next module of this name on the path, which this one hides.
hidden = PathFinder.find_spec(__name__, [place for place in sys.path if place != HERE])
if hidden is not None:
    hidden.loader.exec_module(importlib.util.module_from_spec(hidden))
