"""Runs benchmark cases: each in its own process, warmed up, timed, its answer checked, and only then printed.

A case is a function of one `Bench`; `@case(...)` registers it and `main()` runs what the command line selects. The parent process
samples the memory of the case's whole process tree while the case is on the clock, and writes one JSON line per case.
`python harness.py FILE...` prints the newest lines of result files as a Markdown table.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

HERE = Path(__file__).resolve().parent
CORES = len(os.sched_getaffinity(0))
SAMPLE_SECONDS = 0.2
PACKAGES = [
    "dlscale",
    "numpy",
    "scipy",
    "scikit-learn",
    "dask",
    "distributed",
    "dask-ml",
    "zarr",
    "zarrs",
    "tensorstore",
    "pyspark",
    "mpi4py",
    "torch",
    "h5py",
    "scanpy",
    "anndata",
]


@dataclass(frozen=True)
class Case:
    """One library on one problem; `group` gathers what is compared, `limit` is the time after which the case is given up."""

    group: str
    library: str
    function: Callable[[Bench], Any]
    limit: float


CASES: list[Case] = []


def case(group: str, library: str, *, limit: float = 1800) -> Callable[[Callable[[Bench], Any]], Callable[[Bench], Any]]:
    """Register a case; the decorator may be stacked."""

    def register(function: Callable[[Bench], Any]) -> Callable[[Bench], Any]:
        CASES.append(Case(group, library, function, limit))
        return function

    return register


@dataclass
class Bench:
    """What a case works with: its size, the data folder, a stop watch, and a place for facts and checks."""

    size: str
    data: Path
    answer: Path | None = None
    record: dict[str, Any] = field(default_factory=lambda: {"seconds": [], "marks": [], "checks": {}, "facts": {}})

    def pick(self, *, full: Any, quick: Any) -> Any:
        """The full or the quick variant of a size."""
        return full if self.size == "full" else quick

    def time(
        self,
        function: Callable[[], Any],
        *,
        repeats: int = 1,
        warm_up: bool = False,
        before: Callable[[], Any] | None = None,
        subprocess_only: bool = False,
    ) -> Any:
        """Run `function` on the clock and return its last result.

        `before` runs before each repeat, off the clock. With `subprocess_only` the memory of this process is not counted
        (the work is done by a child, and this process only waits).
        """
        if warm_up:
            function()
        result = None
        for _ in range(repeats):
            del result  # an old result would count as memory of the next repeat
            if before is not None:
                before()
            io, start = tree_io(), time.monotonic()
            result = function()
            stop, io_after = time.monotonic(), tree_io()
            self.record["seconds"].append(stop - start)
            self.record["marks"].append([start, stop])
            self.record["subprocess_only"] = subprocess_only
            self.record["read_bytes"] = io_after[0] - io[0]
            self.record["disk_read_bytes"] = io_after[1] - io[1]
        return result

    def check(self, name: str, value: float, limit: float) -> None:
        """Record a measured error and the bound it must meet; a case over a bound is reported as wrong, without a time."""
        self.record["checks"][name] = [float(value), float(limit)]

    def fact(self, **facts: Any) -> None:
        """Record anything else worth keeping (shape, bytes, rates, settings); kept even if the case runs out of time."""
        self.record["facts"].update(facts)
        self.save()

    def limit_memory(self, limit_bytes: float) -> None:
        """A case whose footprint on the clock goes over this is reported as wrong."""
        self.record["memory_limit_bytes"] = limit_bytes

    def save(self) -> None:
        """Hand the record to the parent process."""
        if self.answer is not None:
            self.answer.write_text(json.dumps(self.record))


def tree_io() -> tuple[int, int]:
    """Bytes (asked for by read calls, fetched from the disk) by this process, its living descendants and those already reaped."""
    total = [0, 0]
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(OSError, psutil.Error):
            fields = dict(line.split(": ") for line in Path(f"/proc/{process.pid}/io").read_text().splitlines())
            total[0] += int(fields["rchar"])
            total[1] += int(fields["read_bytes"])
    return total[0], total[1]


def forget(path: Path) -> None:
    """Drop a file's or a store's pages from the page cache, so that the next read is cold; needs no privileges."""
    for name in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        handle = os.open(name, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def read_raw(path: Path, *, threads: int = 2, piece_bytes: int = 16 * 2**20) -> int:
    """Read every chunk file of a store with plain `preadv` into one reused buffer per thread; returns the bytes read.

    This is the limit that reading is held against.
    """
    names = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]

    def read(mine: list[Path]) -> int:
        buffer, total = memoryview(bytearray(piece_bytes)), 0
        for name in mine:
            handle, offset = os.open(name, os.O_RDONLY), 0
            while n := os.preadv(handle, [buffer], offset):
                offset += n
            os.close(handle)
            total += offset
        return total

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(read, [names[i::threads] for i in range(threads)]))


def matmul_flops(dtype: str, n: int = 4096) -> float:
    """Measured rate of a square matrix product with all cores, in flop/s (median of 5, after a warm-up)."""
    A = np.random.default_rng(0).standard_normal((n, n), dtype=dtype)
    out = A @ A
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        np.matmul(A, A, out=out)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(seconds)


def skinny_flops(n: int, width: int, rows: int = 20_000) -> float:
    """Rate of the product that subspace methods are made of, (rows x n) times (n x width), float64, all cores, in flop/s."""
    rng = np.random.default_rng(0)
    A, W = rng.standard_normal((rows, n)), rng.standard_normal((n, width))
    out = A @ W
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        np.matmul(A, W, out=out)
        seconds.append(time.perf_counter() - start)
    return 2 * rows * n * width / statistics.median(seconds)


def measure_machine(bench: Bench) -> None:
    """The facts about this machine that every record of a run carries."""
    from dlscale.engine.machine import blas_kernels

    n = bench.pick(full=4096, quick=1024)
    model = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    bench.fact(
        cores=CORES,
        cpu=model[0] if model else platform.machine(),
        memory_bytes=psutil.virtual_memory().total,
        blas=blas_kernels(),
        matmul_f4_flops=matmul_flops("f4", n),
        matmul_f8_flops=matmul_flops("f8", n),
    )


MACHINE = Case("machine", "numpy", measure_machine, 300)


# ---- the parent: run a case, watch its processes


def sample_memory(
    process: subprocess.Popen[bytes], deadline: float
) -> tuple[list[tuple[float, int, int]], list[tuple[float, int, int]]]:
    """Watch a process tree until it ends or the deadline passes.

    Returns rows (time, bytes of the process itself, bytes of its descendants), for RSS every 0.2 s and for PSS every second: PSS
    counts shared pages once and is nearer the truth, but the kernel walks every page for it. Who computes on all cores is to notice
    as little as can be.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    root, tree, listed, weighed = psutil.Process(process.pid), [process.pid], 0.0, 0.0
    rss: list[tuple[float, int, int]] = []
    pss: list[tuple[float, int, int]] = []
    while process.poll() is None:
        now = time.monotonic()
        if now > deadline:
            raise TimeoutError
        if now - listed > 1:
            with contextlib.suppress(psutil.Error):
                tree, listed = [process.pid, *(child.pid for child in root.children(recursive=True))], now
        sizes = []
        for pid in tree:
            try:
                sizes.append(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page)
            except OSError:
                sizes.append(0)
        rss.append((now, sizes[0], sum(sizes[1:])))
        if now - weighed > 1:
            weighed, shares = now, []
            for pid in tree:
                try:
                    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                    shares.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")))
                except (OSError, StopIteration):
                    shares.append(0)
            pss.append((now, shares[0], sum(shares[1:])))
        time.sleep(SAMPLE_SECONDS)
    return rss, pss


