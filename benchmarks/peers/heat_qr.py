"""heat's QR of a square matrix under MPI: `mpirun -n RANKS python heat_qr.py N SPLIT MODE THREADS`; prints one JSON line."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
import types
from typing import Any


class _Absent(types.ModuleType):
    """A module of empty classes."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _import_heat() -> Any:
    # heat imports torchvision for its image folders; where that is absent, QR needs nothing of it.
    if importlib.util.find_spec("torchvision") is None:
        for name in ("torchvision", "torchvision.transforms", "torchvision.datasets"):
            sys.modules[name] = _Absent(name)
        sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
        sys.modules["torchvision"].datasets = sys.modules["torchvision.datasets"]
    import heat

    return heat


def main() -> None:
    """Time one factorization, check it, and print."""
    n, split, mode, threads = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    heat = _import_heat()
    heat.random.seed(0)
    A = heat.random.randn(n, n, dtype=heat.float64, split=None if split == "none" else int(split))
    heat.get_comm().Barrier()
    start = time.perf_counter()
    q, r = heat.linalg.qr(A, mode=mode)
    heat.get_comm().Barrier()
    seconds = time.perf_counter() - start
    record = {"seconds": seconds, "version": heat.__version__}
    if mode == "reduced":
        # heat's own product with a narrow matrix that is split fails (1.8.0): the factors are gathered.
        A, q, r = A.numpy(), q.numpy(), r.numpy()
        x = np.random.default_rng(0).standard_normal((n, 4))
        size = float(np.linalg.norm(A) * np.linalg.norm(x))
        record["backward_error"] = float(np.linalg.norm(A @ x - q @ (r @ x))) / size
        record["orthogonality"] = float(np.linalg.norm(q.T @ (q @ x) - x) / np.linalg.norm(x))
    if heat.get_comm().rank == 0:
        print(json.dumps(record))


if __name__ == "__main__":
    main()
