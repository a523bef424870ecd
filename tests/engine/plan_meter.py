"""A job in a process of its own, and what it took beside what its plan says. Run as ``python plan_meter.py SPEC FOLDER``.

Bytes are those of the system calls of the process, so that nothing which is read or written goes uncounted.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil


def counted() -> dict[str, int]:
    """Bytes that this process has asked the kernel to read and to write."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return {name: int(number) for name, number in (line.split(": ") for line in lines) if name in ("rchar", "wchar")}


class Peak(threading.Thread):
    """The largest resident memory since the start; the kernel's own mark counts what was before, too."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.process, self.stopped, self.most = psutil.Process(), threading.Event(), 0
        self.worker = 0

    def run(self) -> None:
        while not self.stopped.wait(0.002):
            self.most = max(self.most, self.process.memory_info().rss)
            for child in self.process.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    self.worker = max(self.worker, child.memory_info().rss)


def main(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    import dlscale
    from dlscale.batch.document import read_document
    from dlscale.batch.prepare import prepare
    from dlscale.batch.run import start
    from dlscale.batch.spec import parse_spec
    from dlscale.batch.workspace import Workspace

    # What is imported and started once is no cost of the job.
    dlscale.run({**spec["warm"], "cluster": "threads"}, workspace=folder / "warm")
    document, root = read_document(spec["job"]), Workspace(folder / "ws")
    prepared = prepare(parse_spec(document), document, root)
    events: list[dict[str, Any]] = []
    before, resting = counted(), psutil.Process().memory_info().rss
    peak = Peak()
    peak.start()
    started = time.perf_counter()
    done = start(root.new_job(prepared.name), prepared, listener=events.append)
    seconds = time.perf_counter() - started
    peak.stopped.set()
    if done.error:
        raise done.error
    after = counted()
    finished = [event for event in events if event["event"] == "pass_finished"]
    return {
        "plan": done.plan,
        "steps": [event["step"] for event in finished],
        "told_read": sum(event["bytes_read"] for event in finished),
        "told_flops": sum(event["flops"] for event in events if event["event"] == "blocks"),
        "read": after["rchar"] - before["rchar"],
        "written": after["wchar"] - before["wchar"],
        "memory": max(peak.most, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if not peak.most else 0) - resting,
        "worker": peak.worker,
        "seconds": seconds,
    }


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(main(json.loads(sys.argv[1]), Path(sys.argv[2]))))