def peak(rows: list[tuple[float, int, int]], marks: list[list[float]], *, subprocess_only: bool) -> int | None:
    """Largest footprint while on the clock; None where no sample fell on it."""
    inside = [(0 if subprocess_only else own) + rest for t, own, rest in rows if any(start <= t <= stop for start, stop in marks)]
    return max(inside) if inside else None


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a case that ran out of time, and everything it started."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    process.kill()
    process.wait()


def run_case(script: Path, item: Case, size: str, data: Path, limit: float) -> dict[str, Any]:
    """Run one case in a fresh process, watch it, and return its record with a verdict."""
    busy = psutil.cpu_percent(interval=0.5)  # of all cores, before the case starts: is somebody else using the machine?
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder) / "record.json", Path(folder) / "log.txt"
        command = [sys.executable, str(script), "--child", f"{item.group}/{item.library}", "--size", size, "--data", str(data)]
        with log.open("wb") as stream:
            process = subprocess.Popen([*command, "--answer", str(answer)], stdout=stream, stderr=subprocess.STDOUT)
        status, rss, pss = "ok", [], []
        try:
            rss, pss = sample_memory(process, time.monotonic() + limit)
        except TimeoutError:
            status = "timeout"
        finally:
            if process.poll() is None:
                end_tree(process)
        record: dict[str, Any] = json.loads(answer.read_text()) if answer.exists() else {}
        if status == "ok" and process.returncode != 0:
            status = "error"
            said = record.get("error") or log.read_text(errors="replace").strip()[-2000:]
            record["error"] = said or f"ended with exit status {process.returncode} and said nothing"
    marks, alone = record.pop("marks", []), record.pop("subprocess_only", False)
    record["peaks_rss_bytes"] = [peak(rss, [mark], subprocess_only=alone) for mark in marks]
    record["peak_rss_bytes"] = peak(rss, marks, subprocess_only=alone)
    record["peak_pss_bytes"] = peak(pss, marks, subprocess_only=alone)
    if "memory_limit_bytes" in record:
        record["checks"]["peak_memory_bytes"] = [record["peak_rss_bytes"] or 0, record["memory_limit_bytes"]]
    if "compare_peaks" in record and len(peaks := [p for p in record["peaks_rss_bytes"] if p]) > 1:
        record["facts"]["flatness"] = max(peaks) / peaks[0]
        record["checks"]["flatness"] = [max(peaks) / peaks[0], record["compare_peaks"]]
    wrong = [name for name, (value, bound) in record.get("checks", {}).items() if not value <= bound]
    if status == "ok" and wrong:
        status = "wrong"
    record |= {"status": status, "limit_seconds": limit, "busy_before_percent": busy}
    if status == "ok" and record["seconds"]:
        record["median_seconds"] = statistics.median(record["seconds"])
    return record


