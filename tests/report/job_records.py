"""Job records for the report's tests: real decompositions of small matrices with the events of a plausible run."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from dlscale.engine.events import Event, MemoryTaken, Saved, StateChanged, StepFinished, StepStarted, WorkDone
from dlscale.report.record import JobRecord

START = 1_786_500_000.0


def plan(kind: str, shape: tuple[int, int], steps: list[str], *, algorithm: str = "randomized") -> dict[str, Any]:
    m, n = shape
    passes = [{"id": step, "where": "workers", "flops": 7.4e9, "bytes_read": 1_100_000_000, "bytes_written": 0} for step in steps]
    return {
        "kind": kind,
        "words": algorithm,
        "matrix": {
            "uri": "data/photos.zarr",
            "shape": [m, n],
            "dtype": "float64",
            "stored_dtype": "uint8",
            "stored_bytes": m * n,
            "notes": [],
        },
        "grids": {"rows": {"n_rows": m, "block_rows": 4096, "leaf_rows": 16384}, "panels": None},
        "steps": passes,
        "memory": [{"what": "blocks", "n_bytes": 600_000_000}, {"what": "6 partial results", "n_bytes": 300_000_000}],
        "peak_bytes_per_worker": 900_000_000,
        "memory_limit_bytes": 2_000_000_000,
        "n_workers": 2,
        "threads_per_worker": 2,
        "expected_seconds": 11.0,
        "rates": {"matmul_flops_per_second": 4.1e9, "read_bytes_per_second": 8.0e8},
        "notes": ["One pass is one read of the matrix."],
    }


def run_events(steps: list[str], *, start: float = START, seconds: float = 2.6, seed: int = 1) -> list[Event]:
    """Events of a run whose passes read fast and compute near the limit, four block events a second on two workers."""
    rng = np.random.default_rng(seed)
    events: list[Event] = [StateChanged("running", time=start)]
    now = start + 0.4
    for i, step in enumerate(steps):
        events.append(StepStarted(step, 9e9, 900_000_000, time=now))
        ticks = np.arange(0.25, seconds, 0.25)
        read = rng.uniform(0.55, 0.95, len(ticks)) * 2e8 * (1 if i % 2 else 0.55)
        work = rng.uniform(0.75, 0.97, len(ticks)) * 1.0e9 * (1 if i % 2 == 0 else 0.6)
        for tick, b, f, worker in zip(ticks, read, work, itertools.cycle(["0", "1"]), strict=False):
            events.append(WorkDone(step, worker, rows=4096, bytes=int(b), flops=f, time=now + tick))
        now += seconds
        events.append(StepFinished(step, seconds, bytes_read=int(read.sum()), flops=work.sum(), time=now))
        events.append(Saved(step, 320_000, 0.015, time=now + 0.02))
        now += 0.1
    for tick in np.arange(0.0, now - start, 1.0):
        for process, base, swing in (("driver", 1.6e8, 0), ("0", 3.4e8, 5e8), ("1", 3.2e8, 5e8)):
            rss = base + swing * (1 - np.exp(-tick / 2)) * rng.uniform(0.9, 1.0)
            events.append(MemoryTaken(process, int(rss), time=start + tick))
    events.append(StateChanged("certifying", time=now + 0.2))
    events.append(StateChanged("succeeded", time=now + 0.6))
    return sorted(events, key=lambda event: event.time)


def certificate(*values: float | None) -> dict[str, Any]:
    meanings = (
        ("||I - V'V|| / (k eps)", "The components are at right angles to each other and of length one, to working precision."),
        ("||A V - U S|| / (||A|| max(m, n) eps)", "Multiplying the matrix by its components gives what the answer says it gives."),
        (
            "| ||A||² - Σs² - ||rest||² | / (||A||² m eps)",
            "The variance that is explained and the variance that is left add up to the whole.",
        ),
    )
    checks = [
        {"name": name, "value": value, "threshold": 30.0, "passed": value is not None and value <= 30.0, "meaning": meaning}
        for (name, meaning), value in zip(meanings, values, strict=False)
    ]
    return {"passed": all(check["passed"] for check in checks), "checks": checks}


def pca_record(patches: np.ndarray, *, image_shape: tuple[int, ...] | None, **changes: Any) -> JobRecord:
    """A PCA of `patches` (rows, columns) by NumPy."""
    mean = patches.mean(axis=0)
    _, s, vh = np.linalg.svd(patches - mean, full_matrices=False)
    variance, k = s**2 / (len(patches) - 1), min(32, len(s))
    steps = ["column statistics", "sketch", "power-1", "power-2", "project"]
    fields: dict[str, Any] = {
        "id": "20260812-1403-photo-pca-7f3a",
        "name": "Principal patches of two photographs",
        "kind": "pca",
        "state": "succeeded",
        "spec": {
            "kind": "pca",
            "name": "Principal patches of two photographs",
            "input": {"matrix": "data/photos.zarr"},
            "params": {"n_components": k, "solver": "randomized", "power_iterations": 2, "seed": 0},
            "cluster": {"type": "local", "workers": 2, "threads": 2, "memory": "4GB"},
        },
        "plan": plan("pca", patches.shape, steps, algorithm="randomized, 2 power iterations, 10 extra directions"),
        "certificate": certificate(0.41, 2.3e-3, 6.1),
        "estimates": {
            "frobenius_error": float(np.linalg.norm(s[k:])),
            "singular_value_errors": list(1e-9 * s[:k] * np.geomspace(1, 1e6, k)),
        },
        "notes": ["uint8 entries were converted to float64 while they were read."],
        "seconds": 14.6,
        "events": run_events(steps),
        "arrays": {
            "components": vh[:k],
            "explained_variance": variance[:k],
            "explained_variance_ratio": variance[:k] / variance.sum(),
            "singular_values": s[:k],
            "mean": mean,
        },
        "machine": {
            "cluster": "local",
            "n_workers": 2,
            "threads_per_worker": 2,
            "memory_bytes": 4_000_000_000,
            "cpu": "x86-64, 4 cores",
        },
        "versions": {"dlscale": "0.1.0", "python": "3.12.3", "numpy": "2.4.1", "dask": "2026.8.0", "zarr": "3.1.6"},
        "image_shape": image_shape,
        "memory_limit_bytes": 4_000_000_000,
        "result": "results/photos.zarr",
    }
    return JobRecord(**fields | changes)


def svd_record(**changes: Any) -> JobRecord:
    """An SVD with the spectrum 1 / i and error bars that can be seen."""
    rng = np.random.default_rng(0)
    k, n = 20, 300
    s = 40.0 / np.arange(1, k + 1)
    vh = np.linalg.qr(np.cumsum(rng.standard_normal((n, k)), axis=0))[0].T
    steps = ["sketch", "power-1", "project"]
    fields: dict[str, Any] = {
        "id": "20260812-1511-spectrum-11bc",
        "name": "Slow spectrum",
        "kind": "svd",
        "state": "succeeded",
        "spec": {"kind": "svd", "input": {"matrix": "data/slow.zarr"}, "params": {"n_components": k}},
        "plan": plan("svd", (2_000_000, n), steps),
        "certificate": certificate(0.8, 3.0),
        "estimates": {"frobenius_error": 12.3, "singular_value_errors": list(0.002 * np.arange(1, k + 1) ** 1.6)},
        "seconds": 8.9,
        "events": run_events(steps),
        "arrays": {"s": s, "vh": vh},
        "machine": {"cluster": "tcp://scheduler:8786", "n_workers": 2},
        "versions": {"dlscale": "0.1.0"},
    }
    return JobRecord(**fields | changes)


def qr_record(**changes: Any) -> JobRecord:
    """A QR of a matrix with graded columns."""
    rng = np.random.default_rng(0)
    r = np.linalg.qr(rng.standard_normal((400, 60)) * np.geomspace(1, 1e-9, 60))[1]
    fields: dict[str, Any] = {
        "id": "20260812-1602-graded-90aa",
        "name": "Graded columns",
        "kind": "qr",
        "state": "succeeded",
        "spec": {"kind": "qr", "input": {"matrix": "data/graded.zarr"}, "params": {"mode": "r"}},
        "plan": plan("qr", (4_000_000, 60), ["tsqr"], algorithm="TSQR"),
        "certificate": certificate(0.2, 1.4),
        "seconds": 3.4,
        "events": run_events(["tsqr"]),
        "arrays": {"r": r},
    }
    return JobRecord(**fields | changes)
