"""What the machine itself allows: the rate of several processes that each multiply matrices on one thread, against that of one.

python -m dlscale.bench.limit waits for a line on its standard input, multiplies, and says how long it took.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack

import numpy as np

from dlscale.bench.measuring import Run, cores, one_thread

_N = 1024
_N_PRODUCTS = 60
_FLOPS = 2.0 * _N**3 * _N_PRODUCTS


def measure_limit(n_workers: int) -> Run:
    """The same products, shared among processes: a run of kind ``product``.

    Parameters
    ----------
    n_workers : int
        How many processes multiply at the same time.
    """
    command = [sys.executable, "-m", "dlscale.bench.limit"]
    with ExitStack() as stack:
        stack.enter_context(cores(range(n_workers)))
        processes = [
            stack.enter_context(
                subprocess.Popen(command, env=one_thread(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(n_workers)
        ]
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # it has warmed up
        started = time.perf_counter()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        seconds = [float(process.communicate()[0]) for process in processes]
        wall = time.perf_counter() - started
    # Each did the whole work: together so many times as much.
    return Run("product", "strong", "processes", n_workers, (_N, _N), max(seconds) / n_workers, wall, _FLOPS)


def main() -> None:
    A = np.random.default_rng(0).standard_normal((_N, _N))
    C = np.empty_like(A)
    for _ in range(3):
        np.matmul(A, A, out=C)
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    for _ in range(_N_PRODUCTS):
        np.matmul(A, A, out=C)
    print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
