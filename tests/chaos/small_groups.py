"""The command behind ``python -m dlscale`` with groups of one slab a worker: ``python small_groups.py PYTHON -m dlscale ...``."""

from __future__ import annotations

import runpy
import sys

from dlscale.engine import columns

if __name__ == "__main__":
    columns.GROUP_FLOPS = 1.0
    sys.argv = sys.argv[3:]
    runpy.run_module("dlscale", run_name="__main__", alter_sys=True)