def child(item: Case, size: str, data: Path, answer: Path) -> int:
    """The case's own process."""
    bench = Bench(size, data, answer)
    try:
        item.function(bench)
    except Exception:
        bench.record["error"] = traceback.format_exc()[-2000:]
        raise
    finally:
        bench.save()
    return 0


def versions() -> dict[str, str]:
    """Versions of everything that is compared, as far as it is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def main() -> int:
    """Command line of a case file."""
    script = Path(sys.argv[0]).resolve()
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: does everything run and agree?")
    parser.add_argument("--only", default="", help="comma-separated parts of group/library names")
    parser.add_argument("--data", type=Path, default=HERE / "data", help="where generated matrices are kept")
    parser.add_argument("--limit", type=float, help="seconds after which a case is given up (default: the case's own)")
    parser.add_argument("--list", action="store_true", help="names of the cases, nothing is run")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--size", default="full", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.data.mkdir(parents=True, exist_ok=True)
    if arguments.child:
        item = next(c for c in [MACHINE, *CASES] if f"{c.group}/{c.library}" == arguments.child)
        return child(item, arguments.size, arguments.data, arguments.answer)

    words = [w for w in re.split(r",(?! )", arguments.only) if w]
    chosen = [c for c in CASES if not words or any(w in f"{c.group}/{c.library}" for w in words)]
    if arguments.list:
        print("\n".join(f"{c.group}/{c.library}" for c in chosen))
        return 0
    size = "quick" if arguments.quick else "full"
    output = (arguments.data if arguments.quick else HERE / "results") / f"{script.stem}.jsonl"
    output.parent.mkdir(exist_ok=True)
    run = time.strftime("%Y-%m-%dT%H:%M:%S")
    machine = run_case(script, MACHINE, size, arguments.data, MACHINE.limit)["facts"]
    records = []
    for item in chosen:
        record = run_case(script, item, size, arguments.data, arguments.limit or item.limit)
        record = {"group": item.group, "library": item.library, "size": size, "run": run} | record
        record |= {"machine": machine, "versions": versions()}
        with output.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        records.append(record)
        print(f"{item.group}/{item.library}: {outcome(record)}", flush=True)
    print("\n" + table(records))
    return 0 if all(r["status"] in ("ok", "timeout") for r in records) else 1


# ---- tables


def outcome(record: dict[str, Any]) -> str:
    """One line about one record."""
    if record["status"] == "error":
        return "error: " + record["error"].strip().splitlines()[-1][:160]
    if record["status"] == "timeout":
        return f"> {record['limit_seconds']:.0f} s (given up)"
    if record["status"] == "wrong":
        return "WRONG " + ", ".join(f"{k} {v:.2g} > {b:.2g}" for k, (v, b) in record["checks"].items() if not v <= b)
    facts = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in record["facts"].items()}
    checks = " ".join(f"{k}={v:.1e}" for k, (v, _) in record["checks"].items())
    return f"{record.get('median_seconds', float('nan')):.3f} s {checks} {facts}"


def newest(paths: list[Path]) -> list[dict[str, Any]]:
    """The last record of each case, in the order in which the cases first appear."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            record = json.loads(line)
            found[record["group"], record["library"]] = record
    return list(found.values())


