"""A process that does a job again and again on one thread, until it is killed: what shares a machine with a traced job.

python -m dlscale.bench.neighbour KIND FOLDER SIZE PLACE
"""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

from dlscale.batch.run import run
from dlscale.bench.workloads import make_job

_WARMING = 0.01


def main() -> None:
    kind, folder, size, place = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
    for repetition in count():
        job = make_job(folder, kind, size if repetition else _WARMING, {"type": "threads", "threads": 1})
        run(job | {"output": str(place / "result.zarr"), "overwrite": True}, workspace=place / "workspace")
        if not repetition:
            print("begun", flush=True)


if __name__ == "__main__":
    main()
