"""Training: a network on two ranks beside torch DistributedDataParallel, allreduce beside the raw call, regressions, streaming.

The peer needs torch (``pip install torch``), found by the interpreter named in DLSCALE_TORCH_PYTHON, else by this one. All times
are of one thread a process. Streaming reads features from the disk that do not fit in the memory that it may use.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Bench, case

NETWORK, BUCKETS, REGRESSION, STREAM = "MLP 784-1024-1024-10", "allreduce of 25 MB", "logistic regression", "streamed softmax"
HIDDEN = (1024, 1024)
PEERS = Path(__file__).parent / "peers"
LIMIT_BYTES = 2 * 10**9


def _rows(bench: Bench) -> Path:
    """Rows, labels and first parameters that both sides read."""
    folder = bench.data / "train"
    if not (folder / "parameters.npz").exists():
        from dlscale.learn.models.model import model

        folder.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(0)
        np.save(folder / "X.npy", generator.standard_normal((4096, 784)).astype("f4"))
        np.save(folder / "y.npy", generator.integers(0, 10, 4096).astype("f4"))
        first = model("mlp", hidden=HIDDEN).initialize(784, 10, rng=np.random.default_rng(0), dtype=np.dtype("f4"))
        np.savez(folder / "parameters.npz", **first)
    return folder


def _run(*command: Any) -> dict[str, Any]:
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    record: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return record


def _on_ranks(*arguments: Any) -> dict[str, Any]:
    mpirun = Path(sys.executable).with_name("mpirun")
    return _run(mpirun if mpirun.exists() else "mpirun", "-n", 2, sys.executable, PEERS / "ranks.py", *arguments)


def _steps(bench: Bench) -> tuple[Any, ...]:
    return ("steps", _rows(bench), bench.pick(full=120, quick=20), 512, *HIDDEN)


def _judge(bench: Bench, record: dict[str, Any]) -> None:
    """The median step after a quarter for warming up; both sides must have learned the same."""
    seconds = record["seconds"][len(record["seconds"]) // 4 :]
    bench.record["seconds"] = seconds
    bench.fact(samples_per_second=512 / statistics.median(seconds), last_loss=record["losses"][-1])
    bench.check("first_loss", abs(record["losses"][0] - 2.9172796), 1e-4)
    bench.check("loss_rose", record["losses"][-1] / record["losses"][0], 1.0)


@case(NETWORK, "dlscale, 2 ranks")
def ours(bench: Bench) -> None:
    """Gradients reduced while backpropagation goes on."""
    record = bench.time(lambda: _on_ranks(*_steps(bench)), subprocess_only=True)
    _judge(bench, record)
    hidden = 1 - record["exposed_per_step"] / record["communicate_per_step"]
    # At least this, where waiting for a late rank counts as communication, hidden or not.
    waited = record["wait_per_step"]
    least = 1 - (record["exposed_per_step"] + waited) / (record["communicate_per_step"] + waited)
    bench.fact(
        communicate_per_step=record["communicate_per_step"],
        wait_per_step=waited,
        hidden_share=hidden,
        hidden_share_with_waits=least,
    )


@case(NETWORK, "dlscale, 2 ranks, no overlap")
def late(bench: Bench) -> None:
    """The same, reduced after backpropagation."""
    record = bench.time(lambda: _on_ranks(*_steps(bench), "--late"), subprocess_only=True)
    _judge(bench, record)
    bench.fact(communicate_per_step=record["communicate_per_step"], hidden_share=0.0)


@case(NETWORK, "torch DDP, 2 processes")
def torch(bench: Bench) -> None:
    """DistributedDataParallel over gloo."""
    python = os.environ.get("DLSCALE_TORCH_PYTHON", sys.executable)
    record = bench.time(lambda: _run(python, PEERS / "ddp.py", *_steps(bench)[1:]), subprocess_only=True)
    _judge(bench, record)


@case(BUCKETS, "dlscale beside the raw call")
def bandwidth(bench: Bench) -> None:
    """Checked collectives, blocking and started, in turns with MPI's own."""
    record = bench.time(lambda: _on_ranks("bandwidth"), subprocess_only=True)
    rates = record["bytes_per_second"]
    bench.fact(**rates, ours_share=rates["ours"] / rates["raw"], started_share=rates["started"] / rates["raw"])


def _regression(bench: Bench) -> tuple[np.ndarray, np.ndarray]:
    m, n = bench.pick(full=(200_000, 100), quick=(5_000, 20))
    generator = np.random.default_rng(0)
    X = generator.standard_normal((m, n))
    y = (X @ generator.standard_normal(n) + generator.standard_normal(m) > 0).astype(float)
    bench.fact(shape=[m, n])
    return X, y


def _optimal(bench: Bench, X: np.ndarray, y: np.ndarray, w: np.ndarray, b: float) -> None:
    """The gradient of ``mean loss + ||w||^2 / (2 n)`` at the answer."""
    residual = 1 / (1 + np.exp(-(X @ w + b))) - y
    bench.check("gradient", float(np.abs(X.T @ residual / len(X) + w / len(X)).max()), 1e-4)