REMARKS = {
    "fraction": "{:.2f} of the product rate",
    "gigabytes_per_second": "{:.2f} GB/s",
    "bound_seconds": "limit {:.2f} s",
    "bound_ratio": "{:.2f} x the limit",
    "share_done": "{:.0%} done",
    "extrapolated_seconds": "{:.0f} s for all rows, extrapolated",
    "part_of_reading": "{:.2f} of the speed of reading the file alone",
    "of_the_edge": "variances {:.3f} of the largest possible",
    "of_the_disk": "{:.2f} of the speed with all of it on the disk",
    "flatness": "peak {:.3f} x from smallest to largest",
}


def table(records: list[dict[str, Any]]) -> str:
    """A Markdown table: time, factor against dlscale in the same group, peak memory, accuracy."""

    def rows() -> Iterator[str]:
        yield "| problem | library | seconds | factor | peak memory | read | accuracy | remark |"
        yield "| --- | --- | ---: | ---: | ---: | ---: | --- | --- |"
        own = {r["group"]: r.get("median_seconds") for r in records if r["library"] == "dlscale"}
        for r in records:
            facts, late = r.get("facts", {}), r["status"] == "timeout"
            seconds = r.get("median_seconds") or (r["limit_seconds"] if late else None)
            shown = f"{'> ' if late else ''}{seconds:.2f}" if seconds else r["status"]
            base = own.get(r["group"])
            factor = f"{'> ' if late else ''}{seconds / base:.2f}" if seconds and base else ""
            memory = f"{r['peak_rss_bytes'] / 1e9:.2f} GB" if r.get("peak_rss_bytes") else ""
            read = f"{r['read_bytes'] / facts['stored_bytes']:.2f} x" if "stored_bytes" in facts and "read_bytes" in r else ""
            accuracy = ", ".join(f"{name} {value:.1e}" for name, (value, _) in list(r.get("checks", {}).items())[:1])
            remark = ", ".join(words.format(facts[name]) for name, words in REMARKS.items() if name in facts)
            yield f"| {r['group']} | {r['library']} | {shown} | {factor} | {memory} | {read} | {accuracy} | {remark} |"

    return "\n".join(rows())


if __name__ == "__main__":
    print(table(newest([Path(name) for name in sys.argv[1:]])))
