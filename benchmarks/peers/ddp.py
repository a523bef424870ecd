"""torch DistributedDataParallel: two processes, gloo, one thread each; the model, rows and batches of `train.py`.

python ddp.py FOLDER STEPS BATCH HIDDEN...      (prints a JSON line: seconds per step, losses)
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def work(rank: int, size: int, folder: str, n_steps: int, batch: int, hidden: list[int], port: int) -> None:
    """One rank: its half of every batch, SGD with the same rate."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    X = torch.from_numpy(np.load(Path(folder) / "X.npy", mmap_mode="r")[:].copy())
    y = torch.from_numpy(np.load(Path(folder) / "y.npy").astype(np.int64))
    first = np.load(Path(folder) / "parameters.npz")
    widths = [X.shape[1], *hidden, 10]
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        layer = nn.Linear(n_in, n_out)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(first[f"layer-{i}/weight"].T.copy()))
            layer.bias.copy_(torch.from_numpy(first[f"layer-{i}/bias"]))
        layers += [layer, nn.ReLU()]
    model = DistributedDataParallel(nn.Sequential(*layers[:-1]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loss_function = nn.CrossEntropyLoss()
    mine = batch // size
    losses, seconds = [], []
    for step in range(n_steps):
        start = (step * batch) % (len(X) - batch + 1)
        started = time.perf_counter()
        rows = slice(start + rank * mine, start + (rank + 1) * mine)
        optimizer.zero_grad()
        loss = loss_function(model(X[rows]), y[rows])
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
        losses.append(loss.item())
    mean = torch.tensor(losses)
    dist.all_reduce(mean)
    if rank == 0:
        print(json.dumps({"seconds": seconds, "losses": (mean / size).tolist()}))
    dist.destroy_process_group()


if __name__ == "__main__":
    folder, steps, batch, *hidden = sys.argv[1:]
    mp.spawn(work, (2, folder, int(steps), int(batch), [int(h) for h in hidden], 29533), nprocs=2)