@case(REGRESSION, "dlscale")
def our_regression(bench: Bench) -> None:
    """A job with L-BFGS in this process."""
    import tempfile

    import dlscale
    from dlscale.storage.importers import import_matrix

    X, y = _regression(bench)
    with tempfile.TemporaryDirectory() as folder:
        for name, array in (("X", X), ("y", y[:, None])):
            np.save(f"{folder}/{name}.npy", array)
            import_matrix(f"{folder}/{name}.npy", f"{folder}/{name}.zarr")
        spec = {
            "kind": "train",
            "cluster": "threads",
            "input": {"features": f"{folder}/X.zarr", "targets": f"{folder}/y.zarr"},
            "model": {"type": "logistic"},
            "optimizer": {"type": "lbfgs", "tolerance": 1e-6},
            "regularization": {"l2": 1 / len(X)},
            "params": {"epochs": 200},
        }
        result = bench.time(lambda: dlscale.run(spec, workspace=folder), repeats=3)
        arrays = result.open()
        w, b = np.asarray(arrays["parameters/layer-0/weight"])[:, 0], float(np.asarray(arrays["parameters/layer-0/bias"])[0])
    _optimal(bench, X, y, w, b)


@case(REGRESSION, "scikit-learn")
def scikit_learn(bench: Bench) -> None:
    """LogisticRegression with lbfgs, on one thread."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    X, y = _regression(bench)
    with threadpool_limits(1):
        found = bench.time(lambda: LogisticRegression(C=1.0, tol=1e-7, max_iter=1000).fit(X, y), repeats=3)
    _optimal(bench, X, y, found.coef_[0], float(found.intercept_[0]))


@case(REGRESSION, "dask-ml")
def dask_ml(bench: Bench) -> None:
    """dask_ml.linear_model.LogisticRegression, lbfgs, on the threaded scheduler."""
    import dask
    import dask.array as da
    from dask_ml.linear_model import LogisticRegression

    X, y = _regression(bench)
    blocks = [da.from_array(array, chunks=(len(X) // 2, *array.shape[1:])) for array in (X, y)]
    with dask.config.set(scheduler="threads", num_workers=2):
        found = bench.time(
            lambda: LogisticRegression(solver="lbfgs", C=1.0, tol=1e-7, max_iter=200).fit(*blocks),
            repeats=bench.pick(full=2, quick=1),
        )
    _optimal(bench, X, y, found.coef_, float(found.intercept_))


def _features(bench: Bench, megabytes: int) -> Path:
    """A store of so much, and a class for each row."""
    from dlscale.storage.writers import Layout, create_array

    folder = bench.data / f"stream-{megabytes}"
    if (folder / "done").exists():
        return folder
    chunk_rows, n_columns = 5344, 784
    n_chunks = megabytes * 10**6 // (chunk_rows * n_columns * 4)
    generator = np.random.default_rng(0)
    block = generator.standard_normal((chunk_rows, n_columns)).astype("f4")
    n_rows = n_chunks * chunk_rows
    features = create_array(folder / "X.zarr", Layout((n_rows, n_columns), "f4", (chunk_rows, n_columns)), overwrite=True)
    for i in range(n_chunks):
        features.write(i * chunk_rows, np.roll(block, i % 97, axis=0))
    targets = create_array(folder / "y.zarr", Layout((n_rows, 1), "f4", (n_rows, 1)), overwrite=True)
    targets.write(0, generator.integers(0, 10, (n_rows, 1)).astype("f4"))
    (folder / "done").touch()
    return folder


def _read_past_the_cache(store: Path) -> int:
    """Read the chunk files with two threads and nothing else: what the disk gives; returns the bytes read."""
    files = sorted(path for path in store.rglob("*") if path.is_file() and path.name != "zarr.json")

    def read(mine: list[Path]) -> int:
        # NumPy asks for large pages, which a disk fills faster.
        room, total = np.empty(32 * 2**20, np.uint8), 0
        page = room[-room.ctypes.data % 4096 :][: 24 * 2**20]
        for path in mine:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
            total += os.preadv(handle, [memoryview(page)], 0)
            os.close(handle)
        return total

    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(read, [files[i::2] for i in range(2)]))


def _stream(bench: Bench, folder: Path, *more: str) -> dict[str, Any]:
    """An epoch of softmax regression on two ranks."""
    record = bench.time(lambda: _on_ranks("stream", folder, *more), subprocess_only=True)
    bench.record["seconds"] = record["epoch_seconds"]
    record["gigabytes_per_second"] = record["feature_bytes"] / statistics.median(record["epoch_seconds"]) / 1e9
    bench.fact(**record)
    return record


@case(STREAM, "dlscale, 20 GB from the disk")
def streamed(bench: Bench) -> None:
    """More than the memory that a rank may use, from a cold start; beside it the disk's own rate."""
    folder = _features(bench, bench.pick(full=20_000, quick=500))
    rates = []
    for _ in range(2):
        harness.forget(folder / "X.zarr")
        started = time.perf_counter()
        n_bytes = _read_past_the_cache(folder / "X.zarr")
        rates.append(n_bytes / (time.perf_counter() - started) / 1e9)
        if len(rates) == 1:
            record = _stream(bench, folder)
    bench.fact(raw_gigabytes_per_second=rates, share_of_disk=record["gigabytes_per_second"] / statistics.mean(rates))
    bench.check("rank_memory", max(record["peak_bytes"]) / LIMIT_BYTES, 1.0)


@case(STREAM, "dlscale, 1 GB in memory")
def in_memory(bench: Bench) -> None:
    """The same code on rows that every rank has in an array."""
    _stream(bench, _features(bench, bench.pick(full=1_000, quick=100)), "--in-memory")


if __name__ == "__main__":
    raise SystemExit(harness.main())
