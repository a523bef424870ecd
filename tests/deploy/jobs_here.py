"""Small jobs for the deployments, and commands that run them."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml
import zarr

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"

#: This dlscale, and this Python's commands (dask, dlscale), wherever the tests are started.
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def job_file(folder: Path, **more: Any) -> Path:
    """An SVD of many short passes."""
    matrix = folder / "A.zarr"
    if not matrix.exists():
        A = np.random.default_rng(0).standard_normal((20_000, 40)) * np.arange(1, 41) ** -0.5
        zarr.create_array(matrix, shape=A.shape, dtype="f8", chunks=(1000, 40), compressors=None)[:] = A
    params = {"n_components": 6, "power_iterations": 24, "block_rows": 2500}
    spec = {"kind": "svd", "input": {"matrix": str(matrix)}, "params": params, **more}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def command(*arguments: str | Path, cwd: Path, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*map(str, arguments)], env=ENVIRONMENT | environment, cwd=cwd, capture_output=True, text=True, timeout=timeout
    )


def free_ports(n: int) -> list[int]:
    """Of those that the system gives to no connection, so that they stay free until somebody listens there."""
    with ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < n:
            with suppress(OSError):
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", random.SystemRandom().randrange(20_000, 32_000)))
                ports.append(probe.getsockname()[1])
        return ports


def arrays(result: Path) -> dict[str, bytes]:
    """The bits of a result."""
    group = zarr.open_group(result, mode="r")
    return {name: np.asarray(array[:]).tobytes() for name, array in group.arrays()}
