"""dlscale's training step on the ranks of mpirun, and its collectives beside the raw MPI call.

mpirun -n 2 python ranks.py steps FOLDER STEPS BATCH HIDDEN...   (a JSON line: seconds per step, losses, hidden share)
mpirun -n 2 python ranks.py bandwidth                            (a JSON line: bytes per second, ours and raw)
mpirun -n 2 python ranks.py stream FOLDER [--in-memory]          (a JSON line: seconds of an epoch, peak memory of each rank)
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from dlscale.engine.clusters.lost_workers import peak_bytes
from dlscale.engine.ranks import Communicator, MPICommunicator
from dlscale.engine.ranks.communicator import import_mpi
from dlscale.kernels import one_blas_thread
from dlscale.learn.models.model import model
from dlscale.learn.optimizers.first_order import optimizer
from dlscale.learn.training.data import Column, plan_order
from dlscale.learn.training.gradients import RankGradients
from dlscale.learn.training.shards import Shard, Share
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import ArrayMatrix


def steps(
    communicator: Communicator, folder: Path, n_steps: int, batch: int, hidden: list[int], *, overlap: bool
) -> dict[str, object]:
    """The same rows in the same batches as the peer; without overlap, the gradients are reduced after backpropagation."""
    rank, size = communicator.rank, communicator.size
    X, y = np.load(folder / "X.npy"), np.load(folder / "y.npy")
    network = model("mlp", hidden=hidden)
    with np.load(folder / "parameters.npz") as first:
        parameters = {name: first[name].copy() for name in first.files}
    source, rule = RankGradients(communicator, network, parameters), optimizer("sgd")
    mine = batch // size
    losses, seconds = [], []
    for step in range(n_steps):
        if step == n_steps // 4:
            source.seconds.communicate = source.seconds.exposed = source.seconds.wait = 0.0
        start = (step * batch) % (len(X) - batch + 1) + rank * mine
        rows = slice(start, start + mine)
        started = time.perf_counter()
        share = Share(X[rows], y[rows], None, float(batch), np.arange(mine))
        reduction = source.start(parameters, share) if overlap else source.start_late(parameters, share)
        for name in reduction.names():
            rule.step(name, parameters[name], reduction.gradient(name), [], 0.05, step + 1)
        losses.append(reduction.loss())
        seconds.append(time.perf_counter() - started)
    spent = source.seconds
    return {
        "seconds": seconds,
        "losses": losses,
        "communicate_per_step": spent.communicate / (n_steps - n_steps // 4),
        "exposed_per_step": spent.exposed / (n_steps - n_steps // 4),
        "wait_per_step": spent.wait / (n_steps - n_steps // 4),
    }


def bandwidth(communicator: Communicator) -> dict[str, object]:
    """Allreduce of 25 MB: ours (checked, started and awaited) and the raw call, in turns."""
    MPI = import_mpi()
    comm, array = MPI.COMM_WORLD, np.ones(25 * 2**20 // 4, np.float32)
    ours, started_ours, raw = [], [], []
    for _ in range(60):
        comm.Barrier()
        started = time.perf_counter()
        comm.Allreduce(MPI.IN_PLACE, array)
        raw.append(time.perf_counter() - started)
        array[:] = 1
        comm.Barrier()
        started = time.perf_counter()
        communicator.allreduce(array, name="bucket")
        ours.append(time.perf_counter() - started)
        array[:] = 1
        comm.Barrier()
        started = time.perf_counter()
        communicator.start_allreduce(array, name="bucket").wait()
        started_ours.append(time.perf_counter() - started)
        assert array[0] == communicator.size
        array[:] = 1
    rates = {
        name: array.nbytes / float(np.median(found)) for name, found in (("raw", raw), ("ours", ours), ("started", started_ours))
    }
    return {"bytes_per_second": rates}


def stream(communicator: Communicator, folder: Path, *, in_memory: bool) -> dict[str, object]:
    """An epoch of softmax regression over stored rows, in batches of 8,192; of rows in memory, three after one to warm up."""
    features, targets = open_matrix(str(folder / "X.zarr")), open_matrix(str(folder / "y.zarr"))
    if in_memory:
        features = ArrayMatrix(features.read(0, features.shape[0]))
    order = plan_order(features, batch_size=8192, seed=0, memory_bytes=600 * 10**6)
    shard = Shard(features, Column(targets), weights=None, order=order, communicator=communicator, dtype=np.dtype(np.float32))
    network, rule = model("softmax"), optimizer("sgd")
    parameters = network.initialize(784, 10, rng=np.random.default_rng(0), dtype=np.dtype("f4"))
    source = RankGradients(communicator, network, parameters)
    step, seconds = 0, []
    for epoch in range(4 if in_memory else 1):
        communicator.barrier("an epoch begins")
        started, waited = time.perf_counter(), 0.0
        shares = shard.shares(epoch)
        while True:
            before = time.perf_counter()
            share = next(shares, None)
            waited += time.perf_counter() - before
            if share is None:
                break
            reduction = source.start(parameters, share)
            step += 1
            for name in reduction.names():
                rule.step(name, parameters[name], reduction.gradient(name), [], 0.05, step)
        communicator.barrier("an epoch has ended")
        seconds.append(time.perf_counter() - started)
    shard.close()
    peak = peak_bytes(os.getpid())
    table = communicator.allgather(np.array([float(peak), waited]), name="facts of all ranks")
    return {
        "epoch_seconds": seconds[1:] or seconds,
        "peak_bytes": table[:, 0].tolist(),
        "read_seconds": table[:, 1].tolist(),
        "feature_bytes": features.n_bytes,
    }


if __name__ == "__main__":
    communicator = MPICommunicator() if "--alone" not in sys.argv else Communicator()
    what, *rest = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    with one_blas_thread():
        if what == "bandwidth":
            record = bandwidth(communicator)
        elif what == "stream":
            record = stream(communicator, Path(rest[0]), in_memory="--in-memory" in sys.argv)
        else:
            folder, n_steps, batch, *hidden = rest
            record = steps(
                communicator, Path(folder), int(n_steps), int(batch), [int(h) for h in hidden], overlap="--late" not in sys.argv
            )
    if communicator.rank == 0:
        print(json.dumps(record))
