"""Jobs in a process of its own, and what each took beside what its plan says: ``python plan_meter.py JOBS FOLDER``.

Bytes are those of the system calls of the process, so that nothing which is read or written goes uncounted. Reports are not drawn:
what Matplotlib reads would hide what is read of a matrix once too often.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

from dlscale.engine.clusters.lost_workers import peak_bytes


def counted() -> tuple[int, int]:
    """Bytes that this process has asked the kernel to read and to write."""
    numbers = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines())
    return int(numbers["rchar"]), int(numbers["wchar"])


class Peak(threading.Thread):
    """The most resident memory that a worker process of this one has had, until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.stopped, self.n_bytes = threading.Event(), 0

    def run(self) -> None:
        while not self.stopped.wait(0.1):
            for child in psutil.Process().children(recursive=True):
                self.n_bytes = max(self.n_bytes, peak_bytes(child.pid))


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    from dlscale.batch.document import read_document
    from dlscale.batch.prepare import prepare
    from dlscale.batch.run import start
    from dlscale.batch.spec import parse_spec
    from dlscale.batch.workspace import Workspace
    from dlscale.engine.events import Event, Saved, StepFinished, WorkDone

    # The planner reads a little of the matrix, to see how fast it can be read; that is not counted.
    document, root = read_document(job), Workspace(folder)
    prepared = prepare(parse_spec(document), document, root)
    events: list[Event] = []
    on_workers = job["cluster"]["type"] == "local"
    peak = Peak()
    if on_workers:
        peak.start()
    read, written = counted()
    done = start(root.new_job(prepared.name), prepared, listener=events.append)
    if done.error:
        raise done.error
    now_read, now_written = counted()
    peak.stopped.set()
    finished = [event for event in events if isinstance(event, StepFinished)]
    return {
        "plan": done.plan,
        "told_read": sum(event.bytes_read for event in finished),
        "told_flops": sum(event.flops for event in events if isinstance(event, WorkDone)),
        "kept": sum(event.bytes for event in events if isinstance(event, Saved)),
        "read": now_read - read,
        "written": now_written - written,
        "worker_bytes": peak.n_bytes,
    }


if __name__ == "__main__":
    from dlscale.batch import reporting

    reporting.render = lambda record: ""
    jobs, place = json.loads(sys.argv[1]), Path(sys.argv[2])
    # What is imported and started once is no cost of a job: the first one is run twice, where bytes of this process are counted.
    first = jobs[:1] if jobs[0]["cluster"]["type"] == "threads" else []
    results = [run(job, place / str(i)) for i, job in enumerate([*first, *jobs])][len(first) :]
    sys.stdout.write("\n" + json.dumps(results))
