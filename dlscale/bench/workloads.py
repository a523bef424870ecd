"""The jobs whose scaling is measured: a matrix and a spec for each kind, in a size that grows with the workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlscale.batch.document import read_document
from dlscale.batch.generate import generate, parse_generate
from dlscale.errors import SpecError


@dataclass(frozen=True)
class Scale:
    """Which problem is simulated.

    Parameters
    ----------
    mode : str
        ``strong``: the same for any number of workers; ``weak``: work in proportion to them.
    size : float
        Of the problem that is traced, in usual ones.
    grow : float
        The problem that is simulated, in traced ones; with ``weak`` that of one worker.
    """

    mode: str
    size: float = 1.0
    grow: float = 1.0

    def factor(self, n_workers: int) -> float:
        """The problem of so many workers, in traced ones."""
        return self.grow * (n_workers if self.mode == "weak" else 1)


@dataclass(frozen=True)
class Workload:
    """A kind of job as the laboratory runs it.

    Parameters
    ----------
    shape : (m, n)
        For one worker.
    params : mapping
    power : float
        Work grows with this power of the rows when ``columns_grow``, else in proportion to the rows.
    columns_grow : bool
        Whether a larger problem has more columns too.
    chunks : (int, int), optional
        Of the stored matrix; what `dlscale generate` chooses when None.
    """

    shape: tuple[int, int]
    params: Mapping[str, Any]
    columns_grow: bool = False
    chunks: tuple[int, int] | None = None

    def grown(self, factor: float) -> tuple[int, int]:
        """The shape with so many times the work."""
        m, n = self.shape
        if not self.columns_grow:
            return max(n, int(m * factor)), n
        side = max(64, round(m * factor ** (1 / 3) / 64) * 64)
        return side, side


WORKLOADS: Mapping[str, Workload] = {
    "svd": Workload((100_000, 1000), {"n_components": 50, "power_iterations": 2}),
    "pca": Workload((100_000, 1000), {"n_components": 50, "solver": "covariance"}),
    "qr": Workload((400_000, 200), {}),
    # In chunks of few columns, so that each worker reads its own panels.
    "lu": Workload((4096, 4096), {}, columns_grow=True, chunks=(1024, 512)),
    "train": Workload((100_000, 512), {"epochs": 2, "batch_size": 2048}),
}


def workload(kind: str) -> Workload:
    """The workload of a kind (SpecError if the laboratory has none)."""
    if kind not in WORKLOADS:
        raise SpecError(f"--kinds: got {kind}; allowed: {', '.join(WORKLOADS)}.")
    return WORKLOADS[kind]


#: What kind train trains: a network of 0.8 million parameters.
_NETWORK = {"model": {"type": "mlp", "hidden": [512, 512]}, "loss": {"type": "squared"}, "optimizer": {"type": "adam"}}
_N_TARGETS = 16


def make_job(folder: Path, kind: str, factor: float, cluster: Any) -> dict[str, Any]:
    """The job file of a kind with so many times the usual work; its matrices are made once.

    A training of so many times the rows takes as many steps, each on a batch so many times as large.
    """
    job = workload(kind)
    m, n = job.grown(factor)
    more: dict[str, Any] = {"input": {"matrix": str(make_matrix(folder, (m, n), chunks=job.chunks))}, "params": dict(job.params)}
    if kind == "train":
        batch = max(1, round(job.params["batch_size"] * factor))
        inputs = {"features": str(make_matrix(folder, (m, n))), "targets": str(make_matrix(folder, (m, _N_TARGETS)))}
        more = {"input": inputs, "params": {**job.params, "batch_size": batch}, **_NETWORK}
    return {"kind": kind, "name": "bench", "cluster": cluster, **more}


def make_matrix(folder: Path, shape: tuple[int, int], *, chunks: tuple[int, int] | None = None) -> Path:
    """A matrix of this shape with slowly falling singular values, made once."""
    layout = {"chunks": [min(sides) for sides in zip(chunks, shape, strict=True)]} if chunks else {}
    path = folder / "-".join(f"{m}x{n}" for m, n in (shape, *layout.values()))
    path = path.with_name(f"matrix-{path.name}.zarr")
    if not path.exists():
        document = read_document({"shape": list(shape), "spectrum": "power:-0.5", "dtype": "f8", "cluster": "threads", **layout})
        generate(parse_generate(document), path)
    for file in path.rglob("*"):
        if file.is_file():
            file.read_bytes()  # what is in memory is read alike by all runs
    return path
